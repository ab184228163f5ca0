// Products of training: c[i, j] = sum over p of a[i, p] * b[j, p]. Both sides are arranged first, whatever they are of and however they lie, so
// that the kernels that multiply read whole tiles, filled up with zeros, and know neither types nor bounds.
#include "training.cuh"

// ---- arranging

constexpr u32 ARRANGE_THREADS = 256;
// Vectors and terms that a block arranges.
constexpr u32 SQUARE = 64;
constexpr u32 SQUARE_PITCH = SQUARE + 1;
__shared__ float arranged[SQUARE * SQUARE_PITCH];

// What vectors are of, in the lowest bits; whether they are columns, behind.
enum : u32 { SIDE_F32, SIDE_I8, SIDE_TRITS, SIDE_KINDS = 3, SIDE_COLUMNS = 4 };

struct Side {
    const u8 *values;
    size_t stride;
    u32 how;
    // Null: none.
    const float *factors;
    // How many vectors, the first term and how many.
    u32 vectors;
    size_t from;
    u32 terms;
};

__device__ __forceinline__ float side_element(const Side &side, u32 vector, u32 term) {
    const size_t p = side.from + term;
    const size_t at = side.how & SIDE_COLUMNS ? p * side.stride + vector : vector * side.stride + p;
    float v;
    if ((side.how & SIDE_KINDS) == SIDE_F32) {
        v = reinterpret_cast<const float *>(side.values)[at];
    } else if ((side.how & SIDE_KINDS) == SIDE_I8) {
        v = static_cast<float>(reinterpret_cast<const signed char *>(side.values)[at]);
    } else {
        v = static_cast<float>(static_cast<int>(side.values[at / 4] >> (at % 4 * 2) & 3) - 1);
    }
    return side.factors == nullptr ? v : __fmul_rn(v, side.factors[p]);
}

// A square of a side into shared memory, [vector][term]: neighbouring threads read neighbouring elements.
__device__ __forceinline__ void load_square(const Side &side) {
    const u32 vector = blockIdx.x * SQUARE;
    const u32 term = blockIdx.y * SQUARE;
    const bool columns = side.how & SIDE_COLUMNS;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < SQUARE * SQUARE; i += ARRANGE_THREADS) {
        const u32 v = columns ? i % SQUARE : i / SQUARE;
        const u32 p = columns ? i / SQUARE : i % SQUARE;
        const bool there = vector + v < side.vectors && term + p < side.terms;
        arranged[v * SQUARE_PITCH + p] = there ? side_element(side, vector + v, term + p) : 0.0f;
    }
    __syncthreads();
}

// Words [vectors, words] of N terms, the first one lowest.
template <u32 N, class Pack>
__device__ __forceinline__ void store_words(u32 *out, u32 words, Pack pack) {
    constexpr u32 WIDTH = SQUARE / N;
    for (u32 i = threadIdx.x; i < SQUARE * WIDTH; i += ARRANGE_THREADS) {
        const u32 v = i / WIDTH;
        const u32 word = i % WIDTH;
        if (blockIdx.y * WIDTH + word < words) {
            const size_t vector = blockIdx.x * SQUARE + v;
            out[vector * words + blockIdx.y * WIDTH + word] = pack(arranged + v * SQUARE_PITCH + word * N);
        }
    }
}

// Terms of bf16, [vectors, words].
extern "C" __global__ void __launch_bounds__(ARRANGE_THREADS)
    train_arrange_bf16(u32 *out, u32 words, const u8 *values, size_t stride, u32 how, const float *factors, u32 vectors, size_t from, u32 terms) {
    wait_for_previous();
    load_square(Side{values, stride, how, factors, vectors, from, terms});
    store_words<2>(out, words, [](const float *v) { return bf16_bits(v[0]) >> 16 | bf16_bits(v[1]); });
}
EXPORT_KERNEL(train_arrange_bf16)

// Integers, [vectors, words].
extern "C" __global__ void __launch_bounds__(ARRANGE_THREADS)
    train_arrange_i8(u32 *out, u32 words, const u8 *values, size_t stride, u32 how, const float *factors, u32 vectors, size_t from, u32 terms) {
    wait_for_previous();
    load_square(Side{values, stride, how, factors, vectors, from, terms});
    store_words<4>(out, words, [](const float *v) {
        u32 four = 0;
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            four |= (static_cast<u32>(static_cast<int>(v[i])) & 0xffu) << (8 * i);
        }
        return four;
    });
}
EXPORT_KERNEL(train_arrange_i8)

