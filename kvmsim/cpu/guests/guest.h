/* What a guest kernel has: a console at a port, the calls to the TDX module and to KVM, memory by alias. */
#include <stdint.h>

enum { PAGE = 4096 };
enum { SUCCESS = 0, RETRY = 1, MAX_RETRIES = 3 };
#define INVALID_OPERAND (1ull << 63)

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "d"(port));
}

static inline void put(const char *text)
{
    while (*text)
        out8(0x3f8, *text++);
}

static inline void put_hex(uint64_t value)
{
    put("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        if (value >> shift || !shift)
            out8(0x3f8, "0123456789abcdef"[value >> shift & 15]);
}

static inline void halt(void)
{
    __asm__ volatile("hlt" : : : "memory");
}

static inline void relax(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* TDG.VP.INFO: the last bit of a guest physical address is the SHARED bit. */
static inline uint64_t shared_bit(void)
{
    uint64_t rax = 1, rcx = 0;

    __asm__ volatile("tdcall" : "+a"(rax), "+c"(rcx) : : "rdx", "r8", "r9", "r10", "r11", "memory");
    return 1ull << ((rcx & 63) - 1);
}

/* TDG.VP.VMCALL: the status, and in *r11 what comes back there. */
static inline uint64_t tdvmcall(uint64_t *leaf_r11, uint64_t a12, uint64_t a13)
{
    register uint64_t r10 __asm__("r10") = 0;
    register uint64_t r11 __asm__("r11") = *leaf_r11;
    register uint64_t r12 __asm__("r12") = a12;
    register uint64_t r13 __asm__("r13") = a13;
    uint64_t rax = 0;

    __asm__ volatile("tdcall" : "+a"(rax), "+r"(r10), "+r"(r11) : "c"(0xfc00), "r"(r12), "r"(r13) : "memory");
    *leaf_r11 = r11;
    return r10;
}

/* MapGPA, as Linux's tdx_map_gpa() makes it: RETRY goes on where R11 says, and retries are bounded. */
static inline int map_gpa(uint64_t gpa, uint64_t size, uint64_t alias)
{
    uint64_t at = gpa | alias, end = at + size;
    int retries = 0;

    while (retries < MAX_RETRIES) {
        uint64_t r11 = 0x10001, status = tdvmcall(&r11, at, end - at);
        if (status != RETRY)
            return status == SUCCESS;
        if (r11 < at || r11 >= end)
            return 0;
        retries = r11 == at ? retries + 1 : 0;
        at = r11;
    }
    return 0;
}

/* TDG.MEM.PAGE.ACCEPT of a page: the status. */
static inline uint64_t accept(uint64_t gpa)
{
    uint64_t rax = 6;

    __asm__ volatile("tdcall" : "+a"(rax) : "c"(gpa) : "rdx", "r8", "r9", "r10", "r11", "memory");
    return rax;
}

static inline volatile uint64_t *at(uint64_t address)
{
    return (volatile uint64_t *)address;
}
