// What this machine can do at most: memory read bandwidth and arithmetic peaks, behind two C functions.
// Compiled at run time by peers/limits.py with -O2 -fopenmp; instruction sets are chosen per function.
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr size_t kLine = 64;
volatile int64_t sink;  // what is read must not be optimized away

// Sums `bytes` from p, as `TargetInputs` equal streams read side by side, `ahead` bytes prefetched (0: not at all).
template <int Streams>
__attribute__((target("avx2"))) void read_avx2(const char* p, size_t bytes, size_t ahead) {
    const size_t stride = ((bytes / Streams / kLine - 1) | 1) * kLine;  // odd: streams in different cache sets
    __m256i sum[4] = {};
    for (size_t i = 0; i < stride; i += kLine) {
        for (int s = 0; s < Streams; ++s) {
            const char* q = p + s * stride + i;
            if (ahead) {
                _mm_prefetch(q + ahead, _MM_HINT_T0);
            }
            sum[s & 1] = _mm256_xor_si256(sum[s & 1], _mm256_load_si256(reinterpret_cast<const __m256i*>(q)));
            sum[2 + (s & 1)] =
                _mm256_xor_si256(sum[2 + (s & 1)], _mm256_load_si256(reinterpret_cast<const __m256i*>(q + 32)));
        }
    }
    sum[0] = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    sink = _mm256_extract_epi64(sum[0], 0);
}

template <int Streams>
__attribute__((target("avx512f"))) void read_avx512(const char* p, size_t bytes, size_t ahead) {
    const size_t stride = ((bytes / Streams / kLine - 1) | 1) * kLine;  // odd: streams in different cache sets
    __m512i sum[4] = {};
    for (size_t i = 0; i < stride; i += kLine) {
        for (int s = 0; s < Streams; ++s) {
            const char* q = p + s * stride + i;
            if (ahead) {
                _mm_prefetch(q + ahead, _MM_HINT_T0);
            }
            sum[s & 3] = _mm512_xor_si512(sum[s & 3], _mm512_load_si512(q));
        }
    }
    sum[0] = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    sink = _mm512_reduce_add_epi64(sum[0]);
}

// Twelve independent accumulators keep two pipes of latency up to six full. In assembly, so that no compiler moves,
// merges or spills them.
#define QAIG_TWELVE(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define QAIG_STEP(J) asm volatile(QAIG_NAME " %1, %1, %0" : "+v"(a##J) : "v"(x));
#define QAIG_ZERO(J) auto a##J = x;
#define QAIG_PEAK(NAME, TARGET, ZERO)                          \
    __attribute__((target(TARGET))) void NAME(int64_t steps) { \
        const auto x = ZERO();                                 \
        QAIG_TWELVE(QAIG_ZERO)                                 \
        for (int64_t i = 0; i < steps; ++i) {                  \
            QAIG_TWELVE(QAIG_STEP)                             \
        }                                                      \
    }
#define QAIG_NAME "vfmadd231ps"
QAIG_PEAK(peak_fma_avx2, "avx2,fma", _mm256_setzero_ps)
QAIG_PEAK(peak_fma_avx512, "avx512f", _mm512_setzero_ps)
#undef QAIG_NAME
#define QAIG_NAME "vdpbf16ps"
QAIG_PEAK(peak_bf16, "avx512f,avx512bf16", _mm512_setzero_ps)
#undef QAIG_NAME
#define QAIG_NAME "vpdpbusd"
QAIG_PEAK(peak_vnni, "avx512f,avx512vnni", _mm512_setzero_si512)

// Whether Linux lets this process use the tiles of AMX, and the processor has them.
bool has_amx() {
    constexpr long kAskForFeature = 0x1023, kTileData = 18;
    return __builtin_cpu_supports("avx512bf16") && syscall(SYS_arch_prctl, kAskForFeature, kTileData) == 0;
}

