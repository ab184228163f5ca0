// What the driver (driver.cpp) needs of the shim's other parts.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "shim.h"

namespace shim {

// ---- block.cpp

constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_SHARED = 232448; // bytes a block
constexpr unsigned char POISON = 0xff;  // of memory that nobody has written: NaN as f16 and f32, -1 as an integer

// Runs all blocks. `seed` picks among the schedules that the CUDA model allows: the order of blocks, warps and lanes, and whether
// asynchronous copies land as early or as late as they may. The same launch with the same seed takes the same one.
// A kernel that `overlaps` the one before it must wait for that one, or work behind it would not.
void run_grid(const Kernel &kernel, dim3 grid, dim3 block, unsigned shared_bytes, void *const *parameters, bool overlaps,
              uint64_t seed);
// Faults of a kernel end the process with a message that names it.
void install_fault_handler();

// ---- memory.cpp: every allocation ends at an inaccessible page and has poisoned guard bytes on both sides

// Poisoned memory aligned to 256 bytes; null where the host has none.
char *allocate(size_t bytes, bool pinned_host, int device);
// The bytes freed; 0 where `base` is no such allocation.
size_t release(char *base, bool pinned_host);
void release_all(int device);
// Whether [start, start + bytes) lies inside one allocation.
bool is_inside(const void *start, size_t bytes, bool pinned_host);
// Whether an address is of device memory of this device.
bool is_of(const void *address, int device);
// Fails, naming `culprit`, where guard bytes are overwritten.
void check_guards(const char *culprit);
// Writes where `address` lies with respect to the allocations.
void describe(const void *address, char *text, size_t text_bytes);

} // namespace shim