// Terms as they are, [terms, width].
extern "C" __global__ void __launch_bounds__(ARRANGE_THREADS)
    train_arrange_f32(float *out, u32 width, const u8 *values, size_t stride, u32 how, const float *factors, u32 vectors, size_t from, u32 terms) {
    wait_for_previous();
    load_square(Side{values, stride, how, factors, vectors, from, terms});
    for (u32 i = threadIdx.x; i < SQUARE * SQUARE; i += ARRANGE_THREADS) {
        const u32 v = i % SQUARE;
        const u32 p = i / SQUARE;
        if (blockIdx.y * SQUARE + p < terms) {
            out[static_cast<size_t>(blockIdx.y * SQUARE + p) * width + blockIdx.x * SQUARE + v] = arranged[v * SQUARE_PITCH + p];
        }
    }
}
EXPORT_KERNEL(train_arrange_f32)

// ---- what becomes of sums

// How the other factor is found, and what is done with a product.
enum : u32 { SCALE_VALUE, SCALE_ONE, SCALE_ROWS, SCALE_COLUMNS, SCALE_KINDS = 3, STORE_ADDS = 4, STORE_GOES_ON = 8 };

struct Target {
    float *c;
    size_t stride;
    u32 m;
    u32 n;
    const float *rows;
    const float *scale;
    float value;
    u32 how;
};

__device__ __forceinline__ bool is_inside(const Target &to, u32 i, u32 j) { return i < to.m && j < to.n; }

// What a sum begins with.
__device__ __forceinline__ float sum_before(const Target &to, u32 i, u32 j) {
    return to.how & STORE_GOES_ON && is_inside(to, i, j) ? to.c[i * to.stride + j] : 0.0f;
}

__device__ __forceinline__ void store_sum(const Target &to, u32 i, u32 j, float sum) {
    if (!is_inside(to, i, j)) {
        return;
    }
    const u32 kind = to.how & SCALE_KINDS;
    float factor = kind == SCALE_VALUE ? to.value : to.scale[kind == SCALE_ROWS ? i : kind == SCALE_COLUMNS ? j : 0];
    if (to.rows != nullptr) {
        factor = __fmul_rn(to.rows[i], factor);
    }
    float *c = to.c + i * to.stride + j;
    sum = __fmul_rn(sum, factor);
    *c = to.how & STORE_ADDS ? __fadd_rn(*c, sum) : sum;
}

// ---- f32: a chain an element

constexpr u32 PRODUCT_THREADS = 256;
// Terms that lie in shared memory together, and how many times.
constexpr u32 CHAIN_TERMS = 16;
constexpr u32 CHAIN_STAGES = 3;

__device__ __forceinline__ void take_four(float *to, const float *from) {
    const float4 four = *reinterpret_cast<const float4 *>(from);
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
}

