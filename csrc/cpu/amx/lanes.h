// Operations on 16 lanes of 32 bits, a row of a tile: they prepare codes for tiles, and finish sums.
//
// Each function has two bodies, as in `tiles.h`. With QAIG_EMULATE_AMX it computes lane by lane, without AVX-512.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/activations.h"
#include "cpu/amx/tiles.h"
#include "cpu/avx512/common.h"
#include "cpu/floats.h"

#if defined(__x86_64__)

#if defined(QAIG_EMULATE_AMX)
#define QAIG_AMX_BEGIN QAIG_TARGET_BEGIN("avx2,fma,f16c")
#else
#define QAIG_AMX_BEGIN QAIG_TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")
#endif

QAIG_AMX_BEGIN

namespace qaig::amx {

QAIG_DEFINE_UNROLL

#if defined(QAIG_EMULATE_AMX)

// Not inlined: with sanitizers, inlined lanes take minutes to compile.
#define QAIG_CALLED inline __attribute__((noinline))

struct Ints {
    int32_t at[16];
};
struct Floats {
    float at[16];
};

// Lanes of f(lane).
template <class F>
inline Ints each_lane(F f) {
    Ints made;
    for (int i = 0; i < 16; i++) {
        made.at[i] = static_cast<int32_t>(f(i));
    }
    return made;
}

template <class F>
inline Floats each_float(F f) {
    Floats made;
    for (int i = 0; i < 16; i++) {
        made.at[i] = f(i);
    }
    return made;
}

template <class To, class From>
QAIG_CALLED To read_as(const From* from) {
    To made;
    std::memcpy(&made, from, sizeof(made));
    return made;
}

QAIG_CALLED Ints read(const void* from) { return read_as<Ints>(from); }
QAIG_CALLED Ints read_words(const uint32_t* from) { return read_as<Ints>(from); }
QAIG_CALLED Floats read(const float* from) { return read_as<Floats>(from); }
QAIG_CALLED void write(void* to, Ints v) { std::memcpy(to, &v, sizeof(v)); }
QAIG_CALLED void write(float* to, Floats v) { std::memcpy(to, &v, sizeof(v)); }
QAIG_CALLED Ints broadcast(int32_t value) {
    return each_lane([&](int) { return value; });
}
QAIG_CALLED Floats broadcast(float value) {
    return each_float([&](int) { return value; });
}

// Shifts both 16-bit halves of each lane right.
template <int Bits>
QAIG_CALLED Ints shift_right_halves(Ints v) {
    return each_lane([&](int i) { return (static_cast<uint32_t>(v.at[i]) >> Bits) & (0xffffu >> Bits) * 0x10001u; });
}
// The upper half of each lane, as an integer.
QAIG_CALLED Ints upper_half(Ints v) {
    return each_lane([&](int i) { return static_cast<uint32_t>(v.at[i]) >> 16; });
}
QAIG_CALLED Ints bit_and(Ints v, Ints mask) {
    return each_lane([&](int i) { return v.at[i] & mask.at[i]; });
}
// Bits of `low` where the mask has ones, else of `high`.
QAIG_CALLED Ints select_bits(Ints low, Ints high, Ints mask) {
    return each_lane([&](int i) { return (low.at[i] & mask.at[i]) | (high.at[i] & ~mask.at[i]); });
}
// Byte by byte, modulo 256.
QAIG_CALLED Ints subtract_bytes(Ints a, Ints b) {
    return each_lane([&](int i) {
        uint32_t made = 0;
        for (int shift = 0; shift < 32; shift += 8) {
            made |= (((static_cast<uint32_t>(a.at[i]) >> shift) - (static_cast<uint32_t>(b.at[i]) >> shift)) & 255)
                    << shift;
        }
        return made;
    });
}
QAIG_CALLED Ints minus(Ints a, Ints b) {
    return each_lane([&](int i) { return a.at[i] - b.at[i]; });
}
QAIG_CALLED Ints times(Ints a, Ints b) {  // modulo 2^32
    return each_lane([&](int i) { return static_cast<uint32_t>(a.at[i]) * static_cast<uint32_t>(b.at[i]); });
}
// 256 a + b
QAIG_CALLED Ints combine_planes(Ints a, Ints b) {
    return each_lane([&](int i) { return 256 * a.at[i] + b.at[i]; });
}
QAIG_CALLED Floats to_floats(Ints v) {
    return each_float([&](int i) { return static_cast<float>(v.at[i]); });
}
QAIG_CALLED Floats times(Floats a, Floats b) {
    return each_float([&](int i) { return a.at[i] * b.at[i]; });
}
// a b + c, rounded once
QAIG_CALLED Floats multiply_add(Floats a, Floats b, Floats c) {
    return each_float([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); });
}
QAIG_CALLED Floats plus(Floats a, Floats b) {
    return each_float([&](int i) { return a.at[i] + b.at[i]; });
}
// Read 16 numbers from element `at` on, and write the first `count` of them.
QAIG_CALLED Floats read(const void* from, Scalar type, int64_t at) {
    Floats made;
    load_floats(from, type, at, 16, made.at);
    return made;
}
QAIG_CALLED void write(void* to, Scalar type, int64_t at, Floats v, int64_t count) {
    store_floats(to, type, at, std::min<int64_t>(count, 16), v.at);
}
// The first `count` of 16 numbers, then zeros.
QAIG_CALLED Floats read_first(const float* from, int64_t count) {
    return each_float([&](int i) { return i < count ? from[i] : 0.f; });
}
QAIG_CALLED Ints read_bytes(const uint8_t* from) {
    return each_lane([&](int i) { return from[i]; });
}
QAIG_CALLED void prefetch(const void*) {}
// The lower and the upper bfloat16 of each lane.
QAIG_CALLED Floats lower_bf16(Ints v) {
    return each_float([&](int i) { return from_bits(static_cast<uint32_t>(v.at[i]) << 16); });
}
QAIG_CALLED Floats upper_bf16(Ints v) {
    return each_float([&](int i) { return from_bits(static_cast<uint32_t>(v.at[i]) & 0xffff0000u); });
}
// Lanes (low, high), rounded to nearest even. Denormals become zero.
QAIG_CALLED Ints to_bf16_pairs(Floats low, Floats high) {
    uint16_t l[16], h[16];
    const Floats lows = each_float([&](int i) { return flushed(low.at[i]); });
    const Floats highs = each_float([&](int i) { return flushed(high.at[i]); });
    store_floats(l, Scalar::bf16, 0, 16, lows.at);
    store_floats(h, Scalar::bf16, 0, 16, highs.at);
    return each_lane([&](int i) { return l[i] | static_cast<uint32_t>(h[i]) << 16; });
}
// Converts both halves of each lane to bfloat16. A half's lower 5 bits are an integer, -16 to 15.
QAIG_CALLED Ints small_to_bf16(Ints v) {
    const auto small = [](int32_t bits) { return static_cast<float>((bits & 31) - 2 * (bits & 16)); };
    return to_bf16_pairs(each_float([&](int i) { return small(v.at[i]); }),
                         each_float([&](int i) { return small(v.at[i] >> 16); }));
}

