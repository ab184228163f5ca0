// The CUDA dialect for a plain C++ compiler: what a kernel's source needs to compile and run on a processor without a GPU.
//
// The build script force-includes this file before `kernels.cu`. The threads of a block are fibers on one OS thread and blocks
// run one after another (block.cpp); a launch goes through the same driver calls as on a GPU (driver.cpp).
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) alignas(bytes)
// One block runs at a time, so a static local is the block's. shared.ld collects these, and each block finds them poisoned.
#define __shared__ static

// After a kernel's definition: `EXPORT_KERNEL(name)` makes it known to cuModuleGetFunction.
#define EXPORT_KERNEL(name)                                                                                                   \
    static const ::shim::Kernel shim_kernel_##name __attribute__((section("cuda_kernels"), used)) = {                         \
        #name, &::shim::Signature<&name>::call, ::shim::Signature<&name>::sizes, ::shim::Signature<&name>::count};
// `type *name` over the launch's dynamic shared memory, aligned to 128 bytes.
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(::shim::dynamic_shared)

// ---- vector types

#define SHIM_VECTOR(scalar, name, alignment2, alignment4)                                                                     \
    struct alignas(alignment2) name##2 { scalar x, y; };                                                                      \
    struct name##3 { scalar x, y, z; };                                                                                       \
    struct alignas(alignment4) name##4 { scalar x, y, z, w; };                                                                \
    inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; }                                                      \
    inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; }                                         \
    inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
SHIM_VECTOR(signed char, char, 2, 4)
SHIM_VECTOR(unsigned char, uchar, 2, 4)
SHIM_VECTOR(short, short, 4, 8)
SHIM_VECTOR(unsigned short, ushort, 4, 8)
SHIM_VECTOR(int, int, 8, 16)
SHIM_VECTOR(unsigned, uint, 8, 16)
SHIM_VECTOR(float, float, 8, 16)
SHIM_VECTOR(double, double, 16, 16)
SHIM_VECTOR(long long, longlong, 16, 16)
SHIM_VECTOR(unsigned long long, ulonglong, 16, 16)
#undef SHIM_VECTOR

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// The running thread's. They are variables only because the scheduler sets them; kernels read them.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- what block.cpp gives

namespace shim {

// A kernel as cuLaunchKernel needs it: its parameters' sizes, and a call that takes them from an array of pointers.
struct Kernel {
    const char *name;
    void (*call)(void *const *parameters);
    const size_t *sizes;
    size_t count;
};

template <auto kernel> struct Signature;
template <class... A, void (*kernel)(A...)> struct Signature<kernel> {
    static constexpr size_t count = sizeof...(A);
    static constexpr size_t sizes[] = {sizeof(A)..., 0};
    static void call(void *const *parameters) { call(parameters, std::make_index_sequence<count>()); }

  private:
    template <size_t... i> static void call([[maybe_unused]] void *const *parameters, std::index_sequence<i...>) {
        kernel(*static_cast<std::remove_const_t<A> *>(parameters[i])...);
    }
};

extern void *dynamic_shared;
extern bool has_waited; // for the kernel before this one

// Says what is wrong, in which kernel, block and thread, and aborts.
[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char *format, ...);

struct BarrierResult {
    int count; // of threads that gave a predicate other than 0
    bool all;
};
BarrierResult barrier(const char *what, int line, int predicate);

// Waits until every live lane of `mask` is here with the same mask and the same `run`; the last to come runs it over all lanes'
// records (those of lanes outside `lanes` are null), and everyone goes on.
using Records = void *const[32];
void collective(const char *what, unsigned mask, void *record, void (*run)(Records &records, unsigned lanes));

unsigned lane();
void copy_async(void *shared, const void *global, bool valid);
void copy_async_commit();
void copy_async_wait(unsigned groups_left);
void mma(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool a_is_signed);
void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

} // namespace shim

#include "intrinsics.h"
