// Tests the shim through the driver API with the kernels of selftest.cu: right ones give the right results, wrong ones are told.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "driver.h"

namespace {

#define CHECK(condition)                                                                                                      \
    do {                                                                                                                      \
        if (!(condition)) {                                                                                                   \
            fprintf(stderr, "selftest.cpp:%d: not so: %s\n", __LINE__, #condition);                                           \
            exit(1);                                                                                                          \
        }                                                                                                                     \
    } while (0)
#define OK(call) CHECK((call) == CUDA_SUCCESS)

struct Size {
    unsigned x = 1, y = 1, z = 1;
};

CUmodule module;
CUstream stream;

void begin() {
    CUcontext context;
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuModuleLoadData(&module, ""));
    OK(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING));
}

CUfunction function(const char *name) {
    CUfunction found;
    OK(cuModuleGetFunction(&found, module, name));
    return found;
}

template <class... A> CUresult try_launch(const char *name, Size grid, Size block, unsigned shared_bytes, A... values) {
    void *parameters[] = {&values..., nullptr};
    return cuLaunchKernel(function(name), grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, stream, parameters, nullptr);
}
template <class... A> void launch(const char *name, Size grid, Size block, unsigned shared_bytes, A... values) {
    OK(try_launch(name, grid, block, shared_bytes, values...));
}

// Device memory, whose contents come and go by waiting copies.
template <class T> struct Buffer {
    CUdeviceptr pointer;
    size_t count;

    explicit Buffer(const std::vector<T> &values) : count(values.size()) {
        OK(cuMemAlloc_v2(&pointer, count * sizeof(T)));
        OK(cuMemcpyHtoD_v2(pointer, values.data(), count * sizeof(T)));
    }
    explicit Buffer(size_t count) : Buffer(std::vector<T>(count)) {}
    ~Buffer() { OK(cuMemFree_v2(pointer)); }
    Buffer(const Buffer &) = delete;

    std::vector<T> read() const {
        std::vector<T> values(count);
        OK(cuStreamSynchronize(stream));
        OK(cuMemcpyDtoH_v2(values.data(), pointer, count * sizeof(T)));
        return values;
    }
};

void parameters_and_indices() {
    struct {
        int x;
        double y;
    } pair{-7, 1e9};
    Buffer<int> out(5), in({1, 2});
    launch("parameters", {}, {32}, 0, out.pointer, (signed char)(-3), pair, 2.5f, in.pointer);
    CHECK((out.read() == std::vector<int>{-3, -7, 1000000000, 2, 2}));

    Buffer<unsigned> places(6 * 60 * 4);
    launch("indices", {3, 1, 2}, {5, 4, 3}, 0, places.pointer);
    auto got = places.read();
    for (unsigned i = 0; i < 6 * 60; i++) {
        unsigned t = i % 60;
        CHECK(got[i * 4] == i / 60 && got[i * 4 + 1] == t % 5 && got[i * 4 + 2] == t / 5 % 4 && got[i * 4 + 3] == t / 20);
    }
}

void shuffles() {
    Buffer<int> out(96 * 12);
    launch("shuffles", {}, {96}, 0, out.pointer);
    auto got = out.read();
    for (int t = 0; t < 96; t++) {
        int warp = t / 32 * 32, lane = t % 32, half = t / 16 * 16, sum = 0;
        unsigned ballot = 0;
        for (int i = 0; i < 16; i++) sum += half + i;
        for (int i = 0; i < 32; i++) ballot |= unsigned((warp + i) % 3 == 0) << i;
        auto square = [](int x) { return x * x; };
        int down = lane + 4 < 32 ? t + 4 : t, up = lane % 16 < 4 ? t : t - 4;
        std::vector<int> wanted{square(warp + 5), square(t / 8 * 8 + 3), square(t ^ 16),     square(down),
                                square(up),       int(ballot),           lane >= 16,         lane < 16,
                                sum,              -warp,                 lane < 16 ? square(t ^ 1) : square(warp + 31), warp + 7};
        CHECK(std::vector<int>(got.begin() + t * 12, got.begin() + t * 12 + 12) == wanted);
    }
}

void barriers() {
    Buffer<int> out(256);
    launch("barriers", {}, {256}, 0, out.pointer);
    auto got = out.read();
    for (int t = 0; t < 256; t++) CHECK(got[t] == (t < 160 ? 160 * 159 / 2 + 100000 * 128 + 100000000 : 0));
}

