// The eight tiles of AMX: configured, loaded, multiplied, stored.
//
// Each function has two bodies. With QAIG_EMULATE_AMX tiles are memory of the thread, and functions compute what their
// instructions do, to the bit. What the processor would refuse ends the program. So the kernel runs without AMX.
//
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, has the tiles and their limits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace qaig::amx {

constexpr int kTiles = 8, kMaxTileRows = 16, kRowBytes = 64;

// What LDTILECFG reads: how many rows each tile has, and how many bytes each of its rows.
struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t tile_rows, int64_t bytes) {
        rows[tile] = static_cast<uint8_t>(tile_rows);
        row_bytes[tile] = static_cast<uint16_t>(bytes);
    }
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

#if defined(QAIG_EMULATE_AMX)

struct EmulatedTiles {
    TileConfig config;
    uint8_t bytes[kTiles][kMaxTileRows][kRowBytes];

    EmulatedTiles() { config.palette = 0; }

    static void check(bool holds, const char* what) {
        if (!holds) {
            std::fprintf(stderr, "AMX: %s\n", what);
            std::abort();
        }
    }
    int rows(int tile) const {
        check(config.palette == 1, "tiles are used before they are configured, or after their release");
        check(config.rows[tile] != 0, "a tile is used that is not configured");
        return config.rows[tile];
    }
    int row_bytes(int tile) const { return rows(tile) ? config.row_bytes[tile] : 0; }
};

inline EmulatedTiles& emulated() {
    static thread_local EmulatedTiles tiles;
    return tiles;
}

inline void configure(const TileConfig& config) {
    for (int tile = 0; tile < kTiles; tile++) {
        const bool is_used = config.rows[tile] != 0;
        EmulatedTiles::check(is_used == (config.row_bytes[tile] != 0), "a tile has rows without bytes, or the reverse");
        EmulatedTiles::check(config.rows[tile] <= kMaxTileRows && config.row_bytes[tile] <= kRowBytes,
                             "a tile is larger than 16 rows of 64 bytes");
    }
    EmulatedTiles::check(config.palette == 1, "the palette is not 1");
    emulated().config = config;
    std::memset(emulated().bytes, 0, sizeof(emulated().bytes));
}

inline void release() { emulated().config.palette = 0; }

template <int T>
void load(const void* from, int64_t stride) {
    EmulatedTiles& e = emulated();
    std::memset(e.bytes[T], 0, sizeof(e.bytes[T]));
    for (int r = 0; r < e.rows(T); r++) {
        std::memcpy(e.bytes[T][r], static_cast<const char*>(from) + r * stride, e.row_bytes(T));
    }
}

template <int T>
void store(void* to, int64_t stride) {
    const EmulatedTiles& e = emulated();
    for (int r = 0; r < e.rows(T); r++) {
        std::memcpy(static_cast<char*>(to) + r * stride, e.bytes[T][r], e.row_bytes(T));
    }
}

template <int T>
void clear() {
    EmulatedTiles& e = emulated();
    std::memset(e.bytes[T], 0, e.rows(T) ? sizeof(e.bytes[T]) : 0);
}

// Calls add(sum, x, codes, words) for each sum, with its row of x and its column of codes. Words of codes are 64 bytes
// apart.
template <int Sums, int X, int Codes, class Sum, class Add>
void for_each_sum(Add add) {
    EmulatedTiles& e = emulated();
    e.check(e.rows(Sums) == e.rows(X), "sums and x differ in rows");
    e.check(e.row_bytes(Sums) == e.row_bytes(Codes), "sums and codes differ in columns");
    e.check(e.row_bytes(X) == 4 * e.rows(Codes), "x and codes differ in words");
    for (int m = 0; m < e.rows(Sums); m++) {
        for (int n = 0; n < e.row_bytes(Sums) / 4; n++) {
            Sum sum;
            std::memcpy(&sum, e.bytes[Sums][m] + 4 * n, 4);
            add(sum, e.bytes[X][m], e.bytes[Codes][0] + 4 * n, e.rows(Codes));
            std::memcpy(e.bytes[Sums][m] + 4 * n, &sum, 4);
        }
    }
}

template <int Sums, int X, int Codes>
void multiply_int8() {
    for_each_sum<Sums, X, Codes, int32_t>([](int32_t& sum, const uint8_t* x, const uint8_t* codes, int words) {
        for (int k = 0; k < 4 * words; k++) {
            sum += static_cast<int8_t>(x[k]) * static_cast<int8_t>(codes[k / 4 * kRowBytes + k % 4]);
        }
    });
}

// Denormals are zeros, before a product and after.
inline float flushed(float value) {
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.f, value) : value;
}

inline float bf16_at(const uint8_t* from) {
    const uint32_t bits = static_cast<uint32_t>(from[0]) << 16 | static_cast<uint32_t>(from[1]) << 24;
    float value;
    std::memcpy(&value, &bits, 4);
    return flushed(value);
}

// Products of even and of odd channels have sums of their own, as in the processor.
template <int Sums, int X, int Codes>
void multiply_bf16() {
    for_each_sum<Sums, X, Codes, float>([](float& sum, const uint8_t* x, const uint8_t* codes, int words) {
        float even = 0, odd = 0;
        for (int k = 0; k < words; k++) {
            even = flushed(std::fmaf(bf16_at(x + 4 * k), bf16_at(codes + k * kRowBytes), even));
            odd = flushed(std::fmaf(bf16_at(x + 4 * k + 2), bf16_at(codes + k * kRowBytes + 2), odd));
        }
        sum = flushed(sum + flushed(even + odd));
    });
}

#else

// In assembly, because the compilers' intrinsics take no template argument as the number of a tile.
inline void configure(const TileConfig& config) { __asm__ volatile("ldtilecfg %0" ::"m"(config)); }

inline void release() { __asm__ volatile("tilerelease"); }

template <int T>
inline void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void clear() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}

// Sums += x times codes, four signed bytes a lane.
template <int Sums, int X, int Codes>
inline void multiply_int8() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(X), "i"(Codes));
}

// The same, two bfloat16 a lane and sums in float32.
template <int Sums, int X, int Codes>
inline void multiply_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(X), "i"(Codes));
}

#endif

// Configures the tiles of this thread as long as this object lives.
class Configured {
public:
    explicit Configured(const TileConfig& config) { configure(config); }
    ~Configured() { release(); }
    Configured(const Configured&) = delete;
    Configured& operator=(const Configured&) = delete;
};

}  // namespace qaig::amx
