/*
 * The call of a block hook, in translated code, becomes a count-down that calls only when it comes to zero, as ftrace
 * patches the calls of a kernel's functions: the call alone makes a loop of two instructions a third slower.
 *
 * unicorn emits, at the start of each block:        what becomes of it:
 *     mov  $uc, %rdi                                    mov  $counter, %rdi
 *     mov  $address, %rsi                               subl $1, (%rdi); jnz 1f
 *     mov  $size, %edx                                  (as before: all but the first two arguments)
 *     mov  $data, %rcx
 *     call hook                                     1:
 *
 * Only a site of exactly this form is changed, by the thread that runs it; every other one goes on calling.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__x86_64__)

enum { MOV_64 = 10, MOV_32 = 5, LEA = 7, CALL = 5, COUNT = 5, NOP = 0x90 };
enum { RCX = 1, RDX, RSI = 6, RDI };

/* Bytes of the instruction here that loads a constant into a register; 0: it is none. REX.W: 0x48. */
static int load_bytes(const uint8_t *at, int reg)
{
    if (at[0] == 0x48 && at[1] == 0xb8 + reg)
        return MOV_64;
    if (at[0] == 0xb8 + reg)
        return MOV_32;
    if (at[0] == 0x48 && at[1] == 0x8d && at[2] == (reg << 3 | 5))
        return LEA;
    if (at[0] == 0x48 && at[1] == 0xc7 && at[2] == 0xc0 + reg)
        return LEA;
    return 0;
}

/* Bytes of the call of this function that ends here: near, or by way of a pointer after the code. 0: it is none. */
static int call_bytes(const uint8_t *after, const void *function)
{
    int32_t distance;
    const void *called;

    memcpy(&distance, after - sizeof distance, sizeof distance);
    if (after[-CALL] == 0xe8 && after + distance == (const uint8_t *)function)
        return CALL;
    if (after[-CALL - 1] != 0xff || after[-CALL] != 0x15)
        return 0;
    memcpy(&called, after + distance, sizeof called);
    return called == function ? CALL + 1 : 0;
}

/* Emits a load of this pointer into RDI as unicorn does: 5 bytes below 4 GiB, where a non-PIE program has its heap. */
static int load_rdi(uint8_t *at, const void *pointer)
{
    if ((uintptr_t)pointer >> 32) {
        at[0] = 0x48;
        at[1] = 0xb8 + RDI;
        memcpy(at + 2, &pointer, sizeof pointer);
        return MOV_64;
    }
    at[0] = 0xb8 + RDI;
    memcpy(at + 1, &pointer, sizeof(uint32_t));
    return MOV_32;
}

/* The start of a site whose arguments end here, and the bytes of the first two; NULL: it has another form. */
static uint8_t *site_of(uint8_t *end, const void *uc, int *room)
{
    uint8_t first[MOV_64];
    int rdi = load_rdi(first, uc);

    for (int bytes = rdi + 3 * MOV_32; bytes <= rdi + 3 * MOV_64; bytes++) {
        uint8_t *start = end - bytes, *at = start + rdi;
        int rsi, rdx, rcx;
        if (!memcmp(start, first, rdi) && (rsi = load_bytes(at, RSI)) && (rdx = load_bytes(at += rsi, RDX)) &&
            (rcx = load_bytes(at += rdx, RCX)) && at + rcx == end) {
            *room = rdi + rsi;
            return start;
        }
    }
    return NULL;
}

/* Whether translated code can be patched: writes back the bytes that are there, and gets an error instead of SIGSEGV. */
static bool is_writable(uint8_t *start)
{
    uint8_t same[MOV_64];
    struct iovec from = {same, sizeof same}, to = {start, sizeof same};

    memcpy(same, start, sizeof same);
    return process_vm_writev(getpid(), &from, 1, &to, 1, 0) == (ssize_t)sizeof same;
}

bool count_at_call_site(void *return_address, const void *uc, const void *hook, uint32_t *counter)
{
    uint8_t *after = return_address, *start, patch[MOV_64 + COUNT];
    int call = call_bytes(after, hook), room, load = load_rdi(patch, counter);

    if (!call || !(start = site_of(after - call, uc, &room)) || load + COUNT > room || !is_writable(start))
        return false;
    const uint8_t count[COUNT] = {0x83, 0x2f, 1, 0x75, (uint8_t)(after - start - load - COUNT)};
    memcpy(patch + load, count, COUNT);
    memcpy(start, patch, load + COUNT);
    memset(start + load + COUNT, NOP, room - load - COUNT);
    return true;
}

#else

bool count_at_call_site(void *return_address, const void *uc, const void *hook, uint32_t *counter)
{
    (void)return_address, (void)uc, (void)hook, (void)counter;
    return false;
}

#endif
