// Causal attention of whole sequences (rules 10 and 11), and the way back. Everything that tiles of 32 rows by some columns are multiplied with
// goes through shared memory; each element is one chain of fused multiply-adds, in the order of the processor's.
#pragma once
#include "training.cuh"

constexpr u32 ATTEND_WIDTH = 256;
// Rows of a tile: four a warp.
constexpr u32 TILE_ROWS = 32;
constexpr u32 OWN_ROWS = 4;
// Positions of a part of a softmax, and queries whose gradients of keys and values are summed together.
constexpr u32 SEGMENT = 256;
constexpr u32 QUERIES = 64;
// Elements that are multiplied, and positions that are added, between two barriers.
constexpr u32 STEP = 16;
// How far apart columns of weights and rows of what is multiplied lie: four rows are read at once, and neighbours meet in no bank.
constexpr u32 PITCH = TILE_ROWS + 4;
// Elements of a head that are summed together, a thread a column of each 32.
constexpr u32 ELEMENTS = 128;
constexpr u32 OWN_ELEMENTS = ELEMENTS / 32;

// Rows of a head: `count` of them from `at` on.
struct HeadRows {
    const float *at;
    size_t stride;
    u32 count;
};

struct TrainShape {
    u32 heads;
    u32 kv_heads;
    u32 head_dim;

    __device__ __forceinline__ u32 columns() const { return (heads + 2 * kv_heads) * head_dim; }
    __device__ __forceinline__ u32 key_column(u32 group) const { return (heads + group) * head_dim; }
    __device__ __forceinline__ u32 value_column(u32 group) const { return (heads + kv_heads + group) * head_dim; }
};

// A tile of a sequence: its first row in the batch, its length, the tile's first row in it.
struct TrainTile {
    u32 start;
    u32 length;
    u32 first;
    u32 unused;
};

__device__ __forceinline__ u32 own_row() { return threadIdx.x / 32 * OWN_ROWS; }
__device__ __forceinline__ u32 own_lane() { return threadIdx.x % 32; }
__device__ __forceinline__ u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

// Floats that `dots` of J times 32 columns needs in shared memory.
constexpr u32 dots_room(u32 j) { return STEP * (PITCH + 32 * j + 1); }

// sums[r][j] = x[row r of this thread's] . y[lane + 32 j], over `d` elements. What is not there counts as zeros.
template <u32 J>
__device__ __forceinline__ void dots(HeadRows x, HeadRows y, u32 d, float (&sums)[OWN_ROWS][J], float *room) {
    float *left = room;                 // [element][row]
    float *right = room + STEP * PITCH; // [element][column]
    constexpr u32 WIDTH = 32 * J + 1;
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
#pragma unroll
        for (u32 j = 0; j < J; ++j) {
            sums[r][j] = 0.0f;
        }
    }
    for (u32 from = 0; from < d; from += STEP) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE_ROWS * STEP; i += ATTEND_WIDTH) {
            const u32 row = i / STEP;
            const u32 e = i % STEP;
            left[e * PITCH + row] = row < x.count && from + e < d ? (x.at[row * x.stride + from + e]) : 0.0f;
        }
        for (u32 i = threadIdx.x; i < 32 * J * STEP; i += ATTEND_WIDTH) {
            const u32 row = i / STEP;
            const u32 e = i % STEP;
            right[e * WIDTH + row] = row < y.count && from + e < d ? (y.at[row * y.stride + from + e]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (u32 e = 0; e < STEP; ++e) {
            const float4 a = *reinterpret_cast<const float4 *>(left + e * PITCH + own_row());
#pragma unroll
            for (u32 j = 0; j < J; ++j) {
                const float b = right[e * WIDTH + own_lane() + 32 * j];
                sums[0][j] = __fmaf_rn(a.x, b, sums[0][j]);
                sums[1][j] = __fmaf_rn(a.y, b, sums[1][j]);
                sums[2][j] = __fmaf_rn(a.z, b, sums[2][j]);
                sums[3][j] = __fmaf_rn(a.w, b, sums[3][j]);
            }
        }
    }
}

