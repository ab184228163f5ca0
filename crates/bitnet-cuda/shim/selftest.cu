// Kernels for selftest.cpp: what the shim gives to the project's kernels, each feature on its own, and ways to misuse it.

#define KERNEL extern "C" __global__ void

// ---- right ones

struct Pair {
    int x;
    double y;
};

KERNEL parameters(int *out, signed char a, Pair pair, float b, const int *in) {
    if (threadIdx.x == 0) {
        out[0] = a;
        out[1] = pair.x;
        out[2] = int(pair.y);
        out[3] = int(b);
        out[4] = in[1];
    }
}
EXPORT_KERNEL(parameters)

// Where each thread stands, by its place in the grid.
KERNEL indices(uint4 *out) {
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = make_uint4(block, threadIdx.x, threadIdx.y, threadIdx.z);
}
EXPORT_KERNEL(indices)

// 12 answers a thread.
KERNEL shuffles(int *out) {
    int t = threadIdx.x, value = t * t;
    unsigned half = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    int *mine = out + t * 12;
    mine[0] = __shfl_sync(0xffffffffu, value, 5);
    mine[1] = __shfl_sync(0xffffffffu, value, 3, 8);
    mine[2] = __shfl_xor_sync(0xffffffffu, value, 16);
    mine[3] = __shfl_down_sync(0xffffffffu, value, 4);
    mine[4] = __shfl_up_sync(0xffffffffu, value, 4, 16);
    mine[5] = __ballot_sync(0xffffffffu, t % 3 == 0);
    mine[6] = __any_sync(half, t % 32 == 20);
    mine[7] = __all_sync(half, t % 32 < 16);
    mine[8] = __reduce_add_sync(half, t);
    mine[9] = __reduce_max_sync(0xffffffffu, -t);
    // Halves of a warp apart, in different code.
    if (t % 32 < 16) mine[10] = __shfl_xor_sync(half, value, 1);
    else mine[10] = __shfl_sync(half, value, 31);
    __syncwarp();
    mine[11] = int(__shfl_sync(0xffffffffu, (long long)(t) << 40, 7) >> 40);
}
EXPORT_KERNEL(shuffles)

// A sum over the block through static shared memory, written by every thread; warps past the 5th end early.
KERNEL barriers(int *out) {
    __shared__ int sums[32];
    __shared__ unsigned untouched[4];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (blockDim.x == 1) untouched[threadIdx.x] = 0;
    int odd = __syncthreads_count(threadIdx.x & 1);
    if (warp >= 5) return;
    int sum = threadIdx.x;
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < 5; w++) sum += sums[w];
    __syncthreads();
    if (lane == 0) sums[warp] = 0;
    int both = __syncthreads_or(threadIdx.x == 77) + 2 * __syncthreads_or(0);
    out[threadIdx.x] = sum + 100000 * odd + 100000000 * both + (untouched[lane % 4] != 0xffffffffu);
}
EXPORT_KERNEL(barriers)

// C[16][8] = A[16][32] · B[32][8], row-major bytes; c starts at 1.
template <bool is_signed> __device__ void product(const unsigned char *a, const signed char *b, int *c) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned fragment[4], b0 = 0, b1 = 0;
    for (int i = 0; i < 4; i++) memcpy(&fragment[i], a + (g + i % 2 * 8) * 32 + i / 2 * 16 + t * 4, 4);
    for (int i = 0; i < 4; i++) {
        b0 |= unsigned((unsigned char)(b[(t * 4 + i) * 8 + g])) << 8 * i;
        b1 |= unsigned((unsigned char)(b[(t * 4 + i + 16) * 8 + g])) << 8 * i;
    }
    int sums[4] = {1, 1, 1, 1};
    if (is_signed) mma_s8(sums, fragment, b0, b1);
    else mma_u8s8(sums, fragment, b0, b1);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i];
}
KERNEL mma_signed(const unsigned char *a, const signed char *b, int *c) { product<true>(a, b, c); }
EXPORT_KERNEL(mma_signed)
KERNEL mma_unsigned(const unsigned char *a, const signed char *b, int *c) { product<false>(a, b, c); }
EXPORT_KERNEL(mma_unsigned)

// C[16][8] = A[16][16] · B[8][16] of bf16, rows and columns of eight words; c starts at 1.
KERNEL mma_of_bf16(const unsigned *a, const unsigned *b, float *c) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    unsigned fragment[4];
    for (int i = 0; i < 4; i++) fragment[i] = a[(g + i % 2 * 8) * 8 + t + i / 2 * 4];
    float sums[4] = {1, 1, 1, 1};
    mma_bf16(sums, fragment, b[g * 8 + t], b[g * 8 + t + 4]);
    for (int i = 0; i < 4; i++) c[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = sums[i];
}
EXPORT_KERNEL(mma_of_bf16)

