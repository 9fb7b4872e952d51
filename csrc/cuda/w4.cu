// The kernels of 4-bit weights.
#include "decode.h"
#include "dequantize.h"

QAIG_DECODE_KERNELS(w4, 4)
QAIG_DEQUANTIZE_KERNEL(4)
