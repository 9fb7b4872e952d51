// Detects the instruction sets of this processor, and reads which one the environment selects.
#include "cpu/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(QAIG_NEON) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(QAIG_NEON) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace qaig {
namespace {

// The instruction sets of this architecture.
struct IsaName {
    Isa isa;
    const char* name;
};
constexpr IsaName kIsaNames[] = {
    {Isa::portable, "portable"},
#if defined(__aarch64__)
    {Isa::neon_dotprod, "neon-dotprod"},
    {Isa::neon_i8mm, "neon-i8mm"},
#else
    {Isa::avx2, "avx2"},         {Isa::avxvnni, "avxvnni"}, {Isa::avx512, "avx512"}, {Isa::amx, "amx"},
#endif
};

std::string all_names() {
    std::string names;
    for (const IsaName& named : kIsaNames) {
        names += (names.empty() ? "" : ", ") + std::string(named.name);
    }
    return names;
}

const char* name_of(Isa isa) {
    for (const IsaName& named : kIsaNames) {
        if (named.isa == isa) {
            return named.name;
        }
    }
    return "";
}

bool parse(const std::string& text, Isa* isa) {
    for (const IsaName& named : kIsaNames) {
        if (text == named.name) {
            *isa = named.isa;
            return true;
        }
    }
    return false;
}

#if defined(QAIG_NEON)
#if defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
bool has(const char* feature) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif
#endif

#if defined(__x86_64__) && !defined(QAIG_EMULATE_AMX)
// Whether the operating system saves the tiles, and permits this process to use them. Linux requires one request.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long kAskForFeature = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_OSXSAVE)) {
        return false;
    }
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned kTileState = 3u << 17;
    return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kAskForFeature, kTileData) == 0;
#else
    return false;
#endif
}
#endif

struct Features {
    std::vector<Isa> isas = {Isa::portable};  // that this processor can run, the best last
    bool avx_vnni = false, avx512_bf16 = false, intel = false;
    std::string names;

    Features() {
#if defined(__x86_64__)
        // The builtins also check that the operating system saves the wide registers. F16C needs what AVX2 needs.
        __builtin_cpu_init();
        intel = __builtin_cpu_is("intel");
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
        bool avx2 = add("avx2", __builtin_cpu_supports("avx2"));
        avx2 &= add("fma", __builtin_cpu_supports("fma"));
        avx2 &= add("f16c", f16c && __builtin_cpu_supports("avx2"));
        const bool has_vnni_bit = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 4);
        avx_vnni = add("avxvnni", QAIG_AVX_VNNI && has_vnni_bit && avx2);
        bool avx512 = add("avx512f", __builtin_cpu_supports("avx512f"));
        avx512 &= add("avx512bw", __builtin_cpu_supports("avx512bw"));
        avx512 &= add("avx512vl", __builtin_cpu_supports("avx512vl"));
        avx512 &= add("avx512dq", __builtin_cpu_supports("avx512dq"));
        avx512 &= add("avx512vnni", __builtin_cpu_supports("avx512vnni"));
        const bool has_bf16_bit = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1 << 5);
        avx512_bf16 = add("avx512bf16", avx512 && has_bf16_bit);
#if defined(QAIG_EMULATE_AMX)
        const bool amx = add("emulated-amx", avx2);
#else
        const bool knows_7 = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx);
        const bool has_tiles = knows_7 && (edx & 1 << 24) && may_use_tiles();
        bool amx = avx512_bf16;
        amx &= add("amx_int8", has_tiles && (edx & 1 << 25));
        amx &= add("amx_bf16", has_tiles && (edx & 1 << 22));
#endif
        avx512 &= avx2;
        add_isa(Isa::avx2, avx2);
        add_isa(Isa::avxvnni, avx_vnni || avx512);
        add_isa(Isa::avx512, avx512);
        add_isa(Isa::amx, amx && avx2);
#elif defined(QAIG_NEON)
        const bool dotprod = add("asimddp", has_dotprod()), i8mm = add("i8mm", has_i8mm());
        add_isa(Isa::neon_dotprod, dotprod);
        add_isa(Isa::neon_i8mm, dotprod && i8mm);