void products() {
    std::vector<unsigned char> a(16 * 32);
    std::vector<signed char> b(32 * 8);
    for (size_t i = 0; i < a.size(); i++) a[i] = i * i * 37 + i * 11;
    for (size_t i = 0; i < b.size(); i++) b[i] = i * i * 101 + i * 29 + 128;
    Buffer<unsigned char> device_a(a);
    Buffer<signed char> device_b(b);
    Buffer<int> c(16 * 8);
    for (bool is_signed : {true, false}) {
        launch(is_signed ? "mma_signed" : "mma_unsigned", {}, {32}, 0, device_a.pointer, device_b.pointer, c.pointer);
        auto got = c.read();
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 8; n++) {
                int sum = 1;
                for (int k = 0; k < 32; k++) sum += (is_signed ? (signed char)(a[m * 32 + k]) : int(a[m * 32 + k])) * b[k * 8 + n];
                CHECK(got[m * 8 + n] == sum);
            }
    }
}

void products_of_bf16() {
    // Whole numbers below 256 are bf16 as they are: the upper halves of their floats.
    std::vector<unsigned> a(16 * 8), b(8 * 8);
    auto value = [](int row, int k, int seed) { return float((row * 37 + k * k * 11 + seed) % 200 - 100); };
    auto word = [&](int row, int pair, int seed) {
        unsigned halves[2];
        for (int i = 0; i < 2; i++) {
            float x = value(row, pair * 2 + i, seed);
            memcpy(&halves[i], &x, 4);
        }
        return halves[0] >> 16 | (halves[1] & 0xffff0000u);
    };
    for (int i = 0; i < 16 * 8; i++) a[i] = word(i / 8, i % 8, 3);
    for (int i = 0; i < 8 * 8; i++) b[i] = word(i / 8, i % 8, 57);
    Buffer<unsigned> device_a(a), device_b(b);
    Buffer<float> c(16 * 8);
    launch("mma_of_bf16", {}, {32}, 0, device_a.pointer, device_b.pointer, c.pointer);
    auto got = c.read();
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float sum = 1;
            for (int k = 0; k < 16; k++) sum += value(m, k, 3) * value(n, k, 57);
            CHECK(got[m * 8 + n] == sum);
        }
}

void pipeline() {
    constexpr int THREADS = 128, UNITS = 5 * THREADS, VALID = UNITS - 50;
    std::vector<int> in(UNITS * 4);
    for (size_t i = 0; i < in.size(); i++) in[i] = 3 * i;
    Buffer<int> device_in(in), out(in.size());
    launch("pipeline", {}, {THREADS}, 2 * THREADS * 16, device_in.pointer, out.pointer, UNITS, VALID);
    auto got = out.read();
    for (int i = 0; i < UNITS * 4; i++) CHECK(got[i] == (i < VALID * 4 ? in[i] : 0) + 1);
}

void atomics() {
    Buffer<int> partial(10), counter(1), out({0, 0, 0, 0, 7});
    Buffer<float> real(1);
    launch("atomics", {10}, {64}, 0, partial.pointer, counter.pointer, out.pointer, real.pointer);
    CHECK((out.read() == std::vector<int>{10 * 64 * 63 / 2, 9063, -63, 709, 5}));
    CHECK(real.read()[0] == 320);
}

void numbers() {
    float e = ldexpf(1, -12);
    std::vector<float> in{1 + e, -1 - 2 * e, -0.0f, 0.0f, NAN, 2.5f, 1.0f / 3, 1e6f * 1e6f, 2049};
    Buffer<float> device_in(in), floats(8);
    Buffer<int> ints(9);
    launch("numbers", {}, {1}, 0, device_in.pointer, floats.pointer, ints.pointer);
    auto f = floats.read();
    CHECK(f[0] == e * e && f[1] == 0);
    CHECK(!signbit(f[2]) && signbit(f[3]) && f[4] == in[0] && f[5] == 2);
    CHECK(f[6] == 1365.0f / 4096 && f[7] == INFINITY);
    CHECK((ints.read() == std::vector<int>{2, INT32_MAX, 0, 1000 + 128 * 128 - 6 + 254 - 1, 1000 + 128 * 128 + 254 * 3 + 254 + 255,
                                           int(0xff554411), 9 + 3 - 2, 0x6800, 0x33800000}));
}

