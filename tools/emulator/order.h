// What a thread may know of other blocks' stores to global memory, as the rules of PTX's memory model have it.
//
// A store is known to its own thread, and to the other lanes once all have met at a barrier. A thread that fences, then
// increments a counter, releases to whoever increments that counter later what was known to it when it fenced. Who does,
// then fences, has acquired it, and so have the lanes that it meets at a barrier after that. A shuffle is no barrier.
#pragma once

namespace emulator {

void begin_order();                 // of a launch
void begin_block_order(int warps);  // of its next block
void note_store(const void* p);     // by the current thread, as are all below
void note_fence();
void note_increment(const void* counter);
void note_load_from_others(const void* p);  // fails if what was stored there is not known to the thread
void meet(int warp);                        // all lanes of a warp of the block

}  // namespace emulator
