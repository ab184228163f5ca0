// Operations on single elements. Threads take elements in strides, whatever their number.
#include "device.cuh"

__device__ __forceinline__ size_t first_element() { return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size_t stride_of_grid() { return static_cast<size_t>(gridDim.x) * blockDim.x; }

// sum = x + y, which may be one of them
extern "C" __global__ void add(float *sum, const float *x, const float *y, size_t n) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = first_element(); i < n; i += stride_of_grid()) {
        sum[i] = __fadd_rn(x[i], y[i]);
    }
}
EXPORT_KERNEL(add)

// y *= factor
extern "C" __global__ void scale(float *y, size_t n, float factor) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = first_element(); i < n; i += stride_of_grid()) {
        y[i] = __fmul_rn(y[i], factor);
    }
}
EXPORT_KERNEL(scale)

// y [.., stride]: y[t, first + c] = x[t, c] for all rows of x [.., cols].
extern "C" __global__ void place(float *y, const float *x, size_t n, u32 cols, u32 stride, u32 first) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = first_element(); i < n; i += stride_of_grid()) {
        y[i / cols * stride + first + i % cols] = x[i];
    }
}
EXPORT_KERNEL(place)

// Rule 15: y[row + t, first + c] = fma(x[t, c], factor, y[row + t, first + c])
extern "C" __global__ void add_scaled(float *y, const float *x, size_t n, u32 cols, u32 stride, u32 row, u32 first,
                                      float factor) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = first_element(); i < n; i += stride_of_grid()) {
        const size_t at = (row + i / cols) * stride + first + i % cols;
        y[at] = __fmaf_rn(x[i], factor, y[at]);
    }
}
EXPORT_KERNEL(add_scaled)

// y[i, c] = x[rows[i], c]
extern "C" __global__ void gather(float *y, const float *x, const u32 *rows, size_t n, u32 cols) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = first_element(); i < n; i += stride_of_grid()) {
        y[i] = x[static_cast<size_t>(rows[i / cols]) * cols + i % cols];
    }
}
EXPORT_KERNEL(gather)

// y [m, cols] from x [m, gate | up].
extern "C" __global__ void gate(float *y, const float *x, size_t n, u32 cols, u32 act) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = first_element(); i < n; i += stride_of_grid()) {
        const size_t at = i / cols * 2 * cols + i % cols;
        y[i] = gated(act, x[at], x[at + cols]);
    }
}
EXPORT_KERNEL(gate)