#endif
    }

    // The best one before `end`.
    Isa last_before(Isa end) const {
        Isa found = Isa::portable;
        for (const Isa isa : isas) {
            found = isa == end ? found : isa;
        }
        return found;
    }

private:
    bool add(const char* feature, bool present) {
        if (present) {
            names += (names.empty() ? "" : " ") + std::string(feature);
        }
        return present;
    }

    void add_isa(Isa isa, bool present) {
        if (present) {
            isas.push_back(isa);
        }
    }
};

const Features& features() {
    static const Features found;
    return found;
}

const char* environment_variable(const char* name) {
    const char* text = std::getenv(name);
    return text != nullptr && *text != '\0' ? text : nullptr;
}

// What QAIG_CPU_ISA requests, or QAIG_CPU_LEVEL, its old name. A request that cannot be met leaves a message, which
// Python raises when it loads the library. The best instruction set is used then, so no illegal instruction runs.
struct Request {
    Isa isa = best_isa();
    std::string error;

    Request() {
        const char* name_used = "QAIG_CPU_ISA";
        const char* text = environment_variable(name_used);
        if (text == nullptr) {
            name_used = "QAIG_CPU_LEVEL";
            text = environment_variable(name_used);
        }
        if (text == nullptr) {
            return;
        }
        const std::string setting = std::string(name_used) + "=" + text;
        Isa wanted;
        if (!parse(text, &wanted)) {
            error =
                setting + " is no instruction set of these kernels: set it to one of " + all_names() + ", or unset it";
        } else if (!can_run(wanted)) {
            error = setting + " needs more than this processor has: its best is " + name_of(features().isas.back()) +
                    "; set that or one before it, or unset the variable";
        } else {
            isa = wanted;
        }
    }
};

const Request& request() {
    static const Request made;
    return made;
}

std::atomic<Isa>& current() {
    static std::atomic<Isa> value(request().isa);
    return value;
}

}  // namespace

bool can_run(Isa wanted) {
    const std::vector<Isa>& isas = features().isas;
    return std::find(isas.begin(), isas.end(), wanted) != isas.end();
}

Isa best_isa() {
#if defined(QAIG_EMULATE_AMX)
    return best_before_amx();
#else
    return features().isas.back();
#endif
}

Isa best_before_amx() { return features().last_before(Isa::amx); }

Isa isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(Isa wanted) {
    if (!can_run(wanted)) {
        return false;
    }
    current().store(wanted, std::memory_order_relaxed);
    return true;
}

bool is_intel() { return features().intel; }

bool has_avx_vnni() { return features().avx_vnni; }

bool has_avx512_bf16() { return features().avx512_bf16; }

}  // namespace qaig

// For transformers_qaig/kernels/extension.py, through ctypes. The strings live as long as the library.
#define QAIG_EXPORT extern "C" __attribute__((visibility("default")))

QAIG_EXPORT const char* qaig_cpu_features() { return qaig::features().names.c_str(); }

// The instruction sets that this processor can run, the best last.
QAIG_EXPORT const char* qaig_cpu_isas() {
    static const std::string names = [] {
        std::string all;
        for (const qaig::Isa isa : qaig::features().isas) {
            all += (all.empty() ? "" : " ") + std::string(qaig::name_of(isa));
        }
        return all;
    }();
    return names.c_str();
}

QAIG_EXPORT const char* qaig_cpu_best_isa() { return qaig::name_of(qaig::best_isa()); }

QAIG_EXPORT const char* qaig_cpu_isa() { return qaig::name_of(qaig::isa()); }

// What is wrong with QAIG_CPU_ISA; null if nothing is.
QAIG_EXPORT const char* qaig_cpu_isa_error() {
    return qaig::request().error.empty() ? nullptr : qaig::request().error.c_str();
}

// 0 on success; 1 if the name is unknown, 2 if this processor cannot run it.
QAIG_EXPORT int qaig_set_cpu_isa(const char* text) {
    qaig::Isa wanted;
    if (text == nullptr || !qaig::parse(text, &wanted)) {
        return 1;
    }
    return qaig::set_isa(wanted) ? 0 : 2;
}
