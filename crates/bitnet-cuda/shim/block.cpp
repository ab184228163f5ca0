// Runs a grid: blocks one after another, a block's threads as fibers that take turns at barriers and warp collectives.

#include "runtime.h"

#include <signal.h>
#include <stdarg.h>
#include <unistd.h>

#include <vector>

#include "fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

// The static shared memory of all kernels, as shared.ld lays it out.
extern "C" char shim_shared_begin[], shim_shared_end[];

namespace shim {

void *dynamic_shared;
bool has_waited;

namespace {

constexpr size_t STACK_BYTES = 128 << 10, PAGE = 4096, SHARED_ROOM = (MAX_SHARED + PAGE - 1) / PAGE * PAGE;

struct Copy {
    void *to;
    const void *from; // null: zeros
    unsigned group;
};

struct Warp {
    unsigned live, runnable, at_barrier, in_collective; // a bit a lane
};

struct Thread {
    Fiber fiber;
    uint3 index;
    unsigned number; // 32 × warp + lane
    // The collective that it waits at.
    const char *what;
    unsigned mask;
    void *record;
    void (*run)(Records &, unsigned);
    std::vector<Copy> copies;
    unsigned groups_committed;

    Warp &warp() const;
    unsigned bit() const { return 1u << number % 32; }
};

struct Block {
    const Kernel *kernel;
    void *const *parameters;
    bool copies_land_late, last_lane_first;
    Fiber scheduler;
    unsigned warp_count, live;
    Warp warps[MAX_THREADS / 32];
    Thread threads[MAX_THREADS];
    Thread *current; // null outside of a thread
    // The barrier that threads are arriving at, and the result of the last one.
    const char *barrier_what;
    int barrier_line;
    unsigned arrived;
    int predicates;
    BarrierResult barrier_result;
} block;

Warp &Thread::warp() const { return block.warps[number / 32]; }

// Room mapped once: a stack for each thread, an inaccessible page between any two and after the dynamic shared memory.
char *stacks, *shared_end;

void map_room() {
    if (stacks) return;
    size_t stack_room = MAX_THREADS * (STACK_BYTES + PAGE), bytes = PAGE + stack_room + SHARED_ROOM + PAGE;
    char *room = static_cast<char *>(mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (room == MAP_FAILED) fail("no memory for the stacks of a block");
    stacks = room + PAGE;
    for (unsigned i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * (STACK_BYTES + PAGE), STACK_BYTES, PROT_READ | PROT_WRITE);
    mprotect(stacks + stack_room, SHARED_ROOM, PROT_READ | PROT_WRITE);
    shared_end = stacks + stack_room + SHARED_ROOM;
}

// The fiber that goes on next in `warp`: the scheduler's where all its threads wait.
Fiber &next_of(const Warp &warp) {
    if (!warp.runnable) return block.scheduler;
    unsigned lane = block.last_lane_first ? 31 - __builtin_clz(warp.runnable) : __builtin_ctz(warp.runnable);
    block.current = &block.threads[(&warp - block.warps) * 32 + lane];
    threadIdx = block.current->index;
    return block.current->fiber;
}

// Leaves the running thread, straight for another one of its warp where that can go on.
void yield() {
    Thread &thread = *block.current;
    next_of(thread.warp()).enter(thread.fiber);
}

// Opens the barrier when every live thread has arrived.
bool open_barrier() {
    if (block.arrived == 0 || block.arrived != block.live) return false;
    block.barrier_result = {block.predicates, unsigned(block.predicates) == block.arrived};
    block.arrived = 0;
    block.predicates = 0;
    for (Warp *warp = block.warps; warp < block.warps + block.warp_count; warp++) {
        warp->runnable |= warp->at_barrier;
        warp->at_barrier = 0;
    }
    return true;
}

// Runs the collective that `thread` waits at when all its live lanes are there.
bool complete_collective(const Thread &thread) {
    Warp &warp = thread.warp();
    unsigned lanes = thread.mask & warp.live;
    if ((warp.in_collective & lanes) != lanes) return false;
    Thread *first = block.threads + thread.number / 32 * 32;
    void *records[32] = {};
    for (unsigned left = lanes; left; left &= left - 1) {
        unsigned lane = __builtin_ctz(left);
        Thread &other = first[lane];
        if (other.mask != thread.mask || other.run != thread.run || other.what != thread.what) return false;
        records[lane] = other.record;
    }
    thread.run(records, lanes);
    warp.in_collective &= ~lanes;
    warp.runnable |= lanes;
    return true;
}

void thread_main() {
    block.kernel->call(block.parameters);
    Thread &thread = *block.current;
    Warp &warp = thread.warp();
    warp.live &= ~thread.bit();
    warp.runnable &= ~thread.bit();
    block.live--;
    // A thread that has ended keeps no other waiting.
    open_barrier();
    for (unsigned waiting; (waiting = warp.in_collective);) {
        bool progress = false;
        for (; waiting && !progress; waiting &= waiting - 1)
            progress = complete_collective(block.threads[thread.number / 32 * 32 + __builtin_ctz(waiting)]);
        if (!progress) break;
    }
    yield();
    fail("a thread that had ended went on");
}

uint64_t next_random(uint64_t &state) { // splitmix64
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

[[noreturn]] void report_deadlock() {
    char text[2048];
    int length = snprintf(text, sizeof text, "deadlock: %u of %u live threads wait at %s (line %d)", block.arrived, block.live,
                          block.arrived ? block.barrier_what : "no barrier", block.arrived ? block.barrier_line : 0);
    for (unsigned w = 0; w < block.warp_count; w++) {
        const Warp &warp = block.warps[w];
        if (!warp.in_collective || size_t(length) > sizeof text - 200) continue;
        const Thread &first = block.threads[w * 32 + __builtin_ctz(warp.in_collective)];
        length += snprintf(text + length, sizeof text - length, "\n  warp %u: lanes %#x wait at collectives, the first at %s(%#x); %#x live, %#x at the barrier",
                           w, warp.in_collective, first.what, first.mask, warp.live, warp.at_barrier);
    }
    block.current = nullptr;
    fail("%s", text);
}

void run_block(unsigned shared_bytes, uint64_t random) {
    memset(shim_shared_begin, POISON, shim_shared_end - shim_shared_begin);
    size_t shared_room = (shared_bytes + 127) / 128 * 128;
    dynamic_shared = shared_end - shared_room;
    memset(dynamic_shared, POISON, shared_room);

    unsigned count = blockDim.x * blockDim.y * blockDim.z;
    block.warp_count = (count + 31) / 32;
    block.live = count;
    block.arrived = 0;
    block.predicates = 0;
    block.copies_land_late = next_random(random) & 1;
    for (unsigned w = 0; w < block.warp_count; w++) {
        unsigned lanes = count - w * 32 >= 32 ? 0xffffffffu : (1u << (count - w * 32)) - 1;
        block.warps[w] = {lanes, lanes, 0, 0};
    }
    uint3 index{0, 0, 0};
    for (unsigned i = 0; i < count; i++) {
        Thread &thread = block.threads[i];
        thread.index = index;
        thread.number = i;
        thread.copies.clear();
        thread.groups_committed = 0;
        // Tops at different offsets in a page, or a warp's frames would fight for one set of the cache.
        thread.fiber.start(stacks + i * (STACK_BYTES + PAGE), STACK_BYTES - i % 7 * 576, thread_main);
        if (++index.x == blockDim.x) index.x = 0, index.y++;
        if (index.y == blockDim.y) index.y = 0, index.z++;
    }

    while (block.live) {
        bool progress = false;
        uint64_t bits = next_random(random);
        bool backwards = bits & 1;
        block.last_lane_first = bits & 2;
        unsigned first = (bits >> 8) % block.warp_count;
        for (unsigned i = 0; i < block.warp_count; i++) {
            Warp &warp = block.warps[(first + (backwards ? block.warp_count - i : i)) % block.warp_count];
            progress |= warp.runnable != 0;
            while (warp.runnable) next_of(warp).enter(block.scheduler);
        }
        if (!progress) report_deadlock();
    }
    block.current = nullptr;
    for (char *byte = static_cast<char *>(dynamic_shared) + shared_bytes; byte < shared_end; byte++)
        if (*byte != char(POISON)) fail("writes past the %u bytes of dynamic shared memory", shared_bytes);
}

void say_where() {
    if (block.kernel) fprintf(stderr, "cuda shim: kernel %s, block (%u, %u, %u)", block.kernel->name, blockIdx.x, blockIdx.y, blockIdx.z);
    else fprintf(stderr, "cuda shim");
    if (block.current) fprintf(stderr, ", thread (%u, %u, %u)", threadIdx.x, threadIdx.y, threadIdx.z);
}

struct sigaction previous_action[NSIG];

void on_fault(int signal, siginfo_t *info, void *context) {
    if (block.kernel) {
        char where[256];
        const char *address = static_cast<const char *>(info->si_addr);
        size_t offset = address - (stacks - PAGE);
        if (signal == SIGFPE) snprintf(where, sizeof where, "divides by zero");
        else if (offset < PAGE + MAX_THREADS * (STACK_BYTES + PAGE)) snprintf(where, sizeof where, "overflows the stack of a thread");
        else if (address >= shared_end && address < shared_end + PAGE) snprintf(where, sizeof where, "touches memory past the end of dynamic shared memory");
        else describe(address, where, sizeof where);
        fail("%s", where);
    }
    // Not ours: as if this handler did not exist.
    struct sigaction &previous = previous_action[signal];
    if (previous.sa_flags & SA_SIGINFO) previous.sa_sigaction(signal, info, context);
    else sigaction(signal, &previous, nullptr);
}

} // namespace

void install_fault_handler() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(signal, &action, &previous_action[signal]);
}

void fail(const char *format, ...) {
    char text[3072];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    say_where();
    fprintf(stderr, ": %s\n", text);
    abort();
}

// The sanitizer's runtime calls this before it says what a kernel does that C++ leaves undefined and a GPU cannot, and ends.
extern "C" void __ubsan_on_report() {
    say_where();
    fputs(":\n", stderr);
}

void run_grid(const Kernel &kernel, dim3 grid, dim3 block_dim, unsigned shared_bytes, void *const *parameters, bool overlaps,
              uint64_t seed) {
    map_room();
    block.kernel = &kernel;
    block.parameters = parameters;
    has_waited = false;
    gridDim = grid;
    blockDim = block_dim;
    for (const char *c = kernel.name; *c; c++) seed = seed * 31 + *c;
    uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    bool backwards = next_random(seed) & 1;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t number = backwards ? blocks - 1 - i : i;
        blockIdx = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
        run_block(shared_bytes, seed ^ number * 0x2545f4914f6cdd1d);
    }
    if (overlaps && !has_waited) fail("may overlap the kernel before it, and never waits for it");
    block.kernel = nullptr;
}

// ---- what kernels call

unsigned lane() { return block.current->number % 32; }

BarrierResult barrier(const char *what, int line, int predicate) {
    Thread &thread = *block.current;
    if (block.arrived == 0) {
        block.barrier_what = what;
        block.barrier_line = line;
    } else if (block.barrier_line != line || block.barrier_what != what) {
        fail("is at %s (line %d) while others are at %s (line %d)", what, line, block.barrier_what, block.barrier_line);
    }
    block.arrived++;
    block.predicates += predicate != 0;
    thread.warp().runnable &= ~thread.bit();
    thread.warp().at_barrier |= thread.bit();
    if (!open_barrier()) yield();
    return block.barrier_result;
}

void collective(const char *what, unsigned mask, void *record, void (*run)(Records &, unsigned)) {
    Thread &thread = *block.current;
    if (!(mask & thread.bit())) fail("calls %s with the mask %#x, which does not have its own lane", what, mask);
    thread.what = what;
    thread.mask = mask;
    thread.record = record;
    thread.run = run;
    thread.warp().runnable &= ~thread.bit();
    thread.warp().in_collective |= thread.bit();
    if (!complete_collective(thread)) yield();
}

void copy_async(void *to, const void *from, bool valid) {
    if (uintptr_t(to) % 16 || (valid && uintptr_t(from) % 16)) fail("copies 16 bytes from %p to %p: not aligned", from, to);
    if (!valid) from = nullptr;
    Thread &thread = *block.current;
    if (block.copies_land_late) thread.copies.push_back({to, from, thread.groups_committed});
    else if (from) memcpy(to, from, 16);
    else memset(to, 0, 16);
}

void copy_async_commit() { block.current->groups_committed++; }

void copy_async_wait(unsigned groups_left) {
    Thread &thread = *block.current;
    size_t landed = 0;
    for (; landed < thread.copies.size() && thread.copies[landed].group + groups_left < thread.groups_committed; landed++) {
        const Copy &copy = thread.copies[landed];
        if (copy.from) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + landed);
}

// mma.m16n8k32: C[16][8] += A[16][32] · B[32][8]. A lane has, with g = lane / 4 and t = lane % 4, of A the four bytes from
// [g][4t], [g + 8][4t], [g][4t + 16] and [g + 8][4t + 16]; of B's column g those from rows 4t and 4t + 16; of C [g][2t],
// [g][2t + 1], [g + 8][2t] and [g + 8][2t + 1].
void mma(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, bool a_is_signed) {
    struct Record {
        int *c;
        const unsigned *a;
        unsigned b[2];
        bool a_is_signed;
    } mine{c, a, {b0, b1}, a_is_signed};
    collective(a_is_signed ? "mma_s8" : "mma_u8s8", 0xffffffffu, &mine, [](Records &records, unsigned lanes) {
        if (lanes != 0xffffffffu) fail("mma where lanes %#x of the warp have ended", ~lanes);
        // Words of four bytes, and the bytes widened.
        unsigned a_words[16][8], b_words[8][8];
        int16_t a[16][32], b[8][32];
        for (int lane = 0; lane < 32; lane++) {
            const Record &from = *static_cast<Record *>(records[lane]);
            for (int i = 0; i < 4; i++) a_words[lane / 4 + i % 2 * 8][lane % 4 + i / 2 * 4] = from.a[i];
            for (int i = 0; i < 2; i++) b_words[lane / 4][lane % 4 + i * 4] = from.b[i];
        }
        auto widen = [](int16_t *to, const auto *bytes, int count) {
            for (int i = 0; i < count; i++) to[i] = bytes[i];
        };
        if (static_cast<Record *>(records[0])->a_is_signed) widen(a[0], reinterpret_cast<int8_t *>(a_words), 16 * 32);
        else widen(a[0], reinterpret_cast<uint8_t *>(a_words), 16 * 32);
        widen(b[0], reinterpret_cast<int8_t *>(b_words), 8 * 32);
        for (int lane = 0; lane < 32; lane++) {
            Record &to = *static_cast<Record *>(records[lane]);
            for (int i = 0; i < 4; i++) {
                const int16_t *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
                int sum = 0;
                for (int k = 0; k < 32; k++) sum += row[k] * column[k];
                to.c[i] = int(unsigned(to.c[i]) + unsigned(sum));
            }
        }
    });
}

// mma.m16n8k16: C[16][8] += A[16][16] · B[16][8] of bf16, two a word; words lie in the lanes as those of mma.m16n8k32 do. Products
// are exact here, and their sum is rounded once; a GPU's order is its own.
void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    struct Record {
        float *c;
        const unsigned *a;
        unsigned b[2];
    } mine{c, a, {b0, b1}};
    collective("mma_bf16", 0xffffffffu, &mine, [](Records &records, unsigned lanes) {
        if (lanes != 0xffffffffu) fail("mma where lanes %#x of the warp have ended", ~lanes);
        double a[16][16], b[8][16];
        auto widen = [](double *to, unsigned word) {
            unsigned halves[] = {word << 16, word & 0xffff0000u};
            float values[2];
            memcpy(values, halves, sizeof values);
            to[0] = values[0];
            to[1] = values[1];
        };
        for (int lane = 0; lane < 32; lane++) {
            const Record &from = *static_cast<Record *>(records[lane]);
            for (int i = 0; i < 4; i++) widen(&a[lane / 4 + i % 2 * 8][(lane % 4 + i / 2 * 4) * 2], from.a[i]);
            for (int i = 0; i < 2; i++) widen(&b[lane / 4][(lane % 4 + i * 4) * 2], from.b[i]);
        }
        for (int lane = 0; lane < 32; lane++) {
            Record &to = *static_cast<Record *>(records[lane]);
            for (int i = 0; i < 4; i++) {
                const double *row = a[lane / 4 + i / 2 * 8], *column = b[lane % 4 * 2 + i % 2];
                double sum = to.c[i];
                for (int k = 0; k < 16; k++) sum += row[k] * column[k];
                to.c[i] = float(sum);
            }
        }
    });
}

} // namespace shim
