// Fibers: what a thread of a block runs in.
#pragma once

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

constexpr int kStackBytes = 256 << 10;

struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    void start(char* stack, void (*entry)());  // the first change to it calls `entry`, which must not return
};

void change(Context& from, Context& to);  // goes on where `to` stopped

}  // namespace emulator
