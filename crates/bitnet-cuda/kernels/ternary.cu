// Rules 5 and 6 of docs/numerics.md: products with ternary weights.
//
// Weights lie in tiles of 16 rows by 128 columns, 512 bytes: [rows / 16][cols / 128][32 lanes][4 words]. A word has sixteen
// neighbouring codes of a row, two bits each, lowest first; code = trit + 1. Lane 4 g + t has columns 16 t .. 16 t + 15 of
// each half of a tile (64 columns): word 0 those of row g and word 1 those of row g + 8 in the first half, words 2 and 3
// the same in the second. So a warp reads 512 bytes that follow each other, each lane sixteen of them, and
// has them where mma.m16n8k32 wants its left side: (word >> 2 i) & 0x03030303 is a register of its fragment, with the order
// of columns in which `quantize_row` (norm.cu) leaves activations.
#pragma once
#include "device.cuh"
#include "norm.cu"

constexpr u32 TILE_ROWS = 16;
constexpr u32 TILE_VECTORS = 32;
constexpr u32 CODES = 0x03030303u;

// The product of sixteen codes with their activations.
__device__ __forceinline__ int dot16(u32 word, uint4 v, int acc) {
    acc = __dp4a(static_cast<int>(word & CODES), static_cast<int>(v.x), acc);
    acc = __dp4a(static_cast<int>((word >> 2) & CODES), static_cast<int>(v.y), acc);
    acc = __dp4a(static_cast<int>((word >> 4) & CODES), static_cast<int>(v.z), acc);
    return __dp4a(static_cast<int>((word >> 6) & CODES), static_cast<int>(v.w), acc);
}

// Where a product goes, and what it is multiplied with.
struct Output {
    // [rows], behind which nothing is read.
    const float *scales;
    // [m, stride]
    float *y;
    u32 rows;
    u32 stride;
    u32 first;
};

// One token: a block has sixteen rows (of the gate and of the up projection, where GATED), its warps take every WARPS-th tile of them.
template <int WARPS, int AHEAD, bool GATED>
struct OneToken {
    static constexpr int SIDES = GATED ? 2 : 1;
    const uint4 *side[SIDES];
    u32 tiles;
    uint4 words[SIDES][AHEAD];
    float scales[SIDES];

    __device__ __forceinline__ void load(u32 from) {
#pragma unroll
        for (int s = 0; s < SIDES; ++s) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                const u32 tile = from + i * WARPS;
                words[s][i] = tile < tiles ? load_streaming(side[s] + static_cast<size_t>(tile) * TILE_VECTORS) : uint4{};
            }
        }
    }

    // Weights do not depend on what runs before: the first of them are on their way while others work.
    __device__ __forceinline__ void begin(const uint4 *w, const Output &out, u32 all_tiles, u32 up) {
        const u32 lane = threadIdx.x % 32;
        tiles = all_tiles;
        side[0] = w + static_cast<size_t>(blockIdx.x) * tiles * TILE_VECTORS + lane;
        if constexpr (GATED) {
            side[1] = w + static_cast<size_t>(up / TILE_ROWS + blockIdx.x) * tiles * TILE_VECTORS + lane;
        }
        load(threadIdx.x / 32);
        const u32 row = blockIdx.x * TILE_ROWS + threadIdx.x;
        if (threadIdx.x < TILE_ROWS && row < out.rows) {
#pragma unroll
            for (int s = 0; s < SIDES; ++s) {
                scales[s] = out.scales[s * up + row];
            }
        }
    }

    // The products with activations q, which become y.
    __device__ __forceinline__ void finish(const u32 *q, Token token, Output out, u32 up, u32 act) {
        __shared__ int partial[SIDES][WARPS][TILE_ROWS];
        const u32 lane = threadIdx.x % 32;
        const u32 warp = threadIdx.x / 32;
        int acc[SIDES][2] = {};
        const uint4 *vectors = reinterpret_cast<const uint4 *>(q) + lane % 4;
        for (u32 from = warp; from < tiles; from += AHEAD * WARPS) {
            if (from != warp) {
                load(from);
            }
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                const u32 tile = from + i * WARPS;
                if (tile < tiles) {
                    const uint4 low = vectors[tile * 8];
                    const uint4 high = vectors[tile * 8 + 4];
#pragma unroll
                    for (int s = 0; s < SIDES; ++s) {
                        acc[s][0] = dot16(words[s][i].x, low, acc[s][0]);
                        acc[s][1] = dot16(words[s][i].y, low, acc[s][1]);
                        acc[s][0] = dot16(words[s][i].z, high, acc[s][0]);
                        acc[s][1] = dot16(words[s][i].w, high, acc[s][1]);
                    }
                }
            }
        }
