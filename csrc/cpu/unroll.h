// Macros that compile functions for one instruction set, and unroll loops with constant indices.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

// Code between the two macros is compiled for `features`, all other code for any processor: so the library starts on
// every processor. Include no standard header between them.
#define QAIG_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define QAIG_TARGET_BEGIN(features) \
    QAIG_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define QAIG_TARGET_END QAIG_PRAGMA(clang attribute pop)
#else
#define QAIG_TARGET_BEGIN(features) QAIG_PRAGMA(GCC push_options) QAIG_PRAGMA(GCC target(features))
#define QAIG_TARGET_END QAIG_PRAGMA(GCC pop_options)
#endif

#define QAIG_INLINE inline __attribute__((always_inline))
#define QAIG_LAMBDA_INLINE __attribute__((always_inline))

// Defines `unroll<N>(f)`, which calls f(0), …, f(N - 1) with constants. Each target needs its own: the compiler does
// not inline a function of another target.
#define QAIG_DEFINE_UNROLL                                            \
    template <class F, size_t... I>                                   \
    QAIG_INLINE void unroll(F&& f, std::index_sequence<I...>) {       \
        (f(std::integral_constant<int, static_cast<int>(I)>()), ...); \
    }                                                                 \
    template <int N, class F>                                         \
    QAIG_INLINE void unroll(F&& f) {                                  \
        unroll(f, std::make_index_sequence<N>());                     \
    }
