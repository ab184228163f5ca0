// The certified head: which rows of a large dense matrix can hold one of the k largest products with a vector.
//
// Every row has an int8 copy with a scale of its own, every token its int8 activations (rule 4) and a second digit of them. With
// w = c + e (the copy and what it misses) and x = z + r (likewise), w x = c z + c r + e x, so by Cauchy and Schwarz the score c z
// misses the product by at most |c| |r| + |e| |x|; rounding of the sums adds a multiple of |c| |z| and of |w| |x|. A row whose score plus its bound
// stays below the k-th largest score minus its bound is out; for the others the product is computed as for all
// rows otherwise. So screening decides which rows are computed, never how.
//
// The copy lies as left sides of mma.m16n8k32: [rows / 16][cols / 64][2][32 lanes][4 words], columns in the order of
// `quantize_row` (norm.cu); lane 4 g + t has sixteen columns of rows g and g + 8.
#include "dense.cu"
#include "select.cu"

// Factors by which norms and bounds are raised above their own rounding.
constexpr float RAISED = 1.0009765625f;

struct Row {
    // What a code is worth, the norms of the row, of its copy, and of what that misses.
    float scale;
    float whole;
    float copied;
    float missed;
};

struct Query {
    // The norms of a token's activations, of their int8 form, and of what that misses.
    float whole;
    float copied;
    float missed;
};

__device__ __forceinline__ float warp_sum(float v) {
    for (int width = 16; width > 0; width /= 2) {
        v = __fadd_rn(v, __shfl_xor_sync(WARP, v, width));
    }
    return v;
}

// Makes the copy of a row a warp. `codes` is zeros before.
template <Dense T>
__device__ __forceinline__ void screen_rows(const u32 *w, signed char *codes, Row *rows_out, u32 rows, u32 row_words, u32 cols,
                                            u32 tiles) {
    let_next_begin();
    wait_for_previous();
    const u32 row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    const u32 *from = w + static_cast<size_t>(row) * row_words;
    float most = 0.0f;
    float whole = 0.0f;
    for (u32 c = lane; c < cols; c += 32) {
        const float v = value<T>(from, c);
        most = fmaxf(most, fabsf(v));
        whole = __fmaf_rn(v, v, whole);
    }
    for (int width = 16; width > 0; width /= 2) {
        most = fmaxf(most, __shfl_xor_sync(WARP, most, width));
    }
    const float scale = __fdiv_rn(most, 127.0f);
    float copied = 0.0f;
    float missed = 0.0f;
    for (u32 c = lane; c < cols; c += 32) {
        const float v = value<T>(from, c);
        float code = scale > 0.0f ? rintf(__fdiv_rn(v, scale)) : 0.0f;
        code = fmaxf(fminf(code, 127.0f), -127.0f);
        const float copy = __fmul_rn(code, scale);
        const float miss = __fsub_rn(v, copy);
        copied = __fmaf_rn(copy, copy, copied);
        missed = __fmaf_rn(miss, miss, missed);
        const u32 j = c % 16;
        const size_t vector = ((static_cast<size_t>(row / 16) * tiles + c / 64) * 2 + j % 4 / 2) * 32 + row % 8 * 4 + c % 64 / 16;
        codes[vector * 16 + (j % 2 * 2 + row % 16 / 8) * 4 + j / 4] = static_cast<signed char>(static_cast<int>(code));
    }
    whole = warp_sum(whole);
    copied = warp_sum(copied);
    missed = warp_sum(missed);
    if (lane == 0) {
        Row out;
        out.scale = scale;
        out.whole = __fmul_rn(__fsqrt_rn(whole), RAISED);
        out.copied = __fmul_rn(__fsqrt_rn(copied), RAISED);
        out.missed = __fmul_rn(__fsqrt_rn(missed), RAISED);
        rows_out[row] = out;
    }
}

