/* Calls a function in a separate page, at 2M, for as long as it returns 42. When the page is punched under it, it is
 * zeros: ADD [RAX], AL, up to the next page, where a RET is. */
#include "guest.h"

enum { CODE = 2 << 20, SCRATCH = 3 << 20 };

static const uint8_t forty_two[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */

static uint32_t call(uint64_t address)
{
    uint64_t rax = SCRATCH;

    __asm__ volatile("call *%1" : "+a"(rax) : "r"(address) : "memory");
    return rax;
}

void main(uint64_t cpu)
{
    (void)cpu;
    for (unsigned i = 0; i < sizeof(forty_two); i++)
        ((volatile uint8_t *)CODE)[i] = forty_two[i];
    *(volatile uint8_t *)(CODE + PAGE) = 0xc3;
    put("punched: running\n");
    while (call(CODE) == 42)
        ;
    put("punched: gone\n");
}
