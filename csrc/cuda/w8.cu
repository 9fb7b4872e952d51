// The kernels of 8-bit weights.
#include "decode.h"
#include "dequantize.h"
#include "fused.h"
#include "integer.h"

QAIG_DECODE_KERNELS(w8, 8)
QAIG_DEQUANTIZE_KERNEL(8)
QAIG_FUSED_KERNELS(8)
QAIG_INTEGER_KERNELS(8)
