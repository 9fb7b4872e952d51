// The instruction set (ISA) of the kernels, chosen at run time.
#pragma once

// Whether the compiler knows the instructions of the folder neon. If not, Arm gets portable kernels.
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

// Each set includes the earlier ones of its architecture. The last one that the processor can run is chosen.
enum class Isa {
    portable,      // C++ without intrinsics, any processor
    avx2,          // x86-64: AVX2, FMA, F16C
    avxvnni,       // the same and VPDPBUSD in 256 bits: AVX-VNNI, or part of AVX-512 VNNI
    avx512,        // AVX-512 F, BW, VL, DQ, VNNI
    amx,           // AVX-512 with BF16, AMX-INT8, AMX-BF16; a build that emulates AMX needs avx2 only
    neon_dotprod,  // aarch64: SDOT
    neon_i8mm,     // SMMLA
};

// Whether this processor and its operating system can run an instruction set.
bool can_run(Isa wanted);

// The default instruction set. Emulated AMX (amx/tiles.h) is never the default.
Isa best_isa();

// The instruction set for products that are too small for AMX.
Isa best_before_amx();

// The instruction set in use: best_isa(), unless the environment variable QAIG_CPU_ISA (read once) or set_isa changed
// it.
Isa isa();

// Changes the instruction set in use. Returns false, and changes nothing, if this processor cannot run `wanted`.
bool set_isa(Isa wanted);

// Whether Intel made the processor. Its prefetching differs from AMD's.
bool is_intel();

// Whether `Isa::avxvnni` uses the encoding of AVX-VNNI for VPDPBUSD. If not, it uses that of AVX-512.
bool has_avx_vnni();

// Whether `Isa::avx512` may use AVX512_BF16, which not every processor with AVX-512 has.
bool has_avx512_bf16();

}  // namespace qaig
