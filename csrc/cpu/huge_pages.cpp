// Moves memory to huge pages, where the operating system can.
#include "cpu/huge_pages.h"

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace qaig {

void move_to_huge_pages(const void* data, size_t bytes) {
#if defined(__linux__)
    constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack
    constexpr uintptr_t kHugePage = 2 << 20;
    const auto begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
    for (uintptr_t page = begin / kHugePage * kHugePage; page < end; page += kHugePage) {
        if (std::min(end, page + kHugePage) - std::max(begin, page) >= kHugePage / 4) {
            madvise(reinterpret_cast<void*>(page), kHugePage, kCollapse);
        }
    }
#else
    static_cast<void>(data);
    static_cast<void>(bytes);
#endif
}

}  // namespace qaig

// For transformers_qaig/kernels/extension.py, through ctypes.
extern "C" __attribute__((visibility("default"))) void qaig_move_to_huge_pages(const void* data, size_t bytes) {
    qaig::move_to_huge_pages(data, bytes);
}
