// Rules 8 and 10 to 12 of docs/numerics.md: the rotary embedding, the cache, and causal attention over it.
//
// The cache of a layer is in words of PACK neighbouring elements of a head, keys [block][head][word][position in the block] and
// values [block][head][position in the block][word]. Scores are computed by a thread a position, outputs by a thread a word, or a part
// of one: in both, neighbouring threads read neighbouring words. Scales of q8_0 are words too, two f16 each, behind all others of a head
// in a block, in the same order.
#include "device.cuh"

constexpr u32 BLOCK = 64;
constexpr u32 SEGMENT = 256;
constexpr int ATTEND_THREADS = 256;
// The score of a position that is not seen; less than any that is.
constexpr float UNSEEN = -3.4028234e38f;

enum Cache { CACHE_F32, CACHE_F16, CACHE_BF16, CACHE_Q8_0 };

template <Cache T>
constexpr u32 PACK = T == CACHE_F32 ? 1 : T == CACHE_Q8_0 ? 4 : 2;

// Elements that share a scale, and words of elements whose scales share a word.
constexpr u32 SCALED = 32;
constexpr u32 SCALED_WORDS = 2 * SCALED / PACK<CACHE_Q8_0>;

// Words of a head's elements, and of its scales.
template <Cache T>
__device__ __forceinline__ u32 element_words(u32 head_dim) {
    return head_dim / PACK<T>;
}
template <Cache T>
__device__ __forceinline__ u32 scale_words(u32 head_dim) {
    return T == CACHE_Q8_0 ? (head_dim + 2 * SCALED - 1) / (2 * SCALED) : 0;
}

template <Cache T>
__device__ __forceinline__ u32 packed(float x) {
    if constexpr (T == CACHE_F32) {
        return __float_as_uint(x);
    } else if constexpr (T == CACHE_F16) {
        x = x > -65504.0f ? x : -65504.0f;
        return float_to_half(x < 65504.0f ? x : 65504.0f);
    } else {
        const u32 bits = __float_as_uint(x);
        return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    }
}

// Element i of a word; those of q8_0 without their scale.
template <Cache T>
__device__ __forceinline__ float unpacked(u32 word, u32 i) {
    if constexpr (T == CACHE_F32) {
        return __uint_as_float(word);
    } else if constexpr (T == CACHE_Q8_0) {
        return static_cast<float>(static_cast<signed char>(word >> (8 * i)));
    } else if constexpr (T == CACHE_F16) {
        return half_to_float(static_cast<u16>(i == 0 ? word : word >> 16));
    } else {
        return __uint_as_float(i == 0 ? word << 16 : word & 0xffff0000u);
    }
}

// The scale of elements in word `word` of a head, out of the word that has it.
__device__ __forceinline__ float scale_of(u32 scales, u32 word) {
    return half_to_float(static_cast<u16>(scales >> (word % SCALED_WORDS / (SCALED_WORDS / 2) * 16)));
}

// The scale of elements begin .. end of a head, as f16.
template <class F>
__device__ __forceinline__ u16 scale_bits(F element, u32 begin, u32 end) {
    float most = 0.0f;
#pragma unroll 8
    for (u32 e = begin; e < end; ++e) {
        most = fmaxf(most, fabsf(element(e)));
    }
    return float_to_half(fminf(__fdiv_rn(most, 127.0f), 65504.0f));
}

