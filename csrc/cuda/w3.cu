// The kernels of 3-bit weights.
#include "decode.h"
#include "dequantize.h"

QAIG_DECODE_KERNELS(w3, 3)
QAIG_DEQUANTIZE_KERNEL(3)
