// Huge pages for weights.
#pragma once

#include <cstddef>

namespace qaig {

// Moves memory that was filled to huge pages: streaming through 4 KiB pages costs up to half of the memory's bandwidth.
// Advice before it is filled would not do, because the memory is seldom new. Parts of a huge page before and after it
// come along, which is mostly other layers. Linux from 6.1 on; elsewhere nothing happens.
void move_to_huge_pages(const void* data, size_t bytes);

}  // namespace qaig
