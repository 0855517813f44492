/* Says hello, and halts. */
#include "guest.h"

void main(uint64_t cpu)
{
    put("hello from vCPU ");
    put_hex(cpu);
    put("\n");
}
