// Rules 3 and 4 of docs/numerics.md: norms and int8 activations, a block a token.
#pragma once
#include "device.cuh"

// Threads of a block: many where there are few tokens, so that one is done soon; few where there are many, so that many are under way.
constexpr int FEW = 512;
constexpr int MANY = 256;

// Everybody's largest value, for all threads of a block. None is below zero: their bits have the same order.
template <int THREADS>
__device__ __forceinline__ float block_max(float v, u32 *room) {
    const u32 most = __reduce_max_sync(WARP, __float_as_uint(v));
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = most;
    }
    __syncthreads();
    return __uint_as_float(__reduce_max_sync(WARP, room[threadIdx.x % (THREADS / 32)]));
}

// A row in shared memory: column c lies at (c % 16) * stride + c / 16, so that what a lane of L16 adds up lies together, and sixteen
// lanes that read sixteen bytes each meet in no bank. Each lane has room for whole batches of columns.
constexpr u32 BATCH = 32;

__device__ __forceinline__ u32 lane_columns(u32 cols) { return (cols + LANES * BATCH - 1) / (LANES * BATCH) * BATCH; }
__device__ __forceinline__ u32 lane_stride(u32 cols) { return lane_columns(cols) + 4; }
__device__ __forceinline__ u32 lane_place(u32 c, u32 stride) { return c % LANES * stride + c / LANES; }

// Zeros where lanes have more room than there are columns: their squares change no sum.
__device__ __forceinline__ void clear_rest(float *row, u32 cols, u32 threads) {
    const u32 stride = lane_stride(cols);
    for (u32 c = cols + threadIdx.x; c < lane_columns(cols) * LANES; c += threads) {
        row[lane_place(c, stride)] = 0.0f;
    }
}

// Rule 2 of the squares of a row, by sixteen threads of the first warp; all threads get it. The chain of a lane is what this takes.
__device__ __forceinline__ float sum_of_squares(const float *row, u32 cols, float *room) {
    if (threadIdx.x < 32) {
        const float4 *own = reinterpret_cast<const float4 *>(row + threadIdx.x % LANES * lane_stride(cols));
        const u32 batches = lane_columns(cols) / BATCH;
        float acc = 0.0f;
        auto load = [&](float4(&v)[BATCH / 4], u32 batch) {
            if (batch < batches) {
#pragma unroll
                for (u32 i = 0; i < BATCH / 4; ++i) {
                    v[i] = own[batch * (BATCH / 4) + i];
                }
            }
        };
        auto add = [&](const float4(&v)[BATCH / 4]) {
#pragma unroll
            for (u32 i = 0; i < BATCH / 4; ++i) {
                acc = __fmaf_rn(v[i].x, v[i].x, acc);
                acc = __fmaf_rn(v[i].y, v[i].y, acc);
                acc = __fmaf_rn(v[i].z, v[i].z, acc);
                acc = __fmaf_rn(v[i].w, v[i].w, acc);
            }
        };
        // What comes next is read while a batch is added up.
        float4 even[BATCH / 4];
        float4 odd[BATCH / 4];
        load(even, 0);
        for (u32 batch = 0; batch < batches; batch += 2) {
            load(odd, batch + 1);
            add(even);
            load(even, batch + 2);
            if (batch + 1 < batches) {
                add(odd);
            }
        }
        acc = fold16(acc);
        if (threadIdx.x == 0) {
            *room = acc;
        }
    }
    __syncthreads();
    return *room;
}

// Calls `f` for all columns, as many at a time as divide them, if that can be: f(first column, number, whether some are none).
template <int N, bool GUARD>
struct Columns {};

template <int THREADS, class F>
__device__ __forceinline__ void for_columns(u32 cols, F f) {
    if (cols % (10 * THREADS) == 0) {
        for (u32 begin = threadIdx.x; begin < cols; begin += 10 * THREADS) {
            f(begin, Columns<10, false>{});
        }
    } else if (cols % (9 * THREADS) == 0) {
        for (u32 begin = threadIdx.x; begin < cols; begin += 9 * THREADS) {
            f(begin, Columns<9, false>{});
        }
    } else {
        for (u32 begin = threadIdx.x; begin < cols; begin += 8 * THREADS) {
            f(begin, Columns<8, true>{});
        }
    }
}

