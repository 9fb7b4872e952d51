// The instruction-set level the kernels run at, chosen at run time.
#pragma once

namespace qaig {

// Each level includes those below it.
enum class Level {
    portable = 0,  // C++ without intrinsics, any processor
    avx2 = 1,      // AVX2, FMA, F16C
    avx512 = 2,    // AVX-512 F, BW, VL, DQ, VNNI
};

// The highest level that this processor and its operating system can run.
Level best_level();

// The level in force: best_level(), unless the environment variable QAIG_CPU_LEVEL (read once) or set_level lowered it.
Level level();

// Changes the level in force; false, and no change, if this processor cannot run `wanted`.
bool set_level(Level wanted);

}  // namespace qaig
