/* Two vCPUs count under a spinlock in private memory; the one that ends last prints the sum. */
#include "guest.h"

enum { EACH = 20000 };

static volatile uint32_t lock;
static volatile uint64_t count;
static volatile uint32_t ended;

void main(uint64_t cpu)
{
    (void)cpu;
    for (int i = 0; i < EACH; i++) {
        while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
            relax();
        count = count + 1;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
    if (__atomic_add_fetch(&ended, 1, __ATOMIC_SEQ_CST) == 2)
        put(count == 2 * EACH ? "spinlock: ok\n" : "spinlock: lost updates\n");
}