// Rounds a row in shared memory, whose largest magnitude is `most`, to integers, which are in shared memory too.
//
// q [words]: sixteen columns are four words; word i has columns i, i + 4, i + 8 and i + 12 of them, lowest byte first. In that
// order a shift and a mask take matching codes out of a word of weights. Columns behind the last one are zeros. All threads can read
// the words and the token behind this.
template <int THREADS>
__device__ __forceinline__ void quantize_row(const float *row, u32 cols, u32 words, float most, u32 *q, Token *token, int *room) {
    const float s = __fdiv_rn(127.0f, most);
    const u32 stride = lane_stride(cols);
    signed char *bytes = reinterpret_cast<signed char *>(q);
    for (u32 c = cols + threadIdx.x; c < words * 4; c += THREADS) {
        bytes[c / 16 * 16 + c % 4 * 4 + c % 16 / 4] = 0;
    }
    int sum = 0;
    for_columns<THREADS>(cols, [&]<int N, bool GUARD>(u32 begin, Columns<N, GUARD>) {
        float v[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u32 c = begin + i * THREADS;
            v[i] = !GUARD || c < cols ? row[lane_place(c, stride)] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u32 c = begin + i * THREADS;
            float z = rintf(__fmul_rn(v[i], s));
            // Written as comparisons so that what is not a number has a defined result, -128.
            z = z > -128.0f ? z : -128.0f;
            z = z < 127.0f ? z : 127.0f;
            const int value = static_cast<int>(z);
            if (!GUARD || c < cols) {
                sum += value;
                bytes[c / 16 * 16 + c % 4 * 4 + c % 16 / 4] = static_cast<signed char>(value);
            }
        }
    });
    sum = __reduce_add_sync(WARP, sum);
    if (threadIdx.x % 32 == 0) {
        room[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        const int total = __reduce_add_sync(WARP, threadIdx.x < THREADS / 32 ? room[threadIdx.x] : 0);
        if (threadIdx.x == 0) {
            token->d = __fdiv_rn(1.0f, s);
            token->sum = total;
        }
    }
    __syncthreads();
}

// Writes down what a row became.
template <int THREADS>
__device__ __forceinline__ void store_row(const u32 *q, u32 words, const Token *token, u32 *q_out, Token *token_out) {
    for (u32 i = threadIdx.x; i < words; i += THREADS) {
        q_out[i] = q[i];
    }
    if (threadIdx.x == 0) {
        *token_out = *token;
    }
}

__shared__ u32 norm_bits[FEW / 32];
__shared__ float norm_sum;
__shared__ int norm_ints[FEW / 32];
__shared__ Token norm_token_out;

// x [.., cols] from row `first` on to q [m, words] and tokens [m].
template <int THREADS>
__device__ __forceinline__ void quantize_rows(const float *x, u32 *q, Token *tokens, u32 cols, u32 words, u32 first) {
    DYNAMIC_SHARED(float, row);
    let_next_begin();
    wait_for_previous();
    const float *from = x + static_cast<size_t>(first + blockIdx.x) * cols;
    float most = 1e-5f;
    const u32 stride = lane_stride(cols);
#pragma unroll 8
    for (u32 c = threadIdx.x; c < cols; c += THREADS) {
        const float v = from[c];
        row[lane_place(c, stride)] = v;
        most = fmaxf(most, fabsf(v));
    }
    most = block_max<THREADS>(most, norm_bits);
    u32 *own = reinterpret_cast<u32 *>(row + LANES * stride);
    quantize_row<THREADS>(row, cols, words, most, own, &norm_token_out, norm_ints);
    store_row<THREADS>(own, words, &norm_token_out, q + static_cast<size_t>(blockIdx.x) * words, tokens + blockIdx.x);
}

#define QUANTIZE(NAME, THREADS)                                                                                        \
    KERNEL(NAME, __launch_bounds__(THREADS))                                                                           \
        (const float *x, u32 *q, Token *tokens, u32 cols, u32 words, u32 first) {                                      \
        quantize_rows<THREADS>(x, q, tokens, cols, words, first);                                                      \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

QUANTIZE(quantize, FEW)
QUANTIZE(quantize_many, MANY)

// Rule 3: what the elements are multiplied with.
__device__ __forceinline__ float norm_factor(float squares, u32 n, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(n)), eps)));
}

