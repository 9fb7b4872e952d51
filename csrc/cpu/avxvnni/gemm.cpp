// gemm with AVX-VNNI.
#include "cpu/avx2/gemm.h"
#include "cpu/avxvnni/dot.h"
#include "cpu/isa.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avxvnni {
namespace {

template <class Dot>
struct Products : avx2::Quads {
    template <int R>
    static QAIG_INLINE void add(const uint32_t* codes, int64_t units, const uint32_t* x, avx2::Accumulators<R>& sums) {
        for (int64_t q = 0; q < units * kUnitQuads; q++, codes += kTileRows, x += R) {
            const __m256i quads[avx2::kHalves] = {avx2::load(codes), avx2::load(codes + 8)};
            sums.each([&](auto m, auto h, __m256i& sum)
                          QAIG_LAMBDA_INLINE { Dot::add(sum, quads[h], _mm256_set1_epi32(static_cast<int>(x[m]))); });
        }
    }
};

}  // namespace

void gemm(const Linear& l, const Activations& a, int64_t begin, int64_t end) {
    (has_avx_vnni() ? avx2::gemm_with<Products<Vex>> : avx2::gemm_with<Products<Evex>>)(l, a, begin, end);
}

}  // namespace qaig::avxvnni

QAIG_TARGET_END

#endif