// sums[r][j] = sum over p of weights[p][row r] * x[p][from + lane + 32 j], p ascending. Rows of x go through `room`, [STEP][ELEMENTS].
__device__ __forceinline__ void weighted(const float *weights, HeadRows x, u32 d, u32 from, float (&sums)[OWN_ROWS][OWN_ELEMENTS],
                                         float *room) {
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
#pragma unroll
        for (u32 j = 0; j < OWN_ELEMENTS; ++j) {
            sums[r][j] = 0.0f;
        }
    }
    for (u32 p = 0; p < x.count; p += STEP) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < STEP * ELEMENTS; i += ATTEND_WIDTH) {
            const u32 row = p + i / ELEMENTS;
            const u32 e = from + i % ELEMENTS;
            room[i] = row < x.count && e < d ? (x.at[row * x.stride + e]) : 0.0f;
        }
        __syncthreads();
        const u32 steps = smaller(STEP, x.count - p);
        for (u32 i = 0; i < steps; ++i) {
            const float4 w = *reinterpret_cast<const float4 *>(weights + (p + i) * PITCH + own_row());
#pragma unroll
            for (u32 j = 0; j < OWN_ELEMENTS; ++j) {
                const float v = room[i * ELEMENTS + own_lane() + 32 * j];
                sums[0][j] = __fmaf_rn(w.x, v, sums[0][j]);
                sums[1][j] = __fmaf_rn(w.y, v, sums[1][j]);
                sums[2][j] = __fmaf_rn(w.z, v, sums[2][j]);
                sums[3][j] = __fmaf_rn(w.w, v, sums[3][j]);
            }
        }
    }
}

// Calls f(row, element, sum) for what a thread has of sums.
template <class F>
__device__ __forceinline__ void for_sums(const float (&sums)[OWN_ROWS][OWN_ELEMENTS], u32 d, u32 from, F f) {
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
#pragma unroll
        for (u32 j = 0; j < OWN_ELEMENTS; ++j) {
            const u32 e = from + own_lane() + 32 * j;
            if (e < d) {
                f(r, e, sums[r][j]);
            }
        }
    }
}

__device__ __forceinline__ float warp_max(float v) {
    for (int width = 16; width > 0; width /= 2) {
        v = fmaxf(v, __shfl_xor_sync(WARP, v, width));
    }
    return v;
}

// Scores of a tile's queries with the positions of a segment, and the largest of those that a query sees.
__device__ __forceinline__ void scores_of(HeadRows queries, HeadRows keys, u32 d, u32 first, u32 segment, float scale,
                                          float (&sums)[OWN_ROWS][SEGMENT / 32], float (&most)[OWN_ROWS], float *room) {
    dots<SEGMENT / 32>(queries, keys, d, sums, room);
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        const u32 valid = first + own_row() + r + 1 - segment;
        most[r] = __uint_as_float(0xff800000u);
#pragma unroll
        for (u32 j = 0; j < SEGMENT / 32; ++j) {
            sums[r][j] = __fmul_rn(sums[r][j], scale);
            if (own_lane() + 32 * j < valid) {
                most[r] = fmaxf(most[r], sums[r][j]);
            }
        }
        most[r] = warp_max(most[r]);
    }
}

constexpr u32 ATTEND_ROOM = dots_room(SEGMENT / 32);

