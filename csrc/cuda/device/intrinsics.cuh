// The instructions that the kernels use: one inline function each, with two bodies. The one for nvcc and NVRTC is here.
// The other one runs on the emulator (tools/emulator). Architectures before 8.0 lack asynchronous copies, bfloat16, and
// half of a tensor core product's depth. They get the same functions, built from older instructions.
//
// Two 16-bit floats travel in one 32-bit register, the first in the low half. F16 and BF16 name their type.
#pragma once

namespace qaig {
namespace cuda {

struct F16 {
    static constexpr unsigned kMagic = 0x6400;  // 1024 + an integer below 1024 in the low bits
    static constexpr int kMagicBits = 10;
};
struct BF16 {
    static constexpr unsigned kMagic = 0x4300;  // 128 + an integer below 128 in the low bits
    static constexpr int kMagicBits = 7;
};

}  // namespace cuda
}  // namespace qaig

#if !defined(__CUDACC__)

#include "emulator.h"

#else

#define QAIG_DEVICE static __device__ __forceinline__
#define QAIG_MEMBER __device__ __forceinline__  // of a structure
#define QAIG_ARGUMENT const __grid_constant__   // read where it lies, never copied
#define QAIG_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#define QAIG_SHARED_ARRAY(type, name, size) __shared__ type name[size]

