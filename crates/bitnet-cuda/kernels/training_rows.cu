// Operations of training on rows. Sums are L16 (rule 2): half a warp a row, a lane a thread, neighbours read side by side.
#include "training.cuh"

__device__ __forceinline__ float row_factor(float squares, u32 n, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(n)), eps)));
}

// Rule 3. Threads of rows behind the last one read that one, and write nothing.
extern "C" __global__ void train_norm(float *y, const float *x, const float *w, size_t rows, u32 n, float eps) {
    wait_for_previous();
    const size_t row = row_of_half();
    const u32 lane = threadIdx.x % LANES;
    const float *from = x + (row < rows ? row : rows - 1) * n;
    float squares = 0.0f;
#pragma unroll 8
    for (u32 i = lane; i < n; i += LANES) {
        squares = __fmaf_rn(from[i], from[i], squares);
    }
    const float r = row_factor(fold16(squares), n, eps);
    if (row < rows) {
#pragma unroll 8
        for (u32 i = lane; i < n; i += LANES) {
            y[row * n + i] = __fmul_rn(__fmul_rn(from[i], r), w[i]);
        }
    }
}
EXPORT_KERNEL(train_norm)

// The way back: dx, set or added to, and what rows were multiplied with, [rows].
extern "C" __global__ void train_norm_back(float *dx, float *factors, const float *x, const float *w, const float *dy, size_t rows, u32 n,
                                           float eps, u32 add) {
    wait_for_previous();
    const size_t row = row_of_half();
    const u32 lane = threadIdx.x % LANES;
    const size_t at = (row < rows ? row : rows - 1) * n;
    float squares = 0.0f;
    float along = 0.0f;
#pragma unroll 4
    for (u32 i = lane; i < n; i += LANES) {
        const float v = x[at + i];
        squares = __fadd_rn(squares, __fmul_rn(v, v));
        along = __fadd_rn(along, __fmul_rn(v, __fmul_rn(w[i], dy[at + i])));
    }
    const float r = row_factor(fold16(squares), n, eps);
    const float mean = __fdiv_rn(fold16(along), static_cast<float>(n));
    const float back = __fmul_rn(__fmul_rn(__fmul_rn(r, r), r), mean);
    if (row >= rows) {
        return;
    }
    if (lane == 0) {
        factors[row] = r;
    }
#pragma unroll 4
    for (u32 i = lane; i < n; i += LANES) {
        const float own = __fmul_rn(r, __fmul_rn(w[i], dy[at + i]));
        const float d = __fsub_rn(own, __fmul_rn(x[at + i], back));
        dx[at + i] = add != 0 ? __fadd_rn(dx[at + i], d) : d;
    }
}
EXPORT_KERNEL(train_norm_back)

// The weight's gradient of `piece` rows: parts [pieces, n]. A thread a column, a row of blocks a piece.
extern "C" __global__ void train_norm_parts(float *parts, const float *factors, const float *x, const float *dy, size_t rows, u32 n, u32 piece) {
    wait_for_previous();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) {
        return;
    }
    const size_t from = static_cast<size_t>(blockIdx.y) * piece;
    const size_t to = from + piece < rows ? from + piece : rows;
    float sum = 0.0f;
#pragma unroll 4
    for (size_t row = from; row < to; ++row) {
        sum = __fadd_rn(sum, __fmul_rn(dy[row * n + column], __fmul_rn(x[row * n + column], factors[row])));
    }
    parts[static_cast<size_t>(blockIdx.y) * n + column] = sum;
}
EXPORT_KERNEL(train_norm_parts)

// Adds the parts to dw [n], ascending.
extern "C" __global__ void train_norm_weight(float *dw, const float *parts, size_t pieces, u32 n) {
    wait_for_previous();
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= n) {
        return;
    }
    float sum = dw[column];
#pragma unroll 4
    for (size_t piece = 0; piece < pieces; ++piece) {
        sum = __fadd_rn(sum, parts[piece * n + column]);
    }
    dw[column] = sum;
}
EXPORT_KERNEL(train_norm_weight)