// qkv [m, columns] to out [m, heads * d] and sums [m, heads, 2]: a block a tile of queries and a head.
extern "C" __global__ void __launch_bounds__(ATTEND_WIDTH)
    train_attend(const float *qkv, const TrainTile *tiles, float *out, float *sums, u32 heads, u32 kv_heads, u32 head_dim, float scale) {
    DYNAMIC_SHARED(float, shared);
    float *weights = shared;                    // [position][row]
    float *room = weights + SEGMENT * PITCH;    // what is multiplied
    float *outputs = room + ATTEND_ROOM;        // [row][element]
    wait_for_previous();
    const TrainShape shape{heads, kv_heads, head_dim};
    // Those with the most to do first.
    const TrainTile tile = tiles[gridDim.x - 1 - blockIdx.x];
    const u32 head = blockIdx.y;
    const u32 group = head / (heads / kv_heads);
    const u32 d = head_dim;
    const size_t stride = shape.columns();
    const float *rows = qkv + tile.start * stride;
    const HeadRows queries{rows + tile.first * stride + head * d, stride, smaller(TILE_ROWS, tile.length - tile.first)};
    auto part = [&](u32 segment, u32 column) {
        return HeadRows{rows + segment * stride + column, stride, smaller(SEGMENT, tile.first + queries.count - segment)};
    };
    float scores[OWN_ROWS][SEGMENT / 32];
    float most[OWN_ROWS];
    float largest[OWN_ROWS];
    float total[OWN_ROWS];
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        largest[r] = __uint_as_float(0xff800000u);
        total[r] = 0.0f;
        for (u32 e = own_lane(); e < d; e += 32) {
            outputs[(own_row() + r) * d + e] = 0.0f;
        }
    }
    // The largest score of all segments is known before any is weighed.
    const bool several = tile.first >= SEGMENT;
    for (u32 segment = 0; several && segment <= tile.first; segment += SEGMENT) {
        scores_of(queries, part(segment, shape.key_column(group)), d, tile.first, segment, scale, scores, most, room);
#pragma unroll
        for (u32 r = 0; r < OWN_ROWS; ++r) {
            largest[r] = fmaxf(largest[r], most[r]);
        }
    }
    for (u32 segment = 0; segment <= tile.first; segment += SEGMENT) {
        scores_of(queries, part(segment, shape.key_column(group)), d, tile.first, segment, scale, scores, most, room);
#pragma unroll
        for (u32 j = 0; j < SEGMENT / 32; ++j) {
            const u32 position = own_lane() + 32 * j;
            float four[OWN_ROWS];
#pragma unroll
            for (u32 r = 0; r < OWN_ROWS; ++r) {
                const u32 valid = tile.first + own_row() + r + 1 - segment;
                four[r] = position < valid ? exponential(__fsub_rn(scores[r][j], most[r])) : 0.0f;
            }
            *reinterpret_cast<float4 *>(weights + position * PITCH + own_row()) = make_float4(four[0], four[1], four[2], four[3]);
        }
        __syncwarp();
        float factor[OWN_ROWS];
#pragma unroll
        for (u32 r = 0; r < OWN_ROWS; ++r) {
            if (!several) {
                largest[r] = most[r];
            }
            float lane = 0.0f;
#pragma unroll
            for (u32 i = 0; i < SEGMENT / LANES; ++i) {
                lane = __fadd_rn(lane, weights[(i * LANES + own_lane() % LANES) * PITCH + own_row() + r]);
            }
            factor[r] = exponential(__fsub_rn(most[r], largest[r]));
            total[r] = __fmaf_rn(fold16(lane), factor[r], total[r]);
        }
        for (u32 from = 0; from < d; from += ELEMENTS) {
            float o[OWN_ROWS][OWN_ELEMENTS];
            weighted(weights, part(segment, shape.value_column(group)), d, from, o, room);
            for_sums(o, d, from, [&](u32 r, u32 e, float sum) {
                float *to = outputs + (own_row() + r) * d + e;
                *to = __fmaf_rn(sum, factor[r], *to);
            });
        }
    }
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        if (own_row() + r >= queries.count) {
            continue;
        }
        const size_t owner = (static_cast<size_t>(tile.start) + tile.first + own_row() + r) * heads + head;
        for (u32 e = own_lane(); e < d; e += 32) {
            out[owner * d + e] = __fdiv_rn(outputs[(own_row() + r) * d + e], total[r]);
        }
        if (own_lane() == 0) {
            sums[owner * 2] = largest[r];
            sums[owner * 2 + 1] = total[r];
        }
    }
}
EXPORT_KERNEL(train_attend)

// What a query's scores lose: out . dout of every head, half a warp each. means [m, heads].
extern "C" __global__ void train_attend_means(float *means, const float *out, const float *dout, size_t owners, u32 head_dim) {
    wait_for_previous();
    const size_t owner = row_of_half();
    const size_t at = (owner < owners ? owner : owners - 1) * head_dim;
    float sum = 0.0f;
    for (u32 e = threadIdx.x % LANES; e < head_dim; e += LANES) {
        sum = __fmaf_rn(out[at + e], dout[at + e], sum);
    }
    sum = fold16(sum);
    if (owner < owners && threadIdx.x % LANES == 0) {
        means[owner] = sum;
    }
}
EXPORT_KERNEL(train_attend_means)

// What the way back knows of a query.
struct Softmax {
    float most;
    float total;
    float mean;
};

// A weight from its product, and the gradient of that product from the gradient of the weight.
__device__ __forceinline__ float weight_of(float product, float scale, const Softmax &s) {
    return __fdiv_rn(exponential(__fsub_rn(__fmul_rn(product, scale), s.most)), s.total);
}
__device__ __forceinline__ float slope_of_product(float weight, float gradient, float scale, const Softmax &s) {
    return __fmul_rn(__fmul_rn(weight, __fsub_rn(gradient, s.mean)), scale);
}