// out = in + 1 through two stages of dynamic shared memory; `valid` 16-byte units are there, those after them count as zeros.
KERNEL pipeline(const uint4 *in, uint4 *out, int units, int valid) {
    DYNAMIC_SHARED(uint4, stages); // [2][threads]
    int threads = blockDim.x, t = threadIdx.x, steps = units / threads;
    auto fetch = [&](int step) {
        int unit = step * threads + t;
        if (step < steps) copy_async16_zfill(&stages[step % 2 * threads + t], in + unit, unit < valid);
        copy_async_commit();
    };
    fetch(0);
    for (int step = 0; step < steps; step++) {
        fetch(step + 1);
        copy_async_wait<1>();
        __syncthreads();
        uint4 unit = stages[step % 2 * threads + (t ^ 33)];
        out[step * threads + (t ^ 33)] = make_uint4(unit.x + 1, unit.y + 1, unit.z + 1, unit.w + 1);
        __syncthreads();
    }
}
EXPORT_KERNEL(pipeline)

// The block to come last, by a counter, sums what all left.
KERNEL atomics(int *partial, int *counter, int *out, float *real) {
    __shared__ int last;
    atomicAdd(&partial[blockIdx.x], int(threadIdx.x));
    atomicMax(&out[1], int(blockIdx.x * 1000 + threadIdx.x));
    atomicMin(&out[2], -int(threadIdx.x));
    atomicAdd(real, 0.5f);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counter, 1) == int(gridDim.x) - 1;
    __syncthreads();
    if (last && threadIdx.x == 0) {
        for (unsigned i = 0; i < gridDim.x; i++) out[0] += partial[i];
        out[3] = atomicCAS(&out[4], 7, 9) * 100 + atomicExch(&out[4], 5);
    }
}
EXPORT_KERNEL(atomics)

KERNEL numbers(const float *in, float *floats, int *ints) {
    floats[0] = __fmaf_rn(in[0], in[0], in[1]); // one rounding
    floats[1] = in[0] * in[0] + in[1];          // two
    floats[2] = fmaxf(in[2], in[3]);            // -0 and +0
    floats[3] = fminf(in[2], in[3]);
    floats[4] = fmaxf(in[4], in[0]); // not-a-number
    floats[5] = rintf(in[5]);
    floats[6] = half_to_float(float_to_half(in[6]));
    floats[7] = half_to_float(float_to_half(in[7])); // past f16's range
    ints[0] = __float2int_rn(in[5]);
    ints[1] = __float2int_rn(in[7]);
    ints[2] = __float2int_rn(in[4]);
    ints[3] = __dp4a(int(0xff02fe80), int(0x017f0380), 1000);
    ints[4] = __dp4a(0xff02fe80u, 0x017f0380u, 1000u);
    ints[5] = __byte_perm(0x33221180, 0x77665544, 0x8541);
    ints[6] = __popc(0xf0f1u) + max(2, 3) - min(2u, 3u);
    ints[7] = float_to_half(in[8]);                         // a tie, to even
    ints[8] = __float_as_int(half_to_float((unsigned short)(1))); // f16's least
}
EXPORT_KERNEL(numbers)

KERNEL add(int *to, int amount) { to[blockIdx.x * blockDim.x + threadIdx.x] += amount; }
EXPORT_KERNEL(add)

// ---- wrong ones

KERNEL lane_left_out() {
    if (threadIdx.x % 32 != 3) __shfl_sync(0xffffffffu, 1, 0);
    __syncthreads();
}
EXPORT_KERNEL(lane_left_out)

KERNEL divergent_barrier() {
    if (threadIdx.x < 32) __syncthreads();
    else __syncthreads();
}
EXPORT_KERNEL(divergent_barrier)

KERNEL absent_lane(int *out) { out[0] = __shfl_sync(1u << threadIdx.x % 32, 1, threadIdx.x + 1); }
EXPORT_KERNEL(absent_lane)

KERNEL writes_at(int *p, int index) { p[index] = 1; }
EXPORT_KERNEL(writes_at)

KERNEL misaligned(char *p, int offset) { reinterpret_cast<uint4 *>(p + offset)->x = 1; }
EXPORT_KERNEL(misaligned)

KERNEL shared_writes_at(int index) {
    DYNAMIC_SHARED(int, room);
    room[index] = 1;
}
EXPORT_KERNEL(shared_writes_at)

KERNEL static_shared_writes_at(int *out, int index) {
    __shared__ int room[8];
    room[index] = 1;
    out[0] = room[index / 2];
}
EXPORT_KERNEL(static_shared_writes_at)

KERNEL divides_by(int *p, int divisor) { p[0] = p[0] / divisor; }
EXPORT_KERNEL(divides_by)

// Counts neighbours' values that are not there yet, for want of a barrier.
KERNEL no_barrier(int *out) {
    __shared__ int values[256];
    values[threadIdx.x] = threadIdx.x;
    int neighbour = (threadIdx.x + 32) % 256;
    if (values[neighbour] != neighbour) atomicAdd(out, 1);
}
EXPORT_KERNEL(no_barrier)

// Counts asynchronous copies that are not there yet, for want of a wait.
KERNEL no_wait(const uint4 *in, int *out) {
    DYNAMIC_SHARED(uint4, room);
    copy_async16(&room[threadIdx.x], &in[threadIdx.x]);
    copy_async_commit();
    copy_async_wait<1>();
    if (room[threadIdx.x].x != in[threadIdx.x].x) atomicAdd(out, 1);
}
EXPORT_KERNEL(no_wait)
