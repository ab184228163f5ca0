// The driver API over host memory: devices, contexts, memory, streams, graphs, events. Kernels and launches are in launch.cpp.
//
// Work on a stream waits in its queue until something waits for the stream, as late as CUDA allows: a forgotten wait shows as
// stale data. Waits run the queue on the calling thread.

#include "state.h"

#include <algorithm>
#include <iterator>

namespace shim {

std::mutex mutex;
Settings settings;
CUctx_st contexts[MAX_DEVICES];
thread_local CUctx_st *current_context;

namespace {

bool initialised;
uint64_t allocs; // so far, of device memory

// What nobody has of a device's memory.
uint64_t free_bytes(const CUctx_st &context) {
    bool taken = allocs >= settings.taken_from && allocs < settings.taken_until;
    uint64_t used = context.used_bytes + (taken ? settings.taken_bytes : 0);
    return settings.memory_bytes > used ? settings.memory_bytes - used : 0;
}

uint64_t number_from(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, nullptr, 0) : otherwise;
}

// Whether calls that may wait for the device are forbidden to this thread, because a stream is being captured.
bool capture_forbids_waiting() {
    bool forbidden = false;
    for (CUctx_st &context : contexts)
        for (auto &stream : context.streams)
            if (Capture *capture = stream->capture.get()) {
                bool mine = capture->thread == pthread_self();
                if (mine ? capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED : capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL)
                    forbidden = capture->invalidated = true;
            }
    return forbidden;
}

void run_next(CUstream_st &stream) {
    Operation operation = std::move(stream.queue.front());
    stream.queue.pop_front();
    if (!stream.context->error) operation(*stream.context);
}

void run(CUstream_st &stream) {
    while (!stream.queue.empty()) run_next(stream);
}

// Runs no more than what an event is behind: what comes next may wait for whoever waits here.
void run_up_to(CUevent_st &event, uint64_t record) {
    while (event.stream && event.done < record && !event.stream->queue.empty()) run_next(*event.stream);
}

// The context of an event, which may be another one than the calling thread's.
CUctx_st *context_of(CUevent event) {
    for (CUctx_st &context : contexts)
        if (context.events.find(event)) return &context;
    return nullptr;
}

// What a call on the null stream waits for.
CUresult run_blocking_streams(CUctx_st &context) {
    for (auto &stream : context.streams)
        if (stream->blocking && stream->capture) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
    for (auto &stream : context.streams)
        if (stream->blocking) run(*stream);
    return CUDA_SUCCESS;
}

void run_all_streams(CUctx_st &context) {
    for (auto &stream : context.streams) run(*stream);
}

double now_ms() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec * 1e-6;
}

