// The kernels of 2-bit weights.
#include "decode.h"
#include "dequantize.h"

QAIG_DECODE_KERNELS(w2, 2)
QAIG_DEQUANTIZE_KERNEL(2)
