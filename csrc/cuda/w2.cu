// The kernels of 2-bit weights.
#include "decode.h"
#include "dequantize.h"
#include "fused.h"
#include "integer.h"

QAIG_DECODE_KERNELS(w2, 2)
QAIG_DEQUANTIZE_KERNEL(2)
QAIG_FUSED_KERNELS(2)
QAIG_INTEGER_KERNELS(2)
