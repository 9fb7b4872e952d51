// Distributes chunks of work over torch's threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "cpu/types.h"

namespace qaig {

// Calls work(begin, end) for chunks of [0, size). Threads take chunks one by one, so a slower thread takes fewer.
// make() is called once in every thread, and returns its `work`.
template <class Make>
void parallel_chunks(const Parallel& parallel, int64_t size, int64_t chunk, Make make) {
    const int64_t chunks = (size + chunk - 1) / chunk;
    struct Context {
        Make& make;
        int64_t size, chunk, chunks;
        std::atomic<int64_t> next{0};
    } context{make, size, chunk, chunks};
    const Body body = [](void* memory, int64_t begin, int64_t end) {
        auto& c = *static_cast<Context*>(memory);
        auto work = c.make();
        for (int64_t worker = begin; worker < end; worker++) {
            for (int64_t i; (i = c.next.fetch_add(1, std::memory_order_relaxed)) < c.chunks;) {
                work(i * c.chunk, std::min((i + 1) * c.chunk, c.size));
            }
        }
    };
    const int64_t workers = std::min<int64_t>(parallel.threads, chunks);
    if (workers <= 1) {
        body(&context, 0, 1);
    } else {
        parallel.run(workers, &context, body);
    }
}

}  // namespace qaig