// Gradients of queries: a block a tile of them and a head.
extern "C" __global__ void __launch_bounds__(ATTEND_WIDTH)
    train_attend_back_queries(const float *qkv, const TrainTile *tiles, const float *sums, const float *means, const float *dout,
                              float *dqkv, u32 heads, u32 kv_heads, u32 head_dim, float scale) {
    const TrainShape shape{heads, kv_heads, head_dim};
    DYNAMIC_SHARED(float, shared);
    float *slopes = shared;                 // [position][row]
    float *room = slopes + SEGMENT * PITCH; // what is multiplied
    float *gradients = room + ATTEND_ROOM;  // [row][element]
    wait_for_previous();
    const TrainTile tile = tiles[gridDim.x - 1 - blockIdx.x];
    const u32 head = blockIdx.y;
    const u32 group = head / (shape.heads / shape.kv_heads);
    const u32 d = shape.head_dim;
    const size_t stride = shape.columns();
    const size_t wide = static_cast<size_t>(shape.heads) * d;
    const float *rows = qkv + tile.start * stride;
    const u32 count = smaller(TILE_ROWS, tile.length - tile.first);
    const HeadRows queries{rows + tile.first * stride + head * d, stride, count};
    const HeadRows douts{dout + (static_cast<size_t>(tile.start) + tile.first) * wide + head * d, wide, count};
    auto part = [&](u32 segment, u32 column) {
        return HeadRows{rows + segment * stride + column, stride, smaller(SEGMENT, tile.first + count - segment)};
    };
    Softmax of[OWN_ROWS];
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        const size_t row = static_cast<size_t>(tile.start) + tile.first + smaller(own_row() + r, count - 1);
        const size_t owner = row * shape.heads + head;
        of[r] = Softmax{sums[owner * 2], sums[owner * 2 + 1], means[owner]};
        for (u32 e = own_lane(); e < d; e += 32) {
            gradients[(own_row() + r) * d + e] = 0.0f;
        }
    }
    for (u32 segment = 0; segment <= tile.first; segment += SEGMENT) {
        float products[OWN_ROWS][SEGMENT / 32];
        float lost[OWN_ROWS][SEGMENT / 32];
        dots<SEGMENT / 32>(queries, part(segment, shape.key_column(group)), d, products, room);
        dots<SEGMENT / 32>(douts, part(segment, shape.value_column(group)), d, lost, room);
#pragma unroll
        for (u32 j = 0; j < SEGMENT / 32; ++j) {
            const u32 position = own_lane() + 32 * j;
            float four[OWN_ROWS];
#pragma unroll
            for (u32 r = 0; r < OWN_ROWS; ++r) {
                const float weight = weight_of(products[r][j], scale, of[r]);
                const bool seen = position < tile.first + own_row() + r + 1 - segment;
                four[r] = seen ? (slope_of_product(weight, lost[r][j], scale, of[r])) : 0.0f;
            }
            *reinterpret_cast<float4 *>(slopes + position * PITCH + own_row()) = make_float4(four[0], four[1], four[2], four[3]);
        }
        for (u32 from = 0; from < d; from += ELEMENTS) {
            float o[OWN_ROWS][OWN_ELEMENTS];
            weighted(slopes, part(segment, shape.key_column(group)), d, from, o, room);
            for_sums(o, d, from, [&](u32 r, u32 e, float sum) {
                float *to = gradients + (own_row() + r) * d + e;
                *to = __fadd_rn(*to, sum);
            });
        }
    }
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        if (own_row() + r >= count) {
            continue;
        }
        float *to = dqkv + (static_cast<size_t>(tile.start) + tile.first + own_row() + r) * stride + head * d;
        for (u32 e = own_lane(); e < d; e += 32) {
            to[e] = gradients[(own_row() + r) * d + e];
        }
    }
}
EXPORT_KERNEL(train_attend_back_queries)

constexpr u32 BACK_ROOM = dots_room(QUERIES / 32) > STEP * ELEMENTS ? dots_room(QUERIES / 32) : STEP * ELEMENTS;