// Reads N columns of a token, every THREADS-th one, adds, and puts them into a row.
template <int THREADS, int N, bool GUARD>
__device__ __forceinline__ void load_columns(const float *x, const float *extra, float *sum, float *row, u32 begin, u32 cols) {
    const u32 stride = lane_stride(cols);
    float v[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const u32 c = begin + i * THREADS;
        v[i] = !GUARD || c < cols ? x[c] : 0.0f;
    }
    if (extra != nullptr) {
        float other[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u32 c = begin + i * THREADS;
            other[i] = !GUARD || c < cols ? extra[c] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u32 c = begin + i * THREADS;
            v[i] = __fadd_rn(v[i], other[i]);
            if (sum != nullptr && (!GUARD || c < cols)) {
                sum[c] = v[i];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const u32 c = begin + i * THREADS;
        if (!GUARD || c < cols) {
            row[lane_place(c, stride)] = v[i];
        }
    }
}

// Copies a norm's weight, a thread what it needs itself.
template <int THREADS>
__device__ __forceinline__ void load_weight(const float *w, float *weight, u32 cols) {
    for_columns<THREADS>(cols, [&]<int N, bool GUARD>(u32 begin, Columns<N, GUARD>) {
        float v[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u32 c = begin + i * THREADS;
            v[i] = !GUARD || c < cols ? w[c] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const u32 c = begin + i * THREADS;
            if (!GUARD || c < cols) {
                weight[c] = v[i];
            }
        }
    });
}

// Multiplies N columns of a row; y gets them too, if there is one. The largest magnitude.
template <int THREADS, int N, bool GUARD>
__device__ __forceinline__ float scale_columns(float *row, const float *w, float r, float *y, u32 begin, u32 cols) {
    const u32 stride = lane_stride(cols);
    float v[N];
    float weight[N];
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const u32 c = begin + i * THREADS;
        v[i] = !GUARD || c < cols ? row[lane_place(c, stride)] : 0.0f;
        weight[i] = !GUARD || c < cols ? w[c] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        v[i] = __fmul_rn(__fmul_rn(v[i], r), weight[i]);
        most = fmaxf(most, fabsf(v[i]));
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const u32 c = begin + i * THREADS;
        if (!GUARD || c < cols) {
            row[lane_place(c, stride)] = v[i];
            if (y != nullptr) {
                y[c] = v[i];
            }
        }
    }
    return most;
}

// What a norm reads and writes, [cols] each: y = norm(x) * w, and what `quantize` would make of y. Where there is something to add, x is
// x + extra, and goes to `sum`.
struct Norm {
    const float *x;
    const float *extra;
    float *sum;
    const float *w;
    float *y;
    u32 cols;
    u32 words;
    float eps;
};

// Norms a token into a row and its int8 form; pointers to nothing are not written to. All that was written can be read behind this.
template <int THREADS>
__device__ __forceinline__ void norm_token(const Norm &n, float *row, const float *weight, u32 *q, Token *token) {
    clear_rest(row, n.cols, THREADS);
    for_columns<THREADS>(n.cols, [&]<int N, bool GUARD>(u32 begin, Columns<N, GUARD>) {
        load_columns<THREADS, N, GUARD>(n.x, n.extra, n.sum, row, begin, n.cols);
    });
    __syncthreads();
    const float squares = sum_of_squares(row, n.cols, &norm_sum);
    const float r = norm_factor(squares, n.cols, n.eps);
    float most = 1e-5f;
    for_columns<THREADS>(n.cols, [&]<int N, bool GUARD>(u32 begin, Columns<N, GUARD>) {
        const float own = scale_columns<THREADS, N, GUARD>(row, weight, r, n.y, begin, n.cols);
        most = fmaxf(most, own);
    });
    most = block_max<THREADS>(most, norm_bits);
    quantize_row<THREADS>(row, n.cols, n.words, most, q, token, norm_ints);
}

// Rows [m, cols], a block each.
template <int THREADS>
__device__ __forceinline__ void norm_rows(const float *x, const float *extra, float *sum, const float *w, float *y, u32 *q,
                                          Token *tokens, u32 cols, u32 words, float eps) {
    DYNAMIC_SHARED(float, row);
    float *weight = row + LANES * lane_stride(cols);             // [words * 4]
    u32 *own = reinterpret_cast<u32 *>(weight + words * 4); // [words]
    let_next_begin();
    // The weight does not depend on what runs before.
    load_weight<THREADS>(w, weight, cols);
    wait_for_previous();
    const size_t at = static_cast<size_t>(blockIdx.x) * cols;
    const Norm n{x + at, extra == nullptr ? nullptr : extra + at, sum + at, w, y + at, cols, words, eps};
    norm_token<THREADS>(n, row, weight, own, &norm_token_out);
    store_row<THREADS>(own, words, &norm_token_out, q + static_cast<size_t>(blockIdx.x) * words, tokens + blockIdx.x);
}

#define RMS_NORM(NAME, THREADS)                                                                                        \
    KERNEL(NAME, __launch_bounds__(THREADS))                                                                           \
        (const float *x, const float *extra, float *sum, const float *w, float *y, u32 *q, Token *tokens, u32 cols,    \
             u32 words, float eps) {                                                                                   \
        SIZES(NAME)                                                                                                    \
        norm_rows<THREADS>(x, extra, sum, w, y, q, tokens, cols, words, eps);                                          \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

RMS_NORM(rms_norm, FEW)
RMS_NORM(rms_norm_many, MANY)

// Norms of neighbouring heads in place, a warp a head: x [m, stride], heads of n elements from column `first` on.
KERNEL(rms_norm_heads)(float *x, const float *w, u32 n, u32 stride, u32 first, u32 heads, float eps) {
    let_next_begin();
    wait_for_previous();
    const u32 head = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= heads) {
        return;
    }
    float *from = x + static_cast<size_t>(blockIdx.y) * stride + first + head * n;
    float acc = 0.0f;
    for (u32 i = threadIdx.x % LANES; i < n; i += LANES) {
        acc = __fmaf_rn(from[i], from[i], acc);
    }
    const float r = norm_factor(fold16(acc), n, eps);
    // Both halves of the warp have read everything before either writes.
    __syncwarp();
    for (u32 i = threadIdx.x % 32; i < n; i += 32) {
        from[i] = __fmul_rn(__fmul_rn(from[i], r), w[i]);
    }
}
EXPORT_KERNEL(rms_norm_heads)