#define SCREEN_ROWS(NAME, T)                                                                                           \
    extern "C" __global__ void NAME(const u32 *w, signed char *codes, Row *rows_out, u32 rows, u32 row_words, u32 cols, \
                                    u32 tiles) {                                                                       \
        screen_rows<T>(w, codes, rows_out, rows, row_words, cols, tiles);                                              \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

SCREEN_ROWS(screen_rows_f32, F32)
SCREEN_ROWS(screen_rows_f16, F16)
SCREEN_ROWS(screen_rows_bf16, BF16)
SCREEN_ROWS(screen_rows_q8_0, Q8_0)
SCREEN_ROWS(screen_rows_q4_0, Q4_0)
SCREEN_ROWS(screen_rows_q6_k, Q6_K)

constexpr int QUERY_THREADS = 256;
// What the second digit of an activation is worth, of the first.
constexpr float DIGIT = 1.0f / 254.0f;

// Norms and second digits [m, words] of a token, a block each: x [m, cols], q [m, words] and tokens as `quantize_row` leaves them.
// Clears what selection counts in.
extern "C" __global__ void __launch_bounds__(QUERY_THREADS)
    screen_query(const float *x, const u32 *q, const Token *tokens, u32 *digits, Query *queries, u32 *bins, u32 *found, u32 cols,
                 u32 words) {
    __shared__ float sums[3][QUERY_THREADS / 32];
    let_next_begin();
    wait_for_previous();
    for (u32 i = threadIdx.x; i < BINS; i += QUERY_THREADS) {
        bins[blockIdx.x * BINS + i] = 0;
    }
    if (threadIdx.x == 0) {
        *Found{found, gridDim.x}.count(blockIdx.x) = 0;
    }
    const float *row = x + static_cast<size_t>(blockIdx.x) * cols;
    const float d = tokens[blockIdx.x].d;
    float part[3] = {};
    for (u32 word = threadIdx.x; word < words; word += QUERY_THREADS) {
        const u32 packed = q[static_cast<size_t>(blockIdx.x) * words + word];
        u32 second = 0;
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            const u32 c = word / 4 * 16 + word % 4 + 4 * j;
            if (c < cols) {
                // Whatever digit it is, what it leaves is measured.
                const float first = signed_byte((packed >> (8 * j)) & 0xffu);
                float digit = rintf(__fdiv_rn(__fsub_rn(__fdiv_rn(row[c], d), first), DIGIT));
                digit = fmaxf(fminf(digit, 127.0f), -127.0f);
                second |= (static_cast<u32>(static_cast<int>(digit)) & 0xffu) << (8 * j);
                const float z = __fmul_rn(d, __fmaf_rn(digit, DIGIT, first));
                const float r = __fsub_rn(row[c], z);
                part[0] = __fmaf_rn(row[c], row[c], part[0]);
                part[1] = __fmaf_rn(z, z, part[1]);
                part[2] = __fmaf_rn(r, r, part[2]);
            }
        }
        digits[static_cast<size_t>(blockIdx.x) * words + word] = second;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        const float sum = warp_sum(part[i]);
        if (threadIdx.x % 32 == 0) {
            sums[i][threadIdx.x / 32] = sum;
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        float norms[3];
#pragma unroll
        for (int i = 0; i < 3; ++i) {
            float sum = 0.0f;
            for (int j = 0; j < QUERY_THREADS / 32; ++j) {
                sum = __fadd_rn(sum, sums[i][j]);
            }
            norms[i] = __fmul_rn(__fsqrt_rn(sum), RAISED);
        }
        Query out;
        out.whole = norms[0];
        out.copied = norms[1];
        out.missed = norms[2];
        queries[blockIdx.x] = out;
    }
}
EXPORT_KERNEL(screen_query)

// The least and the most that a product can be, from its score.
__device__ __forceinline__ void bounds(int first, int second, Row row, Query query, float d, float slack, float *lower, float *upper) {
    const float sum = __fmaf_rn(static_cast<float>(second), DIGIT, static_cast<float>(first));
    const float score = __fmul_rn(sum, __fmul_rn(row.scale, d));
    const float missed = __fmaf_rn(row.copied, query.missed, __fmul_rn(row.missed, query.whole));
    const float rounded = __fmaf_rn(row.copied, query.copied, __fmul_rn(row.whole, query.whole));
    const float bound = __fmaf_rn(rounded, slack, __fmul_rn(missed, RAISED));
    *lower = __fsub_rn(score, bound);
    *upper = __fadd_rn(score, bound);
}

// Scores of sixteen rows a block, for 8 NT tokens at most: warps take every WARPS-th tile of 64 columns.
template <int WARPS, int AHEAD, int NT>
__device__ __forceinline__ void screen_few(const uint4 *codes, const u32 *q, const u32 *digits, const Token *tokens,
                                           const Row *rows_in, const Query *queries, float *lower, float *upper, u32 rows, u32 tiles,
                                           u32 m, float slack) {
    __shared__ int partial[2][WARPS][8 * NT][16];
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    let_next_begin();
    const uint4 *from = codes + static_cast<size_t>(blockIdx.x) * tiles * 64 + lane;
    uint4 words[AHEAD][2];
    auto load = [&](u32 begin) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const u32 tile = begin + i * WARPS;
            words[i][0] = tile < tiles ? load_streaming(from + tile * 64) : uint4{};
            words[i][1] = tile < tiles ? load_streaming(from + tile * 64 + 32) : uint4{};
        }
    };
    load(warp);
    wait_for_previous();
    int acc[2][NT][4] = {};
    const uint4 *vectors[2] = {reinterpret_cast<const uint4 *>(q) + lane % 4, reinterpret_cast<const uint4 *>(digits) + lane % 4};
    for (u32 begin = warp; begin < tiles; begin += AHEAD * WARPS) {
        if (begin != warp) {
            load(begin);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const u32 tile = begin + i * WARPS;
            if (tile < tiles) {
                const u32 a[4] = {words[i][0].x, words[i][0].y, words[i][0].z, words[i][0].w};
                const u32 c[4] = {words[i][1].x, words[i][1].y, words[i][1].z, words[i][1].w};
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    const u32 token = 8 * n + lane / 4;
                    const size_t from_token = (static_cast<size_t>(token) * tiles + tile) * 4;
#pragma unroll
                    for (int digit = 0; digit < 2; ++digit) {
                        const uint4 b = token < m ? vectors[digit][from_token] : uint4{};
                        mma_s8(acc[digit][n], a, b.x, b.y);
                        mma_s8(acc[digit][n], c, b.z, b.w);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int digit = 0; digit < 2; ++digit) {
                partial[digit][warp][8 * n + lane % 4 * 2 + i % 2][lane / 4 + 8 * (i / 2)] = acc[digit][n][i];
            }
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 8 * NT * 16; i += 32 * WARPS) {
        const u32 t = i / 16;
        const u32 row = blockIdx.x * 16 + i % 16;
        if (t < m && row < rows) {
            int sum[2] = {};
#pragma unroll
            for (int j = 0; j < WARPS; ++j) {
                sum[0] += partial[0][j][t][i % 16];
                sum[1] += partial[1][j][t][i % 16];
            }
            const size_t at = static_cast<size_t>(t) * rows + row;
            bounds(sum[0], sum[1], rows_in[row], queries[t], tokens[t].d, slack, lower + at, upper + at);
        }
    }
}

#define SCREEN_FEW(NAME, WARPS, AHEAD, NT)                                                                             \
    extern "C" __global__ void __launch_bounds__(32 * WARPS)                                                           \
        NAME(const uint4 *codes, const u32 *q, const u32 *digits, const Token *tokens, const Row *rows_in,             \
             const Query *queries, float *lower, float *upper, u32 rows, u32 tiles, u32 m, float slack) {              \
        screen_few<WARPS, AHEAD, NT>(codes, q, digits, tokens, rows_in, queries, lower, upper, rows, tiles, m, slack); \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

SCREEN_FEW(screen_8, 4, 5, 1)

// Scores for many tokens: 16 WARPS rows and 8 NT tokens a block, activations through STAGES buffers of 128 columns.
constexpr int SCREEN_WARPS = 8;
constexpr int SCREEN_NT = 8;
constexpr int SCREEN_STAGES = 4;

extern "C" __global__ void __launch_bounds__(32 * SCREEN_WARPS)
    screen_64(const uint4 *codes, const u32 *q, const u32 *digits, const Token *tokens, const Row *rows_in, const Query *queries,
              float *lower, float *upper, u32 rows, u32 tiles, u32 m, float slack) {
    // Both digits of a token lie behind each other in a buffer.
    constexpr u32 TOKENS = 8 * SCREEN_NT;
    DYNAMIC_SHARED(uint4, screen_stages);
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const u32 first_token = blockIdx.y * TOKENS;
    const u32 row_tile = blockIdx.x * SCREEN_WARPS + warp;
    const u32 last_tile = (rows + 15) / 16 - 1;
    let_next_begin();
    const uint4 *from = codes + static_cast<size_t>(min(row_tile, last_tile)) * tiles * 64 + lane;
    const u32 pairs = tiles / 2;
    uint4 now[4];
    uint4 next[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        next[i] = load_streaming(from + 32 * i);
    }
    wait_for_previous();
    const uint4 *vectors[2] = {reinterpret_cast<const uint4 *>(q), reinterpret_cast<const uint4 *>(digits)};
    auto load = [&](u32 pair) {
        if (pair < pairs) {
            uint4 *stage = screen_stages + pair % SCREEN_STAGES * 2 * TOKENS * 8;
#pragma unroll
            for (u32 i = threadIdx.x; i < 2 * TOKENS * 8; i += 32 * SCREEN_WARPS) {
                const u32 token = i / 8 % TOKENS;
                const bool valid = first_token + token < m;
                const size_t at = valid ? (static_cast<size_t>(first_token + token) * pairs + pair) * 8 + i % 8 : 0;
                copy_async16_zfill(stage + i / 8 * 8 + (i % 8 ^ token % 2 * 4), (i / 8 < TOKENS ? vectors[0] : vectors[1]) + at, valid);
            }
        }
        copy_async_commit();
    };
    for (u32 stage = 0; stage < SCREEN_STAGES - 1; ++stage) {
        load(stage);
    }
    int acc[2][SCREEN_NT][4] = {};
    for (u32 pair = 0; pair < pairs; ++pair) {
        copy_async_wait<SCREEN_STAGES - 2>();
        __syncthreads();
        load(pair + SCREEN_STAGES - 1);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            now[i] = next[i];
            if (pair + 1 < pairs) {
                next[i] = load_streaming(from + (static_cast<size_t>(pair) + 1) * 128 + 32 * i);
            }
        }
        const uint4 *stage = screen_stages + pair % SCREEN_STAGES * 2 * TOKENS * 8;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const uint4 v = now[2 * half];
            const uint4 u = now[2 * half + 1];
            const u32 a[4] = {v.x, v.y, v.z, v.w};
            const u32 c[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
            for (int n = 0; n < SCREEN_NT; ++n) {
                const u32 token = 8 * n + lane / 4;
                const u32 vector = token * 8 + ((4 * half + lane % 4) ^ token % 2 * 4);
                const uint4 b[2] = {stage[vector], stage[TOKENS * 8 + vector]};
                mma_s8(acc[0][n], a, b[0].x, b[0].y);
                mma_s8(acc[1][n], a, b[1].x, b[1].y);
                mma_s8(acc[0][n], c, b[0].z, b[0].w);
                mma_s8(acc[1][n], c, b[1].z, b[1].w);
            }
        }
    }
#pragma unroll
    for (int n = 0; n < SCREEN_NT; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 t = first_token + 8 * n + lane % 4 * 2 + i % 2;
            const u32 row = row_tile * 16 + lane / 4 + 8 * (i / 2);
            if (t < m && row < rows) {
                const size_t at = static_cast<size_t>(t) * rows + row;
                bounds(acc[0][n][i], acc[1][n][i], rows_in[row], queries[t], tokens[t].d, slack, lower + at, upper + at);
            }
        }
    }
}
EXPORT_KERNEL(screen_64)