// Rule 4, a warp a row: codes [rows, words] of four, lowest byte first, and d [rows].
extern "C" __global__ void train_quantize(u32 *codes, float *d, const float *x, size_t rows, u32 k, u32 words) {
    wait_for_previous();
    const size_t row = own_element() / 32;
    const u32 lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    const float *from = x + row * k;
    float most = 1e-5f;
#pragma unroll 8
    for (u32 i = lane; i < k; i += 32) {
        most = fmaxf(most, fabsf(from[i]));
    }
    most = __uint_as_float(__reduce_max_sync(WARP, __float_as_uint(most)));
    const float s = __fdiv_rn(127.0f, most);
    for (u32 word = lane; word < words; word += 32) {
        u32 four = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            if (word * 4 + i < k) {
                float z = rintf(__fmul_rn(from[word * 4 + i], s));
                // Written as comparisons so that what is not a number has a defined result, -128.
                z = z > -128.0f ? z : -128.0f;
                z = z < 127.0f ? z : 127.0f;
                four |= (static_cast<u32>(static_cast<int>(z)) & 0xffu) << (8 * i);
            }
        }
        codes[row * words + word] = four;
    }
    if (lane == 0) {
        d[row] = __fdiv_rn(1.0f, s);
    }
}
EXPORT_KERNEL(train_quantize)

__device__ __forceinline__ double fold16_double(double lane) {
    for (int width = 8; width > 0; width /= 2) {
        lane = __dadd_rn(lane, __shfl_xor_sync(WARP, lane, width));
    }
    return lane;
}

// Rule 7: the magnitude of each row in double precision.
extern "C" __global__ void train_magnitudes(double *sums, const float *w, size_t rows, u32 n) {
    wait_for_previous();
    const size_t row = row_of_half();
    const u32 lane = threadIdx.x % LANES;
    const float *from = w + (row < rows ? row : rows - 1) * n;
    double sum = 0.0;
#pragma unroll 8
    for (u32 i = lane; i < n; i += LANES) {
        sum = __dadd_rn(sum, static_cast<double>(fabsf(from[i])));
    }
    sum = fold16_double(sum);
    if (row < rows && lane == 0) {
        sums[row] = sum;
    }
}
EXPORT_KERNEL(train_magnitudes)

constexpr u32 SUM_THREADS = 256;
__shared__ double sum_room[SUM_THREADS * 4];