#pragma unroll
        for (int s = 0; s < SIDES; ++s) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int sum = acc[s][half];
                sum += __shfl_xor_sync(WARP, sum, 1);
                sum += __shfl_xor_sync(WARP, sum, 2);
                if (lane % 4 == 0) {
                    partial[s][warp][lane / 4 + 8 * half] = sum;
                }
            }
        }
        __syncthreads();
        const u32 row = blockIdx.x * TILE_ROWS + threadIdx.x;
        if (threadIdx.x < TILE_ROWS && row < out.rows) {
            float value[SIDES];
#pragma unroll
            for (int s = 0; s < SIDES; ++s) {
                int sum = 0;
#pragma unroll
                for (int i = 0; i < WARPS; ++i) {
                    sum += partial[s][i][threadIdx.x];
                }
                value[s] = rescaled(sum, token, scales[s]);
            }
            if constexpr (GATED) {
                out.y[out.first + row] = gated(act, value[0], value[1]);
            } else {
                out.y[out.first + row] = value[0];
            }
        }
    }
};

template <int WARPS, int AHEAD, bool GATED>
__device__ __forceinline__ void one_token(const u32 *q, const uint4 *w, const Token *tokens, Output out, u32 tiles, u32 up, u32 act) {
    let_next_begin();
    OneToken<WARPS, AHEAD, GATED> product;
    product.begin(w, out, tiles, up);
    wait_for_previous();
    const Token token = tokens[0];
    product.finish(q, token, out, up, act);
}

// A norm of one token and a product behind it: each block norms the token for itself, and the first one writes down what comes of that,
// as `rms_norm` would. What is written here may not be what is read.
template <int WARPS, int AHEAD, bool GATED>
__device__ __forceinline__ void norm_one_token(Norm n, u32 *q_out, Token *token_out, const uint4 *w, Output out, u32 tiles, u32 up,
                                               u32 act) {
    constexpr int THREADS = 32 * WARPS;
    DYNAMIC_SHARED(float, norm_room);
    float *row = norm_room;                                  // [16][stride]
    float *weight = row + LANES * lane_stride(n.cols);       // [words * 4]
    u32 *q = reinterpret_cast<u32 *>(weight + n.words * 4);  // [words]
    let_next_begin();
    OneToken<WARPS, AHEAD, GATED> product;
    product.begin(w, out, tiles, up);
    load_weight<THREADS>(n.w, weight, n.cols);
    wait_for_previous();
    if (blockIdx.x != 0) {
        n.sum = nullptr;
        n.y = nullptr;
    }
    norm_token<THREADS>(n, row, weight, q, &norm_token_out);
    if (blockIdx.x == 0) {
        store_row<THREADS>(q, n.words, &norm_token_out, q_out, token_out);
    }
    product.finish(q, norm_token_out, out, up, act);
}

