// The kernels of 3-bit weights.
#include "decode.h"
#include "dequantize.h"
#include "fused.h"
#include "integer.h"

QAIG_DECODE_KERNELS(w3, 3)
QAIG_DEQUANTIZE_KERNEL(3)
QAIG_FUSED_KERNELS(3)
QAIG_INTEGER_KERNELS(3)