// Rows ascending: what values are multiplied with, and what turns trits back. One block.
extern "C" __global__ void train_mean(float *scale, float *factor, const double *sums, size_t rows, double count) {
    wait_for_previous();
    double total = 0.0;
    for (size_t from = 0; from < rows; from += SUM_THREADS * 4) {
        const u32 own = rows - from < SUM_THREADS * 4 ? static_cast<u32>(rows - from) : SUM_THREADS * 4;
        for (u32 i = threadIdx.x; i < own; i += SUM_THREADS) {
            sum_room[i] = sums[from + i];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
#pragma unroll 8
            for (u32 i = 0; i < own; ++i) {
                total = __dadd_rn(total, sum_room[i]);
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        float mean = static_cast<float>(__ddiv_rn(total, count));
        mean = mean > 1e-5f ? mean : 1e-5f;
        const float s = __fdiv_rn(1.0f, mean);
        *factor = s;
        *scale = __fdiv_rn(1.0f, s);
    }
}
EXPORT_KERNEL(train_mean)

// Trits of w [rows, n] as bytes, words of four; all is rows * words.
extern "C" __global__ void train_trits(u32 *codes, const float *w, const float *factor, u32 n, u32 words, size_t all) {
    wait_for_previous();
    const float s = *factor;
    for (size_t i = own_element(); i < all; i += all_threads()) {
        const size_t row = i / words;
        const u32 column = i % words * 4;
        u32 four = 0;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (column + j < n) {
                const float x = __fmul_rn(w[row * n + column + j], s);
                // A tie is zero.
                four |= (x > 0.5f ? 1u : x < -0.5f ? 0xffu : 0u) << (8 * j);
            }
        }
        codes[i] = four;
    }
}
EXPORT_KERNEL(train_trits)

constexpr u32 LOSS_THREADS = 256;
// Elements of a row that are summed together; a multiple of sixteen.
constexpr u32 LOSS_CHUNK = 2048;
__shared__ float loss_chunks[2][LOSS_CHUNK];
__shared__ float loss_room[LOSS_THREADS / 32];

// A row of logits becomes softmax * weight, less the weight at the target: a block a row. parts [rows, 3].
extern "C" __global__ void __launch_bounds__(LOSS_THREADS)
    train_cross_entropy(float *logits, float *parts, const u32 *targets, const float *weights, u32 vocab) {
    wait_for_previous();
    float *z = logits + static_cast<size_t>(blockIdx.x) * vocab;
    const u32 target = targets[blockIdx.x];
    const float weight = weights[blockIdx.x];
    const float wanted = z[target];
    float most = __uint_as_float(0xff800000u);
#pragma unroll 8
    for (u32 i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
        most = fmaxf(most, z[i]);
    }
    for (int width = 16; width > 0; width /= 2) {
        most = fmaxf(most, __shfl_xor_sync(WARP, most, width));
    }
    if (threadIdx.x % 32 == 0) {
        loss_room[threadIdx.x / 32] = most;
    }
    __syncthreads();
    for (u32 i = 0; i < LOSS_THREADS / 32; ++i) {
        most = fmaxf(most, loss_room[i]);
    }
    // A chunk is added up by the first warp while others compute the next one.
    float lane = 0.0f;
    for (u32 from = 0; from < vocab; from += LOSS_CHUNK) {
        float *chunk = loss_chunks[from / LOSS_CHUNK % 2];
        const u32 own = vocab - from < LOSS_CHUNK ? vocab - from : LOSS_CHUNK;
        for (u32 i = threadIdx.x; i < own; i += LOSS_THREADS) {
            const float e = exponential(__fsub_rn(z[from + i], most));
            chunk[i] = e;
            z[from + i] = e;
        }
        __syncthreads();
        if (threadIdx.x < 32) {
#pragma unroll 8
            for (u32 i = threadIdx.x % LANES; i < own; i += LANES) {
                lane = __fadd_rn(lane, chunk[i]);
            }
        }
    }
    if (threadIdx.x < 32) {
        lane = fold16(lane);
        if (threadIdx.x == 0) {
            loss_room[0] = lane;
            float *part = parts + static_cast<size_t>(blockIdx.x) * 3;
            part[0] = most;
            part[1] = lane;
            part[2] = wanted;
        }
    }
    __syncthreads();
    const float factor = __fdiv_rn(weight, loss_room[0]);
#pragma unroll 8
    for (u32 i = threadIdx.x; i < vocab; i += LOSS_THREADS) {
        const float share = __fmul_rn(z[i], factor);
        z[i] = i == target ? __fsub_rn(share, weight) : share;
    }
}
EXPORT_KERNEL(train_cross_entropy)

// Sums of squares in double precision: sixteen lanes a piece, added from the first one on. sums [pieces].
extern "C" __global__ void train_squares(double *sums, const float *x, size_t n, u32 piece) {
    wait_for_previous();
    const size_t from = row_of_half() * piece;
    const size_t to = from + piece < n ? from + piece : n;
    double sum = 0.0;
#pragma unroll 8
    for (size_t i = from + threadIdx.x % LANES; i < to; i += LANES) {
        const double v = x[i];
        sum = __dadd_rn(sum, __dmul_rn(v, v));
    }
    double total = 0.0;
    for (u32 i = 0; i < LANES; ++i) {
        total = __dadd_rn(total, __shfl_sync(WARP, sum, threadIdx.x % 32 / LANES * LANES + i));
    }
    if (from < n && threadIdx.x % LANES == 0) {
        sums[row_of_half()] = total;
    }
}
EXPORT_KERNEL(train_squares)
