// The dot product of AVX-VNNI, VPDPBUSD: each lane adds the products of four unsigned bytes and four signed ones.
//
// The instruction has two encodings, which compute the same. AVX-VNNI has the first, AVX-512 with VNNI and VL the
// second. It is written in assembly, so that the compiler adds no other AVX-512 to a kernel with the second encoding.
// The two kernels differ in this encoding only. So a processor with AVX-512 tests and measures the kernel of AVX-VNNI.
#pragma once

#include "cpu/avx2/common.h"
#include "cpu/isa.h"

#if defined(__x86_64__)

QAIG_AVX2_BEGIN

namespace qaig::avxvnni {

struct Evex {
    static QAIG_INLINE void add(__m256i& sum, __m256i codes, __m256i quad) {
        __asm__("%{evex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(quad));
    }
};

#if QAIG_AVX_VNNI
struct Vex {
    static QAIG_INLINE void add(__m256i& sum, __m256i codes, __m256i quad) {
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(quad));
    }
};
#else
using Vex = Evex;  // not used: has_avx_vnni() is false
#endif

}  // namespace qaig::avxvnni

QAIG_TARGET_END

#endif