// A tile of TILE by TILE elements; a thread has squares of four by four of them, 64 apart. a [terms, a_width], b [terms, b_width].
template <u32 TILE>
__device__ __forceinline__ void chains(const float *a, const float *b, u32 a_width, u32 b_width, u32 terms, const Target &to) {
    DYNAMIC_SHARED(float, room); // [stage][term][a | b]
    constexpr u32 R = TILE / 16;
    constexpr u32 ROW = 2 * TILE;
    constexpr u32 PARTS = ROW / 4;
    wait_for_previous();
    const u32 row = blockIdx.x * TILE + threadIdx.x / 16 * 4;
    const u32 column = blockIdx.y * TILE + threadIdx.x % 16 * 4;
    float sums[R][R];
#pragma unroll
    for (u32 i = 0; i < R; ++i) {
#pragma unroll
        for (u32 j = 0; j < R; ++j) {
            sums[i][j] = sum_before(to, row + i / 4 * 64 + i % 4, column + j / 4 * 64 + j % 4);
        }
    }
    auto fetch = [&](u32 step) {
        float *stage = room + step % CHAIN_STAGES * CHAIN_TERMS * ROW;
        for (u32 i = threadIdx.x; i < CHAIN_TERMS * PARTS; i += PRODUCT_THREADS) {
            const u32 p = step * CHAIN_TERMS + i / PARTS;
            const u32 at = i % PARTS * 4;
            const bool there = p < terms;
            const size_t term = there ? p : 0;
            const float *from = at < TILE ? a + term * a_width + blockIdx.x * TILE + at : b + term * b_width + blockIdx.y * TILE + at - TILE;
            copy_async16_zfill(stage + i / PARTS * ROW + at, from, there);
        }
    };
    const u32 steps = (terms + CHAIN_TERMS - 1) / CHAIN_TERMS;
#pragma unroll
    for (u32 step = 0; step < CHAIN_STAGES - 1; ++step) {
        if (step < steps) {
            fetch(step);
        }
        copy_async_commit();
    }
    for (u32 step = 0; step < steps; ++step) {
        copy_async_wait<CHAIN_STAGES - 2>();
        __syncthreads();
        if (step + CHAIN_STAGES - 1 < steps) {
            fetch(step + CHAIN_STAGES - 1);
        }
        copy_async_commit();
        const float *stage = room + step % CHAIN_STAGES * CHAIN_TERMS * ROW;
        const float *left = stage + threadIdx.x / 16 * 4;
        const float *right = stage + TILE + threadIdx.x % 16 * 4;
#pragma unroll
        for (u32 p = 0; p < CHAIN_TERMS; ++p) {
            float x[R];
            float y[R];
#pragma unroll
            for (u32 i = 0; i < R / 4; ++i) {
                take_four(x + i * 4, left + p * ROW + i * 64);
                take_four(y + i * 4, right + p * ROW + i * 64);
            }
#pragma unroll
            for (u32 i = 0; i < R; ++i) {
#pragma unroll
                for (u32 j = 0; j < R; ++j) {
                    sums[i][j] = __fmaf_rn(x[i], y[j], sums[i][j]);
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < R; ++i) {
#pragma unroll
        for (u32 j = 0; j < R; ++j) {
            store_sum(to, row + i / 4 * 64 + i % 4, column + j / 4 * 64 + j % 4, sums[i][j]);
        }
    }
}

#define CHAINS(NAME, TILE)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)                                                              \
        NAME(const float *a, const float *b, u32 a_width, u32 b_width, u32 terms, float *c, size_t stride, u32 m, u32 n,       \
             const float *rows, const float *scale, float value, u32 how) {                                                    \
        chains<TILE>(a, b, a_width, b_width, terms, Target{c, stride, m, n, rows, scale, value, how});                         \
    }                                                                                                                          \
    EXPORT_KERNEL(NAME)

CHAINS(train_product_f32_128, 128)
CHAINS(train_product_f32_64, 64)

// ---- bf16 and integers: tensor cores

// Words of a vector that lie in shared memory together, how far apart vectors are (no two of a fragment meet in a bank), and how many times.
constexpr u32 TENSOR_WORDS = 16;
constexpr u32 TENSOR_PITCH = TENSOR_WORDS + 4;
constexpr u32 TENSOR_STAGES = 3;

__device__ __forceinline__ void multiply_add(int (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_s8(c, a, b0, b1); }
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_bf16(c, a, b0, b1); }

// A tile of TILE by TILE elements by eight warps, two by four of them. a and b are [vectors, words]; a word is two terms of bf16 or four
// integers, and fragments of both lie the same way. Where sums are cut into parts, a layer of blocks has `part` words of each vector.
template <class Sum, u32 TILE>
__device__ __forceinline__ void tensors(const u32 *a, const u32 *b, u32 words, u32 part, const Target &to) {
    DYNAMIC_SHARED(u32, stages); // [stage][a | b][pitch]
    // Fragments of a warp: of 16 rows, of 8 columns.
    constexpr u32 ROWS = TILE / 32;
    constexpr u32 COLUMNS = TILE / 32;
    constexpr bool WHOLE = static_cast<Sum>(0.5f) == static_cast<Sum>(0);
    wait_for_previous();
    const u32 group = threadIdx.x % 32 / 4;
    const u32 own = threadIdx.x % 4;
    const u32 row = threadIdx.x / 128 * (TILE / 2);
    const u32 column = threadIdx.x / 32 % 4 * (TILE / 4);
    auto place = [&](u32 i, u32 j, u32 e, u32 &at_row, u32 &at_column) {
        at_row = blockIdx.x * TILE + row + i * 16 + group + e / 2 * 8;
        at_column = blockIdx.y * TILE + column + j * 8 + own * 2 + e % 2;
    };
    Sum sums[ROWS][COLUMNS][4];
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
#pragma unroll
        for (u32 j = 0; j < COLUMNS; ++j) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                if constexpr (WHOLE) {
                    sums[i][j][e] = 0;
                } else {
                    u32 at_row, at_column;
                    place(i, j, e, at_row, at_column);
                    sums[i][j][e] = sum_before(to, at_row, at_column);
                }
            }
        }
    }
    const u32 begin = blockIdx.z * part;
    const u32 steps = (words - begin < part ? words - begin : part) / TENSOR_WORDS;
    auto fetch = [&](u32 step) {
        u32 *stage = stages + step % TENSOR_STAGES * 2 * TILE * TENSOR_PITCH;
#pragma unroll
        for (u32 i = threadIdx.x; i < 2 * TILE * (TENSOR_WORDS / 4); i += PRODUCT_THREADS) {
            const u32 vector = i / (TENSOR_WORDS / 4);
            const u32 word = i % (TENSOR_WORDS / 4) * 4;
            const size_t at = vector < TILE ? blockIdx.x * TILE + vector : blockIdx.y * TILE + vector - TILE;
            copy_async16(stage + vector * TENSOR_PITCH + word, (vector < TILE ? a : b) + at * words + begin + step * TENSOR_WORDS + word);
        }
    };
#pragma unroll
    for (u32 step = 0; step < TENSOR_STAGES - 1; ++step) {
        if (step < steps) {
            fetch(step);
        }
        copy_async_commit();
    }
    for (u32 step = 0; step < steps; ++step) {
        copy_async_wait<TENSOR_STAGES - 2>();
        __syncthreads();
        if (step + TENSOR_STAGES - 1 < steps) {
            fetch(step + TENSOR_STAGES - 1);
        }
        copy_async_commit();
        const u32 *stage = stages + step % TENSOR_STAGES * 2 * TILE * TENSOR_PITCH;
#pragma unroll
        for (u32 half = 0; half < TENSOR_WORDS; half += 8) {
            u32 left[ROWS][4];
            u32 right[COLUMNS][2];
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    left[i][e] = stage[(row + i * 16 + group + e % 2 * 8) * TENSOR_PITCH + half + own + e / 2 * 4];
                }
            }
#pragma unroll
            for (u32 j = 0; j < COLUMNS; ++j) {
#pragma unroll
                for (u32 e = 0; e < 2; ++e) {
                    right[j][e] = stage[(TILE + column + j * 8 + group) * TENSOR_PITCH + half + own + e * 4];
                }
            }
#pragma unroll
            for (u32 i = 0; i < ROWS; ++i) {
#pragma unroll
                for (u32 j = 0; j < COLUMNS; ++j) {
                    multiply_add(sums[i][j], left[i], right[j][0], right[j][1]);
                }
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; ++i) {
#pragma unroll
        for (u32 j = 0; j < COLUMNS; ++j) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                u32 at_row, at_column;
                place(i, j, e, at_row, at_column);
                float sum = static_cast<float>(sums[i][j][e]);
                if constexpr (WHOLE) {
                    sum = __fadd_rn(sum_before(to, at_row, at_column), sum);
                }
                store_sum(to, at_row, at_column, sum);
            }
        }
    }
}