// Four independent sums, of two tiles by two. Not of zeros: those take less power, and the clock stays higher.
#define QAIG_TILE_PEAK(NAME, STEP)                                                             \
    void NAME(int64_t steps) {                                                                 \
        struct alignas(64) {                                                                   \
            uint8_t palette = 1, start = 0, reserved[14] = {};                                 \
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};                         \
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};                               \
        } config;                                                                              \
        alignas(64) uint8_t values[4][1024];                                                   \
        for (uint32_t i = 0; i < sizeof(values); ++i) {                                        \
            (&values[0][0])[i] = i % 2 ? 0x3f : static_cast<uint8_t>(i * 2654435761u >> 24);   \
        }                                                                                      \
        asm volatile("ldtilecfg %0" ::"m"(config));                                            \
        asm volatile("tilezero %%tmm0; tilezero %%tmm1; tilezero %%tmm2; tilezero %%tmm3" ::); \
        asm volatile("tileloadd (%0,%1,1), %%tmm4" ::"r"(values[0]), "r"(64l) : "memory");     \
        asm volatile("tileloadd (%0,%1,1), %%tmm5" ::"r"(values[1]), "r"(64l) : "memory");     \
        asm volatile("tileloadd (%0,%1,1), %%tmm6" ::"r"(values[2]), "r"(64l) : "memory");     \
        asm volatile("tileloadd (%0,%1,1), %%tmm7" ::"r"(values[3]), "r"(64l) : "memory");     \
        for (int64_t i = 0; i < steps; ++i) {                                                  \
            asm volatile(STEP " %%tmm6, %%tmm4, %%tmm0;" STEP " %%tmm7, %%tmm4, %%tmm1;" STEP  \
                              " %%tmm6, %%tmm5, %%tmm2;" STEP " %%tmm7, %%tmm5, %%tmm3" ::);   \
        }                                                                                      \
        asm volatile("tilerelease" ::);                                                        \
    }
QAIG_TILE_PEAK(peak_amx_int8, "tdpbssd")
QAIG_TILE_PEAK(peak_amx_bf16, "tdpbf16ps")

}  // namespace

// Memory to read from, on huge pages if the system grants them; null if there is none.
extern "C" void* limits_allocate(size_t bytes, bool huge) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return nullptr;
    }
    madvise(p, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    std::memset(p, 1, bytes);
    return p;
}

// Reads the memory once, each thread its own part. `streams` is 1, 2 or 4.
extern "C" void limits_read(const char* p, size_t bytes, int threads, bool avx512, int streams, size_t ahead) {
    const size_t part = bytes / threads / (4 * kLine) * (4 * kLine);
#pragma omp parallel num_threads(threads)
    {
        const char* mine = p + omp_get_thread_num() * part;
        auto* read = avx512 ? (streams == 1   ? read_avx512<1>
                               : streams == 2 ? read_avx512<2>
                                              : read_avx512<4>)
                            : (streams == 1   ? read_avx2<1>
                               : streams == 2 ? read_avx2<2>
                                              : read_avx2<4>);
        read(mine, part, ahead);
    }
}

// Runs `steps` steps of 12 instructions on each thread, or about as long with tiles. Returns the operations (multiplications and additions) of all
// threads, or 0 if this processor lacks the instruction. `kind` is "fma", "bf16", "vnni", "amx-bf16" or "amx-int8".
extern "C" int64_t limits_peak(const char* kind, int threads, int64_t steps) {
    const bool avx512 = __builtin_cpu_supports("avx512f");
    void (*peak)(int64_t) = nullptr;
    int64_t lanes = 16;  // products in one instruction
    int64_t instructions = 12;
    if (!std::strcmp(kind, "fma")) {
        if (avx512) {
            peak = peak_fma_avx512;
        } else if (__builtin_cpu_supports("avx2")) {
            peak = peak_fma_avx2, lanes = 8;
        }
    } else if (!std::strcmp(kind, "bf16")) {
        if (__builtin_cpu_supports("avx512bf16")) {
            peak = peak_bf16, lanes = 32;
        }
    } else if (!std::strcmp(kind, "amx-bf16") || !std::strcmp(kind, "amx-int8")) {
        const bool int8 = !std::strcmp(kind, "amx-int8");
        if (has_amx()) {  // 16 rows by 16 columns by 64 or 32, in 16 cycles
            peak = int8 ? peak_amx_int8 : peak_amx_bf16;
            lanes = 16 * 16 * (int8 ? 64 : 32), instructions = 4, steps = (steps + 15) / 16;
        }
    } else if (__builtin_cpu_supports("avx512vnni")) {
        peak = peak_vnni, lanes = 64;
    }
    if (!peak) {
        return 0;
    }
#pragma omp parallel num_threads(threads)
    peak(steps);
    return int64_t(threads) * steps * instructions * lanes * 2;
}
