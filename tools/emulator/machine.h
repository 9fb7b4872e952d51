// A machine that runs kernels on a CPU: threads, barriers, memory.
//
// What a GPU would leave undefined is an error here: reading shared memory that was never written, or whose copy was
// not waited for; two threads at one place of shared memory without a barrier between them; reading what another block
// stored before that must be visible (order.h); a barrier not all threads reach; addresses that are misaligned or outside
// of every buffer.
#pragma once

struct Index {
    unsigned x, y;
};

namespace emulator {

constexpr int kLanes = 32;
constexpr int kMostBytes = 64;  // that a lane gives to or gets from an operation of its warp

Index thread_index();
Index block_index();
Index grid_size();

void* dynamic_shared();
void* static_shared(int size);  // the same place for all threads: they must ask for the same in the same order

// Stops the launch; does not return.
[[noreturn]] void fail(const char* message);

void check_global(const void* p, int size, bool write);
void check_shared(const void* p, int size, bool write);
void copy_async(void* shared, const void* global, int size);  // null: zeros
void commit_copies();
void wait_copies(int pending);
void block_barrier();
void count_warp_barrier();  // all lanes of the current thread's warp have met

// One operation of all lanes of a warp: `compute` turns 32 inputs into 32 outputs when the last lane has come.
using Compute = void (*)(const unsigned char (*in)[kMostBytes], unsigned char (*out)[kMostBytes]);
void warp_operation(Compute compute, const void* in, int in_size, void* out, int out_size);

using Kernel = void (*)(const void* argument);
int launch(Kernel run, const void* argument, int grid_x, int grid_y, int threads, int shared_bytes);

template <class In, class Out>
Out warp_operation(const In& in, Compute compute) {
    static_assert(sizeof(In) <= kMostBytes && sizeof(Out) <= kMostBytes);
    Out out;
    warp_operation(compute, &in, sizeof in, &out, sizeof out);
    return out;
}

}  // namespace emulator
