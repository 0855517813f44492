/* A bounce buffer ring, as swiotlb with a device behind it: vCPU 0 is a driver with private memory, vCPU 1 a device that
 * reaches shared memory only. Requests are copied into slots of shared memory, answered there, and copied back. */
#include "guest.h"

enum { RING = 12 << 20, SLOTS = 8, REQUESTS = 64, WORDS = 64 };

struct slot {
    volatile uint64_t state; /* 0 free, 1 asked, 2 answered */
    volatile uint64_t words[WORDS];
};

static volatile uint64_t is_ready;

static struct slot *slot(uint64_t shared, uint64_t number)
{
    return (struct slot *)((RING | shared) + number % SLOTS * PAGE);
}

static void device(uint64_t shared)
{
    for (uint64_t number = 0; number < REQUESTS; number++) {
        struct slot *s = slot(shared, number);
        while (s->state != 1)
            relax();
        for (int i = 0; i < WORDS; i++)
            s->words[i] = ~s->words[i];
        __atomic_store_n(&s->state, 2, __ATOMIC_RELEASE);
    }
}

static int driver(uint64_t shared)
{
    static uint64_t asked[WORDS], answered[WORDS];

    for (uint64_t number = 0; number < REQUESTS; number++) {
        struct slot *s = slot(shared, number);
        for (int i = 0; i < WORDS; i++)
            s->words[i] = asked[i] = number * WORDS + i;
        __atomic_store_n(&s->state, 1, __ATOMIC_RELEASE);
        while (s->state != 2)
            relax();
        for (int i = 0; i < WORDS; i++)
            answered[i] = s->words[i];
        s->state = 0;
        for (int i = 0; i < WORDS; i++)
            if (answered[i] != ~asked[i])
                return 0;
    }
    return 1;
}

void main(uint64_t cpu)
{
    uint64_t shared = shared_bit();

    if (cpu) {
        while (!is_ready)
            relax();
        device(shared);
        return;
    }
    if (!map_gpa(RING, SLOTS * PAGE, shared)) {
        put("ring: not shared\n");
        return;
    }
    for (int i = 0; i < SLOTS; i++)
        slot(shared, i)->state = 0;
    is_ready = 1;
    put(driver(shared) ? "ring: ok\n" : "ring: failed\n");
}
