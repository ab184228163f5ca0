// The largest logits of a token, so that the others stay on the device: a histogram of the upper bits of numbers, and from it all
// that lie in the bin of the k-th largest or above it, which are k or more. Where rows are screened (screen.cu), what is counted is
// the least that a logit can be, and what is taken the most. Of those that were taken the k largest are given, each at its rank.
#pragma once
#include "device.cuh"

constexpr int SELECT_THREADS = 256;
constexpr u32 BINS = 8192;

// Larger floats have larger keys.
__device__ __forceinline__ u32 bin_of(float x) {
    const u32 bits = __float_as_uint(x);
    return ((bits >> 31) != 0 ? ~bits : bits | 0x80000000u) >> 19;
}

// Counts numbers [m, n] in bins [m, BINS], which are zeros before.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS) select_count(const float *numbers, u32 *bins, u32 n) {
    __shared__ u32 own[BINS];
    let_next_begin();
    for (u32 i = threadIdx.x; i < BINS; i += SELECT_THREADS) {
        own[i] = 0;
    }
    __syncthreads();
    wait_for_previous();
    const float *row = numbers + static_cast<size_t>(blockIdx.y) * n;
    for (u32 i = blockIdx.x * SELECT_THREADS + threadIdx.x; i < n; i += gridDim.x * SELECT_THREADS) {
        atomicAdd(&own[bin_of(row[i])], 1u);
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < BINS; i += SELECT_THREADS) {
        if (own[i] != 0) {
            atomicAdd(&bins[blockIdx.y * BINS + i], own[i]);
        }
    }
}
EXPORT_KERNEL(select_count)

// What was found of m tokens, so that the first ones of all lie together: how many there are of each token, [m], filled up to an even
// number, and pairs of an id and a number, [room][m].
struct Found {
    u32 *words;
    u32 m;

    __device__ __forceinline__ u32 *count(u32 token) const { return words + token; }
    __device__ __forceinline__ u32 *pair(u32 token, u32 at) const {
        return words + (m + m % 2) + 2 * (static_cast<size_t>(at) * m + token);
    }
};

// Takes those of `numbers` [m, n] that no bin above the one of the k-th largest that was counted, or that bin, leaves out.
// As many as there is room for are written down, in any order, behind what there is in the list. wanted [m]: k, and how many there are.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_take(const float *numbers, const u32 *bins, const uint2 *wanted, u32 *found, u32 n, u32 room) {
    __shared__ u32 warps[SELECT_THREADS / 32];
    __shared__ u32 least;
    let_next_begin();
    wait_for_previous();
    constexpr u32 EACH = BINS / SELECT_THREADS;
    const u32 *row_bins = bins + blockIdx.y * BINS;
    // Thread i has bins from the top: i = 0 the highest.
    const u32 top = BINS - threadIdx.x * EACH;
    const u32 lane = threadIdx.x % 32;
    u32 count[EACH];
    u32 own = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        count[i] = row_bins[top - 1 - i];
        own += count[i];
    }
    // How many lie in bins above this thread's.
    u32 above = own;
    for (u32 width = 1; width < 32; width *= 2) {
        const u32 other = __shfl_up_sync(WARP, above, width);
        above += lane >= width ? other : 0;
    }
    if (lane == 31) {
        warps[threadIdx.x / 32] = above;
    }
    if (threadIdx.x == 0) {
        least = 0;
    }
    __syncthreads();
    above -= own;
    for (u32 i = 0; i < threadIdx.x / 32; ++i) {
        above += warps[i];
    }
    const u32 k = wanted[blockIdx.y].x;
    // One thread has the bin where the k-th largest lies.
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        if (above < k && above + count[i] >= k) {
            least = top - 1 - i;
        }
        above += count[i];
    }
    __syncthreads();
    const float *row = numbers + static_cast<size_t>(blockIdx.y) * n;
    const Found list{found, gridDim.y};
    for (u32 i = blockIdx.x * SELECT_THREADS + threadIdx.x; i < n; i += gridDim.x * SELECT_THREADS) {
        if (bin_of(row[i]) >= least) {
            const u32 at = atomicAdd(list.count(blockIdx.y), 1u);
            if (at < room) {
                u32 *pair = list.pair(blockIdx.y, at);
                pair[0] = i;
                pair[1] = __float_as_uint(row[i]);
            }
        }
    }
}
EXPORT_KERNEL(select_take)

