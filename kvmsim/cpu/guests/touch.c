/* Writes a pattern to every page of [4M, 8M), and verifies all of it, round after round; halts after each. */
#include "guest.h"

enum { FIRST = 4 << 20, END = 8 << 20 };

static uint64_t pattern(uint64_t address, uint64_t round)
{
    return (address + round) * 0x9e3779b97f4a7c15ull;
}

void main(uint64_t cpu)
{
    (void)cpu;
    for (uint64_t round = 1;; round++) {
        uint64_t bad = 0;
        for (uint64_t page = FIRST; page < END; page += PAGE)
            for (uint64_t word = page; word < page + PAGE; word += 512)
                *at(word) = pattern(word, round);
        for (uint64_t page = FIRST; page < END; page += PAGE)
            for (uint64_t word = page; word < page + PAGE; word += 512)
                if (*at(word) != pattern(word, round)) {
                    if (!bad) {
                        put("touch: bad at ");
                        put_hex(word);
                        put("\n");
                    }
                    bad++;
                }
        put(bad ? "touch: failed\n" : "touch: ok\n");
        halt();
    }
}
