// Conversions between float32 and the 16-bit floats.
#pragma once

#include "cpu/types.h"

namespace qaig {

// float16, bfloat16 or float32 from element `at` on, to float32 and back (to nearest even).
void load_floats(const void* p, Scalar type, int64_t at, int64_t count, float* out);
void store_floats(void* p, Scalar type, int64_t at, int64_t count, const float* values);

}  // namespace qaig
