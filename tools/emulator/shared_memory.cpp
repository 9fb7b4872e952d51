// A shadow of every four bytes tells reads of what was never written or still is on its way, and races.
#include "shared_memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "machine.h"

namespace emulator {
namespace {

struct Copy {
    char* to;
    const char* from;
    int size;
};

struct Thread {
    int static_bytes = 0;
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
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

std::vector<Thread> threads;
std::vector<int> warp_barriers;
std::vector<Shadow> shadows;
alignas(1024) char shared[kMostShared + 4096];
int shared_bytes, dynamic_bytes, epoch;

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

int current_thread() { return static_cast<int>(thread_index().x) + 1; }
int warp_of(int thread) { return (thread - 1) / kLanes; }

Moment now(int thread) { return {epoch, warp_barriers[warp_of(thread)]}; }

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

void begin_shared_memory(int bytes) { dynamic_bytes = shared_bytes = bytes; }

void begin_block_shared_memory(int count) {
    if (static_cast<int>(threads.size()) < count) {
        threads.resize(count);
    }
    for (Thread& t : threads) {
        t.static_bytes = 0, t.open.clear(), t.groups.clear();
    }
    warp_barriers.assign((count + kLanes - 1) / kLanes, 0);
    std::memset(shared, 0xCD, sizeof shared);
    shadows.assign(sizeof shared / 4, Shadow());
    epoch = 1;
}

void note_block_barrier() { epoch++; }

void check_all_copies_waited_for() {
    const Thread& t = threads[thread_index().x];
    const auto empty = [](const std::vector<Copy>& copies) { return copies.empty(); };
    if (!t.open.empty() || !std::all_of(t.groups.begin(), t.groups.end(), empty)) {
        fail("a thread ended before its copies were waited for");
    }
}

void* dynamic_shared() { return shared; }

void* static_shared(int size) {
    int& bytes = threads[thread_index().x].static_bytes;
    const int at = dynamic_bytes + bytes;
    bytes += (size + 15) / 16 * 16;
    shared_bytes = std::max(shared_bytes, dynamic_bytes + bytes);
    if (shared_bytes > kMostShared) {
        fail("more than 48 KiB of shared memory");
    }
    return shared + at;
}

void check_shared(const void* p, int size, bool write) {
    Shadow* s = shadows_of(p, size);
    const int thread = current_thread();
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

void count_warp_barrier() { warp_barriers[thread_index().x / kLanes]++; }

void copy_async(void* to, const void* from, int size) {
    if (from) {
        check_global(from, size, false);
    }
    Shadow* s = shadows_of(to, size);
    for (int i = 0; i < size / 4; i++) {
        note_write(s[i], current_thread(), Content::on_its_way);
    }
    threads[thread_index().x].open.push_back({static_cast<char*>(to), static_cast<const char*>(from), size});
}

void commit_copies() {
    Thread& t = threads[thread_index().x];
    t.groups.push_back(std::move(t.open));
    t.open.clear();
}

// Copies land as late as they may.
void wait_copies(int pending) {
    auto& groups = threads[thread_index().x].groups;
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

}  // namespace emulator
