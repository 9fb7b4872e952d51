// Moves the memory of weights to huge pages.
#pragma once

#include <cstddef>

namespace qaig {

// Moves filled memory to huge pages: streaming through 4 KiB pages costs up to half of the memory's bandwidth. Advice
// before filling has no effect, because the memory is seldom new. The rest of each huge page moves along, which is
// mostly other layers. Linux does this from 6.1 on. Elsewhere nothing happens.
void move_to_huge_pages(const void* data, size_t bytes);

}  // namespace qaig
