// The way back through attention with terms of bf16: tensor cores for all products but the scores, which are those of the way forward.
#include "training_attention.cu"

// Words of two terms that are multiplied between two barriers, and how far apart rows of them lie.
constexpr u32 PAIRS = 16;
constexpr u32 PAIR_PITCH = PAIRS + 4;
constexpr u32 WARPS = ATTEND_WIDTH / 32;
// Fragments of eight elements of a head that a warp has.
constexpr u32 MOST_ELEMENTS = 256;
constexpr u32 FRAGMENTS = MOST_ELEMENTS / 8 / WARPS;

__device__ __forceinline__ u32 pair_of(float low, float high) { return bf16_bits(low) >> 16 | bf16_bits(high); }
__device__ __forceinline__ u32 own_group() { return threadIdx.x % 32 / 4; }
__device__ __forceinline__ u32 own_pair() { return threadIdx.x % 4; }

// Rows of a head in words, 2 * PAIRS elements from `from` on.
__device__ __forceinline__ void stage_rows(HeadRows x, u32 rows, u32 d, u32 from, u32 *to) {
    for (u32 i = threadIdx.x; i < rows * PAIRS; i += ATTEND_WIDTH) {
        const u32 row = i / PAIRS;
        const u32 e = from + i % PAIRS * 2;
        const float *at = x.at + row * x.stride + e;
        const bool there = row < x.count;
        to[row * PAIR_PITCH + i % PAIRS] = pair_of(there && e < d ? at[0] : 0.0f, there && e + 1 < d ? at[1] : 0.0f);
    }
}

// A fragment of sixteen rows of words, `pitch` apart.
__device__ __forceinline__ void take_rows(const u32 *rows, u32 pitch, u32 word, u32 (&fragment)[4]) {
#pragma unroll
    for (u32 e = 0; e < 4; ++e) {
        fragment[e] = rows[(own_group() + e % 2 * 8) * pitch + word + own_pair() + e / 2 * 4];
    }
}

// out[column][row] = x[row] . y[column] of 32 rows and N columns, PITCH apart. All can be read behind this.
template <u32 N>
__device__ __forceinline__ void dots_of_pairs(HeadRows x, HeadRows y, u32 d, float *out, u32 *room) {
    u32 *left = room;
    u32 *right = room + TILE_ROWS * PAIR_PITCH;
    constexpr u32 OWN = N / 8 / WARPS;
    const u32 column = threadIdx.x / 32 * OWN * 8;
    float sums[2][OWN][4] = {};
    for (u32 from = 0; from < d; from += 2 * PAIRS) {
        __syncthreads();
        stage_rows(x, TILE_ROWS, d, from, left);
        stage_rows(y, N, d, from, right);
        __syncthreads();
#pragma unroll
        for (u32 half = 0; half < PAIRS; half += 8) {
            u32 rows[2][4];
            take_rows(left, PAIR_PITCH, half, rows[0]);
            take_rows(left + 16 * PAIR_PITCH, PAIR_PITCH, half, rows[1]);
#pragma unroll
            for (u32 j = 0; j < OWN; ++j) {
                const u32 *at = right + (column + j * 8 + own_group()) * PAIR_PITCH + half + own_pair();
                mma_bf16(sums[0][j], rows[0], at[0], at[4]);
                mma_bf16(sums[1][j], rows[1], at[0], at[4]);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
#pragma unroll
        for (u32 j = 0; j < OWN; ++j) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                out[(column + j * 8 + own_pair() * 2 + e % 2) * PITCH + i * 16 + own_group() + e / 2 * 8] = sums[i][j][e];
            }
        }
    }
    __syncthreads();
}

using Gradient = float[FRAGMENTS][2][4];

// sums += weights[row][p] * x[p][element] over the rows of x; weights are words of two rows of x, `pitch` apart.
__device__ __forceinline__ void weighted_pairs(const u32 *weights, u32 pitch, HeadRows x, u32 d, Gradient &sums, u32 *room) {
    const u32 width = (d + 7) / 8 * 8;
    for (u32 from = 0; from < x.count; from += 2 * PAIRS) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < width * PAIRS; i += ATTEND_WIDTH) {
            const u32 e = i % width;
            const u32 row = from + i / width * 2;
            const float *at = x.at + row * x.stride + e;
            room[e * PAIR_PITCH + i / width] =
                pair_of(e < d && row < x.count ? at[0] : 0.0f, e < d && row + 1 < x.count ? at[x.stride] : 0.0f);
        }
        __syncthreads();
