// Which stores of other blocks to global memory a thread may see, by the rules of PTX's memory model.
//
// A store is visible to its own thread, and to the other lanes after a barrier. A thread that fences and then increments
// a semaphore releases all stores that were visible to it at the fence. A thread that increments the semaphore later, and
// then fences, acquires them. So do the lanes that it meets at a later barrier. A shuffle is no barrier.
#pragma once

namespace emulator {

void begin_order();                 // of a launch
void begin_block_order(int warps);  // of its next block
void note_store(const void* p);     // by the current thread, as are all below
void note_fence();
void note_increment(const void* semaphore);
void note_load_from_others(const void* p);  // fails if what was stored there is not known to the thread
void meet(int warp);                        // all lanes of a warp of the block

}  // namespace emulator