// A stream's work, by itself and captured in a graph, with pinned memory on both ends.
void streams_and_graphs() {
    int *host;
    OK(cuMemAllocHost_v2(reinterpret_cast<void **>(&host), 64 * 4));
    Buffer<int> device(64);
    auto chain = [&] {
        OK(cuMemcpyHtoDAsync_v2(device.pointer, host, 64 * 4, stream));
        launch("add", {2}, {32}, 0, device.pointer, 5);
        OK(cuMemsetD32Async(device.pointer, 11, 1, stream));
        OK(cuMemcpyDtoHAsync_v2(host, device.pointer, 64 * 4, stream));
    };
    for (int i = 0; i < 64; i++) host[i] = i;
    chain();
    CHECK(host[1] == 1); // nobody has waited
    OK(cuStreamSynchronize(stream));
    CHECK(host[0] == 11 && host[1] == 6 && host[63] == 68);

    CUgraph graph;
    CUgraphExec exec;
    CUdeviceptr more;
    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL));
    chain();
    OK(cuStreamEndCapture(stream, &graph));
    OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
    OK(cuGraphDestroy(graph));
    OK(cuStreamSynchronize(stream));
    CHECK(host[1] == 6); // captured, not run
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphLaunch(exec, stream));
    OK(cuGraphExecDestroy(exec));
    CUevent start, end;
    OK(cuEventCreate(&start, 0));
    OK(cuEventCreate(&end, 0));
    OK(cuEventRecord(start, stream));
    launch("add", {2}, {32}, 0, device.pointer, 1);
    OK(cuEventRecord(end, stream));
    float ms = -1;
    CHECK(cuEventElapsedTime(&ms, start, end) == CUDA_ERROR_NOT_READY);
    OK(cuEventSynchronize(end));
    OK(cuEventElapsedTime_v2(&ms, start, end));
    CHECK(ms >= 0 && host[1] == 16 && device.read()[1] == 17);

    OK(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    CHECK(cuMemAlloc_v2(&more, 4) == CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    CHECK(cuStreamEndCapture(stream, &graph) == CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    OK(cuEventDestroy_v2(start));
    OK(cuEventDestroy_v2(end));
    OK(cuMemFreeHost(host));
}

// A stream that waits for another one's event gets what is before its record, and nothing that is behind it.
void waits_between_streams() {
    CUstream copies;
    CUevent copied;
    OK(cuStreamCreate(&copies, CU_STREAM_NON_BLOCKING));
    OK(cuEventCreate(&copied, 0));
    int *host;
    OK(cuMemAllocHost_v2(reinterpret_cast<void **>(&host), 4));
    Buffer<int> in(1);
    *host = 7;
    OK(cuStreamWaitEvent(copies, copied, 0)); // never recorded: no wait
    OK(cuMemcpyHtoDAsync_v2(in.pointer, host, 4, copies));
    OK(cuEventRecord(copied, copies));
    OK(cuStreamWaitEvent(stream, copied, 0));
    launch("add", {1}, {1}, 0, in.pointer, 1);
    OK(cuMemsetD32Async(in.pointer, 100, 1, copies));
    CHECK(in.read()[0] == 8);
    *host = 20;
    OK(cuMemcpyHtoDAsync_v2(in.pointer, host, 4, copies));
    CHECK(in.read()[0] == 8); // nobody waits
    OK(cuStreamDestroy_v2(copies));
    CHECK(in.read()[0] == 20);
    CHECK(cuStreamWaitEvent(stream, copied, 1) == CUDA_ERROR_INVALID_VALUE);
    OK(cuEventDestroy_v2(copied));
    CHECK(cuStreamWaitEvent(stream, copied, 0) == CUDA_ERROR_INVALID_HANDLE);
    OK(cuMemFreeHost(host));
}

void refusals() {
    CUfunction found;
    CUmodule other;
    CHECK(cuModuleGetFunction(&found, module, "absent") == CUDA_ERROR_NOT_FOUND);
    CHECK(cuModuleLoadData(&other, nullptr) == CUDA_ERROR_INVALID_IMAGE);
    Buffer<int> out(32);
    CHECK(try_launch("add", {0}, {32}, 0, out.pointer, 1) == CUDA_ERROR_INVALID_VALUE);
    CHECK(try_launch("add", {1, 65536}, {32}, 0, out.pointer, 1) == CUDA_ERROR_INVALID_VALUE);
    CHECK(try_launch("add", {1}, {1025}, 0, out.pointer, 1) == CUDA_ERROR_INVALID_VALUE);
    CHECK(try_launch("add", {1}, {32}, 49153, out.pointer, 1) == CUDA_ERROR_INVALID_VALUE);
    OK(cuFuncSetAttribute(function("add"), CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232448));
    OK(try_launch("add", {1}, {32}, 232448, out.pointer, 1));
    CHECK(cuFuncSetAttribute(function("add"), CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 232449) == CUDA_ERROR_INVALID_VALUE);
    int host = 0;
    CHECK(cuMemcpyDtoH_v2(&host, out.pointer + 32 * 4 - 3, 4) == CUDA_ERROR_INVALID_VALUE);
    CHECK(cuMemFree_v2(out.pointer + 4) == CUDA_ERROR_INVALID_VALUE);
    int count = 0;
    OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&count, function("add"), 256, 100 << 10));
    CHECK(count == 2);
    const char *name;
    OK(cuGetErrorName(CUDA_ERROR_LAUNCH_FAILED, &name));
    CHECK(!strcmp(name, "CUDA_ERROR_LAUNCH_FAILED"));
}

