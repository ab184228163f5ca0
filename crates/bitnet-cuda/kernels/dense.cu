// Rule 13 of docs/numerics.md: products with dense weights, and rows of them. `value<T>(row, c)` is what a stored number is worth.
//
// A half-warp takes a row: each of its sixteen threads every sixteenth column, in order, and then they fold what they have.
// Types of sixteen bits lie so that a thread finds eight of its columns beside each other: [rows][cols / 128][16 lanes][8],
// rows filled up with zeros. The others lie as a file has them, rows and blocks filled up to whole words.
#pragma once
#include "device.cuh"

enum Dense { F32, F16, BF16, Q8_0, Q4_0, Q6_K };

constexpr int DENSE_THREADS = 256;

__device__ __forceinline__ u32 byte_at(const u32 *w, u32 byte) { return (w[byte / 4] >> (8 * (byte % 4))) & 0xffu; }
__device__ __forceinline__ float signed_byte(u32 byte) { return static_cast<float>(static_cast<signed char>(byte)); }
__device__ __forceinline__ float low_half(u32 word) { return half_to_float(static_cast<u16>(word)); }

// Column c of a row that begins at w.
template <Dense T>
__device__ __forceinline__ float value(const u32 *w, u32 c) {
    if constexpr (T == F32) {
        return __uint_as_float(w[c]);
    } else if constexpr (T == F16 || T == BF16) {
        const u32 at = c / 128 * 128 + c % 16 * 8 + c % 128 / 16;
        const u16 bits = reinterpret_cast<const u16 *>(w)[at];
        return T == F16 ? half_to_float(bits) : __uint_as_float(static_cast<u32>(bits) << 16);
    } else if constexpr (T == Q8_0) {
        // Nine words have 32 values: 32 signed bytes behind an f16 scale in a word of its own.
        const u32 *block = w + c / 32 * 9;
        return __fmul_rn(signed_byte(byte_at(block + 1, c % 32)), low_half(block[0]));
    } else if constexpr (T == Q4_0) {
        // Five words have 32 values: sixteen bytes behind an f16 scale. Low nibbles are the first sixteen values.
        const u32 *block = w + c / 32 * 5;
        const u32 nibble = (byte_at(block + 1, c % 16) >> (4 * (c % 32 / 16))) & 15;
        return __fmul_rn(static_cast<float>(static_cast<int>(nibble) - 8), low_half(block[0]));
    } else {
        // 53 words have 256 values: 128 bytes of low nibbles, 64 bytes of high pairs, sixteen signed scales, an f16 scale.
        const u32 *block = w + c / 256 * 53;
        const u32 half = c % 256 / 128;
        const u32 quarter = c % 128 / 32;
        const u32 i = c % 32;
        const u32 nibble = (byte_at(block, 64 * half + i + 32 * (quarter % 2)) >> (4 * (quarter / 2))) & 15;
        const u32 pair = (byte_at(block, 128 + 32 * half + i) >> (2 * quarter)) & 3;
        const float scale = signed_byte(byte_at(block, 192 + 8 * half + 2 * quarter + i / 16));
        return __fmul_rn(__fmul_rn(low_half(block[52]), scale), static_cast<float>(static_cast<int>(nibble | pair << 4) - 32));
    }
}

// A thread's part of the product of a row: whole blocks of 256 columns first, in which places are known ahead.
template <Dense T>
__device__ __forceinline__ float dense_lane(const u32 *row, const float *x, u32 cols) {
    constexpr u32 BLOCK_WORDS = T == F32 ? 256 : T == F16 || T == BF16 ? 128 : T == Q8_0 ? 72 : T == Q4_0 ? 40 : 53;
    const u32 lane = threadIdx.x % LANES;
    float acc = 0.0f;
    u32 begin = 0;
    for (; begin + 256 <= cols; begin += 256) {
        const u32 *block = row + begin / 256 * BLOCK_WORDS;
        float v[16];
#pragma unroll
        for (u32 j = 0; j < 16; ++j) {
            v[j] = value<T>(block, 16 * j + lane);
        }
#pragma unroll
        for (u32 j = 0; j < 16; ++j) {
            acc = __fmaf_rn(v[j], x[begin + 16 * j + lane], acc);
        }
    }
    for (u32 c = begin + lane; c < cols; c += LANES) {
        acc = __fmaf_rn(value<T>(row, c), x[c], acc);
    }
    return acc;
}