#define GEMV(NAME, WARPS, AHEAD, GATED)                                                                                \
    KERNEL(NAME, __launch_bounds__(32 * WARPS))                                                                        \
        (const u32 *q, const uint4 *w, const Token *tokens, const float *scales, float *y, u32 rows, u32 stride,       \
             u32 first, u32 tiles, u32 m, u32 up, u32 act) {                                                           \
        SIZES(NAME)                                                                                                    \
        one_token<WARPS, AHEAD, GATED>(q, w, tokens, Output{scales, y, rows, stride, first}, tiles, up, act);               \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

GEMV(gemv, 8, 4, false)
GEMV(gemv_gated, 8, 4, true)

#define NORM_GEMV(NAME, WARPS, AHEAD, GATED)                                                                           \
    KERNEL(NAME, __launch_bounds__(32 * WARPS))                                                                        \
        (const float *x, const float *extra, float *sum, const float *norm, float *normed, u32 *q, Token *token,       \
             u32 cols, u32 words, float eps, const uint4 *w, const float *scales, float *y, u32 rows, u32 first,       \
             u32 tiles, u32 up, u32 act) {                                                                             \
        SIZES(NAME)                                                                                                    \
        const Norm n{x, extra, sum, norm, normed, cols, words, eps};                                                   \
        norm_one_token<WARPS, AHEAD, GATED>(n, q, token, w, Output{scales, y, rows, 0, first}, tiles, up, act);        \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

NORM_GEMV(norm_gemv, 8, 4, false)
NORM_GEMV(norm_gemv_gated, 8, 4, true)

// The registers of a left fragment for the columns that `low` and `high`, words of rows g and g + 8, have.
__device__ __forceinline__ void unpack(u32 low, u32 high, u32 (&first)[4], u32 (&second)[4]) {
    first[0] = low & CODES;
    first[1] = high & CODES;
    first[2] = (low >> 2) & CODES;
    first[3] = (high >> 2) & CODES;
    second[0] = (low >> 4) & CODES;
    second[1] = (high >> 4) & CODES;
    second[2] = (low >> 6) & CODES;
    second[3] = (high >> 6) & CODES;
}

// A few tokens, 8 NT at most: as `one_token`, on tensor cores, with activations straight from the cache.
template <int WARPS, int AHEAD, int NT, bool GATED>
__device__ __forceinline__ void few_tokens(const u32 *q, const uint4 *w, const Token *tokens, Output out, u32 tiles, u32 m, u32 up,
                                    u32 act) {
    constexpr int SIDES = GATED ? 2 : 1;
    __shared__ int partial[SIDES][WARPS][8 * NT][TILE_ROWS];
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    let_next_begin();

    const uint4 *side[SIDES];
    side[0] = w + static_cast<size_t>(blockIdx.x) * tiles * TILE_VECTORS + lane;
    if constexpr (GATED) {
        side[1] = w + static_cast<size_t>(up / TILE_ROWS + blockIdx.x) * tiles * TILE_VECTORS + lane;
    }
    uint4 words[SIDES][AHEAD];
    auto load = [&](u32 from) {
#pragma unroll
        for (int s = 0; s < SIDES; ++s) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i) {
                const u32 tile = from + i * WARPS;
                words[s][i] = tile < tiles ? load_streaming(side[s] + static_cast<size_t>(tile) * TILE_VECTORS) : uint4{};
            }
        }
    };
    load(warp);
    wait_for_previous();

    int acc[SIDES][NT][4] = {};
    const uint4 *vectors = reinterpret_cast<const uint4 *>(q) + lane % 4;
    for (u32 from = warp; from < tiles; from += AHEAD * WARPS) {
        if (from != warp) {
            load(from);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const u32 tile = from + i * WARPS;
            if (tile < tiles) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    u32 a[SIDES][2][4];
#pragma unroll
                    for (int s = 0; s < SIDES; ++s) {
                        const uint4 v = words[s][i];
                        unpack(half == 0 ? v.x : v.z, half == 0 ? v.y : v.w, a[s][0], a[s][1]);
                    }
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
                        const u32 token = 8 * n + lane / 4;
                        const uint4 b = token < m ? vectors[(static_cast<size_t>(token) * tiles + tile) * 8 + 4 * half] : uint4{};
#pragma unroll
                        for (int s = 0; s < SIDES; ++s) {
                            mma_s8(acc[s][n], a[s][0], b.x, b.y);
                            mma_s8(acc[s][n], a[s][1], b.z, b.w);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (int s = 0; s < SIDES; ++s) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                partial[s][warp][8 * n + lane % 4 * 2 + i % 2][lane / 4 + 8 * (i / 2)] = acc[s][n][i];
            }
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < 8 * NT * TILE_ROWS; i += 32 * WARPS) {
        const u32 t = i / TILE_ROWS;
        const u32 row = blockIdx.x * TILE_ROWS + i % TILE_ROWS;
        if (t < m && row < out.rows) {
            const Token token = tokens[t];
            float value[SIDES];
#pragma unroll
            for (int s = 0; s < SIDES; ++s) {
                int sum = 0;
#pragma unroll
                for (int from = 0; from < WARPS; ++from) {
                    sum += partial[s][from][t][i % TILE_ROWS];
                }
                value[s] = rescaled(sum, token, out.scales[s * up + row]);
            }
            float *y = out.y + static_cast<size_t>(t) * out.stride + out.first + row;
            if constexpr (GATED) {
                *y = gated(act, value[0], value[1]);
            } else {
                *y = value[0];
            }
        }
    }
}

#define FEW(NAME, WARPS, AHEAD, NT, GATED)                                                                             \
    KERNEL(NAME, __launch_bounds__(32 * WARPS))                                                                        \
        (const u32 *q, const uint4 *w, const Token *tokens, const float *scales, float *y, u32 rows, u32 stride,       \
             u32 first, u32 tiles, u32 m, u32 up, u32 act) {                                                           \
        few_tokens<WARPS, AHEAD, NT, GATED>(q, w, tokens, Output{scales, y, rows, stride, first}, tiles, m, up, act);         \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

FEW(few_8, 8, 4, 1, false)
FEW(few_8_gated, 8, 4, 1, true)
FEW(few_16, 8, 3, 2, false)
FEW(few_16_gated, 8, 3, 2, true)

// Many tokens: a block has 16 * WR * RT rows (where GATED, half of a warp's are the gate's and half the up projection's) and
// 8 * WN * NT tokens; WR by WN warps, each RT by NT fragments. Weights and activations come through STAGES buffers of 128 columns.
template <int WR, int WN, int RT, int NT, int STAGES, bool GATED>
__device__ __forceinline__ void many_tokens(const u32 *q, const uint4 *w, const Token *tokens, Output out, u32 tiles, u32 m, u32 up,
                                            u32 act) {
    constexpr u32 THREADS = 32 * WR * WN;
    constexpr u32 TOKENS = 8 * WN * NT;
    constexpr u32 WEIGHTS = WR * RT * TILE_VECTORS;
    constexpr u32 STAGE = WEIGHTS + TOKENS * 8;
    // Sixteen-row tiles of the result that a warp has.
    constexpr u32 OWN = GATED ? RT / 2 : RT;
    DYNAMIC_SHARED(uint4, stages);
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const u32 first_tile = blockIdx.x * WR * OWN;
    const u32 first_token = blockIdx.y * TOKENS;
    const u32 row_tiles = (out.rows + TILE_ROWS - 1) / TILE_ROWS;
    let_next_begin();

    // What a thread copies of each buffer: where it comes from for the next one, and where it goes.
    constexpr u32 A = (WEIGHTS + THREADS - 1) / THREADS;
    constexpr u32 B = TOKENS * 8 / THREADS;
    const uint4 *weights_from[A];
    const uint4 *vectors_from[B];
    u32 vectors_to[B];
    bool valid[B];
#pragma unroll
    for (u32 k = 0; k < A; ++k) {
        const u32 i = threadIdx.x + k * THREADS;
        const u32 r = min(i / TILE_VECTORS, static_cast<u32>(WR * RT - 1));
        // A tile behind the last one is computed again and not stored.
        const u32 row_tile = min(first_tile + r / RT * OWN + r % OWN, row_tiles - 1) + (r % RT >= OWN ? up / TILE_ROWS : 0);
        weights_from[k] = w + static_cast<size_t>(row_tile) * tiles * TILE_VECTORS + i % TILE_VECTORS;
    }
#pragma unroll
    for (u32 k = 0; k < B; ++k) {
        const u32 i = threadIdx.x + k * THREADS;
        const u32 token = i / 8;
        valid[k] = first_token + token < m;
        const size_t from = valid[k] ? static_cast<size_t>(first_token + token) * tiles * 8 + i % 8 : 0;
        vectors_from[k] = reinterpret_cast<const uint4 *>(q) + from;
        // The order of a token's vectors alternates, so that no eight lanes that read at once meet in a bank.
        vectors_to[k] = WEIGHTS + token * 8 + (i % 8 ^ token % 2 * 4);
    }
    auto load_weights = [&](u32 tile) {
        if (tile < tiles) {
            uint4 *stage = stages + tile % STAGES * STAGE;
#pragma unroll
            for (u32 k = 0; k < A; ++k) {
                const u32 i = threadIdx.x + k * THREADS;
                if (WEIGHTS % THREADS == 0 || i < WEIGHTS) {
                    copy_async16(stage + i, weights_from[k]);
                }
                weights_from[k] += TILE_VECTORS;
            }
        }
    };
    auto load_activations = [&](u32 tile) {
        if (tile < tiles) {
            uint4 *stage = stages + tile % STAGES * STAGE;
#pragma unroll
            for (u32 k = 0; k < B; ++k) {
                copy_async16_zfill(stage + vectors_to[k], vectors_from[k], valid[k]);
                vectors_from[k] += 8;
            }
        }
        copy_async_commit();
    };
    // Weights do not depend on what runs before.
    for (u32 stage = 0; stage < STAGES - 1; ++stage) {
        load_weights(stage);
    }
    wait_for_previous();
    for (u32 stage = 0; stage < STAGES - 1; ++stage) {
        load_activations(stage);
    }

    int acc[RT][NT][4] = {};
    const u32 token_lane = warp % WN * NT * 8 + lane / 4;
    for (u32 tile = 0; tile < tiles; ++tile) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        load_weights(tile + STAGES - 1);
        load_activations(tile + STAGES - 1);
        const uint4 *weights = stages + tile % STAGES * STAGE + warp / WN * RT * TILE_VECTORS + lane;
        const uint4 *stage = stages + tile % STAGES * STAGE + WEIGHTS;
        uint4 words[RT];
#pragma unroll
        for (int r = 0; r < RT; ++r) {
            words[r] = weights[r * TILE_VECTORS];
        }
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 a[RT][2][4];
#pragma unroll
            for (int r = 0; r < RT; ++r) {
                unpack(half == 0 ? words[r].x : words[r].z, half == 0 ? words[r].y : words[r].w, a[r][0], a[r][1]);
            }
#pragma unroll
            for (int n = 0; n < NT; n += 2) {
                // Products with the same sum lie as far apart as they can: the next one waits for the one before.
                uint4 b[2];
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const u32 token = token_lane + 8 * (n + j);
                    b[j] = stage[token * 8 + ((4 * half + lane % 4) ^ token % 2 * 4)];
                }
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int r = 0; r < RT; ++r) {
                        mma_s8(acc[r][n + j], a[r][0], b[j].x, b[j].y);
                    }
                }
#pragma unroll
                for (int j = 0; j < 2; ++j) {
#pragma unroll
                    for (int r = 0; r < RT; ++r) {
                        mma_s8(acc[r][n + j], a[r][1], b[j].z, b[j].w);
                    }
                }
            }
        }
    }