// What a child process with one more environment variable says before it ends badly; nothing where it ends well.
template <class Body> std::string last_words(Body body, const char *variable = "UNUSED", const char *value = "") {
    int ends[2];
    CHECK(!pipe(ends));
    pid_t child = fork();
    if (!child) {
        setenv(variable, value, 1);
        dup2(ends[1], 2);
        begin();
        body();
        _exit(0);
    }
    close(ends[1]);
    std::string words;
    char part[4096];
    for (ssize_t n; (n = read(ends[0], part, sizeof part)) > 0;) words.append(part, n);
    close(ends[0]);
    int status;
    waitpid(child, &status, 0);
    return status ? words : "";
}

void told(const char *what, std::initializer_list<const char *> words, const std::string &said) {
    for (const char *word : words)
        if (said.find(word) == std::string::npos) {
            fprintf(stderr, "selftest.cpp: %s: \"%s\" is missing in \"%s\"\n", what, word, said.c_str());
            exit(1);
        }
}

template <class... A> void tells(const char *name, std::initializer_list<const char *> words, Size block, unsigned shared_bytes, A... values) {
    told(name, words, last_words([=] {
             CUdeviceptr ten;
             OK(cuMemAlloc_v2(&ten, 40));
             if constexpr (sizeof...(A) == 0) launch(name, {1}, block, shared_bytes);
             else launch(name, {1}, block, shared_bytes, ten, values...);
             cuStreamSynchronize(stream);
         }));
}

void misuse() {
    tells("lane_left_out", {"kernel lane_left_out, block (0, 0, 0): deadlock: 2 of 64 live", "warp 1: lanes 0xfffffff7", "__shfl_sync(0xffffffff)"}, {64}, 0);
    tells("divergent_barrier", {"is at __syncthreads (line ", "while others are at __syncthreads"}, {64}, 0);
    tells("absent_lane", {"shuffles from lane ", "which is not there"}, {32}, 0, 0);
    tells("writes_at", {"writes_at wrote 0 bytes past the end of an allocation of 40 bytes"}, {1}, 0, 10);
    tells("writes_at", {"writes_at wrote 4 bytes before the start"}, {1}, 0, -1);
    tells("writes_at", {"thread (0, 0, 0): touches memory 216 bytes past the end of an allocation of 40 bytes"}, {1}, 0, 64);
    tells("misaligned", {"selftest.cu", "misaligned address", "16 byte alignment", "kernel misaligned, block (0, 0, 0), thread (0, 0, 0)"}, {1}, 0, 4);
    tells("static_shared_writes_at", {"selftest.cu", "out of bounds for type 'int [8]'"}, {1}, 0, 8);
    tells("divides_by", {"kernel divides_by, block (0, 0, 0), thread (0, 0, 0): divides by zero"}, {1}, 0, 0);
    auto past_shared = [](int index) {
        launch("shared_writes_at", {1}, {1}, 40, index);
        cuStreamSynchronize(stream);
    };
    told("shared_writes_at 10", {"writes past the 40 bytes of dynamic shared memory"}, last_words([=] { past_shared(10); }));
    told("shared_writes_at 32", {"touches memory past the end of dynamic shared memory"}, last_words([=] { past_shared(32); }));

    told("overlap", {"kernel add", "may overlap the kernel before it, and never waits for it"}, last_words([] {
             Buffer<int> out(32);
             CUlaunchAttribute attribute{CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, {}, {1}};
             CUlaunchConfig config{1, 1, 1, 32, 1, 1, 0, stream, &attribute, 1};
             int amount = 1;
             void *parameters[] = {&out.pointer, &amount};
             OK(cuLaunchKernelEx(&config, function("add"), parameters, nullptr));
             cuStreamSynchronize(stream);
         }));

    // Schedules differ from block to block; some show what is missing.
    std::vector<int> ones(1024, 1);
    Buffer<int> in(ones), out(2);
    launch("no_barrier", {8}, {256}, 0, out.pointer);
    launch("no_wait", {8}, {256}, 4096, in.pointer, out.pointer + 4);
    auto missing = out.read();
    CHECK(missing[0] > 0 && missing[1] > 0);
}

