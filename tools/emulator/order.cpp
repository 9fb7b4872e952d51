// Knowledge as vectors of numbers of stores, one for each lane of the warp that made them. Blocks run one after the
// other, so what a block knew when it released outlives it.
#include "order.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace emulator {
namespace {

using Stores = std::array<int, kLanes>;  // of each lane, how many are known

struct Store {
    int block, thread, number;
};

struct Release {
    int block, warp;
    Stores stores;
};

using Acquired = std::map<const void*, size_t>;  // of each semaphore, how many of its releases

struct Lane {
    int stores = 0;
    Stores fenced = {};
    Acquired counted, acquired;  // incremented, and fenced after that
};

struct Warp {
    Stores met = {};    // known to all lanes
    Acquired acquired;  // by all lanes
    Lane lanes[kLanes];
};

std::vector<Warp> warps;
std::unordered_map<const void*, Store> stores;
std::map<const void*, std::vector<Release>> releases;

int block_number() {
    const Index b = block_index();
    return static_cast<int>(b.y * grid_size().x + b.x);
}
int thread_number() { return static_cast<int>(thread_index().x); }
Warp& warp() { return warps[thread_number() / kLanes]; }
Lane& lane() { return warp().lanes[thread_number() % kLanes]; }

void add(Acquired& to, const Acquired& from) {
    for (const auto& [semaphore, count] : from) {
        to[semaphore] = std::max(to[semaphore], count);
    }
}

bool has(const Acquired& acquired, const Store& store) {
    const int from = store.thread / kLanes;
    return std::any_of(acquired.begin(), acquired.end(), [&](const auto& of_counter) {
        const std::vector<Release>& released = releases[of_counter.first];
        return std::any_of(released.begin(), released.begin() + of_counter.second, [&](const Release& r) {
            return r.block == store.block && r.warp == from && r.stores[store.thread % kLanes] >= store.number;
        });
    });
}

}  // namespace

void begin_order() { stores.clear(), releases.clear(); }
void begin_block_order(int count) { warps.assign(count, Warp()); }

void note_store(const void* p) { stores[p] = {block_number(), thread_number(), ++lane().stores}; }

void note_fence() {
    Lane& l = lane();
    l.fenced = warp().met;
    l.fenced[thread_number() % kLanes] = l.stores;
    add(l.acquired, l.counted);
}

void note_increment(const void* semaphore) {
    std::vector<Release>& released = releases[semaphore];
    lane().counted[semaphore] = released.size();
    released.push_back({block_number(), thread_number() / kLanes, lane().fenced});
}

void note_load_from_others(const void* p) {
    const auto found = stores.find(p);
    if (found == stores.end()) {
        fail("a load of what no thread of this launch stored");
    }
    const Store& s = found->second;
    const bool own_warp = s.block == block_number() && s.thread / kLanes == thread_number() / kLanes;
    const bool own = own_warp && (s.thread == thread_number() || s.number <= warp().met[s.thread % kLanes]);
    if (!own && !has(lane().acquired, s) && !has(warp().acquired, s)) {
        fail("a load of what another thread stored without fences and barriers between them");
    }
}

void meet(int index) {
    Warp& w = warps[index];
    for (int i = 0; i < kLanes; i++) {
        w.met[i] = w.lanes[i].stores;
        add(w.acquired, w.lanes[i].acquired);
    }
}

}  // namespace emulator
