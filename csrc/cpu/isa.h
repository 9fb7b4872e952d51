// The instruction set (ISA) of the kernels, chosen at run time.
#pragma once

// Compilers that know the instructions of the folder neon; others build portable kernels for Arm.
#if defined(__aarch64__)
#if defined(__clang__)
#if __clang_major__ >= 16
#define QAIG_NEON
#endif
#elif __GNUC__ >= 10
#define QAIG_NEON
#endif
#endif

// Whether the assembler of the compiler knows AVX-VNNI.
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define QAIG_AVX_VNNI 1
#else
#define QAIG_AVX_VNNI 0
#endif

namespace qaig {

// Each includes those before it of the same architecture, and is taken where it is the last that the processor can run.
enum class Isa {
    portable,      // C++ without intrinsics, any processor
    avx2,          // x86-64: AVX2, FMA, F16C
    avxvnni,       // the same and VPDPBUSD in 256 bits: AVX-VNNI, or part of AVX-512 VNNI
    avx512,        // AVX-512 F, BW, VL, DQ, VNNI
    amx,           // AVX-512 with BF16, AMX-INT8 and AMX-BF16; in a build that emulates AMX any set from avx2 on
    neon_dotprod,  // aarch64: SDOT
    neon_i8mm,     // SMMLA
};

// Whether this processor and its operating system can run an instruction set.
bool can_run(Isa wanted);

// The instruction set that is taken where nobody asks for another one. Emulated AMX (amx/tiles.h) must be asked for.
Isa best_isa();

// What computes in the place of AMX where tiles do not pay.
Isa best_before_amx();

// The instruction set in use: best_isa(), unless the environment variable QAIG_CPU_ISA (read once) or set_isa changed it.
Isa isa();

// Changes the instruction set in use. Returns false, and changes nothing, if this processor cannot run `wanted`.
bool set_isa(Isa wanted);

// Whether the processor is one of Intel's, whose prefetching differs from AMD's.
bool is_intel();

// Which encoding of VPDPBUSD `Isa::avxvnni` uses: AVX-VNNI's, or that of AVX-512.
bool has_avx_vnni();

}  // namespace qaig
