// gemm with AMX, for many rows of x: in bfloat16 where x is, else in integers.
#include "cpu/amx/gemm_bf16.h"
#include "cpu/amx/gemm_int8.h"

#if defined(__x86_64__)

QAIG_AMX_BEGIN

namespace qaig::amx {

void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    if (a.layout == ActivationLayout::bf16) {
        Block<Bf16Kernel>(l, a).compute(begin, end);
    } else if (l.weight.shape.bits == 8 && l.weight.zero) {
        Block<Int8Kernel<true>>(l, a).compute(begin, end);
    } else {
        Block<Int8Kernel<false>>(l, a).compute(begin, end);
    }
}

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
