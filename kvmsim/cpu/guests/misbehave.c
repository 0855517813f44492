/* What a guest must not do, and what it is answered; it ends in an invalid opcode without a handler: a triple fault. */
#include "guest.h"

static void expect(const char *what, uint64_t got, uint64_t wanted)
{
    put("misbehave: ");
    put(what);
    put(got == wanted ? ": refused\n" : ": NOT refused, ");
    if (got != wanted) {
        put_hex(got);
        put("\n");
    }
}

static uint64_t map(uint64_t gpa, uint64_t size)
{
    uint64_t r11 = 0x10001;

    return tdvmcall(&r11, gpa, size);
}

void main(uint64_t cpu)
{
    uint64_t rax = 99, leaf = 0x12345;

    (void)cpu;
    expect("size 0", map(0x200000, 0), INVALID_OPERAND);
    expect("unaligned gpa", map(0x200001, PAGE), INVALID_OPERAND + 2);
    expect("unaligned size", map(0x200000, 1), INVALID_OPERAND + 2);
    expect("past the last address", map(1ull << 48, PAGE), INVALID_OPERAND);
    expect("unknown leaf", tdvmcall(&leaf, 0, 0), INVALID_OPERAND + 3);
    __asm__ volatile("tdcall" : "+a"(rax) : : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
    expect("unknown call", rax, 0xc000010000000000ull);
    rax = 77;
    __asm__ volatile("vmcall" : "+a"(rax) : : "memory");
    expect("unknown hypercall", rax, -1000ull);
    __asm__ volatile("ud2");
}
