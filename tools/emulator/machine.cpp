// Runs kernels: one block at a time, every thread a fiber, the next one chosen at random whenever one waits.
#include "machine.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "order.h"

namespace emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMostShared = 48 << 10;  // what needs no attribute
constexpr int kStatus = 1999;

// -- switching

#if defined(__x86_64__)
// Saves what a function must keep, and goes on where `to` stopped.
extern "C" void qaig_switch(void** from, void* to);
asm(R"(.text
.globl qaig_switch
.type qaig_switch, @function
qaig_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size qaig_switch, . - qaig_switch
)");

struct Context {
    void* stack_pointer = nullptr;
    void start(char* stack, void (*entry)()) {
        auto** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        top -= 6;
        std::fill(top, top + 6, nullptr);
        stack_pointer = top;
    }
};
void change(Context& from, Context& to) { qaig_switch(&from.stack_pointer, to.stack_pointer); }
#else
struct Context {
    ucontext_t context;
    void start(char* stack, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = kStackBytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
};
void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

// -- state

struct Copy {
    char* to;
    const char* from;
    int size;
};

struct Thread {
    Context context;
    std::unique_ptr<char[]> stack;
    int index = 0;
    bool done = false;
    int static_bytes = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
};

struct Warp {
    int arrived = 0, gone = 0, barriers = 0;
    Compute compute = nullptr;
    alignas(16) unsigned char in[kLanes][kMostBytes], out[kLanes][kMostBytes];
};

// Who last touched four bytes of shared memory, and between which barriers. Threads count from 1; 0 is nobody.
enum class Content : char { nothing, on_its_way, there };
struct Moment {  // barriers of the block and of the thread's warp that came before
    int block = 0, warp = 0;
};
struct Shadow {
    Content content = Content::nothing;
    int writer = 0, reader = 0;  // the last ones
    Moment written, read;
    bool many_readers = false, many_warps = false;  // since the last barrier that all of them met at
};

struct Range {
    const char *begin, *end;
    bool writable;
};

std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<int> ready, at_barrier;
std::vector<Shadow> shadows;
std::vector<Range> ranges;
alignas(1024) char shared[kMostShared + 4096];
int shared_bytes, dynamic_bytes, epoch, alive;
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
    for (const auto& group : current->groups) {
        if (!group.empty()) {
            fail("a thread ended before its copies were waited for");
        }
    }
    if (!current->open.empty()) {
        fail("a thread ended before its copies were waited for");
    }
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
    std::memset(shared, 0xCD, sizeof shared);
    shadows.assign(sizeof shared / 4, Shadow());
    ready.clear(), at_barrier.clear();
    begin_block_order(static_cast<int>(warps.size()));
    epoch = 1, alive = count;
    for (int i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.index = i, t.done = false, t.static_bytes = 0;
        t.open.clear(), t.groups.clear();
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

void* dynamic_shared() { return shared; }

void* static_shared(int size) {
    const int at = dynamic_bytes + current->static_bytes;
    current->static_bytes += (size + 15) / 16 * 16;
    shared_bytes = std::max(shared_bytes, dynamic_bytes + current->static_bytes);
    if (shared_bytes > kMostShared) {
        fail("more than 48 KiB of shared memory");
    }
    return shared + at;
}

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

namespace {

Shadow* shadows_of(const void* p, int size) {
    const auto at = static_cast<const char*>(p) - shared;
    if (reinterpret_cast<uintptr_t>(p) % std::max(size, 4)) {
        fail("misaligned access to shared memory");
    }
    if (at < 0 || at + size > shared_bytes) {
        fail("an access outside of shared memory");
    }
    return &shadows[at / 4];
}

int warp_of(int thread) { return (thread - 1) / kLanes; }

Moment now(int thread) { return {epoch, warps[warp_of(thread)].barriers}; }

// Whether no barrier lies between what another thread did then, and this one now.
bool beside(int other, const Moment& then, int thread) {
    const bool parted = warp_of(other) == warp_of(thread) && then.warp < now(thread).warp;
    return other && other != thread && then.block == epoch && !parted;
}

void note_write(Shadow& s, int thread, Content content) {
    bool read = beside(s.reader, s.read, thread);
    if (s.read.block == epoch && (s.many_warps || (s.many_readers && s.read.warp == now(thread).warp))) {
        read = true;
    }
    if (read || beside(s.writer, s.written, thread)) {
        fail("race: a thread writes to shared memory what another one used, without a barrier between them");
    }
    if (s.content == Content::on_its_way) {
        fail("shared memory is written while a copy into it is on its way");
    }
    s.writer = thread, s.written = now(thread), s.content = content;
}

void note_read(Shadow& s, int thread) {
    if (beside(s.writer, s.written, thread)) {
        fail("race: a thread reads what another one wrote to shared memory, without a barrier between them");
    }
    const bool others = beside(s.reader, s.read, thread);
    s.many_warps = s.read.block == epoch && s.reader && (s.many_warps || warp_of(s.reader) != warp_of(thread));
    s.many_readers = others || (s.many_readers && s.read.block == epoch && s.read.warp == now(thread).warp);
    s.reader = thread, s.read = now(thread);
}

}  // namespace

void check_shared(const void* p, int size, bool write) {
    Shadow* s = shadows_of(p, size);
    const int thread = current->index + 1;
    for (int i = 0; i < std::max(size / 4, 1); i++, s++) {
        if (write) {
            note_write(*s, thread, Content::there);
            continue;
        }
        if (s->content != Content::there) {
            fail(s->content == Content::nothing ? "shared memory is read before it is written"
                                                : "shared memory is read before its copy was waited for");
        }
        note_read(*s, thread);
    }
}

void count_warp_barrier() { warps[current->index / kLanes].barriers++; }

void copy_async(void* to, const void* from, int size) {
    if (from) {
        check_global(from, size, false);
    }
    Shadow* s = shadows_of(to, size);
    for (int i = 0; i < size / 4; i++) {
        note_write(s[i], current->index + 1, Content::on_its_way);
    }
    current->open.push_back({static_cast<char*>(to), static_cast<const char*>(from), size});
}

void commit_copies() {
    current->groups.push_back(std::move(current->open));
    current->open.clear();
}

// Copies land as late as they may.
void wait_copies(int pending) {
    auto& groups = current->groups;
    while (static_cast<int>(groups.size()) > pending) {
        for (const Copy& c : groups.front()) {
            c.from ? std::memcpy(c.to, c.from, c.size) : std::memset(c.to, 0, c.size);
            for (int i = 0; i < c.size / 4; i++) {
                shadows[(c.to - shared) / 4 + i].content = Content::there;
            }
        }
        groups.pop_front();
    }
}

void block_barrier() {
    at_barrier.push_back(current->index);
    if (static_cast<int>(at_barrier.size()) == alive) {
        epoch++;
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
    dynamic_bytes = shared_bytes = bytes;
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