CUresult with_device(CUdevice device, auto body) {
    std::lock_guard lock(mutex);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (device < 0 || device >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
    return body(contexts[device]);
}

// A copy or fill of device memory, which must lie inside one allocation.
CUresult on_device_memory(CUstream stream, CUdeviceptr pointer, size_t bytes, Operation operation) {
    if (!is_inside(to_host(pointer), bytes, false)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(*current_context, stream, std::move(operation));
}

} // namespace

CUresult in_context(const std::function<CUresult(CUctx_st &)> &body) {
    std::lock_guard lock(mutex);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (!current_context) return CUDA_ERROR_INVALID_CONTEXT;
    CUctx_st &context = *current_context;
    if (!context.retained) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (context.error) return context.error;
    CUresult result = body(context);
    return result ? result : context.error;
}

CUresult enqueue(CUctx_st &context, CUstream handle, Operation operation) {
    if (!handle) {
        if (CUresult refused = run_blocking_streams(context)) return refused;
        operation(context);
        return CUDA_SUCCESS;
    }
    CUstream_st *stream = context.streams.find(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!stream->capture) stream->queue.push_back(std::move(operation));
    else if (stream->capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    else stream->capture->operations.push_back(std::move(operation));
    return CUDA_SUCCESS;
}

void run_everything(CUctx_st &context) { run_all_streams(context); }

} // namespace shim

using namespace shim;

CUresult cuInit(unsigned flags) {
    std::lock_guard lock(mutex);
    if (flags) return CUDA_ERROR_INVALID_VALUE;
    if (initialised) return CUDA_SUCCESS;
    settings.devices = std::min<uint64_t>(number_from("BITNET_SHIM_DEVICES", 1), MAX_DEVICES);
    settings.memory_bytes = number_from("BITNET_SHIM_MEMORY", 4ull << 30);
    settings.failing_launch = number_from("BITNET_SHIM_FAIL_LAUNCH", 0);
    settings.failing_alloc = number_from("BITNET_SHIM_FAIL_ALLOC", 0);
    settings.taken_bytes = number_from("BITNET_SHIM_TAKEN", 0);
    settings.taken_from = number_from("BITNET_SHIM_TAKEN_FROM", 0);
    settings.taken_until = number_from("BITNET_SHIM_TAKEN_UNTIL", UINT64_MAX);
    settings.compute_mode = number_from("BITNET_SHIM_COMPUTE_MODE", 0);
    settings.seed = number_from("BITNET_SHIM_SEED", 0);
    if (!settings.devices) return CUDA_ERROR_NO_DEVICE;
    install_fault_handler();
    initialised = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = number_from("BITNET_SHIM_VERSION", 13000);
    return CUDA_SUCCESS;
}

CUresult cuGetExportTable(const void **table, const CUuuid *) {
    *table = nullptr;
    return CUDA_ERROR_NOT_FOUND;
}

static const struct {
    CUresult error;
    const char *name, *text;
} ERRORS[] = {
#define ERROR(name, text) {name, #name, text}
    ERROR(CUDA_SUCCESS, "no error"),
    ERROR(CUDA_ERROR_INVALID_VALUE, "invalid argument"),
    ERROR(CUDA_ERROR_OUT_OF_MEMORY, "out of memory"),
    ERROR(CUDA_ERROR_NOT_INITIALIZED, "initialization error"),
    ERROR(CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA-capable device(s) is/are busy or unavailable"),
    ERROR(CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"),
    ERROR(CUDA_ERROR_INVALID_DEVICE, "invalid device ordinal"),
    ERROR(CUDA_ERROR_INVALID_IMAGE, "device kernel image is invalid"),
    ERROR(CUDA_ERROR_INVALID_CONTEXT, "invalid device context"),
    ERROR(CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"),
    ERROR(CUDA_ERROR_ILLEGAL_STATE, "the operation cannot be performed in the present state"),
    ERROR(CUDA_ERROR_NOT_FOUND, "named symbol not found"),
    ERROR(CUDA_ERROR_NOT_READY, "device not ready"),
    ERROR(CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "peer access is already enabled"),
    ERROR(CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"),
    ERROR(CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"),
    ERROR(CUDA_ERROR_NOT_SUPPORTED, "operation not supported"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR(CUDA_ERROR_CAPTURED_EVENT, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "attempt to terminate a thread-local capture sequence from another thread"),
#undef ERROR
};

CUresult cuGetErrorName(CUresult error, const char **name) {
    *name = nullptr;
    for (auto &row : ERRORS)
        if (row.error == error) *name = row.name;
    return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = nullptr;
    for (auto &row : ERRORS)
        if (row.error == error) *text = row.text;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- devices and contexts

CUresult cuDeviceGetCount(int *count) {
    std::lock_guard lock(mutex);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *count = settings.devices;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    return with_device(ordinal, [&](CUctx_st &) { return *device = ordinal, CUDA_SUCCESS; });
}
CUresult cuDeviceGetName(char *name, int bytes, CUdevice device) {
    return with_device(device, [&](CUctx_st &) { return snprintf(name, bytes, "shim"), CUDA_SUCCESS; });
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    return with_device(device, [&](CUctx_st &) { return *bytes = settings.memory_bytes, CUDA_SUCCESS; });
}

// As an H100 says.
static const struct {
    int attribute, value;
} ATTRIBUTES[] = {
    {1, MAX_THREADS},   {2, 1024},  {3, 1024},       {4, 64}, // threads a block; block dimensions
    {5, INT32_MAX},     {6, 65535}, {7, 65535},               // grid dimensions
    {8, 49152},         {97, MAX_SHARED}, {81, 233472}, {111, 1024}, // shared memory: a block, by opt-in, a multiprocessor, reserved
    {9, 65536},         {10, 32},   {12, 65536},     {82, 65536}, // constant memory; warp; registers a block, a multiprocessor
    {13, 1980000},      {36, 2619000}, {37, 5120},   {38, 50 << 20}, // clock and memory clock in kHz; bus bits; L2 bytes
    {16, 132},          {39, 2048}, {106, 32},       // multiprocessors; threads and blocks on one
    {18, 0},            {19, 1},    {31, 1},         {32, 1}, {40, 3}, {41, 1},
    {33, 1},            {34, 0},    {50, 0},         // PCI bus, device, domain
    {75, 9},            {76, 0},    {78, 1},         {95, 1}, {115, 0}, {120, 0}, // compute capability; priorities; cooperative launch
};
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    return with_device(device, [&](CUctx_st &) {
        if (attribute == 20) return *value = settings.compute_mode, CUDA_SUCCESS;
        auto row = std::find_if(std::begin(ATTRIBUTES), std::end(ATTRIBUTES), [&](auto &row) { return row.attribute == attribute; });
        if (row == std::end(ATTRIBUTES)) return CUDA_ERROR_INVALID_VALUE;
        *value = row->value;
        return CUDA_SUCCESS;
    });
}
CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    return with_device(device, [&](CUctx_st &) {
        *uuid = {{'b', 'i', 't', 'n', 'e', 't', ' ', 's', 'h', 'i', 'm', 0, 0, 0, 0, char(device)}};
        return CUDA_SUCCESS;
    });
}
CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    return with_device(device, [&](CUctx_st &primary) {
        if (primary.error) return primary.error;
        if (settings.compute_mode) return CUDA_ERROR_DEVICE_UNAVAILABLE;
        primary.retained++;
        *context = &primary;
        return CUDA_SUCCESS;
    });
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return with_device(device, [&](CUctx_st &primary) {
        if (!primary.retained) return CUDA_ERROR_INVALID_CONTEXT;
        if (--primary.retained) return CUDA_SUCCESS;
        run_all_streams(primary);
        release_all(device);
        CUresult error = primary.error; // a broken context stays broken
        primary = {};
        primary.error = error;
        return error;
    });
}
CUresult cuCtxSetCurrent(CUcontext context) {
    std::lock_guard lock(mutex);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (context && !context->retained) return CUDA_ERROR_INVALID_CONTEXT;
    current_context = context;
    return context ? context->error : CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
    std::lock_guard lock(mutex);
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *context = current_context;
    return CUDA_SUCCESS;
}

CUresult cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
    return with_device(device, [&](CUctx_st &) {
        if (peer < 0 || peer >= settings.devices) return CUDA_ERROR_INVALID_DEVICE;
        return *can = peer != device, CUDA_SUCCESS;
    });
}
CUresult cuCtxEnablePeerAccess(CUcontext peer, unsigned flags) {
    return in_context([&](CUctx_st &context) {
        if (flags || peer == &context) return CUDA_ERROR_INVALID_VALUE;
        if (!peer || !peer->retained) return CUDA_ERROR_INVALID_CONTEXT;
        unsigned bit = 1u << (peer - contexts);
        if (context.peers & bit) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
        context.peers |= bit;
        return CUDA_SUCCESS;
    });
}

// ---- memory

CUresult cuMemGetInfo_v2(size_t *free, size_t *total_bytes) {
    return in_context([&](CUctx_st &context) {
        *total_bytes = settings.memory_bytes;
        *free = free_bytes(context);
        return CUDA_SUCCESS;
    });
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    return in_context([&](CUctx_st &context) {
        if (!bytes) return CUDA_ERROR_INVALID_VALUE;
        if (capture_forbids_waiting()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        bool none_left = ++allocs >= settings.failing_alloc && settings.failing_alloc;
        if (none_left || bytes > free_bytes(context)) return CUDA_ERROR_OUT_OF_MEMORY;
        char *base = allocate(bytes, false, &context - contexts);
        if (!base) return CUDA_ERROR_OUT_OF_MEMORY;
        context.used_bytes += bytes;
        *pointer = to_device(base);
        return CUDA_SUCCESS;
    });
}
CUresult cuMemFree_v2(CUdeviceptr pointer) {
    return in_context([&](CUctx_st &context) {
        if (!pointer) return CUDA_SUCCESS;
        if (capture_forbids_waiting()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        run_all_streams(context);
        size_t bytes = release(to_host(pointer), false);
        context.used_bytes -= bytes;
        return bytes ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}
CUresult cuMemAllocHost_v2(void **pointer, size_t bytes) {
    return in_context([&](CUctx_st &context) {
        if (!bytes) return CUDA_ERROR_INVALID_VALUE;
        if (capture_forbids_waiting()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        *pointer = allocate(bytes, true, &context - contexts);
        return *pointer ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
    });
}
CUresult cuMemFreeHost(void *pointer) {
    return in_context([&](CUctx_st &context) {
        if (capture_forbids_waiting()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        run_all_streams(context);
        return release(static_cast<char *>(pointer), true) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
    });
}

static CUresult copy_now(CUdeviceptr device, size_t bytes, void *to, const void *from) {
    return in_context([&](CUctx_st &) {
        if (capture_forbids_waiting()) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        return on_device_memory(nullptr, device, bytes, [=](CUctx_st &) { memcpy(to, from, bytes); });
    });
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) { return copy_now(to, bytes, to_host(to), from); }
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) { return copy_now(from, bytes, to, to_host(from)); }

// Pinned host memory is read and written when the copy's turn comes, pageable memory before the call returns.
static CUresult copy_between(CUdeviceptr device, const void *host, size_t bytes, void *to, const void *from, CUstream handle) {
    return in_context([&](CUctx_st &context) {
        CUresult result = on_device_memory(handle, device, bytes, [=](CUctx_st &) { memcpy(to, from, bytes); });
        CUstream_st *stream = context.streams.find(handle);
        if (!result && stream && !stream->capture && !is_inside(host, bytes, true)) run(*stream);
        return result;
    });
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    return copy_between(to, from, bytes, to_host(to), from, stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return copy_between(from, to, bytes, to, to_host(from), stream);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    return in_context([&](CUctx_st &) {
        if (!is_inside(to_host(from), bytes, false)) return CUDA_ERROR_INVALID_VALUE;
        return on_device_memory(stream, to, bytes, [=](CUctx_st &) { memmove(to_host(to), to_host(from), bytes); });
    });
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext to_context, CUdeviceptr from, CUcontext from_context, size_t bytes,
                           CUstream stream) {
    return in_context([&](CUctx_st &) {
        for (CUcontext context : {to_context, from_context})
            if (!context || !context->retained) return CUDA_ERROR_INVALID_CONTEXT;
        if (!is_of(to_host(to), to_context - contexts) || !is_of(to_host(from), from_context - contexts)) return CUDA_ERROR_INVALID_VALUE;
        if (!is_inside(to_host(from), bytes, false)) return CUDA_ERROR_INVALID_VALUE;
        return on_device_memory(stream, to, bytes, [=](CUctx_st &) { memmove(to_host(to), to_host(from), bytes); });
    });
}

// Rows of device memory; offsets and layers beyond the first are not there.
static CUresult copy_rows(auto copy, CUstream stream) {
    if (copy.srcMemoryType != CU_MEMORYTYPE_DEVICE || copy.dstMemoryType != CU_MEMORYTYPE_DEVICE) return CUDA_ERROR_NOT_SUPPORTED;
    if (copy.srcXInBytes || copy.srcY || copy.dstXInBytes || copy.dstY) return CUDA_ERROR_NOT_SUPPORTED;
    if (copy.WidthInBytes > copy.srcPitch || copy.WidthInBytes > copy.dstPitch) return CUDA_ERROR_INVALID_VALUE;
    if (!copy.WidthInBytes || !copy.Height) return CUDA_SUCCESS;
    size_t from_bytes = copy.srcPitch * (copy.Height - 1) + copy.WidthInBytes;
    size_t to_bytes = copy.dstPitch * (copy.Height - 1) + copy.WidthInBytes;
    if (!is_inside(to_host(copy.srcDevice), from_bytes, false)) return CUDA_ERROR_INVALID_VALUE;
    return on_device_memory(stream, copy.dstDevice, to_bytes, [=](CUctx_st &) {
        for (size_t row = 0; row < copy.Height; row++)
            memmove(to_host(copy.dstDevice) + row * copy.dstPitch, to_host(copy.srcDevice) + row * copy.srcPitch, copy.WidthInBytes);
    });
}
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *copy, CUstream stream) {
    return in_context([&](CUctx_st &) { return copy_rows(*copy, stream); });
}
CUresult cuMemcpy3DPeerAsync(const CUDA_MEMCPY3D_PEER *copy, CUstream stream) {
    return in_context([&](CUctx_st &) {
        for (CUcontext context : {copy->srcContext, copy->dstContext})
            if (!context || !context->retained) return CUDA_ERROR_INVALID_CONTEXT;
        if (!is_of(to_host(copy->dstDevice), copy->dstContext - contexts) || !is_of(to_host(copy->srcDevice), copy->srcContext - contexts))
            return CUDA_ERROR_INVALID_VALUE;
        if (copy->Depth != 1 || copy->srcZ || copy->dstZ || copy->srcLOD || copy->dstLOD) return CUDA_ERROR_NOT_SUPPORTED;
        return copy_rows(*copy, stream);
    });
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
    return in_context([&](CUctx_st &) {
        return on_device_memory(stream, to, count, [=](CUctx_st &) { memset(to_host(to), value, count); });
    });
}
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
    return in_context([&](CUctx_st &) {
        if (to % 4) return CUDA_ERROR_INVALID_VALUE;
        return on_device_memory(stream, to, count * 4, [=](CUctx_st &) {
            std::fill_n(reinterpret_cast<unsigned *>(to_host(to)), count, value);
        });
    });
}

// ---- streams, graphs, events

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
    return in_context([&](CUctx_st &context) {
        if (flags & ~CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
        *stream = context.streams.add();
        (*stream)->context = &context;
        (*stream)->blocking = flags == 0;
        return CUDA_SUCCESS;
    });
}
CUresult cuStreamDestroy_v2(CUstream handle) {
    return in_context([&](CUctx_st &context) {
        CUstream_st *stream = context.streams.find(handle);
        if (!stream) return CUDA_ERROR_INVALID_HANDLE;
        run(*stream);
        for (auto &event : context.events)
            if (event->stream == stream) event->stream = nullptr;
        context.streams.remove(stream);
        return CUDA_SUCCESS;
    });
}
CUresult cuStreamSynchronize(CUstream handle) {
    return in_context([&](CUctx_st &context) {
        if (!handle) return run_blocking_streams(context);
        CUstream_st *stream = context.streams.find(handle);
        if (!stream) return CUDA_ERROR_INVALID_HANDLE;
        if (stream->capture) {
            stream->capture->invalidated = true;
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        run(*stream);
        return CUDA_SUCCESS;
    });
}
CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    return in_context([&](CUctx_st &context) {
        CUctx_st *other = context_of(event);
        if (!other) return CUDA_ERROR_INVALID_HANDLE;
        if (flags) return CUDA_ERROR_INVALID_VALUE;
        if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
        return enqueue(context, handle, [=, record = event->records](CUctx_st &) {
            if (other->events.find(event)) run_up_to(*event, record);
        });
    });
}
CUresult cuStreamBeginCapture_v2(CUstream handle, int mode) {
    return in_context([&](CUctx_st &context) {
        if (mode < 0 || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
        if (!handle) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        CUstream_st *stream = context.streams.find(handle);
        if (!stream) return CUDA_ERROR_INVALID_HANDLE;
        if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
        stream->capture.reset(new Capture{mode, pthread_self(), false, {}});
        return CUDA_SUCCESS;
    });
}
CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    return in_context([&](CUctx_st &context) {
        CUstream_st *stream = context.streams.find(handle);
        if (!stream) return CUDA_ERROR_INVALID_HANDLE;
        if (!stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
        if (stream->capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && stream->capture->thread != pthread_self())
            return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
        auto capture = std::move(stream->capture);
        *graph = nullptr;
        if (capture->invalidated) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        *graph = context.graphs.add();
        (*graph)->operations = std::move(capture->operations);
        return CUDA_SUCCESS;
    });
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long) {
    return in_context([&](CUctx_st &context) {
        if (!context.graphs.find(graph)) return CUDA_ERROR_INVALID_HANDLE;
        *exec = context.execs.add();
        (*exec)->operations = graph->operations;
        return CUDA_SUCCESS;
    });
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    return in_context([&](CUctx_st &context) {
        if (!context.execs.find(exec)) return CUDA_ERROR_INVALID_HANDLE;
        return enqueue(context, stream, [operations = exec->operations](CUctx_st &context) {
            for (const Operation &operation : operations)
                if (!context.error) operation(context);
        });
    });
}
CUresult cuGraphDestroy(CUgraph graph) {
    return in_context([&](CUctx_st &context) { return context.graphs.remove(graph) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}
CUresult cuGraphExecDestroy(CUgraphExec exec) {
    return in_context([&](CUctx_st &context) { return context.execs.remove(exec) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}

CUresult cuEventCreate(CUevent *event, unsigned) {
    return in_context([&](CUctx_st &context) { return *event = context.events.add(), CUDA_SUCCESS; });
}
CUresult cuEventRecord(CUevent event, CUstream handle) {
    return in_context([&](CUctx_st &context) {
        if (!context.events.find(event)) return CUDA_ERROR_INVALID_HANDLE;
        CUstream_st *stream = context.streams.find(handle);
        if (stream && stream->capture) return event->captured = true, CUDA_SUCCESS;
        event->captured = false;
        event->stream = stream;
        event->records++;
        return enqueue(context, handle, [event](CUctx_st &context) {
            if (!context.events.find(event)) return;
            event->done++;
            event->time_ms = now_ms();
        });
    });
}
CUresult cuEventSynchronize(CUevent event) {
    return in_context([&](CUctx_st &context) {
        if (!context.events.find(event)) return CUDA_ERROR_INVALID_HANDLE;
        if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
        run_up_to(*event, event->records);
        return CUDA_SUCCESS;
    });
}
CUresult cuEventElapsedTime_v2(float *milliseconds, CUevent start, CUevent end) {
    return in_context([&](CUctx_st &context) {
        for (CUevent event : {start, end})
            if (!context.events.find(event) || !event->records) return CUDA_ERROR_INVALID_HANDLE;
        if (start->done < start->records || end->done < end->records) return CUDA_ERROR_NOT_READY;
        *milliseconds = end->time_ms - start->time_ms;
        return CUDA_SUCCESS;
    });
}
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) { return cuEventElapsedTime_v2(milliseconds, start, end); }
CUresult cuEventDestroy_v2(CUevent event) {
    return in_context([&](CUctx_st &context) {
        if (!context.events.find(event)) return CUDA_ERROR_INVALID_HANDLE;
        // Whoever waits for it still does.
        run_up_to(*event, event->records);
        context.events.remove(event);
        return CUDA_SUCCESS;
    });
}
