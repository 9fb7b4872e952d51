// The instruction set (ISA) of the kernels, chosen at run time.
#pragma once

namespace qaig {

// Each includes those before it.
enum class Isa {
    portable = 0,  // C++ without intrinsics, any processor
    avx2 = 1,      // AVX2, FMA, F16C
    avx512 = 2,    // AVX-512 F, BW, VL, DQ, VNNI
};

// The best instruction set that this processor and its operating system can run.
Isa best_isa();

// The instruction set in use: best_isa(), unless the environment variable QAIG_CPU_ISA (read once) or set_isa lowered it.
Isa isa();

// Changes the instruction set in use. Returns false, and changes nothing, if this processor cannot run `wanted`.
bool set_isa(Isa wanted);

}  // namespace qaig
