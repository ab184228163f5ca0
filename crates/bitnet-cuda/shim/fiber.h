// Stacks that take turns on one OS thread: the threads of a CUDA block.
#pragma once

#include <stddef.h>
#include <sys/mman.h>

#if !defined(__x86_64__) || defined(SHIM_UCONTEXT)
#include <ucontext.h>

namespace shim {

struct Fiber {
    ucontext_t context;

    void start(char *stack, size_t bytes, void (*main)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, main, 0);
    }
    // Leaves `from` here, to be gone on with later, and goes on with this one.
    void enter(Fiber &from) { swapcontext(&from.context, &context); }
};

} // namespace shim

#else

// void shim_switch(void **save, void *stack): pushes what a function must preserve, leaves the stack pointer in *save and does
// the reverse from `stack`. The floating-point modes are everywhere the same.
asm(R"(
.pushsection .text
.type shim_switch, @function
shim_switch:
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
.size shim_switch, .-shim_switch
.popsection
)");
extern "C" __attribute__((visibility("hidden"))) void shim_switch(void **save, void *stack);

namespace shim {

struct Fiber {
    void *stack;

    void start(char *bottom, size_t bytes, void (*main)()) {
        void **top = reinterpret_cast<void **>(bottom + bytes);
        *--top = nullptr; // main's return address, which keeps the stack aligned as after a call
        *--top = reinterpret_cast<void *>(main);
        for (int i = 0; i < 6; i++) *--top = nullptr;
        stack = top;
    }
    // Leaves `from` here, to be gone on with later, and goes on with this one.
    void enter(Fiber &from) { shim_switch(&from.stack, stack); }
};

} // namespace shim

#endif
