// Runs kernels: one block at a time, every thread a fiber, the next one chosen at random whenever one waits.
#include "machine.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "order.h"
#include "shared_memory.h"

namespace emulator {
namespace {

constexpr int kStatus = 1999;

struct Thread {
    Context context;
    std::unique_ptr<char[]> stack;
    int index = 0;
    bool done = false;
};

struct Warp {
    int arrived = 0, gone = 0;
    Compute compute = nullptr;
    alignas(16) unsigned char in[kLanes][kMostBytes], out[kLanes][kMostBytes];
};

struct Range {
    const char *begin, *end;
    bool writable;
};

std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<int> ready, at_barrier;
std::vector<Range> ranges;
int alive;
Thread* current;
Context scheduler;
Index block, grid;
Kernel kernel;
const void* argument;
std::string error;
std::mt19937_64 random(0);

void suspend() { change(current->context, scheduler); }

void entry() {
    kernel(argument);
    check_all_copies_waited_for();
    current->done = true;
    alive--;
    warps[current->index / kLanes].gone++;
    suspend();
}

void run_block(int count) {
    while (static_cast<int>(threads.size()) < count) {
        threads.emplace_back();
        threads.back().stack = std::make_unique<char[]>(kStackBytes);
    }
    warps.assign((count + kLanes - 1) / kLanes, Warp());
    begin_block_shared_memory(count);
    ready.clear(), at_barrier.clear();
    begin_block_order(static_cast<int>(warps.size()));
    alive = count;
    for (int i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.index = i, t.done = false;
        t.context.start(t.stack.get(), entry);
        ready.push_back(i);
    }
    while (error.empty() && !ready.empty()) {
        std::swap(ready[random() % ready.size()], ready.back());
        current = &threads[ready.back()];
        ready.pop_back();
        change(scheduler, current->context);
    }
    if (error.empty() && alive > 0) {
        error = "deadlock: not all threads reach a barrier";
    }
}

}  // namespace

Index thread_index() { return {static_cast<unsigned>(current->index), 0}; }
Index block_index() { return block; }
Index grid_size() { return grid; }

void fail(const char* message) {
    error = std::string(message) + " (block " + std::to_string(block.x) + ", " + std::to_string(block.y) + ", thread " +
            std::to_string(current->index) + ")";
    suspend();
    __builtin_unreachable();
}

void check_global(const void* p, int size, bool write) {
    const char* at = static_cast<const char*>(p);
    if (reinterpret_cast<uintptr_t>(p) % size) {
        fail("misaligned access to global memory");
    }
    for (const Range& r : ranges) {
        if (at >= r.begin && at + size <= r.end && (!write || r.writable)) {
            return;
        }
    }
    fail(write ? "a store outside of every buffer" : "a load outside of every buffer");
}

void block_barrier() {
    at_barrier.push_back(current->index);
    if (static_cast<int>(at_barrier.size()) == alive) {
        note_block_barrier();
        for (size_t i = 0; i < warps.size(); i++) {
            meet(static_cast<int>(i));
        }
        at_barrier.pop_back();
        ready.insert(ready.end(), at_barrier.begin(), at_barrier.end());
        at_barrier.clear();
        return;
    }
    suspend();
}

void warp_operation(Compute compute, const void* in, int in_size, void* out, int out_size) {
    Warp& w = warps[current->index / kLanes];
    const int lane = current->index % kLanes;
    if (w.gone) {
        fail("an operation of a whole warp after a lane of it ended");
    }
    if (w.arrived && w.compute != compute) {
        fail("lanes of a warp meet in different operations");
    }
    w.compute = compute;
    std::memcpy(w.in[lane], in, in_size);
    if (++w.arrived == kLanes) {
        compute(w.in, w.out);
        w.arrived = 0;
        for (int i = 0; i < kLanes; i++) {
            if (i != lane) {
                ready.push_back(current->index - lane + i);
            }
        }
    } else {
        suspend();
    }
    std::memcpy(out, w.out[lane], out_size);
}

int launch(Kernel run, const void* with, int grid_x, int grid_y, int count, int bytes) {
    kernel = run, argument = with, error.clear();
    grid = {static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y)};
    begin_shared_memory(bytes);
    begin_order();
    if (bytes > kMostShared || grid_x < 1 || grid_y < 1 || grid_y > 65535) {
        error = "the launch is refused: more than 48 KiB of shared memory, or an impossible grid";
        return kStatus;
    }
    std::vector<int> order(static_cast<size_t>(grid_x) * grid_y);
    for (size_t i = 0; i < order.size(); i++) {
        order[i] = static_cast<int>(i);
    }
    std::shuffle(order.begin(), order.end(), random);
    for (const int i : order) {
        block = {static_cast<unsigned>(i % grid_x), static_cast<unsigned>(i / grid_x)};
        run_block(count);
        if (!error.empty()) {
            return kStatus;
        }
    }
    return 0;
}

}  // namespace emulator

extern "C" {
int qaig_emulator_processors = 3;
int qaig_emulator_capability = 86;
unsigned long long qaig_emulator_capture = 0;  // which graph launches are captured in; 0: none

int qaig_cuda_device(int* processors, int* capability) {
    *processors = qaig_emulator_processors, *capability = qaig_emulator_capability;
    return 0;
}
const char* qaig_cuda_message(int) { return emulator::error.empty() ? "refused" : emulator::error.c_str(); }

// What stopped the last launch, or "".
const char* qaig_emulator_error() { return emulator::error.c_str(); }
void qaig_emulator_seed(unsigned long long seed) { emulator::random.seed(seed); }
// Buffers that kernels may touch: all others are out of bounds.
void qaig_emulator_allow(const void* begin, long long size, int writable) {
    const auto* p = static_cast<const char*>(begin);
    emulator::ranges.push_back({p, p + size, writable != 0});
}
void qaig_emulator_forbid_all() { emulator::ranges.clear(); }
}