// The products of the rows that were found (select.cu), a half-warp each, as `dense` computes them: blocks of a token take
// them in strides.
template <Dense T>
__device__ __forceinline__ void screen_exact(const float *x, const u32 *w, u32 *found, u32 row_words, u32 cols, u32 room) {
    let_next_begin();
    wait_for_previous();
    const Found list{found, gridDim.y};
    const u32 count = min(*list.count(blockIdx.y), room);
    const u32 lane = threadIdx.x % LANES;
    const float *input = x + static_cast<size_t>(blockIdx.y) * cols;
    const u32 step = gridDim.x * (DENSE_THREADS / LANES);
    // Both halves of a warp go round equally often.
    for (u32 begin = blockIdx.x * (DENSE_THREADS / LANES); begin < count; begin += step) {
        const u32 at = begin + threadIdx.x / LANES;
        u32 *pair = list.pair(blockIdx.y, min(at, count - 1));
        const u32 *row = w + static_cast<size_t>(pair[0]) * row_words;
        const float acc = fold16(dense_lane<T>(row, input, cols));
        if (lane == 0 && at < count) {
            pair[1] = __float_as_uint(acc);
        }
    }
}

#define SCREEN_EXACT(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(DENSE_THREADS)                                                        \
        NAME(const float *x, const u32 *w, u32 *found, u32 row_words, u32 cols, u32 room) {                            \
        screen_exact<T>(x, w, found, row_words, cols, room);                                                           \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

SCREEN_EXACT(screen_exact_f32, F32)
SCREEN_EXACT(screen_exact_f16, F16)
SCREEN_EXACT(screen_exact_bf16, BF16)
SCREEN_EXACT(screen_exact_q8_0, Q8_0)
SCREEN_EXACT(screen_exact_q4_0, Q4_0)
SCREEN_EXACT(screen_exact_q6_k, Q6_K)