// Word `word` of a head of `n` elements, which are element(0), element(1) and so on: elements, or behind them scales.
template <Cache T, class F>
__device__ __forceinline__ u32 cache_word(F element, u32 n, u32 word) {
    u32 bits = 0;
    if constexpr (T == CACHE_Q8_0) {
        // Each word asks for the largest of all elements that share its scale and computes those again, rather than wait for others.
        auto scale = [&](u32 block) { return scale_bits(element, min(block * SCALED, n), min((block + 1) * SCALED, n)); };
        if (word >= element_words<T>(n)) {
            const u32 pair = word - element_words<T>(n);
            return scale(2 * pair) | static_cast<u32>(scale(2 * pair + 1)) << 16;
        }
        const float d = half_to_float(scale(word * PACK<T> / SCALED));
        const float inverse = d > 0.0f ? __fdiv_rn(1.0f, d) : 0.0f;
#pragma unroll
        for (u32 j = 0; j < PACK<T>; ++j) {
            float q = d > 0.0f ? rintf(__fmul_rn(element(word * PACK<T> + j), inverse)) : 0.0f;
            q = q < -127.0f ? -127.0f : q;
            q = q > 127.0f ? 127.0f : q;
            // What is not a number is 0, as a conversion in Rust has it.
            bits |= static_cast<u32>(q == q ? static_cast<int>(q) & 0xff : 0) << (8 * j);
        }
    } else {
#pragma unroll
        for (u32 j = 0; j < PACK<T>; ++j) {
            bits |= packed<T>(element(word * PACK<T> + j)) << (16 * j);
        }
    }
    return bits;
}

struct Heads {
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
};

// Element e of a head behind its rotation.
__device__ __forceinline__ float rotated(const float *head, const float *cosine, const float *sine, u32 half, u32 e) {
    const float c = cosine[e % half];
    const float s = sine[e % half];
    return e < half ? __fsub_rn(__fmul_rn(head[e], c), __fmul_rn(head[e + half], s))
                    : __fadd_rn(__fmul_rn(head[e], c), __fmul_rn(head[e - half], s));
}

// A word of a rotated key, and of a value.
template <Cache K>
__device__ __forceinline__ u32 key_word(const float *head, const float *cosine, const float *sine, u32 half, u32 word) {
    return cache_word<K>([=](u32 e) { return rotated(head, cosine, sine, half, e); }, 2 * half, word);
}

template <Cache V>
__device__ __forceinline__ u32 value_word(const float *head, u32 n, u32 word) {
    return cache_word<V>([=](u32 e) { return head[e]; }, n, word);
}

// Where word `word` of a value lies, of the head whose words in a block begin at `head`.
template <Cache V>
__device__ __forceinline__ size_t value_place(size_t head, u32 head_dim, u32 position, u32 word) {
    const u32 elements = element_words<V>(head_dim);
    const u32 scales = scale_words<V>(head_dim);
    if (scales == 0 || word < elements) {
        return head + position * elements + word;
    }
    return head + BLOCK * elements + position * scales + word - elements;
}

// Rotates queries in place, and writes rotated keys and values into the cache. qkv [m, (heads + 2 kv_heads) * head_dim], cosines and
// sines [m, head_dim / 2]; places: for each token its position and where the blocks of its sequence begin in `tables`.
template <Cache K, Cache V>
__device__ __forceinline__ void rope_append(float *qkv, const float *cosines, const float *sines, const uint2 *places,
                                            const u32 *tables, u32 *keys, u32 *values, Heads shape) {
    let_next_begin();
    wait_for_previous();
    const u32 d = shape.head_dim;
    const u32 half = d / 2;
    const u32 token = blockIdx.y;
    float *row = qkv + static_cast<size_t>(token) * (shape.heads + 2 * shape.kv_heads) * d;
    const float *cosine = cosines + static_cast<size_t>(token) * half;
    const float *sine = sines + static_cast<size_t>(token) * half;
    // A thread a pair of a query, or what lies at the place of a pair in a key or a value.
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const u32 head = i / half;
    const u32 e = i % half;
    if (head < shape.heads) {
        float *at = row + head * d + e;
        const float a = at[0];
        const float b = at[half];
        const float c = cosine[e];
        const float s = sine[e];
        at[0] = __fsub_rn(__fmul_rn(a, c), __fmul_rn(b, s));
        at[half] = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
        return;
    }
    if (head >= shape.heads + 2 * shape.kv_heads) {
        return;
    }
    const uint2 place = places[token];
    const u32 block = tables[place.y + place.x / BLOCK];
    const u32 position = place.x % BLOCK;
    if (head < shape.heads + shape.kv_heads) {
        const u32 key_words = element_words<K>(d) + scale_words<K>(d);
        const size_t at = static_cast<size_t>(block) * shape.kv_heads + head - shape.heads;
        for (u32 word = e; word < key_words; word += half) {
            keys[(at * key_words + word) * BLOCK + position] = key_word<K>(row + head * d, cosine, sine, half, word);
        }
    } else {
        const u32 value_words = element_words<V>(d) + scale_words<V>(d);
        const size_t at = static_cast<size_t>(block) * shape.kv_heads + head - shape.heads - shape.kv_heads;
        for (u32 word = e; word < value_words; word += half) {
            values[value_place<V>(at * BLOCK * value_words, d, position, word)] = value_word<V>(row + head * d, d, word);
        }
    }
}

