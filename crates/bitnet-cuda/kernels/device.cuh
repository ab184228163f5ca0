// What the kernels share: the arithmetic of docs/numerics.md, and the few instructions that C++ has no words for.
//
// Floats: every rounding is written out (`__fmaf_rn` and its kin), so that neither a compiler's option nor its mood can
// contract or reorder one. No header is included: the sources compile with nvcc, with NVRTC, and with a plain C++ compiler
// beside a header that stands in for the device (`shim/shim.h`).
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned;
using u64 = unsigned long long;

#ifdef __CUDACC__

// Kernels that a host may ask for by name; a stand-in for the device keeps a table of them.
#define EXPORT_KERNEL(name)
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]

__device__ __forceinline__ float half_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// Ties to even; what is too large becomes infinite.
__device__ __forceinline__ u16 float_to_half(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// c += a * b, sixteen rows by 32 columns by eight: the fragments of mma.m16n8k32 in the PTX manual.
__device__ __forceinline__ void mma_s8(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Weights: read once, so that they need not displace anything nearby.
__device__ __forceinline__ uint4 load_streaming(const uint4 *p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// Sixteen bytes into shared memory while threads go on; zeros where `valid` is not.
__device__ __forceinline__ void copy_async16_zfill(void *shared, const void *global, bool valid) {
    const u32 at = static_cast<u32>(__cvta_generic_to_shared(shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_async16(void *shared, const void *global) {
    const u32 at = static_cast<u32>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(global) : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until no more than N groups of this thread's copies are under way.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Until the kernel before this one has ended and what it wrote can be read. Kernels of a step overlap up to here.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel behind this one begin, up to where it waits for this one to end.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif

// KERNEL(name, attributes)(parameters) begins a kernel, whose body begins with SIZES(name) where a module can be made for sizes that
// are known (src/fixed.rs). Such a module is compiled with FIXED and has one kernel: `ONLY_name` is a comma, which moves what
// PICK sees, and FIXED_SIZES sets parameters to constants. The others become templates that nobody asks for.
#ifdef FIXED
#define PICK(...) PICK_THIRD(__VA_ARGS__)
#define PICK_THIRD(a, b, c, ...) c
#define KERNEL(name, ...)                                                                                              \
    PICK(ONLY_##name, extern "C" __global__ void __VA_ARGS__ name, template <int = 0> __device__ void name)
#define SIZES(name) PICK(ONLY_##name, FIXED_SIZES, )
#else
#define KERNEL(name, ...) extern "C" __global__ void __VA_ARGS__ name
#define SIZES(name)
#endif

constexpr int LANES = 16;
constexpr u32 WARP = 0xffffffffu;

// What a token's int8 activations need to become reals again.
struct Token {
    // 1 / s of rule 4.
    float d;
    // The sum of its integers: codes are trits + 1, so it is what products with codes have too much.
    int sum;
};

// Rule 2: folds sixteen neighbouring lanes of a warp; each of them gets the sum.
__device__ __forceinline__ float fold16(float lane) {
    for (int width = 8; width > 0; width /= 2) {
        lane = __fadd_rn(lane, __shfl_xor_sync(WARP, lane, width));
    }
    return lane;
}

// Rule 9.
__device__ __forceinline__ float exponential(float x) {
    x = x > -104.0f ? x : -104.0f;
    x = x < 89.0f ? x : 89.0f;
    const float k = rintf(__fmul_rn(x, __uint_as_float(0x3fb8aa3bu)));
    float r = __fmaf_rn(-k, __uint_as_float(0x3f318000u), x);
    r = __fmaf_rn(-k, __uint_as_float(0xb95e8083u), r);
    float p = __uint_as_float(0x3ab5121au);
    p = __fmaf_rn(p, r, __uint_as_float(0x3c091cf1u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3d2aac79u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3e2aaa49u));
    p = __fmaf_rn(p, r, __uint_as_float(0x3efffffeu));
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    // 2^k as two factors, so that denormal results are rounded once and 2^128 overflows to infinity.
    const int whole = static_cast<int>(k);
    const int low = whole >> 1;
    const int high = whole - low;
    p = __fmul_rn(p, __uint_as_float(static_cast<u32>(low + 127) << 23));
    return __fmul_rn(p, __uint_as_float(static_cast<u32>(high + 127) << 23));
}

// The nonlinearity of a gated block, by its number: 0 ReLU squared, 1 SiLU, 2 GELU.
__device__ __forceinline__ float gated(u32 act, float g, float u) {
    if (act == 0) {
        return g > 0.0f ? __fmul_rn(__fmul_rn(g, g), u) : 0.0f;
    }
    float slope = g;
    if (act == 2) {
        const float c = __fmaf_rn(__fmul_rn(__fmul_rn(g, g), 0.044715f), g, g);
        slope = __fmul_rn(c, 1.5957692f);
    }
    return __fmul_rn(__fdiv_rn(g, __fadd_rn(1.0f, exponential(-slope))), u);
}

// Rules 5: a product from its integer.
__device__ __forceinline__ float rescaled(int acc, Token token, float scale) {
    return __fmul_rn(static_cast<float>(acc - token.sum), __fmul_rn(token.d, scale));
}