#pragma unroll
        for (u32 half = 0; half < PAIRS; half += 8) {
            u32 rows[2][4];
            take_rows(weights, pitch, from / 2 + half, rows[0]);
            take_rows(weights + 16 * pitch, pitch, from / 2 + half, rows[1]);
#pragma unroll
            for (u32 j = 0; j < FRAGMENTS; ++j) {
                const u32 element = (threadIdx.x / 32 + j * WARPS) * 8;
                if (element < width) {
                    const u32 *at = room + (element + own_group()) * PAIR_PITCH + half + own_pair();
                    mma_bf16(sums[j][0], rows[0], at[0], at[4]);
                    mma_bf16(sums[j][1], rows[1], at[0], at[4]);
                }
            }
        }
    }
}

// Writes what a warp has of gradients to rows `stride` apart.
__device__ __forceinline__ void store_gradient(const Gradient &sums, float *to, size_t stride, u32 count, u32 d) {
#pragma unroll
    for (u32 j = 0; j < FRAGMENTS; ++j) {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                const u32 row = i * 16 + own_group() + e / 2 * 8;
                const u32 element = (threadIdx.x / 32 + j * WARPS) * 8 + own_pair() * 2 + e % 2;
                if (row < count && element < d) {
                    to[row * stride + element] = sums[j][i][e];
                }
            }
        }
    }
}

// Puts a number among words of two.
__device__ __forceinline__ void put_half(u32 *rows, u32 pitch, u32 row, u32 column, float x) {
    reinterpret_cast<u16 *>(rows)[row * pitch * 2 + column] = static_cast<u16>(bf16_bits(x) >> 16);
}

// Gradients of queries: a block a tile of them and a head.
extern "C" __global__ void __launch_bounds__(ATTEND_WIDTH)
    train_attend_back_queries_bf16(const float *qkv, const TrainTile *tiles, const float *sums, const float *means, const float *dout,
                                   float *dqkv, u32 heads, u32 kv_heads, u32 head_dim, float scale) {
    constexpr u32 WORDS = SEGMENT / 2 + 4;
    DYNAMIC_SHARED(float, shared);
    float *lost = shared;                                               // [position][row]
    u32 *slopes = reinterpret_cast<u32 *>(lost + SEGMENT * PITCH);      // [row][two positions]
    float *room = lost + SEGMENT * PITCH + TILE_ROWS * WORDS;           // what is multiplied
    wait_for_previous();
    const TrainShape shape{heads, kv_heads, head_dim};
    const TrainTile tile = tiles[gridDim.x - 1 - blockIdx.x];
    const u32 head = blockIdx.y;
    const u32 group = head / (heads / kv_heads);
    const u32 d = head_dim;
    const size_t stride = shape.columns();
    const size_t wide = static_cast<size_t>(heads) * d;
    const float *rows = qkv + tile.start * stride;
    const u32 count = smaller(TILE_ROWS, tile.length - tile.first);
    const size_t begin = static_cast<size_t>(tile.start) + tile.first;
    const HeadRows queries{rows + tile.first * stride + head * d, stride, count};
    const HeadRows douts{dout + begin * wide + head * d, wide, count};
    Softmax of[OWN_ROWS];
#pragma unroll
    for (u32 r = 0; r < OWN_ROWS; ++r) {
        const size_t owner = (begin + smaller(own_row() + r, count - 1)) * heads + head;
        of[r] = Softmax{sums[owner * 2], sums[owner * 2 + 1], means[owner]};
    }
    Gradient gradient = {};
    for (u32 segment = 0; segment <= tile.first; segment += SEGMENT) {
        const u32 seen = smaller(SEGMENT, tile.first + count - segment);
        const HeadRows keys{rows + segment * stride + shape.key_column(group), stride, seen};
        const HeadRows values{rows + segment * stride + shape.value_column(group), stride, seen};
        dots_of_pairs<SEGMENT>(douts, values, d, lost, reinterpret_cast<u32 *>(room));
        float products[OWN_ROWS][SEGMENT / 32];
        dots<SEGMENT / 32>(queries, keys, d, products, room);
#pragma unroll
        for (u32 j = 0; j < SEGMENT / 32; ++j) {
            const u32 position = own_lane() + 32 * j;
#pragma unroll
            for (u32 r = 0; r < OWN_ROWS; ++r) {
                const float weight = weight_of(products[r][j], scale, of[r]);
                const float slope = slope_of_product(weight, lost[position * PITCH + own_row() + r], scale, of[r]);
                const bool is_seen = position < tile.first + own_row() + r + 1 - segment;
                put_half(slopes, WORDS, own_row() + r, position, is_seen ? slope : 0.0f);
            }
        }
        weighted_pairs(slopes, WORDS, keys, d, gradient, reinterpret_cast<u32 *>(room));
    }
    store_gradient(gradient, dqkv + begin * stride + head * d, stride, count, d);
}
EXPORT_KERNEL(train_attend_back_queries_bf16)