// Begins lists with ids that are wanted besides: n pairs of a token and an id; their logits come from `logits` [.., vocab], or later.
// Counts are zeros before.
extern "C" __global__ void select_also(const uint2 *pairs, const float *logits, u32 *found, u32 n, u32 vocab, u32 room, u32 m) {
    let_next_begin();
    wait_for_previous();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    const uint2 wanted = pairs[i];
    const Found list{found, m};
    const u32 at = atomicAdd(list.count(wanted.x), 1u);
    if (at < room) {
        u32 *pair = list.pair(wanted.x, at);
        pair[0] = wanted.y;
        pair[1] = logits == nullptr ? 0 : __float_as_uint(logits[static_cast<size_t>(wanted.x) * vocab + wanted.y]);
    }
}
EXPORT_KERNEL(select_also)

// Larger logits first, both zeros alike, and of equal ones the lower id.
__device__ __forceinline__ u64 order_of(const u32 *pair) {
    const u32 bits = __float_as_uint(__fadd_rn(__uint_as_float(pair[1]), 0.0f));
    const u32 key = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(key) << 32 | (0xffffffffu - pair[0]);
}

// Of each token's list, a block for each SELECT_THREADS of it, what was wanted besides, and behind it the k largest of the others, best
// first: best [m] counts of lists, filled up to an even number, then pairs [m][each]. wanted [m]: k, and how many were wanted besides.
extern "C" __global__ void __launch_bounds__(SELECT_THREADS)
    select_best(u32 *found, const uint2 *wanted, u32 *best, u32 room, u32 each) {
    __shared__ u64 orders[SELECT_THREADS];
    let_next_begin();
    wait_for_previous();
    const u32 token = blockIdx.y;
    const Found list{found, gridDim.y};
    const u32 count = min(*list.count(token), room);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        best[token] = *list.count(token);
    }
    if (blockIdx.x * SELECT_THREADS >= count) {
        return;
    }
    const uint2 want = wanted[token];
    const u32 own = blockIdx.x * SELECT_THREADS + threadIdx.x;
    const u32 *pair = list.pair(token, min(own, count - 1));
    const u64 order = order_of(pair);
    // How many of the others come before it: no two are alike, because an id is taken once.
    u32 rank = 0;
    for (u32 begin = want.y; begin < count; begin += SELECT_THREADS) {
        __syncthreads();
        if (begin + threadIdx.x < count) {
            orders[threadIdx.x] = order_of(list.pair(token, begin + threadIdx.x));
        }
        __syncthreads();
        const u32 n = min(count - begin, static_cast<u32>(SELECT_THREADS));
#pragma unroll 4
        for (u32 i = 0; i < n; ++i) {
            rank += orders[i] > order ? 1 : 0;
        }
    }
    const bool besides = own < want.y;
    if (own < count && (besides || rank < want.x)) {
        u32 *out = best + (gridDim.y + gridDim.y % 2) + 2 * (static_cast<size_t>(token) * each + (besides ? own : want.y + rank));
        out[0] = pair[0];
        out[1] = pair[1];
    }
}
EXPORT_KERNEL(select_best)

// Zeros, [n].
extern "C" __global__ void clear(u32 *words, size_t n) {
    let_next_begin();
    wait_for_previous();
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += static_cast<size_t>(gridDim.x) * blockDim.x) {
        words[i] = 0;
    }
}
EXPORT_KERNEL(clear)