// Gradients of keys and values: a block a tile of positions and a group of heads that share them, heads and queries ascending.
extern "C" __global__ void __launch_bounds__(ATTEND_WIDTH)
    train_attend_back_keys(const float *qkv, const TrainTile *tiles, const float *sums, const float *means, const float *dout,
                           float *dqkv, u32 heads, u32 kv_heads, u32 head_dim, float scale) {
    const TrainShape shape{heads, kv_heads, head_dim};
    DYNAMIC_SHARED(float, shared);
    float *weights = shared;                        // [query][row]
    float *slopes = weights + QUERIES * PITCH;      // [query][row]
    float *room = slopes + QUERIES * PITCH;         // what is multiplied
    float *of_keys = room + BACK_ROOM;              // [row][element]
    wait_for_previous();
    const u32 d = shape.head_dim;
    float *of_values = of_keys + TILE_ROWS * d;     // [row][element]
    const TrainTile tile = tiles[blockIdx.x];
    const u32 group = blockIdx.y;
    const u32 share = shape.heads / shape.kv_heads;
    const size_t stride = shape.columns();
    const size_t wide = static_cast<size_t>(shape.heads) * d;
    const float *rows = qkv + tile.start * stride;
    const u32 count = smaller(TILE_ROWS, tile.length - tile.first);
    const HeadRows keys{rows + tile.first * stride + shape.key_column(group), stride, count};
    const HeadRows values{rows + tile.first * stride + shape.value_column(group), stride, count};
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        for (u32 e = own_lane(); e < d; e += 32) {
            of_keys[(own_row() + r) * d + e] = 0.0f;
            of_values[(own_row() + r) * d + e] = 0.0f;
        }
    }
    for (u32 head = group * share; head < (group + 1) * share; ++head) {
        for (u32 first = tile.first / QUERIES * QUERIES; first < tile.length; first += QUERIES) {
            const u32 own = smaller(QUERIES, tile.length - first);
            const HeadRows queries{rows + first * stride + head * d, stride, own};
            const HeadRows douts{dout + (static_cast<size_t>(tile.start) + first) * wide + head * d, wide, own};
            float products[OWN_ROWS][QUERIES / 32];
            float lost[OWN_ROWS][QUERIES / 32];
            dots<QUERIES / 32>(keys, queries, d, products, room);
            dots<QUERIES / 32>(values, douts, d, lost, room);
#pragma unroll
            for (u32 j = 0; j < QUERIES / 32; ++j) {
                const u32 query = own_lane() + 32 * j;
                const size_t owner = (static_cast<size_t>(tile.start) + first + smaller(query, own - 1)) * shape.heads + head;
                const Softmax of{sums[owner * 2], sums[owner * 2 + 1], means[owner]};
                float weight[OWN_ROWS];
                float slope[OWN_ROWS];
#pragma unroll
                for (u32 r = 0; r < OWN_ROWS; ++r) {
                    const bool seen = query < own && tile.first + own_row() + r <= first + query;
                    const float w = weight_of(products[r][j], scale, of);
                    weight[r] = seen ? (w) : 0.0f;
                    slope[r] = seen ? (slope_of_product(w, lost[r][j], scale, of)) : 0.0f;
                }
                *reinterpret_cast<float4 *>(weights + query * PITCH + own_row()) = make_float4(weight[0], weight[1], weight[2], weight[3]);
                *reinterpret_cast<float4 *>(slopes + query * PITCH + own_row()) = make_float4(slope[0], slope[1], slope[2], slope[3]);
            }
            for (u32 from = 0; from < d; from += ELEMENTS) {
                float o[OWN_ROWS][OWN_ELEMENTS];
                weighted(slopes, queries, d, from, o, room);
                for_sums(o, d, from, [&](u32 r, u32 e, float sum) {
                    float *to = of_keys + (own_row() + r) * d + e;
                    *to = __fadd_rn(*to, sum);
                });
                weighted(weights, douts, d, from, o, room);
                for_sums(o, d, from, [&](u32 r, u32 e, float sum) {
                    float *to = of_values + (own_row() + r) * d + e;
                    *to = __fadd_rn(*to, sum);
                });
            }
        }
    }
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        if (own_row() + r >= count) {
            continue;
        }
        float *to = dqkv + (static_cast<size_t>(tile.start) + tile.first + own_row() + r) * stride;
        for (u32 e = own_lane(); e < d; e += 32) {
            to[shape.key_column(group) + e] = of_keys[(own_row() + r) * d + e];
            to[shape.value_column(group) + e] = of_values[(own_row() + r) * d + e];
        }
    }
}
EXPORT_KERNEL(train_attend_back_keys)