void faults() {
    auto broken = [] {
        Buffer<int> out(32);
        CUdeviceptr more;
        launch("add", {1}, {32}, 0, out.pointer, 1);
        OK(cuStreamSynchronize(stream));
        launch("add", {1}, {32}, 0, out.pointer, 1);
        CHECK(cuStreamSynchronize(stream) == CUDA_ERROR_LAUNCH_FAILED);
        CHECK(cuMemAlloc_v2(&more, 4) == CUDA_ERROR_LAUNCH_FAILED);
        fputs("broken as asked", stderr);
        _exit(2);
    };
    told("BITNET_SHIM_FAIL_LAUNCH", {"broken as asked"}, last_words(broken, "BITNET_SHIM_FAIL_LAUNCH", "2"));
    auto full = [] {
        CUdeviceptr pointer;
        size_t left, total;
        OK(cuMemAlloc_v2(&pointer, 600));
        CHECK(cuMemAlloc_v2(&pointer, 401) == CUDA_ERROR_OUT_OF_MEMORY);
        OK(cuMemGetInfo_v2(&left, &total));
        CHECK(left == 400 && total == 1000);
        fputs("full as asked", stderr);
        _exit(2);
    };
    told("BITNET_SHIM_MEMORY", {"full as asked"}, last_words(full, "BITNET_SHIM_MEMORY", "1000"));
    auto later = [] {
        CUdeviceptr pointer;
        OK(cuMemAlloc_v2(&pointer, 4));
        for (int i = 0; i < 2; i++) CHECK(cuMemAlloc_v2(&pointer, 4) == CUDA_ERROR_OUT_OF_MEMORY);
        fputs("full later as asked", stderr);
        _exit(2);
    };
    told("BITNET_SHIM_FAIL_ALLOC", {"full later as asked"}, last_words(later, "BITNET_SHIM_FAIL_ALLOC", "2"));
    auto two = [] {
        int count, version;
        OK(cuDeviceGetCount(&count));
        OK(cuDriverGetVersion(&version));
        fprintf(stderr, "%d devices, version %d", count, version);
        _exit(2);
    };
    told("BITNET_SHIM_DEVICES", {"2 devices, version 13000"}, last_words(two, "BITNET_SHIM_DEVICES", "2"));
    told("BITNET_SHIM_VERSION", {"1 devices, version 12040"}, last_words(two, "BITNET_SHIM_VERSION", "12040"));
    setenv("BITNET_SHIM_DEVICES", "0", 1);
    CHECK(cuInit(0) == CUDA_ERROR_NO_DEVICE);
    unsetenv("BITNET_SHIM_DEVICES");
}

} // namespace

int main() {
    faults(); // before this process begins, as the environment is read once
    begin();
    parameters_and_indices();
    shuffles();
    barriers();
    products();
    products_of_bf16();
    pipeline();
    atomics();
    numbers();
    streams_and_graphs();
    waits_between_streams();
    refusals();
    misuse();
    OK(cuStreamDestroy_v2(stream));
    OK(cuModuleUnload(module));
    OK(cuDevicePrimaryCtxRelease_v2(0));
    puts("selftest passed");
}