#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int side_token = 0; side_token < 2; ++side_token) {
            const u32 t = first_token + warp % WN * NT * 8 + 8 * n + lane % 4 * 2 + side_token;
            if (t >= m) {
                continue;
            }
            const Token token = tokens[t];
            float *y = out.y + static_cast<size_t>(t) * out.stride + out.first;
#pragma unroll
            for (u32 r = 0; r < OWN; ++r) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const u32 row = (first_tile + warp / WN * OWN + r) * TILE_ROWS + lane / 4 + 8 * half;
                    if (row < out.rows) {
                        float value = rescaled(acc[r][n][2 * half + side_token], token, out.scales[row]);
                        if constexpr (GATED) {
                            const float other = rescaled(acc[r + OWN][n][2 * half + side_token], token, out.scales[up + row]);
                            value = gated(act, value, other);
                        }
                        y[row] = value;
                    }
                }
            }
        }
    }
}

#define GEMM(NAME, WR, WN, RT, NT, STAGES, GATED, BLOCKS)                                                              \
    KERNEL(NAME, __launch_bounds__(32 * WR * WN, BLOCKS))                                                              \
        (const u32 *q, const uint4 *w, const Token *tokens, const float *scales, float *y, u32 rows, u32 stride,       \
             u32 first, u32 tiles, u32 m, u32 up, u32 act) {                                                           \
        many_tokens<WR, WN, RT, NT, STAGES, GATED>(q, w, tokens, Output{scales, y, rows, stride, first}, tiles, m, up, act);  \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

// Rows by tokens of a block; the last number is how many blocks a multiprocessor has room for at least.
GEMM(gemm_32x32, 2, 2, 1, 2, 4, false, 1)
GEMM(gemm_32x64, 2, 2, 1, 4, 4, false, 1)
GEMM(gemm_64x64, 2, 2, 2, 4, 4, false, 1)
GEMM(gemm_64x128, 2, 2, 2, 8, 4, false, 1)
GEMM(gemm_128x128, 4, 2, 2, 8, 4, false, 2)
GEMM(gemm_128x128_wide, 2, 2, 4, 8, 4, false, 1)
GEMM(gemm_32x32_gated, 2, 2, 2, 2, 4, true, 1)
GEMM(gemm_32x64_gated, 2, 2, 2, 4, 4, true, 1)
GEMM(gemm_32x128_gated, 2, 2, 2, 8, 4, true, 1)
GEMM(gemm_64x128_gated, 4, 2, 2, 8, 4, true, 2)
GEMM(gemm_64x128_gated_wide, 2, 2, 4, 8, 4, true, 1)

constexpr int GROUPED_THREADS = 256;

// The word that has columns 16 i .. 16 i + 15 of a row.
__device__ __forceinline__ u32 word_at(const u32 *w, u32 tiles, u32 row, u32 i) {
    const size_t tile = static_cast<size_t>(row / TILE_ROWS) * tiles + i / 8;
    const u32 lane = row % 8 * 4 + i % 4;
    return w[(tile * TILE_VECTORS + lane) * 4 + i % 8 / 4 * 2 + row % TILE_ROWS / 8];
}

// Rule 6, int8 activations: sixteen rows and one token a block. scales [groups, scale_rows], `group_words` words share one.
KERNEL(grouped, __launch_bounds__(GROUPED_THREADS))
    (const u32 *q, const u32 *w, const Token *tokens, const float *scales, float *y, u32 rows, u32 stride, u32 first,
            u32 tiles, u32 cols, u32 group_words, u32 scale_rows) {
    DYNAMIC_SHARED(int, sums); // [groups][16]
    let_next_begin();
    wait_for_previous();
    const u32 words = (cols + 15) / 16;
    const u32 groups = (words + group_words - 1) / group_words;
    for (u32 i = threadIdx.x; i < groups * TILE_ROWS; i += GROUPED_THREADS) {
        sums[i] = 0;
    }
    __syncthreads();
    const u32 row = blockIdx.x * TILE_ROWS + threadIdx.x % TILE_ROWS;
    const uint4 *vectors = reinterpret_cast<const uint4 *>(q) + static_cast<size_t>(blockIdx.y) * tiles * 8;
    constexpr u32 ONES = 0x01010101u;
    for (u32 i = threadIdx.x / TILE_ROWS; i < words; i += GROUPED_THREADS / TILE_ROWS) {
        const uint4 v = vectors[i];
        int extra = __dp4a(static_cast<int>(ONES), static_cast<int>(v.x), 0);
        extra = __dp4a(static_cast<int>(ONES), static_cast<int>(v.y), extra);
        extra = __dp4a(static_cast<int>(ONES), static_cast<int>(v.z), extra);
        extra = __dp4a(static_cast<int>(ONES), static_cast<int>(v.w), extra);
        const int sum = dot16(word_at(w, tiles, row, i), v, -extra);
        atomicAdd(&sums[i / group_words * TILE_ROWS + threadIdx.x % TILE_ROWS], sum);
    }
    __syncthreads();
    if (threadIdx.x < TILE_ROWS && row < rows) {
        float t = 0.0f;
        for (u32 g = 0; g < groups; ++g) {
            t = __fmaf_rn(static_cast<float>(sums[g * TILE_ROWS + threadIdx.x]), scales[static_cast<size_t>(g) * scale_rows + row], t);
        }
        y[static_cast<size_t>(blockIdx.y) * stride + first + row] = __fmul_rn(t, tokens[blockIdx.y].d);
    }
}
EXPORT_KERNEL(grouped)

// Rule 6, float activations: sixteen rows and one token of x [.., cols] a block, a half-warp a row.
KERNEL(ternary_floats, __launch_bounds__(GROUPED_THREADS))
    (const float *x, const u32 *w, const float *scales, float *y, u32 rows, u32 stride, u32 first, u32 tiles,
                   u32 cols, u32 group_words, u32 scale_rows, u32 x_row) {
    let_next_begin();
    wait_for_previous();
    const u32 lane = threadIdx.x % LANES;
    const u32 row = blockIdx.x * TILE_ROWS + threadIdx.x / LANES;
    const float *from = x + static_cast<size_t>(x_row + blockIdx.y) * cols;
    const u32 words = (cols + 15) / 16;
    float t = 0.0f;
    for (u32 begin = 0, group = 0; begin < words; begin += group_words, ++group) {
        float acc = 0.0f;
        for (u32 i = begin; i < min(begin + group_words, words); ++i) {
            const u32 c = 16 * i + lane;
            if (c < cols) {
                const int trit = static_cast<int>((word_at(w, tiles, row, i) >> (2 * lane)) & 3) - 1;
                acc = __fmaf_rn(from[c], static_cast<float>(trit), acc);
            }
        }
        acc = fold16(acc);
        t = __fmaf_rn(acc, scales[static_cast<size_t>(group) * scale_rows + row], t);
    }
    if (lane == 0 && row < rows) {
        y[static_cast<size_t>(blockIdx.y) * stride + first + row] = t;
    }
}
EXPORT_KERNEL(ternary_floats)

// Rows `ids - first` of an embedding, where they lie in these weights: y [m, cols].
KERNEL(embed_ternary)(const u32 *ids, const u32 *w, const float *scales, float *y, u32 rows, u32 first, u32 tiles, u32 cols,
                      u32 group_words, u32 scale_rows) {
    let_next_begin();
    wait_for_previous();
    const u32 row = ids[blockIdx.y] - first;
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows && c < cols) {
        const int trit = static_cast<int>((word_at(w, tiles, row, c / 16) >> (2 * (c % 16))) & 3) - 1;
        const float scale = scales[static_cast<size_t>(c / 16 / group_words) * scale_rows + row];
        y[static_cast<size_t>(blockIdx.y) * cols + c] = __fmul_rn(static_cast<float>(trit), scale);
    }
}
EXPORT_KERNEL(embed_ternary)

// Puts rows of codes, [rows][cols / 16] words, where tiles have them, from row `first` on. Rows up to `padded` are zero trits.
KERNEL(tile_codes)(const u32 *codes, u32 *w, u32 rows, u32 padded, u32 first, u32 tiles) {
    let_next_begin();
    wait_for_previous();
    const size_t words = static_cast<size_t>(tiles) * 8;
    for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < padded * words;
         at += static_cast<size_t>(gridDim.x) * blockDim.x) {
        const u32 r = static_cast<u32>(at / words);
        const u32 i = static_cast<u32>(at % words);
        const u32 row = first + r;
        const size_t tile = static_cast<size_t>(row / TILE_ROWS) * tiles + i / 8;
        const u32 lane = row % 8 * 4 + i % 4;
        w[(tile * TILE_VECTORS + lane) * 4 + i % 8 / 4 * 2 + row % TILE_ROWS / 8] = r < rows ? codes[at] : 0x55555555u;
    }
}
EXPORT_KERNEL(tile_codes)
