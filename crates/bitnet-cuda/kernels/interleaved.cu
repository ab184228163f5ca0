// Rule 5 of docs/numerics.md for one token, with weights as Microsoft's BitNet kernels for GPUs have them: what the tiles of ternary.cu
// are compared with.
//
// Weights lie in blocks of 16 rows by 32 columns, 128 bytes: [rows / 16][cols / 32][32 words]. A word has sixteen neighbouring codes of
// a row, two bits each, in the order 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, lowest first, so that
// (word >> 2 i) & 0x03030303 are columns 4 i .. 4 i + 3. Word i of a block has row i / 16 * 8 + i % 8, and its columns from
// i % 16 / 8 * 16 on. A lane reads four words: those of four neighbouring rows with the same columns.
#pragma once
#include "ternary.cu"

// Sixteen activations in the order of their columns: `quantize_row` leaves columns i, i + 4, i + 8 and i + 12 in word i.
__device__ __forceinline__ uint4 in_order(uint4 v) {
    const u32 low[2] = {__byte_perm(v.x, v.y, 0x5140), __byte_perm(v.z, v.w, 0x5140)};
    const u32 high[2] = {__byte_perm(v.x, v.y, 0x7362), __byte_perm(v.z, v.w, 0x7362)};
    return uint4{__byte_perm(low[0], low[1], 0x5410), __byte_perm(low[0], low[1], 0x7632), __byte_perm(high[0], high[1], 0x5410),
                 __byte_perm(high[0], high[1], 0x7632)};
}

// A block has sixteen rows, its warps take every WARPS-th four blocks of them, 128 columns.
template <int WARPS, int AHEAD>
__device__ __forceinline__ void one_token_interleaved(const u32 *q, const uint4 *w, const Token *tokens, Output out, u32 tiles) {
    __shared__ int partial[WARPS][TILE_ROWS];
    DYNAMIC_SHARED(uint4, ordered); // [tiles * 8]
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    let_next_begin();
    const uint4 *from = w + static_cast<size_t>(blockIdx.x) * tiles * TILE_VECTORS + lane;
    uint4 words[AHEAD];
    auto load = [&](u32 begin) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const u32 tile = begin + i * WARPS;
            words[i] = tile < tiles ? load_streaming(from + static_cast<size_t>(tile) * TILE_VECTORS) : uint4{};
        }
    };
    load(warp);
    const u32 row = blockIdx.x * TILE_ROWS + threadIdx.x;
    const float scale = threadIdx.x < TILE_ROWS && row < out.rows ? out.scales[row] : 0.0f;
    wait_for_previous();
    for (u32 i = threadIdx.x; i < tiles * 8; i += 32 * WARPS) {
        ordered[i] = in_order(reinterpret_cast<const uint4 *>(q)[i]);
    }
    __syncthreads();
    int acc[4] = {};
    const uint4 *vectors = ordered + lane / 8 * 2 + lane % 4 / 2;
    for (u32 begin = warp; begin < tiles; begin += AHEAD * WARPS) {
        if (begin != warp) {
            load(begin);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            const u32 tile = begin + i * WARPS;
            if (tile < tiles) {
                const uint4 v = vectors[tile * 8];
                acc[0] = dot16(words[i].x, v, acc[0]);
                acc[1] = dot16(words[i].y, v, acc[1]);
                acc[2] = dot16(words[i].z, v, acc[2]);
                acc[3] = dot16(words[i].w, v, acc[3]);
            }
        }
    }
    // Lanes that differ in these bits have other columns of the same rows.
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        acc[r] += __shfl_xor_sync(WARP, acc[r], 2);
        acc[r] += __shfl_xor_sync(WARP, acc[r], 8);
        acc[r] += __shfl_xor_sync(WARP, acc[r], 16);
        if ((lane & (2 + 8 + 16)) == 0) {
            partial[warp][lane / 4 * 8 + lane % 2 * 4 + r] = acc[r];
        }
    }
    __syncthreads();
    if (threadIdx.x < TILE_ROWS && row < out.rows) {
        int sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) {
            sum += partial[i][threadIdx.x];
        }
        out.y[out.first + row] = rescaled(sum, tokens[0], scale);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gemv_interleaved(const u32 *q, const uint4 *w, const Token *tokens, const float *scales, float *y, u32 rows, u32 stride, u32 first,
                     u32 tiles) {
    one_token_interleaved<8, 4>(q, w, tokens, Output{scales, y, rows, stride, first}, tiles);
}
EXPORT_KERNEL(gemv_interleaved)

// As `tile_codes`: puts rows of codes, [rows][cols / 16] words, where blocks have them, from row `first` on. Rows up to `padded` are
// zero trits.
extern "C" __global__ void interleave_codes(const u32 *codes, u32 *w, u32 rows, u32 padded, u32 first, u32 tiles) {
    let_next_begin();
    wait_for_previous();
    const size_t words = static_cast<size_t>(tiles) * 8;
    for (size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < padded * words;
         at += static_cast<size_t>(gridDim.x) * blockDim.x) {
        const u32 r = static_cast<u32>(at / words);
        const u32 i = static_cast<u32>(at % words);
        const u32 row = first + r;
        const u32 in = r < rows ? codes[at] : 0x55555555u;
        u32 out = 0;
#pragma unroll
        for (u32 field = 0; field < 16; ++field) {
            out |= ((in >> (2 * (field % 4 * 4 + field / 4))) & 3u) << (2 * field);
        }
        const u32 word = row % TILE_ROWS / 8 * 16 + i % 2 * 8 + row % 8;
        w[(static_cast<size_t>(row / TILE_ROWS) * tiles * 4 + i / 2) * 32 + word] = out;
    }
}
EXPORT_KERNEL(interleave_codes)
