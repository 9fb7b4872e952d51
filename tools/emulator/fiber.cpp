// Changes from fiber to fiber: by hand on x86-64, by ucontext elsewhere.
#include "fiber.h"

#include <algorithm>

namespace emulator {

#if defined(__x86_64__)
namespace {

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

}  // namespace

void Context::start(char* stack, void (*entry)()) {
    auto** top = reinterpret_cast<void**>(stack + kStackBytes - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    top -= 6;
    std::fill(top, top + 6, nullptr);
    stack_pointer = top;
}

void change(Context& from, Context& to) { qaig_switch(&from.stack_pointer, to.stack_pointer); }
#else
void Context::start(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
#endif

}  // namespace emulator
