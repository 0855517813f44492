/* The conversion loop: pages of [8M, 8M + 64K) become shared, are written, become private again, are accepted, and read
 * as zeros: MapGPA with RETRY and R11. */
#include "guest.h"

enum { FIRST = 8 << 20, SIZE = 64 << 10, ROUNDS = 8 };

static int fail(const char *what, uint64_t where)
{
    put("convert: ");
    put(what);
    put(" at ");
    put_hex(where);
    put("\n");
    return 0;
}

static int round_trip(uint64_t shared, uint64_t round)
{
    for (uint64_t page = FIRST; page < FIRST + SIZE; page += PAGE)
        *at(page) = page;
    if (!map_gpa(FIRST, SIZE, shared))
        return fail("not shared", FIRST);
    for (uint64_t page = FIRST; page < FIRST + SIZE; page += PAGE) {
        *at(page | shared) = page + round;
        if (*at(page | shared) != page + round)
            return fail("shared memory does not hold", page);
    }
    if (!map_gpa(FIRST, SIZE, 0))
        return fail("not private", FIRST);
    for (uint64_t page = FIRST; page < FIRST + SIZE; page += PAGE) {
        if (accept(page))
            return fail("not accepted", page);
        if (*at(page))
            return fail("a new private page is not zero", page);
    }
    return 1;
}

void main(uint64_t cpu)
{
    uint64_t shared = shared_bit(), round = 0;

    (void)cpu;
    while (round < ROUNDS && round_trip(shared, round))
        round++;
    put(round == ROUNDS ? "convert: ok\n" : "convert: failed\n");
}
