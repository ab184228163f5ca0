// CUDA's intrinsics over shim.h's barrier and collectives, and the project's own wrappers of PTX (kernels/device.cuh).
#pragma once

// ---- barriers

inline void __syncthreads(int line = __builtin_LINE()) { shim::barrier("__syncthreads", line, 0); }
inline int __syncthreads_count(int p, int line = __builtin_LINE()) { return shim::barrier("__syncthreads_count", line, p).count; }
inline int __syncthreads_or(int p, int line = __builtin_LINE()) { return shim::barrier("__syncthreads_or", line, p).count != 0; }
inline int __syncthreads_and(int p, int line = __builtin_LINE()) { return shim::barrier("__syncthreads_and", line, p).all; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    shim::collective("__syncwarp", mask, nullptr, [](shim::Records &, unsigned) {});
}
// Blocks run one after another on one OS thread: memory is always in order.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- shuffles, votes and reductions of a warp

namespace shim {

template <class T> T shuffle(const char *what, unsigned mask, T value, unsigned source) {
    struct Record {
        T value, result;
        unsigned source;
    } mine{value, value, source};
    collective(what, mask, &mine, [](Records &records, unsigned lanes) {
        for (unsigned left = lanes; left; left &= left - 1) {
            Record &record = *static_cast<Record *>(records[__builtin_ctz(left)]);
            if (!(lanes >> record.source & 1)) fail("lane %d shuffles from lane %u, which is not there", __builtin_ctz(left), record.source);
            record.result = static_cast<Record *>(records[record.source])->value;
        }
    });
    return mine.result;
}

// `T combine(T, T)` over all lanes' values, lowest lane first.
template <class T, class Combine> T reduce(const char *what, unsigned mask, T value, Combine) {
    collective(what, mask, &value, [](Records &records, unsigned lanes) {
        T total = *static_cast<T *>(records[__builtin_ctz(lanes)]);
        for (unsigned left = lanes & (lanes - 1); left; left &= left - 1)
            total = Combine()(total, *static_cast<T *>(records[__builtin_ctz(left)]));
        for (unsigned left = lanes; left; left &= left - 1) *static_cast<T *>(records[__builtin_ctz(left)]) = total;
    });
    return value;
}

inline unsigned ballot(const char *what, unsigned mask, bool predicate) {
    return reduce(what, mask, predicate ? 1u << lane() : 0u, [](unsigned a, unsigned b) { return a | b; });
}

} // namespace shim

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return shim::shuffle("__shfl_sync", mask, value, (shim::lane() & -width) | (source & (width - 1)));
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned lane = shim::lane();
    return shim::shuffle("__shfl_up_sync", mask, value, (lane & (width - 1)) < delta ? lane : lane - delta);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    unsigned lane = shim::lane();
    return shim::shuffle("__shfl_down_sync", mask, value, (lane & (width - 1)) + delta >= unsigned(width) ? lane : lane + delta);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    unsigned lane = shim::lane(), source = lane ^ bits;
    return shim::shuffle("__shfl_xor_sync", mask, value, source > (lane | (width - 1)) ? lane : source);
}
inline unsigned __ballot_sync(unsigned mask, int p) { return shim::ballot("__ballot_sync", mask, p); }
inline int __any_sync(unsigned mask, int p) { return shim::ballot("__any_sync", mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return shim::ballot("__all_sync", mask, !p) == 0; }
#define SHIM_REDUCE(name, T, expression)                                                                                      \
    inline T name(unsigned mask, T value) { return shim::reduce(#name, mask, value, [](T a, T b) -> T { return expression; }); }
SHIM_REDUCE(__reduce_add_sync, int, int(unsigned(a) + unsigned(b)))
SHIM_REDUCE(__reduce_add_sync, unsigned, a + b)
SHIM_REDUCE(__reduce_max_sync, int, a > b ? a : b)
SHIM_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
SHIM_REDUCE(__reduce_min_sync, int, a < b ? a : b)
SHIM_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
SHIM_REDUCE(__reduce_or_sync, unsigned, a | b)
SHIM_REDUCE(__reduce_and_sync, unsigned, a & b)
#undef SHIM_REDUCE

// ---- memory

template <class T> T __ldg(const T *p) { return *p; }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> void __stcg(T *p, T value) { *p = value; }
template <class T> void __stcs(T *p, T value) { *p = value; }

// `T atomicX(T *address, T operand)`: stores the expression over `old` and `operand`, gives `old`.
#define SHIM_ATOMIC(name, expression)                                                                                         \
    template <class T> T name(T *address, std::type_identity_t<T> operand) {                                                  \
        T old = *address;                                                                                                     \
        *address = expression;                                                                                                \
        return old;                                                                                                           \
    }
SHIM_ATOMIC(atomicAdd, old + operand)
SHIM_ATOMIC(atomicSub, old - operand)
SHIM_ATOMIC(atomicMax, old > operand ? old : operand)
SHIM_ATOMIC(atomicMin, old < operand ? old : operand)
SHIM_ATOMIC(atomicOr, old | operand)
SHIM_ATOMIC(atomicAnd, old &operand)
SHIM_ATOMIC(atomicExch, operand)
SHIM_ATOMIC(atomicInc, old >= operand ? 0 : old + 1)
#undef SHIM_ATOMIC
template <class T> T atomicCAS(T *address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    T old = *address;
    if (old == expected) *address = value;
    return old;
}

// ---- bits and integers

namespace shim {
template <class To, class From> To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace shim

inline unsigned __float_as_uint(float x) { return shim::bits<unsigned>(x); }
inline int __float_as_int(float x) { return shim::bits<int>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits<float>(x); }
inline float __int_as_float(int x) { return shim::bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }

inline int __dp4a(int a, int b, int c) {
    unsigned sum = c;
    for (int i = 0; i < 32; i += 8) sum += int8_t(a >> i) * int8_t(b >> i);
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += uint8_t(a >> i) * uint8_t(b >> i);
    return c;
}

// PTX's prmt: a selector's low three bits choose one of the eight bytes, its fourth spreads that byte's sign instead.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
    uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned selector = selectors >> 4 * i & 15, byte = bytes >> 8 * (selector & 7) & 255;
        if (selector & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << 8 * i;
    }
    return result;
}

#define SHIM_MIN_MAX(T, A, B)                                                                                                 \
    inline T min(A a, B b) { T x = a, y = b; return x < y ? x : y; }                                                          \
    inline T max(A a, B b) { T x = a, y = b; return x > y ? x : y; }
SHIM_MIN_MAX(int, int, int)
SHIM_MIN_MAX(unsigned, unsigned, unsigned)
SHIM_MIN_MAX(unsigned, int, unsigned)
SHIM_MIN_MAX(unsigned, unsigned, int)
SHIM_MIN_MAX(long, long, long)
SHIM_MIN_MAX(unsigned long, unsigned long, unsigned long)
SHIM_MIN_MAX(long long, long long, long long)
SHIM_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
#undef SHIM_MIN_MAX

// ---- floating point: each operation rounded once, to nearest even

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return __builtin_sqrt(a); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

namespace shim {
// As the GPU converts: not-a-number to 0, and what no int holds to the nearest one.
inline int saturated(float rounded) {
    if (rounded != rounded) return 0;
    if (rounded >= 2147483648.0f) return INT32_MAX;
    return rounded <= -2147483648.0f ? INT32_MIN : int(rounded);
}
// PTX's min and max: a number before not-a-number, -0 below +0.
inline float minimum(float a, float b) {
    if (a == b) return __builtin_signbit(a) ? a : b;
    return b != b || a < b ? a : b;
}
inline float maximum(float a, float b) {
    if (a == b) return __builtin_signbit(a) ? b : a;
    return b != b || a > b ? a : b;
}
} // namespace shim

inline int __float2int_rn(float x) { return shim::saturated(__builtin_rintf(x)); }
inline int __float2int_rz(float x) { return shim::saturated(__builtin_truncf(x)); }
inline int __float2int_rd(float x) { return shim::saturated(__builtin_floorf(x)); }
inline int __float2int_ru(float x) { return shim::saturated(__builtin_ceilf(x)); }
inline float min(float a, float b) { return shim::minimum(a, b); }
inline float max(float a, float b) { return shim::maximum(a, b); }
#define fminf(a, b) (::shim::minimum(a, b))
#define fmaxf(a, b) (::shim::maximum(a, b))

// ---- the wrappers that kernels/device.cuh and training.cuh write in PTX for a GPU

inline void mma_s8(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { shim::mma(c, a, b0, b1, true); }
inline void mma_u8s8(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { shim::mma(c, a, b0, b1, false); }
inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) { shim::mma(c, a, b0, b1); }

inline void copy_async16(void *shared, const void *global) { shim::copy_async(shared, global, true); }
inline void copy_async16_zfill(void *shared, const void *global, bool valid) { shim::copy_async(shared, global, valid); }
inline void copy_async_commit() { shim::copy_async_commit(); }
template <int N> void copy_async_wait() { shim::copy_async_wait(N); }

#if defined(__x86_64__)
using shim_half = _Float16;
#else
using shim_half = __fp16;
#endif
inline float half_to_float(unsigned short x) { return float(shim::bits<shim_half>(x)); }
inline unsigned short float_to_half(float x) { return x != x ? 0x7fff : shim::bits<unsigned short>(shim_half(x)); }

inline uint4 load_streaming(const uint4 *p) { return *p; }
inline void prefetch_l2(const void *) {}
inline void wait_for_previous() { shim::has_waited = true; }
inline void let_next_begin() {}