#else

using Ints = __m512i;
using Floats = __m512;

QAIG_INLINE Ints read(const void* from) { return _mm512_load_si512(from); }
QAIG_INLINE Ints read_words(const uint32_t* from) { return _mm512_loadu_si512(from); }
QAIG_INLINE Floats read(const float* from) { return _mm512_load_ps(from); }
QAIG_INLINE void write(void* to, Ints v) { _mm512_store_si512(to, v); }
QAIG_INLINE void write(float* to, Floats v) { _mm512_store_ps(to, v); }
QAIG_INLINE Ints broadcast(int32_t value) { return _mm512_set1_epi32(value); }
QAIG_INLINE Floats broadcast(float value) { return _mm512_set1_ps(value); }

template <int Bits>
QAIG_INLINE Ints shift_right_halves(Ints v) {
    return _mm512_srli_epi16(v, Bits);
}
QAIG_INLINE Ints upper_half(Ints v) { return _mm512_srli_epi32(v, 16); }
QAIG_INLINE Ints bit_and(Ints v, Ints mask) { return _mm512_and_si512(v, mask); }
QAIG_INLINE Ints select_bits(Ints low, Ints high, Ints mask) {
    return _mm512_ternarylogic_epi32(low, high, mask, 0xe4);
}
QAIG_INLINE Ints subtract_bytes(Ints a, Ints b) { return _mm512_sub_epi8(a, b); }
QAIG_INLINE Ints minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
QAIG_INLINE Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
QAIG_INLINE Ints combine_planes(Ints a, Ints b) { return _mm512_add_epi32(_mm512_slli_epi32(a, 8), b); }
QAIG_INLINE Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
QAIG_INLINE Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
QAIG_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
QAIG_INLINE Floats plus(Floats a, Floats b) { return _mm512_add_ps(a, b); }
QAIG_INLINE Floats read(const void* from, Scalar type, int64_t at) { return avx512::load(from, type, at); }
QAIG_INLINE void write(void* to, Scalar type, int64_t at, Floats v, int64_t count) {
    avx512::store(to, type, at, v, avx512::first(count));
}
QAIG_INLINE Floats read_first(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(avx512::first(count), from);
}
QAIG_INLINE Ints read_bytes(const uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
// Prefetches a cache line into the L2 cache.
QAIG_INLINE void prefetch(const void* at) { _mm_prefetch(static_cast<const char*>(at), _MM_HINT_T1); }
QAIG_INLINE Floats lower_bf16(Ints v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
QAIG_INLINE Floats upper_bf16(Ints v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}
QAIG_INLINE Ints to_bf16_pairs(Floats low, Floats high) {
    alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
    return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), halves);
}
QAIG_INLINE Ints small_to_bf16(Ints v) {
    // The values of 0 to 15, then those of -16 to -1: a permutation reads 5 bits of each index.
    alignas(64) static constexpr uint16_t kValues[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130,
        0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
    return _mm512_permutexvar_epi16(v, _mm512_load_si512(kValues));
}

#endif

}  // namespace qaig::amx

QAIG_TARGET_END

#endif
