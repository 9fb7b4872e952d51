// Loads elements of arrays whose type is known at run time, and takes words from 16-byte vectors.
#pragma once

#include "cuda/device/intrinsics.cuh"
#include "cuda/arguments.h"

namespace qaig {
namespace cuda {

QAIG_DEVICE unsigned word_of(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

QAIG_DEVICE float low_float(int type, unsigned v) {
    return type == QAIG_F16 ? low_float(F16(), v) : low_float(BF16(), v);
}
QAIG_DEVICE float high_float(int type, unsigned v) {
    return type == QAIG_F16 ? high_float(F16(), v) : high_float(BF16(), v);
}

// Element `i` of an array of any QaigType.
QAIG_DEVICE float load_float(const void* p, int type, long long i) {
    return type == QAIG_F32 ? float_of(load_global(static_cast<const unsigned*>(p) + i))
                            : low_float(type, load_global(static_cast<const unsigned short*>(p) + i));
}

}  // namespace cuda
}  // namespace qaig
