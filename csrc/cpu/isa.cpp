// Which instruction sets this processor has, and which one the environment asks for.
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace qaig {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512"};

const char* name(Isa isa) { return kNames[static_cast<int>(isa)]; }

bool parse(const std::string& text, Isa* isa) {
    for (int i = 0; i < 3; ++i) {
        if (text == kNames[i]) {
            *isa = static_cast<Isa>(i);
            return true;
        }
    }
    return false;
}

struct Features {
    Isa best = Isa::portable;
    std::string names;

    Features() {
#if defined(__x86_64__)
        // The builtins also ask whether the operating system saves the wide registers; F16C needs no more than AVX2
        // does.
        __builtin_cpu_init();
        unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
        const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
        bool avx2 = add("avx2", __builtin_cpu_supports("avx2"));
        avx2 &= add("fma", __builtin_cpu_supports("fma"));
        avx2 &= add("f16c", f16c && __builtin_cpu_supports("avx2"));
        bool avx512 = add("avx512f", __builtin_cpu_supports("avx512f"));
        avx512 &= add("avx512bw", __builtin_cpu_supports("avx512bw"));
        avx512 &= add("avx512vl", __builtin_cpu_supports("avx512vl"));
        avx512 &= add("avx512dq", __builtin_cpu_supports("avx512dq"));
        avx512 &= add("avx512vnni", __builtin_cpu_supports("avx512vnni"));
        if (avx2) {
            best = avx512 ? Isa::avx512 : Isa::avx2;
        }
#endif
    }

private:
    bool add(const char* feature, bool present) {
        if (present) {
            names += (names.empty() ? "" : " ") + std::string(feature);
        }
        return present;
    }
};

const Features& features() {
    static const Features found;
    return found;
}

const char* variable(const char* name) {
    const char* text = std::getenv(name);
    return text != nullptr && *text != '\0' ? text : nullptr;
}

// What QAIG_CPU_ISA asks for, or QAIG_CPU_LEVEL, its old name. A request that cannot be met leaves a message, which Python
// raises when it loads the library, and the best instruction set: never an illegal instruction.
struct Request {
    Isa isa = features().best;
    std::string error;

    Request() {
        const char* name_used = "QAIG_CPU_ISA";
        const char* text = variable(name_used);
        if (text == nullptr) {
            name_used = "QAIG_CPU_LEVEL";
            text = variable(name_used);
        }
        if (text == nullptr) {
            return;
        }
        const std::string setting = std::string(name_used) + "=" + text;
        Isa wanted;
        if (!parse(text, &wanted)) {
            error =
                setting + " is no instruction set of these kernels: set it to portable, avx2 or avx512, or unset it";
        } else if (wanted > features().best) {
            error = setting + " needs more than this processor has: its best is " + name(features().best) +
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

Isa best_isa() { return features().best; }

Isa isa() { return current().load(std::memory_order_relaxed); }

bool set_isa(Isa wanted) {
    if (wanted > best_isa()) {
        return false;
    }
    current().store(wanted, std::memory_order_relaxed);
    return true;
}

}  // namespace qaig

// For transformers_qaig/kernels/extension.py, through ctypes. The strings live as long as the library.
#define QAIG_EXPORT extern "C" __attribute__((visibility("default")))

QAIG_EXPORT const char* qaig_cpu_features() { return qaig::features().names.c_str(); }

QAIG_EXPORT const char* qaig_cpu_best_isa() { return qaig::name(qaig::best_isa()); }

QAIG_EXPORT const char* qaig_cpu_isa() { return qaig::name(qaig::isa()); }

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
