// Shared memory of the block that runs: who used it between which barriers, and which copies into it are on their way.
#pragma once

namespace emulator {

constexpr int kMostShared = 48 << 10;  // what needs no attribute

void begin_shared_memory(int dynamic_bytes);  // of a launch
void begin_block_shared_memory(int threads);  // of its next block
void note_block_barrier();                    // all threads of the block have met
void check_all_copies_waited_for();           // by the current thread, which ends

}  // namespace emulator
