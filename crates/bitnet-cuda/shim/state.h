// The driver's state: what a context holds.
#pragma once

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "driver.h"
#include "runtime.h"

namespace shim {

constexpr int MAX_DEVICES = 2;

// From the environment.
struct Settings {
    int devices;
    uint64_t memory_bytes;   // of each device
    uint64_t failing_launch; // the one, counted from 1, that breaks its context; 0: none
    uint64_t failing_alloc;  // the one, counted from 1, from which on there is no memory; 0: none
    uint64_t taken_bytes;    // of each device, by another process, from one request for memory to before another one
    uint64_t taken_from, taken_until;
    int compute_mode;        // 0: any process may come; 2: none; 3: another one is there, and only one may be
    uint64_t seed;           // of the schedules (run_grid)
};

// A launch, copy or fill: what a stream's queue and a graph hold.
using Operation = std::function<void(CUctx_st &)>;

// Owns the objects behind one kind of handle, so that a handle which is none is told.
template <class T> class Handles {
    std::vector<std::unique_ptr<T>> objects;

  public:
    T *add() { return objects.emplace_back(new T).get(); }
    T *find(T *handle) const {
        return std::any_of(begin(), end(), [=](auto &object) { return object.get() == handle; }) ? handle : nullptr;
    }
    bool remove(T *handle) { return std::erase_if(objects, [=](auto &object) { return object.get() == handle; }); }
    auto begin() const { return objects.begin(); }
    auto end() const { return objects.end(); }
};

struct Capture {
    int mode;
    pthread_t thread;
    bool invalidated;
    std::vector<Operation> operations;
};

} // namespace shim

struct CUstream_st {
    CUctx_st *context;
    bool blocking; // the null stream waits for it
    std::deque<shim::Operation> queue;
    std::unique_ptr<shim::Capture> capture; // null unless the stream is being captured
};
struct CUgraph_st {
    std::vector<shim::Operation> operations;
};
struct CUgraphExec_st {
    std::vector<shim::Operation> operations;
};
struct CUevent_st {
    CUstream_st *stream = nullptr;
    bool captured = false;
    uint64_t records = 0, done = 0; // asked for so far, and how many of them the stream is past
    double time_ms = 0;
};
struct CUfunc_st {
    const shim::Kernel *kernel;
    unsigned max_dynamic_bytes = 49152;
};
struct CUmod_st {
    shim::Handles<CUfunc_st> functions;
};
struct CUctx_st {
    int retained = 0;
    unsigned peers = 0; // bits of the devices whose memory it reaches
    CUresult error = CUDA_SUCCESS; // after a failed launch, the answer to every call
    size_t used_bytes = 0;
    shim::Handles<CUstream_st> streams;
    shim::Handles<CUgraph_st> graphs;
    shim::Handles<CUgraphExec_st> execs;
    shim::Handles<CUevent_st> events;
    shim::Handles<CUmod_st> modules;
};

namespace shim {

// One thread is in the driver at a time: block.cpp runs one block at a time.
extern std::mutex mutex;
extern Settings settings;

inline char *to_host(CUdeviceptr pointer) { return reinterpret_cast<char *>(pointer); }
inline CUdeviceptr to_device(char *pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

// Runs a call's body under the lock, with the thread's current context; refuses where there is none or it is broken, and answers
// with the error of work that the body waited for.
CUresult in_context(const std::function<CUresult(CUctx_st &)> &body);
// Puts work on a stream, or into its graph while it is being captured. The null stream runs it at once.
CUresult enqueue(CUctx_st &context, CUstream stream, Operation operation);
// Waits for all streams.
void run_everything(CUctx_st &context);

} // namespace shim
