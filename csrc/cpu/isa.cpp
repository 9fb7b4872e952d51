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

const char* name(Level level) { return kNames[static_cast<int>(level)]; }

bool parse(const std::string& text, Level* level) {
    for (int i = 0; i < 3; ++i) {
        if (text == kNames[i]) {
            *level = static_cast<Level>(i);
            return true;
        }
    }
    return false;
}

struct Features {
    Level best = Level::portable;
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
            best = avx512 ? Level::avx512 : Level::avx2;
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

// What QAIG_CPU_LEVEL asks for. A request that cannot be met leaves a message, which Python raises when it loads the
// library, and the best level: never an illegal instruction.
struct Request {
    Level level = features().best;
    std::string error;

    Request() {
        const char* text = std::getenv("QAIG_CPU_LEVEL");
        if (text == nullptr || *text == '\0') {
            return;
        }
        const std::string setting = "QAIG_CPU_LEVEL=" + std::string(text);
        Level wanted;
        if (!parse(text, &wanted)) {
            error = setting + " is not a level: set it to portable, avx2 or avx512, or unset it";
        } else if (wanted > features().best) {
            error = setting + " is more than this processor can run: its best level is " + name(features().best) +
                    "; set that or a lower one, or unset the variable";
        } else {
            level = wanted;
        }
    }
};

const Request& request() {
    static const Request made;
    return made;
}

std::atomic<Level>& current() {
    static std::atomic<Level> value(request().level);
    return value;
}

}  // namespace

Level best_level() { return features().best; }

Level level() { return current().load(std::memory_order_relaxed); }

bool set_level(Level wanted) {
    if (wanted > best_level()) {
        return false;
    }
    current().store(wanted, std::memory_order_relaxed);
    return true;
}

}  // namespace qaig

// For transformers_qaig/kernels/extension.py, through ctypes. The strings live as long as the library.
#define QAIG_EXPORT extern "C" __attribute__((visibility("default")))

QAIG_EXPORT const char* qaig_cpu_features() { return qaig::features().names.c_str(); }

QAIG_EXPORT const char* qaig_cpu_best_level() { return qaig::name(qaig::best_level()); }

QAIG_EXPORT const char* qaig_cpu_level() { return qaig::name(qaig::level()); }

// What is wrong with QAIG_CPU_LEVEL; null if nothing is.
QAIG_EXPORT const char* qaig_cpu_level_error() {
    return qaig::request().error.empty() ? nullptr : qaig::request().error.c_str();
}

// 0 on success; 1 if the name is not a level, 2 if this processor cannot run it.
QAIG_EXPORT int qaig_set_cpu_level(const char* text) {
    qaig::Level wanted;
    if (text == nullptr || !qaig::parse(text, &wanted)) {
        return 1;
    }
    return qaig::set_level(wanted) ? 0 : 2;
}