namespace qaig {
namespace cuda {

QAIG_DEVICE unsigned bits_of(float x) { return __float_as_uint(x); }
QAIG_DEVICE float float_of(unsigned bits) { return __uint_as_float(bits); }

// -- memory

QAIG_DEVICE uint4 load_global(const uint4* p) {
    uint4 v;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

QAIG_DEVICE uint2 load_global(const uint2* p) {
    uint2 v;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

QAIG_DEVICE unsigned load_global(const unsigned* p) {
    unsigned v;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

QAIG_DEVICE unsigned load_global(const unsigned short* p) {
    unsigned short v;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(p));
    return v;
}

QAIG_DEVICE unsigned load_global(const unsigned char* p) {
    unsigned v;
    asm("ld.global.nc.u8 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// Loads what only this thread reads and writes.
QAIG_DEVICE float load_own(const float* p) { return *p; }

template <class T>
QAIG_DEVICE void store_global(T* p, T v) {
    *p = v;
}

// Loads what other blocks wrote during this launch, from L2: L1 caches may hold old values.
QAIG_DEVICE float4 load_from_others(const float4* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

template <class T>
QAIG_DEVICE T load_shared(const T* p) {
    return *p;
}

template <class T>
QAIG_DEVICE void store_shared(T* p, T v) {
    *p = v;
}

// Starts to copy 16 bytes. The copy is complete after `wait_copies` by the same thread.
QAIG_DEVICE void copy_async(uint4* shared, const uint4* global) {
#if __CUDA_ARCH__ >= 800
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
    *shared = load_global(global);
#endif
}

// The same if they are `there`. Otherwise writes 16 zero bytes, and reads nothing.
QAIG_DEVICE void copy_async_or_zero(uint4* shared, const uint4* global, bool there) {
#if __CUDA_ARCH__ >= 800
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0)
                 : "memory");
#else
    *shared = there ? load_global(global) : uint4{0, 0, 0, 0};
#endif
}

// Ends a group of copies.
QAIG_DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `pending` of this thread's groups are incomplete.
template <int pending>
QAIG_DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// -- threads

// gridDim.x, read again at each call, so that values computed from it do not occupy registers between calls.
QAIG_DEVICE unsigned grid_blocks() {
    unsigned blocks;
    asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(blocks));
    return blocks;
}

QAIG_DEVICE void block_barrier() { __syncthreads(); }
QAIG_DEVICE void warp_barrier() { __syncwarp(); }
// Orders accesses around an atomic increment. __threadfence() orders more, and takes longer.
QAIG_DEVICE void memory_fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
QAIG_DEVICE unsigned atomic_increment(unsigned* p) { return atomicAdd(p, 1u); }
QAIG_DEVICE unsigned shuffle(unsigned v, int lane) { return __shfl_sync(0xffffffffu, v, lane); }
QAIG_DEVICE unsigned shuffle_xor(unsigned v, int mask) { return __shfl_xor_sync(0xffffffffu, v, mask); }

// -- integers

// (a & b) | c
QAIG_DEVICE unsigned and_or(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes of a, then b.
QAIG_DEVICE unsigned permute_bytes(unsigned a, unsigned b, unsigned selector) { return __byte_perm(a, b, selector); }

// c + the sum of the products of four signed bytes.
QAIG_DEVICE int add_dot(unsigned a, unsigned b, int c) {
    int d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// -- 16-bit floats

QAIG_DEVICE float low_float(F16, unsigned v) {
    float f;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }" : "=f"(f) : "r"(v));
    return f;
}
QAIG_DEVICE float high_float(F16, unsigned v) {
    float f;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high; }" : "=f"(f) : "r"(v));
    return f;
}
QAIG_DEVICE float low_float(BF16, unsigned v) { return float_of(v << 16); }
QAIG_DEVICE float high_float(BF16, unsigned v) { return float_of(v & 0xffff0000u); }

// To the nearest, ties to even.
QAIG_DEVICE unsigned rounded(F16, float f) {
    unsigned short h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}
QAIG_DEVICE unsigned rounded(BF16, float f) {
#if __CUDA_ARCH__ >= 800
    unsigned short h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#else
    const unsigned u = bits_of(f);
    return f != f ? 0x7fffu : (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
#endif
}

// a * b + c of both halves, rounded once.
QAIG_DEVICE unsigned multiply_add(F16, unsigned a, unsigned b, unsigned c) {
    unsigned d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
QAIG_DEVICE unsigned multiply_add(BF16 type, unsigned a, unsigned b, unsigned c) {
#if __CUDA_ARCH__ >= 800
    unsigned d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#else
    const unsigned low = rounded(type, fmaf(low_float(type, a), low_float(type, b), low_float(type, c)));
    const unsigned high = rounded(type, fmaf(high_float(type, a), high_float(type, b), high_float(type, c)));
    return low | high << 16;
#endif
}

QAIG_DEVICE float round_to_integer(float x) { return rintf(x); }
QAIG_DEVICE float divide(float a, float b) { return __fdiv_rn(a, b); }
QAIG_DEVICE float multiply(float a, float b) { return __fmul_rn(a, b); }  // never contracted into an fma

// -- tensor cores
//
// All lanes of a warp must execute one of these together. `volatile` keeps the compiler from moving it into a branch.

// c += a b for a [16, 16], b [16, 8], c [16, 8]: mma.m16n8k16 with sums in float32.
QAIG_DEVICE void multiply_tiles(F16, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

QAIG_DEVICE void multiply_tiles(BF16 type, float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    static_cast<void>(type);
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    // No tensor core takes bfloat16. The four lanes of a row exchange their values by shuffles.
    const int lane = threadIdx.x % 32, row = lane / 4 * 4, column = lane % 4 * 8;
#pragma unroll 1  // unrolled, the code would be several times as long as that of others
    for (int t = 0; t < 4; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned top = shuffle(a[2 * half], row + t), bottom = shuffle(a[2 * half + 1], row + t);
            const unsigned left = shuffle(half ? b1 : b0, column + t), right = shuffle(half ? b1 : b0, column + 4 + t);
            c[0] = fmaf(low_float(type, top), low_float(type, left), c[0]);
            c[0] = fmaf(high_float(type, top), high_float(type, left), c[0]);
            c[1] = fmaf(low_float(type, top), low_float(type, right), c[1]);
            c[1] = fmaf(high_float(type, top), high_float(type, right), c[1]);
            c[2] = fmaf(low_float(type, bottom), low_float(type, left), c[2]);
            c[2] = fmaf(high_float(type, bottom), high_float(type, left), c[2]);
            c[3] = fmaf(low_float(type, bottom), low_float(type, right), c[3]);
            c[3] = fmaf(high_float(type, bottom), high_float(type, right), c[3]);
        }
    }
#endif
}

// c += a b for signed bytes a [16, 32], b [32, 8] and integers c [16, 8]: mma.m16n8k32. Missing before 8.0.
QAIG_DEVICE void multiply_byte_tiles(unsigned (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace cuda
}  // namespace qaig

#endif