#define TENSORS(NAME, SUM, TILE)                                                                                               \
    extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS)                                                              \
        NAME(const u32 *a, const u32 *b, u32 words, u32 part, float *c, size_t stride, u32 m, u32 n, const float *rows,        \
             const float *scale, float value, u32 how) {                                                                       \
        float *own = c + static_cast<size_t>(blockIdx.z) * m * stride;                                                         \
        tensors<SUM, TILE>(a, b, words, part, Target{own, stride, m, n, rows, scale, value, how});                             \
    }                                                                                                                          \
    EXPORT_KERNEL(NAME)

TENSORS(train_product_bf16_128, float, 128)
TENSORS(train_product_bf16_64, float, 64)
TENSORS(train_product_i8_128, int, 128)
TENSORS(train_product_i8_64, int, 64)

// Parts of sums [parts, m, n], ascending, and what becomes of them.
extern "C" __global__ void train_product_parts(const float *sums, u32 parts, float *c, size_t stride, u32 m, u32 n, const float *rows,
                                               const float *scale, float value, u32 how) {
    wait_for_previous();
    const Target to{c, stride, m, n, rows, scale, value, how};
    const size_t all = static_cast<size_t>(m) * n;
    for (size_t at = own_element(); at < all; at += all_threads()) {
        const u32 i = static_cast<u32>(at / n);
        const u32 j = static_cast<u32>(at % n);
        float sum = sum_before(to, i, j);
        for (u32 part = 0; part < parts; ++part) {
            sum = __fadd_rn(sum, sums[part * all + at]);
        }
        store_sum(to, i, j, sum);
    }
}
EXPORT_KERNEL(train_product_parts)