// y [m, stride] from rows x_row.. of x [.., cols]: ROWS rows a half-warp, TOKENS tokens a block.
template <Dense T, int ROWS, int TOKENS>
__device__ __forceinline__ void dense(const float *x, const u32 *w, float *y, u32 rows, u32 stride, u32 first, u32 row_words,
                                      u32 cols, u32 x_row, u32 m) {
    let_next_begin();
    const u32 lane = threadIdx.x % LANES;
    const u32 row = (blockIdx.x * (DENSE_THREADS / LANES) + threadIdx.x / LANES) * ROWS;
    const u32 token = blockIdx.y * TOKENS;
    const u32 *from[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        from[r] = w + static_cast<size_t>(min(row + r, rows - 1)) * row_words;
    }
    wait_for_previous();
    const float *input[TOKENS];
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
        input[t] = x + static_cast<size_t>(x_row + min(token + t, m - 1)) * cols;
    }
    float acc[ROWS][TOKENS] = {};
    for (u32 c = lane; c < cols; c += LANES) {
        float v[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            v[r] = value<T>(from[r], c);
        }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            const float a = input[t][c];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                acc[r][t] = __fmaf_rn(v[r], a, acc[r][t]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            const float sum = fold16(acc[r][t]);
            if (lane == 0 && row + r < rows && token + t < m) {
                y[static_cast<size_t>(token + t) * stride + first + row + r] = sum;
            }
        }
    }
}

// The same for types of sixteen bits: x of TOKENS tokens goes through shared memory, [128 columns][TOKENS], and each thread
// reads eight columns of a row at once.
template <Dense T, int ROWS, int TOKENS>
__device__ __forceinline__ void dense16(const float *x, const uint4 *w, float *y, u32 rows, u32 stride, u32 first, u32 row_words,
                                        u32 cols, u32 x_row, u32 m) {
    constexpr u32 CHUNK = TOKENS == 1 ? 1024 : 256;
    __shared__ float4 room[CHUNK * TOKENS / 4];
    float *chunk = reinterpret_cast<float *>(room);
    let_next_begin();
    const u32 lane = threadIdx.x % LANES;
    const u32 row = (blockIdx.x * (DENSE_THREADS / LANES) + threadIdx.x / LANES) * ROWS;
    const u32 token = blockIdx.y * TOKENS;
    const uint4 *from[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        from[r] = w + static_cast<size_t>(min(row + r, rows - 1)) * (row_words / 4) + lane;
    }
    uint4 now[ROWS];
    uint4 next[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        next[r] = load_streaming(from[r]);
    }
    wait_for_previous();
    float acc[ROWS][TOKENS] = {};
    for (u32 begin = 0; begin < cols; begin += CHUNK) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < CHUNK * TOKENS; i += DENSE_THREADS) {
            const u32 t = i / CHUNK;
            const u32 c = begin + i % CHUNK;
            const float v = c < cols && token + t < m ? x[static_cast<size_t>(x_row + token + t) * cols + c] : 0.0f;
            chunk[i % CHUNK * TOKENS + t] = v;
        }
        __syncthreads();
        const u32 end = min(begin + CHUNK, (cols + 127) / 128 * 128);
        for (u32 block = begin; block < end; block += 128) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                now[r] = next[r];
                if (block + 128 < cols) {
                    next[r] = load_streaming(from[r] + (block / 128 + 1) * LANES);
                }
            }
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float v[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const u32 word = i / 2 == 0 ? now[r].x : i / 2 == 1 ? now[r].y : i / 2 == 2 ? now[r].z : now[r].w;
                    const u16 bits = static_cast<u16>(i % 2 == 0 ? word : word >> 16);
                    v[r] = T == F16 ? half_to_float(bits) : __uint_as_float(static_cast<u32>(bits) << 16);
                }
                const float *inputs = chunk + (block - begin + 16 * i + lane) * TOKENS;
                float a[TOKENS];
                if constexpr (TOKENS % 4 == 0) {
#pragma unroll
                    for (int t = 0; t < TOKENS / 4; ++t) {
                        const float4 four = reinterpret_cast<const float4 *>(inputs)[t];
                        a[4 * t] = four.x;
                        a[4 * t + 1] = four.y;
                        a[4 * t + 2] = four.z;
                        a[4 * t + 3] = four.w;
                    }
                } else {
#pragma unroll
                    for (int t = 0; t < TOKENS; ++t) {
                        a[t] = inputs[t];
                    }
                }
