// What the kernels of training share.
#pragma once
#include "device.cuh"

#ifdef __CUDACC__
// c += a * b, sixteen rows by 16 columns by eight: the fragments of mma.m16n8k16 in the PTX manual, words of two bf16.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Threads take elements in strides, whatever their number.
__device__ __forceinline__ size_t own_element() { return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size_t all_threads() { return static_cast<size_t>(gridDim.x) * blockDim.x; }

// Half a warp a row: the row of this thread's.
__device__ __forceinline__ size_t row_of_half() { return own_element() / LANES; }

// Rule 19: the bits of the nearest bf16, ties to even, in the upper half of a word; zero below 2^-50.
__device__ __forceinline__ u32 bf16_bits(float x) {
    const u32 bits = __float_as_uint(x);
    const u32 magnitude = bits & 0x7fffffffu;
    const u32 near = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    const u32 number = magnitude > 0x7f800000u ? 0x7fc00000u : near;
    return magnitude < (127u - 50u) << 23 ? 0u : number;
}
