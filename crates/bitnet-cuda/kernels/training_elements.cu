// Operations of training on single elements: each rounded by itself, in the order of the processor's.
#include "training.cuh"

// to = a * x + b * y; a factor of 0 leaves its term out.
extern "C" __global__ void train_mix(float *to, const float *x, float a, const float *y, float b, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        float sum = a != 0.0f ? __fmul_rn(a, x[i]) : 0.0f;
        if (b != 0.0f) {
            const float other = __fmul_rn(b, y[i]);
            sum = a != 0.0f ? __fadd_rn(sum, other) : other;
        }
        to[i] = sum;
    }
}
EXPORT_KERNEL(train_mix)

extern "C" __global__ void train_fill(float *to, float value, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        to[i] = value;
    }
}
EXPORT_KERNEL(train_fill)

// `count` columns of rows that lie `stride` and `to_stride` elements apart; n is rows * count.
extern "C" __global__ void train_columns(float *to, size_t to_stride, const float *from, size_t stride, u32 count, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        to[i / count * to_stride + i % count] = from[i / count * stride + i % count];
    }
}
EXPORT_KERNEL(train_columns)

// to [ids, cols]; n is ids * cols.
extern "C" __global__ void train_gather(float *to, const float *table, const u32 *ids, u32 cols, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        to[i] = table[static_cast<size_t>(ids[i / cols]) * cols + i % cols];
    }
}
EXPORT_KERNEL(train_gather)

// Adds rows to those of a table: `ids` are different ones, and rows `order[ends[i - 1] .. ends[i]]`, ascending, go to the i-th. A block an id
// and 256 columns.
extern "C" __global__ void train_scatter(float *table, const float *from, const u32 *ids, const u32 *ends, const u32 *order, u32 cols) {
    wait_for_previous();
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= cols) {
        return;
    }
    float *to = table + static_cast<size_t>(ids[blockIdx.x]) * cols + column;
    float sum = *to;
    for (u32 i = blockIdx.x == 0 ? 0 : ends[blockIdx.x - 1]; i < ends[blockIdx.x]; ++i) {
        sum = __fadd_rn(sum, from[static_cast<size_t>(order[i]) * cols + column]);
    }
    *to = sum;
}
EXPORT_KERNEL(train_scatter)

// Rule 8, and back: heads of `half` pairs at the beginning of rows of `stride` elements; n is rows * heads * half.
extern "C" __global__ void train_rotate(float *qkv, const u32 *positions, const float *cosines, const float *sines, u32 heads, u32 half,
                                        u32 stride, u32 back, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        const u32 e = i % half;
        const size_t head = i / half;
        const size_t row = head / heads;
        float *at = qkv + row * stride + head % heads * 2 * half + e;
        const size_t angle = static_cast<size_t>(positions[row]) * half + e;
        const float a = at[0];
        const float b = at[half];
        const float c = cosines[angle];
        const float s = back != 0 ? -sines[angle] : sines[angle];
        at[0] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
        at[half] = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
    }
}
EXPORT_KERNEL(train_rotate)

// y [m, cols] from x [m, gate | up]; n is m * cols.
extern "C" __global__ void train_gate(float *y, const float *x, u32 cols, u32 act, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        const size_t at = i / cols * 2 * cols + i % cols;
        y[i] = gated(act, x[at], x[at + cols]);
    }
}
EXPORT_KERNEL(train_gate)

struct Slope {
    float value;
    float slope;
};

// The activation of a gate, and its slope.
__device__ __forceinline__ Slope slope_of(u32 act, float g) {
    if (act == 0) {
        const float t = g > 0.0f ? g : 0.0f;
        return {__fmul_rn(t, t), __fadd_rn(t, t)};
    }
    const float square = __fmul_rn(g, g);
    float inner = g;
    float steep = 1.0f;
    if (act == 2) {
        inner = __fmul_rn(__fmaf_rn(__fmul_rn(square, 0.044715f), g, g), 1.5957692f);
        steep = __fmul_rn(__fmaf_rn(square, __fmul_rn(3.0f, 0.044715f), 1.0f), 1.5957692f);
    }
    const float sigmoid = __fdiv_rn(1.0f, __fadd_rn(1.0f, exponential(__fsub_rn(0.0f, inner))));
    const float other = __fsub_rn(1.0f, sigmoid);
    const float rest = act == 2 ? __fmaf_rn(__fmul_rn(g, other), steep, 1.0f) : __fmaf_rn(g, other, 1.0f);
    return {__fmul_rn(g, sigmoid), __fmul_rn(sigmoid, rest)};
}

// Gradients of x [m, gate | up] from those of what it gave.
extern "C" __global__ void train_gate_back(float *dx, const float *x, const float *dout, u32 cols, u32 act, size_t n) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        const size_t at = i / cols * 2 * cols + i % cols;
        const Slope s = slope_of(act, x[at]);
        const float d = dout[i];
        dx[at] = __fmul_rn(__fmul_rn(s.slope, x[at + cols]), d);
        dx[at + cols] = __fmul_rn(s.value, d);
    }
}
EXPORT_KERNEL(train_gate_back)

extern "C" __global__ void train_adam(float *p, const float *gradient, float *m, float *v, size_t n, float scale, float pull, float keep,
                                      float step, float root, float b1, float rest1, float b2, float rest2, float eps) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        const float old = p[i];
        const float g = __fadd_rn(__fmul_rn(gradient[i], scale), __fmul_rn(pull, old));
        const float first = __fadd_rn(__fmul_rn(b1, m[i]), __fmul_rn(rest1, g));
        const float second = __fadd_rn(__fmul_rn(b2, v[i]), __fmul_rn(rest2, __fmul_rn(g, g)));
        const float under = __fadd_rn(__fdiv_rn(__fsqrt_rn(second), root), eps);
        m[i] = first;
        v[i] = second;
        p[i] = __fsub_rn(__fmul_rn(old, keep), __fmul_rn(step, __fdiv_rn(first, under)));
    }
}
EXPORT_KERNEL(train_adam)

extern "C" __global__ void train_sgd(float *p, const float *gradient, float *buffer, size_t n, float scale, float momentum, float keep,
                                     float rate, u32 nesterov) {
    wait_for_previous();
    for (size_t i = own_element(); i < n; i += all_threads()) {
        const float g = __fmul_rn(gradient[i], scale);
        const float moved = __fadd_rn(__fmul_rn(momentum, buffer[i]), g);
        const float along = nesterov != 0 ? __fadd_rn(g, __fmul_rn(momentum, moved)) : moved;
        buffer[i] = moved;
        p[i] = __fsub_rn(__fmul_rn(p[i], keep), __fmul_rn(rate, along));
    }
}
EXPORT_KERNEL(train_sgd)
