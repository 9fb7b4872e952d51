// csrc/cuda/device/intrinsics.cuh for a CPU: g++ compiles the kernels against it, and machine.cpp runs them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "machine.h"
#include "order.h"

#define QAIG_DEVICE static inline
#define QAIG_MEMBER inline
#define QAIG_ARGUMENT const
#define QAIG_DYNAMIC_SHARED(name) uint4* name = static_cast<uint4*>(emulator::dynamic_shared())
#define QAIG_SHARED_ARRAY(type, name, size) \
    type* name = static_cast<type*>(emulator::static_shared(sizeof(type) * size))
#define __global__
#define __launch_bounds__(...)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define gridDim (emulator::grid_size())

namespace qaig {
namespace cuda {

QAIG_DEVICE unsigned bits_of(float x) {
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
QAIG_DEVICE float float_of(unsigned u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

// -- memory

template <class T>
T read_global(const T* p) {
    emulator::check_global(p, sizeof(T), false);
    T v;
    std::memcpy(&v, p, sizeof(T));
    return v;
}
QAIG_DEVICE uint4 load_global(const uint4* p) { return read_global(p); }
QAIG_DEVICE uint2 load_global(const uint2* p) { return read_global(p); }
QAIG_DEVICE unsigned load_global(const unsigned* p) { return read_global(p); }
QAIG_DEVICE unsigned load_global(const unsigned short* p) { return read_global(p); }
QAIG_DEVICE unsigned load_global(const unsigned char* p) { return read_global(p); }
QAIG_DEVICE float load_own(const float* p) { return read_global(p); }
QAIG_DEVICE float4 load_from_others(const float4* p) {
    const float4 v = read_global(p);
    emulator::note_load_from_others(p);
    return v;
}

template <class T>
void store_global(T* p, T v) {
    emulator::check_global(p, sizeof(T), true);
    if (std::is_same_v<T, float4>) {  // the only type that other blocks read
        emulator::note_store(p);
    }
    std::memcpy(static_cast<void*>(p), &v, sizeof(T));
}

template <class T>
T load_shared(const T* p) {
    emulator::check_shared(p, sizeof(T), false);
    return *p;
}

template <class T>
void store_shared(T* p, T v) {
    emulator::check_shared(p, sizeof(T), true);
    *p = v;
}

QAIG_DEVICE void copy_async(uint4* shared, const uint4* global) { emulator::copy_async(shared, global, 16); }
QAIG_DEVICE void copy_async_or_zero(uint4* shared, const uint4* global, bool there) {
    emulator::copy_async(shared, there ? global : nullptr, 16);
}
QAIG_DEVICE void commit_copies() { emulator::commit_copies(); }
template <int pending>
void wait_copies() {
    emulator::wait_copies(pending);
}

// -- threads

struct Shuffled {
    unsigned value;
    int from;
};

QAIG_DEVICE void block_barrier() { emulator::block_barrier(); }
QAIG_DEVICE void warp_barrier() {
    emulator::warp_operation<char, char>(0, [](const unsigned char (*)[64], unsigned char (*)[64]) {
        emulator::meet(static_cast<int>(threadIdx.x) / emulator::kLanes);
        emulator::count_warp_barrier();
    });
}
QAIG_DEVICE unsigned grid_blocks() { return gridDim.x; }
QAIG_DEVICE void memory_fence() { emulator::note_fence(); }
QAIG_DEVICE unsigned atomic_increment(unsigned* p) {
    emulator::note_increment(p);
    const unsigned before = read_global(p);
    store_global(p, before + 1);
    return before;
}
QAIG_DEVICE unsigned shuffle(unsigned v, int lane) {
    return emulator::warp_operation<Shuffled, unsigned>({v, lane}, [](const auto* in, auto* out) {
        for (int i = 0; i < 32; i++) {
            std::memcpy(out[i], in[reinterpret_cast<const Shuffled*>(in[i])->from % 32], 4);
        }
    });
}
QAIG_DEVICE unsigned shuffle_xor(unsigned v, int mask) { return shuffle(v, static_cast<int>(threadIdx.x % 32) ^ mask); }

// -- integers

QAIG_DEVICE unsigned and_or(unsigned a, unsigned b, unsigned c) { return (a & b) | c; }
QAIG_DEVICE unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        out |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
    }
    return out;
}

QAIG_DEVICE int signed_byte(unsigned v, int i) { return static_cast<int8_t>(v >> 8 * i); }
QAIG_DEVICE int add_dot(unsigned a, unsigned b, int c) {
    for (int i = 0; i < 4; i++) {
        c += signed_byte(a, i) * signed_byte(b, i);
    }
    return c;
}

// -- 16-bit floats

QAIG_DEVICE float half_float(unsigned v) {
    const uint16_t h = static_cast<uint16_t>(v);
    _Float16 f;
    std::memcpy(&f, &h, 2);
    return static_cast<float>(f);
}
QAIG_DEVICE float low_float(F16, unsigned v) { return half_float(v); }
QAIG_DEVICE float high_float(F16, unsigned v) { return half_float(v >> 16); }
QAIG_DEVICE float low_float(BF16, unsigned v) { return float_of(v << 16); }
QAIG_DEVICE float high_float(BF16, unsigned v) { return float_of(v & 0xffff0000u); }

QAIG_DEVICE unsigned rounded(F16, float f) {
    const _Float16 h = static_cast<_Float16>(f);
    uint16_t u;
    std::memcpy(&u, &h, 2);
    return u;
}
QAIG_DEVICE unsigned rounded(BF16, float f) {
    const unsigned u = bits_of(f);
    return f != f ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}

// Sums of products of 16-bit floats are exact in float64 here, unless their exponents are far apart. Where float32
// holds them too, they are rounded once.
template <class T>
unsigned multiply_add_one(T type, float a, float b, float c) {
    const double exact = static_cast<double>(a) * b + c;
    const float f = static_cast<float>(exact);
    if (exact == exact && static_cast<double>(f) != exact) {
        emulator::fail("a 16-bit multiply-add that would be rounded: the kernels promise exact ones");
    }
    return rounded(type, f);
}
template <class T>
unsigned multiply_add(T type, unsigned a, unsigned b, unsigned c) {
    return multiply_add_one(type, low_float(type, a), low_float(type, b), low_float(type, c)) |
           multiply_add_one(type, high_float(type, a), high_float(type, b), high_float(type, c)) << 16;
}

QAIG_DEVICE float round_to_integer(float x) { return std::nearbyint(x); }
QAIG_DEVICE float divide(float a, float b) { return a / b; }
QAIG_DEVICE float multiply(float a, float b) { return a * b; }

// -- tensor cores

// To float32 towards zero: tensor cores drop bits rather than round.
QAIG_DEVICE float truncated(double x) {
    const float f = static_cast<float>(x);
    return std::isfinite(f) && std::fabs(static_cast<double>(f)) > std::fabs(x) ? std::nextafter(f, 0.0f) : f;
}

struct Fragments {
    unsigned a[4], b[2];
    float c[4];
};
struct Products {
    float c[4];
};

template <class T>
void multiply_tiles(T, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    Fragments in = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    const auto out = emulator::warp_operation<Fragments, Products>(in, [](const auto* in, auto* out) {
        float a[16][16], b[8][16];
        for (int lane = 0; lane < 32; lane++) {
            const auto& f = *reinterpret_cast<const Fragments*>(in[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                float* to = &a[g + i % 2 * 8][i / 2 * 8 + 2 * t];
                to[0] = low_float(T(), f.a[i]), to[1] = high_float(T(), f.a[i]);
            }
            for (int i = 0; i < 2; i++) {
                float* to = &b[g][i * 8 + 2 * t];
                to[0] = low_float(T(), f.b[i]), to[1] = high_float(T(), f.b[i]);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            const auto& f = *reinterpret_cast<const Fragments*>(in[lane]);
            for (int i = 0; i < 4; i++) {
                const float* row = a[lane / 4 + i / 2 * 8];
                const float* column = b[lane % 4 * 2 + i % 2];
                double sum = f.c[i];
                for (int k = 0; k < 16; k++) {
                    sum += static_cast<double>(row[k]) * column[k];
                }
                reinterpret_cast<Products*>(out[lane])->c[i] = truncated(sum);
            }
        }
    });
    for (int i = 0; i < 4; i++) {
        c[i] = out.c[i];
    }
}

struct ByteFragments {
    unsigned a[4], b[2], c[4];
};
struct IntegerProducts {
    unsigned c[4];
};

QAIG_DEVICE void multiply_byte_tiles(unsigned (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    ByteFragments in = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {c[0], c[1], c[2], c[3]}};
    const auto out = emulator::warp_operation<ByteFragments, IntegerProducts>(in, [](const auto* in, auto* out) {
        int a[16][32], b[8][32];
        for (int lane = 0; lane < 32; lane++) {
            const auto& f = *reinterpret_cast<const ByteFragments*>(in[lane]);
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; i++) {
                for (int byte = 0; byte < 4; byte++) {
                    a[g + i % 2 * 8][i / 2 * 16 + 4 * t + byte] = signed_byte(f.a[i], byte);
                }
            }
            for (int i = 0; i < 2; i++) {
                for (int byte = 0; byte < 4; byte++) {
                    b[g][i * 16 + 4 * t + byte] = signed_byte(f.b[i], byte);
                }
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            const auto& f = *reinterpret_cast<const ByteFragments*>(in[lane]);
            for (int i = 0; i < 4; i++) {
                const int* row = a[lane / 4 + i / 2 * 8];
                const int* column = b[lane % 4 * 2 + i % 2];
                unsigned sum = f.c[i];
                for (int k = 0; k < 32; k++) {
                    sum += static_cast<unsigned>(row[k] * column[k]);  // as the device does, beyond 2^31 modulo 2^32
                }
                reinterpret_cast<IntegerProducts*>(out[lane])->c[i] = sum;
            }
        }
    });
    for (int i = 0; i < 4; i++) {
        c[i] = out.c[i];
    }
}

}  // namespace cuda
}  // namespace qaig
