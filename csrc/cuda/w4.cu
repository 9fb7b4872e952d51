// The kernels of 4-bit weights.
#include "decode.h"
#include "dequantize.h"
#include "fused.h"
#include "integer.h"

QAIG_DECODE_KERNELS(w4, 4)
QAIG_DEQUANTIZE_KERNEL(4)
QAIG_FUSED_KERNELS(4)
QAIG_INTEGER_KERNELS(4)