#pragma unroll
                for (int t = 0; t < TOKENS; ++t) {
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) {
                        acc[r][t] = __fmaf_rn(v[r], a[t], acc[r][t]);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            const float sum = fold16(acc[r][t]);
            if (lane == 0 && row + r < rows && token + t < m) {
                y[static_cast<size_t>(token + t) * stride + first + row + r] = sum;
            }
        }
    }
}

#define DENSE(NAME, BODY, VECTOR, T, ROWS, TOKENS)                                                                     \
    extern "C" __global__ void __launch_bounds__(DENSE_THREADS)                                                        \
        NAME(const float *x, const VECTOR *w, float *y, u32 rows, u32 stride, u32 first, u32 row_words, u32 cols,      \
             u32 x_row, u32 m) {                                                                                       \
        BODY<T, ROWS, TOKENS>(x, w, y, rows, stride, first, row_words, cols, x_row, m);                                \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

DENSE(dense_f32, dense, u32, F32, 1, 4)
DENSE(dense_q8_0, dense, u32, Q8_0, 1, 4)
DENSE(dense_q4_0, dense, u32, Q4_0, 1, 4)
DENSE(dense_q6_k, dense, u32, Q6_K, 1, 4)
DENSE(dense_f16, dense16, uint4, F16, 2, 1)
DENSE(dense_bf16, dense16, uint4, BF16, 2, 1)
DENSE(dense_f16_many, dense16, uint4, F16, 4, 8)
DENSE(dense_bf16_many, dense16, uint4, BF16, 4, 8)

// Rows `ids - first`, where they lie in this matrix: y [m, cols].
template <Dense T>
__device__ __forceinline__ void embed(const u32 *ids, const u32 *w, float *y, u32 rows, u32 first, u32 row_words, u32 cols) {
    let_next_begin();
    wait_for_previous();
    const u32 row = ids[blockIdx.y] - first;
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows && c < cols) {
        y[static_cast<size_t>(blockIdx.y) * cols + c] = value<T>(w + static_cast<size_t>(row) * row_words, c);
    }
}

#define EMBED(NAME, T)                                                                                                 \
    extern "C" __global__ void NAME(const u32 *ids, const u32 *w, float *y, u32 rows, u32 first, u32 row_words, u32 cols) { \
        embed<T>(ids, w, y, rows, first, row_words, cols);                                                             \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

EMBED(embed_f32, F32)
EMBED(embed_f16, F16)
EMBED(embed_bf16, BF16)
EMBED(embed_q8_0, Q8_0)
EMBED(embed_q4_0, Q4_0)
EMBED(embed_q6_k, Q6_K)

// Puts rows of sixteen-bit numbers, [rows][cols], where `dense16` has them, from row `first` on: [..][padded].
extern "C" __global__ void spread_lanes(const u16 *from, u16 *w, u32 rows, u32 first, u32 cols, u32 padded) {
    let_next_begin();
    wait_for_previous();
    const size_t n = static_cast<size_t>(rows) * padded;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += static_cast<size_t>(gridDim.x) * blockDim.x) {
        const size_t r = i / padded;
        const u32 c = static_cast<u32>(i % padded);
        const u32 at = c / 128 * 128 + c % 16 * 8 + c % 128 / 16;
        w[(first + r) * padded + at] = c < cols ? from[r * cols + c] : static_cast<u16>(0);
    }
}
EXPORT_KERNEL(spread_lanes)