// Gradients of keys and values: a block a tile of positions and a group of heads that share them.
extern "C" __global__ void __launch_bounds__(ATTEND_WIDTH)
    train_attend_back_keys_bf16(const float *qkv, const TrainTile *tiles, const float *sums, const float *means, const float *dout,
                                float *dqkv, u32 heads, u32 kv_heads, u32 head_dim, float scale) {
    constexpr u32 WORDS = QUERIES / 2 + 4;
    DYNAMIC_SHARED(float, shared);
    float *lost = shared;                                          // [query][row]
    u32 *weights = reinterpret_cast<u32 *>(lost + QUERIES * PITCH); // [row][two queries]
    u32 *slopes = weights + TILE_ROWS * WORDS;                     // the same
    float *room = lost + QUERIES * PITCH + 2 * TILE_ROWS * WORDS;  // what is multiplied
    wait_for_previous();
    const TrainShape shape{heads, kv_heads, head_dim};
    const TrainTile tile = tiles[blockIdx.x];
    const u32 group = blockIdx.y;
    const u32 share = heads / kv_heads;
    const u32 d = head_dim;
    const size_t stride = shape.columns();
    const size_t wide = static_cast<size_t>(heads) * d;
    const float *rows = qkv + tile.start * stride;
    const u32 count = smaller(TILE_ROWS, tile.length - tile.first);
    const HeadRows keys{rows + tile.first * stride + shape.key_column(group), stride, count};
    const HeadRows values{rows + tile.first * stride + shape.value_column(group), stride, count};
    Gradient of_keys = {};
    Gradient of_values = {};
    for (u32 head = group * share; head < (group + 1) * share; ++head) {
        for (u32 first = tile.first / QUERIES * QUERIES; first < tile.length; first += QUERIES) {
            const u32 own = smaller(QUERIES, tile.length - first);
            const size_t begin = static_cast<size_t>(tile.start) + first;
            const HeadRows queries{rows + first * stride + head * d, stride, own};
            const HeadRows douts{dout + begin * wide + head * d, wide, own};
            dots_of_pairs<QUERIES>(values, douts, d, lost, reinterpret_cast<u32 *>(room));
            float products[OWN_ROWS][QUERIES / 32];
            dots<QUERIES / 32>(keys, queries, d, products, room);
#pragma unroll
            for (u32 j = 0; j < QUERIES / 32; ++j) {
                const u32 query = own_lane() + 32 * j;
                const size_t owner = (begin + smaller(query, own - 1)) * heads + head;
                const Softmax of{sums[owner * 2], sums[owner * 2 + 1], means[owner]};
#pragma unroll
                for (u32 r = 0; r < OWN_ROWS; ++r) {
                    const bool is_seen = query < own && tile.first + own_row() + r <= first + query;
                    const float weight = weight_of(products[r][j], scale, of);
                    const float slope = slope_of_product(weight, lost[query * PITCH + own_row() + r], scale, of);
                    put_half(weights, WORDS, own_row() + r, query, is_seen ? weight : 0.0f);
                    put_half(slopes, WORDS, own_row() + r, query, is_seen ? slope : 0.0f);
                }
            }
            weighted_pairs(slopes, WORDS, queries, d, of_keys, reinterpret_cast<u32 *>(room));
            weighted_pairs(weights, WORDS, douts, d, of_values, reinterpret_cast<u32 *>(room));
        }
    }
    float *to = dqkv + (static_cast<size_t>(tile.start) + tile.first) * stride;
    store_gradient(of_keys, to + shape.key_column(group), stride, count, d);
    store_gradient(of_values, to + shape.value_column(group), stride, count, d);
}
EXPORT_KERNEL(train_attend_back_keys_bf16)
