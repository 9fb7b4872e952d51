// The kernels of launches whose layers have several widths.
#include "decode.h"

QAIG_DECODE_KERNELS(mixed, qaig::cuda::kMixed)