// Queries of neighbouring tokens of a sequence, all heads that share a key head: row i of them is head i % group of token i / group.
struct Tile {
    // The sequence's first token in the step, its position, and how many there are.
    u32 token;
    u32 position;
    u32 tokens;
    // Where the blocks of the sequence begin in the tables.
    u32 table;
    // The first row of this tile.
    u32 row;
};

// Segments of ROWS rows that share a key head. Of each token from `base` on, head and segment `parts` gets the largest score, the sum of
// weights, and the output, [head_dim]; where a query sees no more than one segment, `out` [m, heads * head_dim] gets what comes of it.
//
// Where ROPE, sequences have one token each, and this does what `rope_append` would have done, but for the queries in qkv.
template <Cache K, Cache V, int ROWS, bool ROPE>
__device__ __forceinline__ void attend(const float *qkv, const Tile *tiles, const u32 *tables, u32 *keys, u32 *values, float *parts,
                                       float *out, Heads shape, u32 segments, u32 window, float factor, u32 base, u32 staged,
                                       const float *cosines, const float *sines) {
    // Rows come in groups, and a thread has one row of each, or all of a group.
    constexpr int GROUPS = ROWS >= 4 ? 4 : 1;
    constexpr int OWN = ROWS / GROUPS;
    DYNAMIC_SHARED(float, room);
    __shared__ u32 row_token[ROWS];
    __shared__ u32 row_head[ROWS];
    __shared__ u32 row_position[ROWS];
    const u32 d = shape.head_dim;
    const u32 value_words = element_words<V>(d);
    const u32 key_words = element_words<K>(d);
    const u32 value_scales = scale_words<V>(d);
    const u32 key_scales = scale_words<K>(d);
    float *queries = room;                                     // [head_dim][ROWS]
    float *weights = queries + d * ROWS;                       // [ROWS][SEGMENT]
    u32 *new_key = reinterpret_cast<u32 *>(weights + ROWS * SEGMENT); // [head_dim]
    float *sums = reinterpret_cast<float *>(new_key + d);      // [ROWS], as many as fill up 16 bytes
    float *largest = sums + (ROWS + 3) / 4 * 4;
    u32 *cached = reinterpret_cast<u32 *>(largest + (ROWS + 3) / 4 * 4); // [SEGMENT][words of elements]
    u32 *cached_scales = cached + SEGMENT * value_words;                 // [SEGMENT][words of scales]
    let_next_begin();
    // What the host sent is there before any kernel of the step begins.
    const Tile tile = tiles[blockIdx.z];
    const u32 group = shape.heads / shape.kv_heads;
    const u32 kv_head = blockIdx.y;
    const u32 begin = blockIdx.x * SEGMENT;
    const u32 rows = min(tile.tokens * group - tile.row, static_cast<u32>(ROWS));
    const u32 first_position = tile.position + tile.row / group;
    const u32 last_position = tile.position + (tile.row + rows - 1) / group;
    // Positions that a row sees: [low, high).
    auto low_of = [&](u32 position) { return position + 1 > window ? position + 1 - window : 0; };
    if (begin > last_position || begin + SEGMENT <= low_of(first_position)) {
        return;
    }
    const u32 from = max(begin, low_of(first_position)) - begin;
    const u32 to = min(last_position + 1 - begin, SEGMENT);
    // Whether the token's own key and value, which are not in the cache yet, belong to this segment.
    const bool fresh = ROPE && last_position - begin < SEGMENT;
    const u32 old = fresh ? to - 1 : to;
    const u32 *blocks = tables + tile.table + begin / BLOCK;
    // Where a position's key head begins, in heads.
    auto head_of = [&](u32 p) { return static_cast<size_t>(blocks[p / BLOCK]) * shape.kv_heads + kv_head; };
    auto value_at = [&](u32 p, u32 word) {
        return value_place<V>(head_of(p) * BLOCK * (value_words + value_scales), d, p % BLOCK, word);
    };
    if (threadIdx.x < ROWS) {
        const u32 row = tile.row + threadIdx.x;
        row_token[threadIdx.x] = tile.token + row / group;
        row_position[threadIdx.x] = tile.position + row / group;
        row_head[threadIdx.x] = kv_head * group + row % group;
    }
    __syncthreads();
    wait_for_previous();

    const u32 stride = (shape.heads + 2 * shape.kv_heads) * d;
    const u32 half = d / 2;
    // Values are under way while scores are computed.
    if (staged == 0) {
        // There is no room for them.
    } else if (value_words % 4 == 0 && value_words <= 4 * ATTEND_THREADS) {
        const u32 vectors = value_words / 4;
        const u32 step = ATTEND_THREADS / vectors;
        const u32 vector = threadIdx.x % vectors;
        if (threadIdx.x < step * vectors) {
            for (u32 p = from + threadIdx.x / vectors; p < old; p += step) {
                copy_async16(cached + p * value_words + vector * 4, values + value_at(p, vector * 4));
            }
        }
    } else {
        for (u32 i = from * value_words + threadIdx.x; i < old * value_words; i += ATTEND_THREADS) {
            cached[i] = values[value_at(i / value_words, i % value_words)];
        }
    }
    copy_async_commit();
    if constexpr (V == CACHE_Q8_0) {
        for (u32 i = from * value_scales + threadIdx.x; staged != 0 && i < old * value_scales; i += ATTEND_THREADS) {
            cached_scales[i] = values[value_at(i / value_scales, value_words + i % value_scales)];
        }
    }
    const u32 row_step = d < ATTEND_THREADS ? ATTEND_THREADS / d : 1;
    for (u32 e = d < ATTEND_THREADS ? threadIdx.x % d : threadIdx.x; e < d; e += ATTEND_THREADS) {
        for (u32 row = d < ATTEND_THREADS ? threadIdx.x / d : 0; row < ROWS; row += row_step) {
            float v = 0.0f;
            if (row < rows) {
                const float *head = qkv + static_cast<size_t>(row_token[row]) * stride + row_head[row] * d;
                v = ROPE ? rotated(head, cosines + static_cast<size_t>(row_token[row]) * half,
                                   sines + static_cast<size_t>(row_token[row]) * half, half, e)
                         : head[e];
            }
            queries[e * ROWS + row] = v;
        }
    }
    if constexpr (ROPE) {
        if (fresh) {
            const float *row = qkv + static_cast<size_t>(tile.token) * stride;
            const float *cosine = cosines + static_cast<size_t>(tile.token) * half;
            const float *sine = sines + static_cast<size_t>(tile.token) * half;
            const u32 all_key_words = key_words + key_scales;
            for (u32 i = threadIdx.x; i < all_key_words + value_words + value_scales; i += ATTEND_THREADS) {
                if (i < all_key_words) {
                    const u32 bits = key_word<K>(row + (shape.heads + kv_head) * d, cosine, sine, half, i);
                    new_key[i] = bits;
                    if (tile.row == 0) {
                        keys[(head_of(old) * all_key_words + i) * BLOCK + old % BLOCK] = bits;
                    }
                } else {
                    const u32 word = i - all_key_words;
                    const u32 bits = value_word<V>(row + (shape.heads + shape.kv_heads + kv_head) * d, d, word);
                    if (word < value_words) {
                        cached[old * value_words + word] = bits;
                    } else {
                        cached_scales[old * value_scales + word - value_words] = bits;
                    }
                    if (tile.row == 0) {
                        values[value_at(old, word)] = bits;
                    }
                }
            }
        }
    }
    __syncthreads();

    // A thread a position and all rows, or two positions and half of the rows: a query that is read serves both.
    constexpr u32 EACH = ROWS >= 16 ? 2 : 1;
    constexpr u32 OWN_ROWS = ROWS / EACH;
    constexpr u32 APART = SEGMENT / EACH;
    const u32 row0 = threadIdx.x / APART * OWN_ROWS;
    float scores[EACH][OWN_ROWS] = {};
    const u32 *key[EACH];
    u32 apart[EACH];
    bool used[EACH];
    bool any = false;
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
        const u32 p = threadIdx.x % APART + e * APART;
        used[e] = p >= from && p < to;
        any |= used[e];
        const bool own = fresh && p == old;
        key[e] = own ? new_key : keys + head_of(p) * (key_words + key_scales) * BLOCK + p % BLOCK;
        apart[e] = own ? 1 : BLOCK;
    }
    if (any) {
        constexpr u32 AHEAD = ROWS == 1 ? 64 : 32 / EACH;
        for (u32 first = 0; first < key_words; first += AHEAD) {
            u32 bits[AHEAD][EACH];
            u32 scales[AHEAD / SCALED_WORDS][EACH];
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
#pragma unroll
                for (u32 e = 0; e < EACH; ++e) {
                    bits[i][e] = used[e] && first + i < key_words ? key[e][(first + i) * apart[e]] : 0;
                    if (K == CACHE_Q8_0 && i % SCALED_WORDS == 0) {
                        const u32 word = key_words + (first + i) / SCALED_WORDS;
                        scales[i / SCALED_WORDS][e] = used[e] && first + i < key_words ? key[e][word * apart[e]] : 0;
                    }
                }
            }
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i) {
                if (first + i < key_words) {
#pragma unroll
                    for (u32 j = 0; j < PACK<K>; ++j) {
                        const u32 element = (first + i) * PACK<K> + j;
                        const float *query = queries + element * ROWS + row0;
                        float four[OWN_ROWS];
                        if constexpr (OWN_ROWS % 4 == 0) {
#pragma unroll
                            for (u32 r = 0; r < OWN_ROWS / 4; ++r) {
                                const float4 v = reinterpret_cast<const float4 *>(query)[r];
                                four[4 * r] = v.x;
                                four[4 * r + 1] = v.y;
                                four[4 * r + 2] = v.z;
                                four[4 * r + 3] = v.w;
                            }
                        } else {
                            four[0] = query[0];
                        }
#pragma unroll
                        for (u32 e = 0; e < EACH; ++e) {
                            float k = unpacked<K>(bits[i][e], j);
                            if constexpr (K == CACHE_Q8_0) {
                                k = __fmul_rn(k, scale_of(scales[i / SCALED_WORDS][e], i));
                            }
#pragma unroll
                            for (u32 r = 0; r < OWN_ROWS; ++r) {
                                scores[e][r] = __fmaf_rn(four[r], k, scores[e][r]);
                            }
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (u32 e = 0; e < EACH; ++e) {
        const u32 p = threadIdx.x % APART + e * APART;
#pragma unroll
        for (u32 r = 0; r < OWN_ROWS; ++r) {
            const u32 row = row0 + r;
            const u32 position = row_position[row];
            const bool seen = begin + p >= low_of(position) && begin + p <= position && row < rows;
            weights[row * SEGMENT + p] = seen ? __fmul_rn(scores[e][r], factor) : UNSEEN;
        }
    }
    __syncthreads();

    // A warp a row: weights and the L16 of them.
    const u32 lane = threadIdx.x % 32;
    for (u32 r = threadIdx.x / 32; r < rows; r += ATTEND_THREADS / 32) {
        float *row = weights + r * SEGMENT;
        float most = UNSEEN;
        float own[SEGMENT / 32];
#pragma unroll
        for (u32 i = 0; i < SEGMENT / 32; ++i) {
            own[i] = row[32 * i + lane];
            most = fmaxf(most, own[i]);
        }
        for (int width = 16; width > 0; width /= 2) {
            most = fmaxf(most, __shfl_xor_sync(WARP, most, width));
        }
        float even = 0.0f;
#pragma unroll
        for (u32 i = 0; i < SEGMENT / 32; ++i) {
            const float weight = own[i] > UNSEEN ? exponential(__fsub_rn(own[i], most)) : 0.0f;
            row[32 * i + lane] = weight;
            // Lanes of L16 take what they and their neighbours in the other half of the warp have, in turn.
            const float other = __shfl_xor_sync(WARP, weight, 16);
            even = __fadd_rn(__fadd_rn(even, lane < 16 ? weight : other), lane < 16 ? other : weight);
        }
        const float sum = fold16(even);
        if (lane == 0) {
            sums[r] = sum;
            largest[r] = most;
        }
    }
    copy_async_wait<0>();
    __syncthreads();

    // A thread a word of the output, or two elements of it, for a group of rows.
    constexpr u32 WIDE = PACK<V> < 2 ? PACK<V> : 2;
    constexpr u32 PARTS = PACK<V> / WIDE;
    for (u32 item = threadIdx.x; item < GROUPS * value_words * PARTS; item += ATTEND_THREADS) {
        const u32 word = item / PARTS % value_words;
        const u32 part = item % PARTS * WIDE;
        const u32 r0 = item / PARTS / value_words * OWN;
        if (r0 >= rows) {
            continue;
        }
        float acc[OWN][WIDE] = {};
        const float *weight = weights + r0 * SEGMENT;
        auto read = [&](u32 p) { return staged != 0 ? cached[p * value_words + word] : values[value_at(p, word)]; };
        const u32 scale_word = word / SCALED_WORDS;
        auto read_scale = [&](u32 p) {
            return staged != 0 ? cached_scales[p * value_scales + scale_word] : values[value_at(p, value_words + scale_word)];
        };
        auto widened = [&](u32 bits, u32 scales, u32 j) {
            const float v = unpacked<V>(bits, part + j);
            return V == CACHE_Q8_0 ? __fmul_rn(v, scale_of(scales, word)) : v;
        };
        auto one = [&](u32 p) {
            const u32 bits = read(p);
            const u32 scales = V == CACHE_Q8_0 ? read_scale(p) : 0;
#pragma unroll
            for (int r = 0; r < OWN; ++r) {
#pragma unroll
                for (u32 j = 0; j < WIDE; ++j) {
                    acc[r][j] = __fmaf_rn(weight[r * SEGMENT + p], widened(bits, scales, j), acc[r][j]);
                }
            }
        };
        u32 p = from;
        for (; p < to && p % 4 != 0; ++p) {
            one(p);
        }
        // What is read at once is added in order: its latency is paid once.
        auto several = [&]<u32 N>() {
            u32 bits[N];
            u32 scales[N];
            float4 a[OWN][N / 4];
#pragma unroll
            for (u32 i = 0; i < N; ++i) {
                bits[i] = read(p + i);
                scales[i] = V == CACHE_Q8_0 ? read_scale(p + i) : 0;
            }
#pragma unroll
            for (int r = 0; r < OWN; ++r) {
#pragma unroll
                for (u32 i = 0; i < N / 4; ++i) {
                    a[r][i] = *reinterpret_cast<const float4 *>(weight + r * SEGMENT + p + 4 * i);
                }
            }
#pragma unroll
            for (int r = 0; r < OWN; ++r) {
#pragma unroll
                for (u32 i = 0; i < N; ++i) {
                    const float4 four = a[r][i / 4];
                    const float one_weight = i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
#pragma unroll
                    for (u32 j = 0; j < WIDE; ++j) {
                        acc[r][j] = __fmaf_rn(one_weight, widened(bits[i], scales[i], j), acc[r][j]);
                    }
                }
            }
            p += N;
        };
        constexpr u32 AT_ONCE = OWN == 1 ? 16 : 8;
        while (p + AT_ONCE <= to) {
            several.template operator()<AT_ONCE>();
        }
        while (p + 4 <= to) {
            several.template operator()<4>();
        }
        for (; p < to; ++p) {
            one(p);
        }
#pragma unroll
        for (int r = 0; r < OWN; ++r) {
            if (r0 + r >= rows) {
                continue;
            }
            const u32 token = row_token[r0 + r];
            const u32 head = row_head[r0 + r];
            const size_t owner = static_cast<size_t>(token) * shape.heads + head;
            const u32 position = row_position[r0 + r];
            const u32 first_segment = low_of(position) / SEGMENT;
            const u32 last_segment = position / SEGMENT;
            if (blockIdx.x < first_segment || blockIdx.x > last_segment) {
                continue;
            }
            if (first_segment == last_segment) {
#pragma unroll
                for (u32 j = 0; j < WIDE; ++j) {
                    out[owner * d + word * PACK<V> + part + j] = __fdiv_rn(acc[r][j], sums[r0 + r]);
                }
                continue;
            }
            const size_t place = static_cast<size_t>(token - base) * shape.heads + head;
            float *segment = parts + (place * segments + blockIdx.x) * (d + 2);
#pragma unroll
            for (u32 j = 0; j < WIDE; ++j) {
                segment[2 + word * PACK<V> + part + j] = acc[r][j];
            }
            if (word == 0 && part == 0) {
                segment[0] = largest[r0 + r];
                segment[1] = sums[r0 + r];
            }
        }
    }
}

// What any pair of types has, and what those have besides that are used most.
#define ATTENTION(KEY, VALUE, K, V)                                                                                    \
    KERNEL(rope_append_##KEY##_##VALUE)                                                                                \
        (float *qkv, const float *cosines, const float *sines, const uint2 *places, const u32 *tables, u32 *keys,      \
         u32 *values, u32 heads, u32 kv_heads, u32 head_dim) {                                                         \
        rope_append<K, V>(qkv, cosines, sines, places, tables, keys, values, Heads{heads, kv_heads, head_dim});        \
    }                                                                                                                  \
    EXPORT_KERNEL(rope_append_##KEY##_##VALUE)                                                                         \
    ATTEND(attend_4_##KEY##_##VALUE, K, V, 4, false)

#define MORE_ATTENTION(TYPE, T)                                                                                        \
    ATTEND(attend_1_##TYPE##_##TYPE, T, T, 1, false)                                                                   \
    ATTEND(attend_16_##TYPE##_##TYPE, T, T, 16, false)                                                                 \
    ATTEND(rope_attend_1_##TYPE##_##TYPE, T, T, 1, true)                                                               \
    ATTEND(rope_attend_4_##TYPE##_##TYPE, T, T, 4, true)

#define ATTEND(NAME, K, V, ROWS, ROPE)                                                                                 \
    KERNEL(NAME, __launch_bounds__(ATTEND_THREADS))                                                                    \
        (const float *qkv, const Tile *tiles, const u32 *tables, u32 *keys, u32 *values, float *parts, float *out,     \
             u32 heads, u32 kv_heads, u32 head_dim, u32 segments, u32 window, float factor, u32 base, u32 staged,      \
             const float *cosines, const float *sines) {                                                               \
        SIZES(NAME)                                                                                                    \
        attend<K, V, ROWS, ROPE>(qkv, tiles, tables, keys, values, parts, out, Heads{heads, kv_heads, head_dim},       \
                                 segments, window, factor, base, staged, cosines, sines);                              \
    }                                                                                                                  \
    EXPORT_KERNEL(NAME)

ATTENTION(f32, f32, CACHE_F32, CACHE_F32)
ATTENTION(f32, f16, CACHE_F32, CACHE_F16)
ATTENTION(f32, bf16, CACHE_F32, CACHE_BF16)
ATTENTION(f16, f32, CACHE_F16, CACHE_F32)
ATTENTION(f16, f16, CACHE_F16, CACHE_F16)
ATTENTION(f16, bf16, CACHE_F16, CACHE_BF16)
ATTENTION(bf16, f32, CACHE_BF16, CACHE_F32)
ATTENTION(bf16, f16, CACHE_BF16, CACHE_F16)
ATTENTION(bf16, bf16, CACHE_BF16, CACHE_BF16)
ATTENTION(f32, q8_0, CACHE_F32, CACHE_Q8_0)
ATTENTION(f16, q8_0, CACHE_F16, CACHE_Q8_0)
ATTENTION(bf16, q8_0, CACHE_BF16, CACHE_Q8_0)
ATTENTION(q8_0, f32, CACHE_Q8_0, CACHE_F32)
ATTENTION(q8_0, f16, CACHE_Q8_0, CACHE_F16)
ATTENTION(q8_0, bf16, CACHE_Q8_0, CACHE_BF16)
ATTENTION(q8_0, q8_0, CACHE_Q8_0, CACHE_Q8_0)
MORE_ATTENTION(f32, CACHE_F32)
MORE_ATTENTION(f16, CACHE_F16)
MORE_ATTENTION(bf16, CACHE_BF16)
MORE_ATTENTION(q8_0, CACHE_Q8_0)

// Rule 11: segments of attention become one output, a warp a head of a token.
KERNEL(merge, __launch_bounds__(ATTEND_THREADS))
    (const float *parts, float *out, const uint2 *places, u32 heads, u32 head_dim, u32 segments, u32 window, u32 base, u32 tokens) {
    SIZES(merge)
    let_next_begin();
    wait_for_previous();
    const u32 own = blockIdx.x * (ATTEND_THREADS / 32) + threadIdx.x / 32;
    if (own >= heads * tokens) {
        return;
    }
    const u32 token = base + own / heads;
    const size_t owner = static_cast<size_t>(token) * heads + own % heads;
    const float *part = parts + static_cast<size_t>(own) * segments * (head_dim + 2);
    const u32 position = places[token].x;
    const u32 first = (position + 1 > window ? position + 1 - window : 0) / SEGMENT;
    const u32 last = position / SEGMENT;
    if (first == last) {
        return;
    }
    float largest = UNSEEN;
    for (u32 s = first; s <= last; ++s) {
        largest = fmaxf(largest, part[s * (head_dim + 2)]);
    }
    for (u32 e = threadIdx.x % 32; e < head_dim; e += 32) {
        float total = 0.0f;
        float sum = 0.0f;
        for (u32 s = first; s <= last; ++s) {
            const float *segment = part + s * (head_dim + 2);
            const float weight = exponential(__fsub_rn(segment[0], largest));
            total = __fmaf_rn(segment[1], weight, total);
            sum = __fmaf_rn(segment[2 + e], weight, sum);
        }
        out[owner * head_dim + e] = __fdiv_rn(sum, total);
    }
}
EXPORT_KERNEL(merge)
