// Device memory and pinned host memory, laid out so that a kernel's stray accesses show.
//
// An allocation is a mapping of its own: an inaccessible page, poisoned room of at least GUARD bytes, the bytes themselves, the
// few that fill up to a multiple of 256, an inaccessible page. The pages catch stray reads and writes at once, the guard bytes
// are looked at after every kernel.

#include <sys/mman.h>

#include <algorithm>
#include <map>

#include "runtime.h"

namespace shim {

namespace {

constexpr size_t PAGE = 4096, GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xa5;

struct Allocation {
    char *mapping;
    size_t mapping_bytes, bytes;
    bool pinned_host;
    int device;
};

// By the first byte of what the caller got. It is never destroyed: threads may run while the process ends.
std::map<char *, Allocation> &allocations = *new std::map<char *, Allocation>;

size_t round_up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

void check_guard(char *base, const Allocation &allocation, const char *culprit) {
    char *end = base + allocation.bytes;
    auto spoiled = [](char byte) { return byte != char(GUARD_BYTE); };
    char *limit = base + round_up(allocation.bytes, GUARD);
    char *before = std::find_if(base - GUARD, base, spoiled), *after = std::find_if(end, limit, spoiled);
    if (before != base) fail("%s wrote %td bytes before the start of an allocation of %zu bytes", culprit, base - before, allocation.bytes);
    if (after != limit) fail("%s wrote %td bytes past the end of an allocation of %zu bytes", culprit, after - end, allocation.bytes);
}

void unmap(std::map<char *, Allocation>::iterator at) {
    check_guard(at->first, at->second, "something");
    munmap(at->second.mapping, at->second.mapping_bytes);
    allocations.erase(at);
}

} // namespace

char *allocate(size_t bytes, bool pinned_host, int device) {
    size_t room = round_up(GUARD + round_up(bytes, GUARD), PAGE), mapping_bytes = room + 2 * PAGE;
    void *mapping = mmap(nullptr, mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    char *start = static_cast<char *>(mapping) + PAGE, *end = start + room, *base = end - round_up(bytes, GUARD);
    if (mprotect(start, room, PROT_READ | PROT_WRITE)) {
        munmap(mapping, mapping_bytes);
        return nullptr;
    }
    memset(start, GUARD_BYTE, base - start);
    memset(base, POISON, bytes);
    memset(base + bytes, GUARD_BYTE, end - base - bytes);
    allocations[base] = {static_cast<char *>(mapping), mapping_bytes, bytes, pinned_host, device};
    return base;
}

size_t release(char *base, bool pinned_host) {
    auto at = allocations.find(base);
    if (at == allocations.end() || at->second.pinned_host != pinned_host) return 0;
    size_t bytes = at->second.bytes;
    unmap(at);
    return bytes;
}

void release_all(int device) {
    for (auto at = allocations.begin(); at != allocations.end();) {
        auto next = std::next(at);
        if (at->second.device == device) unmap(at);
        at = next;
    }
}

// The allocation that begins last of those that begin at or before an address.
static std::map<char *, Allocation>::iterator at_or_before(const void *address) {
    auto after = allocations.upper_bound(static_cast<char *>(const_cast<void *>(address)));
    return after == allocations.begin() ? allocations.end() : std::prev(after);
}

bool is_inside(const void *start, size_t bytes, bool pinned_host) {
    auto at = at_or_before(start);
    if (at == allocations.end()) return false;
    auto &[base, allocation] = *at;
    size_t offset = static_cast<const char *>(start) - base;
    return allocation.pinned_host == pinned_host && offset <= allocation.bytes && bytes <= allocation.bytes - offset;
}

bool is_of(const void *address, int device) {
    auto at = at_or_before(address);
    return at != allocations.end() && at->second.device == device && is_inside(address, 0, false);
}

void check_guards(const char *culprit) {
    for (auto &[base, allocation] : allocations) check_guard(base, allocation, culprit);
}

void describe(const void *address, char *text, size_t text_bytes) {
    for (auto &[base, allocation] : allocations) {
        ptrdiff_t before = base - static_cast<const char *>(address), past = -before - ptrdiff_t(allocation.bytes);
        if (address < allocation.mapping || address >= allocation.mapping + allocation.mapping_bytes) continue;
        if (before > 0) snprintf(text, text_bytes, "touches memory %td bytes before an allocation of %zu bytes", before, allocation.bytes);
        else snprintf(text, text_bytes, "touches memory %td bytes past the end of an allocation of %zu bytes", past, allocation.bytes);
        return;
    }
    snprintf(text, text_bytes, "touches memory at %p, which is not allocated, or is misaligned", address);
}

} // namespace shim
