// Converts between float32 and the 16-bit floats.
#pragma once

#include "cpu/types.h"

namespace qaig {

// Convert `count` elements from `at` on to float32, and back (to nearest even). The type may be float32.
void load_floats(const void* p, Scalar type, int64_t at, int64_t count, float* out);
void store_floats(void* p, Scalar type, int64_t at, int64_t count, const float* values);

}  // namespace qaig
