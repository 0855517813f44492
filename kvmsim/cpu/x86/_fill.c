/*
 * The TLB fill of an x86-64 vCPU, and the look at its kick word: what unicorn calls while guest code runs, without the
 * GIL. Nothing of unicorn is needed to build it: the two functions of unicorn that are called come as addresses.
 *
 * A fill walks the guest's page tables (none while CR3 is 0) and, for each guest physical address, the VM's EPT of the
 * alias that bit 51 names. It sets ACCESSED and DIRTY as a CPU does. What changes an EPT in Python closes the gate
 * first: no walk is under way then, so that no table is reused and no flag is lost under one.
 *
 * The structures are those of layout.py; sizes() lets it check that.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>

enum { UC_READ = 16, UC_WRITE = 17, UC_FETCH = 18 };
enum { EPT_READ = 1, EPT_WRITE = 2, EPT_EXECUTE = 4, EPT_LARGE = 0x80, EPT_ACCESSED = 0x100, EPT_DIRTY = 0x200 };
enum { PTE_PRESENT = 1, PTE_WRITE = 2, PTE_ACCESSED = 0x20, PTE_DIRTY = 0x40, PTE_LARGE = 0x80 };
enum { DIRECT, COPIED, WAITS };
enum { NONE, VIOLATION, NOT_MAPPED, NOT_COPIED, UNREACHABLE, GATE_CLOSED, PAGE_FAULT, NOT_CANONICAL, BEYOND };

#define PTE_NX (1ull << 63)
#define SHARED_BIT (1ull << 51)
#define GPA_END (1ull << 48)
#define PTE_ADDRESS 0x000ffffffffff000ull
#define CR0_WP (1ull << 16)
#define RFLAGS_IF (1ull << 9)
#define PAGE 4096
#define MAX_VCPUS 256
#define MAX_REGIONS 256
#define MAX_COPIES 64
#define MAX_SCRATCH 8
#define GUESSES 512
#define GUESS_SHIFT 21
#define CONFIDENT 4
#define EXECUTED 4096
#define SEEN 4096
#define SPINS 4096

struct region {
    uint64_t pfn, end, host, kind;
};

struct vcpu;

struct vm {
    uint64_t tables[2]; /* arenas, shared and private */
    uint64_t region_count;
    struct region regions[MAX_REGIONS];
    uint64_t executed[EXECUTED]; /* 1 + frame, hashed; code was fetched from it */
    uint64_t executed_count;
    uint64_t vcpu_count;
    struct vcpu *vcpus[MAX_VCPUS];
    uint32_t gate; /* closed while not 0 */
    uint32_t waiting; /* vCPUs that wait for their turn */
};

struct copy {
    uint64_t pfn;
    uint64_t dirty;
};

struct scratch {
    uint64_t va, paddr; /* of a page */
};

struct vcpu {
    struct vm *vm;
    void (*emu_stop)(void *);
    int (*reg_read)(void *, int, void *);
    void *uc;
    uint32_t *kicked;
    uint8_t *immediate_exit;
    uint64_t cr0_id, cr3_id, rflags_id; /* unicorn's numbers of registers */
    uint64_t slice, blocks; /* of this turn, but for those of the step under way */
    uint64_t copies_paddr, copies_host;
    uint64_t copy_count;
    struct copy copies[MAX_COPIES];
    uint64_t scratch_count;
    struct scratch scratch[MAX_SCRATCH];
    uint64_t fills, sites; /* since the start; sites: blocks that count by themselves */
    uint64_t va, gpa, pfn; /* of the refusal */
    uint64_t guesses[GUESSES]; /* from a GPA to its address in this process, by 2 MiB, hashed */
    uint32_t of_table; /* the gpa is of an entry of the guest's page tables */
    uint32_t refusal, access, error_code;
    uint32_t stopped; /* by a hook */
    uint32_t flush_tlb, flush_code; /* before it runs again */
    uint32_t ran_copies; /* code was fetched from a copy */
    uint32_t walking;
    uint32_t wants_window; /* an interrupt is to come as soon as the guest allows it */
    uint32_t confidence; /* guesses that were right in a row, up to CONFIDENT */
    uint32_t looks_for_ports; /* in blocks that it has not seen; else stops do not stop */
    uint32_t looks_for_irets; /* likewise */
    uint32_t until_look; /* blocks; counted down in translated code */
    uint32_t block_bytes;
    uint32_t padding;
    uint64_t block; /* not seen yet */
    uint64_t seen_count;
    uint64_t seen[SEEN]; /* blocks without port instructions, or that stop before each; by their bytes and address */
};

enum { GOES_ON, KICKED, UNSEEN, AT_STOP }; /* vcpu.stopped */

static bool enter_walk(struct vcpu *vcpu)
{
    for (int spin = 0; spin < SPINS; spin++) {
        __atomic_store_n(&vcpu->walking, 1, __ATOMIC_SEQ_CST);
        if (!__atomic_load_n(&vcpu->vm->gate, __ATOMIC_SEQ_CST))
            return true;
        __atomic_store_n(&vcpu->walking, 0, __ATOMIC_SEQ_CST);
        sched_yield();
    }
    return false;
}

static void leave_walk(struct vcpu *vcpu)
{
    __atomic_store_n(&vcpu->walking, 0, __ATOMIC_SEQ_CST);
}

static bool refuse(struct vcpu *vcpu, int refusal, uint64_t gpa)
{
    vcpu->refusal = refusal;
    vcpu->gpa = gpa;
    return false;
}

static const struct region *region_of(const struct vm *vm, uint64_t pfn)
{
    for (uint64_t i = 0; i < vm->region_count; i++)
        if (vm->regions[i].pfn <= pfn && pfn < vm->regions[i].end)
            return &vm->regions[i];
    return NULL;
}

static struct copy *copy_of(struct vcpu *vcpu, uint64_t pfn)
{
    for (uint64_t i = 0; i < vcpu->copy_count; i++)
        if (vcpu->copies[i].pfn == pfn)
            return &vcpu->copies[i];
    return NULL;
}

/* Code is run from this frame: no other vCPU may write to it unseen. */
static void executed(struct vcpu *vcpu, uint64_t pfn)
{
    struct vm *vm = vcpu->vm;
    uint64_t at = (pfn * 0x9e3779b97f4a7c15ull) >> 52;

    while (vm->executed[at] && vm->executed[at] != pfn + 1)
        at = (at + 1) % EXECUTED;
    if (vm->executed[at])
        return;
    if (vm->executed_count >= EXECUTED * 3 / 4) {
        for (at = 0; at < EXECUTED; at++)
            vm->executed[at] = 0;
        vm->executed_count = 0;
        vcpu->flush_code = vcpu->flush_tlb = 1;
        for (uint64_t i = 0; i < vm->vcpu_count; i++)
            vm->vcpus[i]->flush_code = vm->vcpus[i]->flush_tlb = 1;
        at = (pfn * 0x9e3779b97f4a7c15ull) >> 52;
    }
    vm->executed[at] = pfn + 1;
    vm->executed_count++;
    for (uint64_t i = 0; i < vm->vcpu_count; i++)
        if (vm->vcpus[i] != vcpu)
            vm->vcpus[i]->flush_tlb = 1;
}

/* It is written to: what others have translated of it is out of date, and each turn of this vCPU asks again. */
static void written(struct vcpu *vcpu, uint64_t pfn)
{
    struct vm *vm = vcpu->vm;
    uint64_t at = (pfn * 0x9e3779b97f4a7c15ull) >> 52;

    if (vm->vcpu_count < 2)
        return;
    while (vm->executed[at] && vm->executed[at] != pfn + 1)
        at = (at + 1) % EXECUTED;
    if (!vm->executed[at])
        return;
    for (uint64_t i = 0; i < vm->vcpu_count; i++)
        if (vm->vcpus[i] != vcpu)
            vm->vcpus[i]->flush_code = 1;
    vcpu->flush_tlb = 1;
}

static uint64_t *leaf_of(uint64_t *words, uint64_t gfn, uint64_t *pages)
{
    uint64_t table = 1;

    for (int level = 3;; level--) {
        uint64_t *word = words + (table << 9) + (gfn >> (9 * level) & 511);
        if (!*word)
            return NULL;
        *pages = 1ull << (9 * level);
        if (!level || *word & EPT_LARGE)
            return word;
        table = *word >> 12;
    }
}

/* A guest physical address to where unicorn has it (paddr), where this process has it, and what may be done there. */
static bool reach(struct vcpu *vcpu, uint64_t gpa, int access, uint64_t *paddr, uint8_t **host, int *rights)
{
    struct vm *vm = vcpu->vm;
    uint64_t at = gpa & ~SHARED_BIT, pages = 1, gfn = at >> 12;

    if (at >= GPA_END)
        return refuse(vcpu, BEYOND, gpa);
    uint64_t *leaf = leaf_of((uint64_t *)(uintptr_t)vm->tables[!(gpa & SHARED_BIT)], gfn, &pages);
    int needed = access == UC_WRITE ? EPT_WRITE : access == UC_FETCH ? EPT_EXECUTE : EPT_READ;
    if (!leaf || !(*leaf & needed))
        return refuse(vcpu, VIOLATION, gpa);
    uint64_t pfn = (*leaf >> 12) + (gfn & (pages - 1));
    const struct region *region = region_of(vm, pfn);
    vcpu->pfn = pfn;
    if (!region)
        return refuse(vcpu, NOT_MAPPED, gpa);
    if (region->kind == WAITS)
        return refuse(vcpu, UNREACHABLE, gpa);
    uint64_t frame = (uint64_t)pfn << 12, where = region->host + ((pfn - region->pfn) << 12);
    struct copy *copy = NULL;
    if (region->kind == COPIED) {
        copy = copy_of(vcpu, pfn);
        if (!copy)
            return refuse(vcpu, NOT_COPIED, gpa);
        frame = vcpu->copies_paddr + ((uint64_t)(copy - vcpu->copies) << 12);
        where = vcpu->copies_host + ((uint64_t)(copy - vcpu->copies) << 12);
    }
    uint64_t flags = access == UC_WRITE ? EPT_ACCESSED | EPT_DIRTY : EPT_ACCESSED;
    if ((*leaf & flags) != flags)
        __atomic_fetch_or(leaf, flags, __ATOMIC_SEQ_CST);
    if (copy && access == UC_WRITE)
        copy->dirty = 1;
    *rights = EPT_READ | (*leaf & EPT_EXECUTE);
    if (*leaf & EPT_WRITE && *leaf & EPT_DIRTY && (!copy || copy->dirty))
        *rights |= EPT_WRITE;
    if (access == UC_FETCH) {
        executed(vcpu, pfn);
        if (copy)
            vcpu->ran_copies = 1;
    } else if (*rights & EPT_WRITE) {
        written(vcpu, pfn);
    }
    *paddr = frame | (gpa & (PAGE - 1));
    *host = (uint8_t *)(uintptr_t)(where + (gpa & (PAGE - 1)));
    return true;
}

static bool page_fault(struct vcpu *vcpu, int access, int present)
{
    vcpu->error_code = present | (access == UC_WRITE) << 1 | (access == UC_FETCH) << 4;
    return refuse(vcpu, PAGE_FAULT, 0);
}

/* The guest's own tables, four levels, at CPL 0. *rights: what they allow, not what the EPT does. */
static bool guest_walk(struct vcpu *vcpu, uint64_t cr3, uint64_t va, int access, uint64_t *gpa, int *rights)
{
    uint64_t table = cr3 & PTE_ADDRESS, cr0 = 0, ignored;
    bool writable = true, executable = true;
    int unused;

    vcpu->of_table = 1;
    if ((uint64_t)((int64_t)(va << 16) >> 16) != va)
        return refuse(vcpu, NOT_CANONICAL, va);
    vcpu->reg_read(vcpu->uc, vcpu->cr0_id, &cr0);
    for (int level = 3;; level--) {
        uint64_t at = table + ((va >> (12 + 9 * level) & 511) << 3), size = 1ull << (12 + 9 * level);
        uint8_t *host;
        if (!reach(vcpu, at, UC_READ, &ignored, &host, &unused))
            return false;
        uint64_t entry = *(uint64_t *)host;
        if (!(entry & PTE_PRESENT))
            return page_fault(vcpu, access, 0);
        writable = writable && entry & PTE_WRITE;
        executable = executable && !(entry & PTE_NX);
        bool is_leaf = !level || (level < 3 && entry & PTE_LARGE);
        if (is_leaf && ((access == UC_WRITE && !writable && cr0 & CR0_WP) || (access == UC_FETCH && !executable)))
            return page_fault(vcpu, access, 1);
        uint64_t set = is_leaf && access == UC_WRITE ? PTE_ACCESSED | PTE_DIRTY : PTE_ACCESSED;
        if ((entry & set) != set) {
            if (!reach(vcpu, at, UC_WRITE, &ignored, &host, &unused))
                return false;
            entry = __atomic_or_fetch((uint64_t *)host, set, __ATOMIC_SEQ_CST);
        }
        if (is_leaf) {
            *gpa = ((entry & PTE_ADDRESS) & -size) | (va & (size - 1));
            *rights = EPT_READ | (executable ? EPT_EXECUTE : 0);
            if ((writable || !(cr0 & CR0_WP)) && entry & PTE_DIRTY)
                *rights |= EPT_WRITE;
            vcpu->of_table = 0;
            return true;
        }
        table = entry & PTE_ADDRESS;
    }
}

static uint64_t *guess_of(struct vcpu *vcpu, uint64_t gpa)
{
    return &vcpu->guesses[gpa >> GUESS_SHIFT & (GUESSES - 1)];
}

/* Pages mostly have their frames in order. While they do, the processor's own TLB miss on the page is under way when
   the walk misses the caches on the leaf, which comes before. It is a prefetch: a wrong guess only takes time. */
static void guess(struct vcpu *vcpu, uint64_t gpa)
{
    if (vcpu->confidence == CONFIDENT)
        __builtin_prefetch((void *)(uintptr_t)(gpa + *guess_of(vcpu, gpa)));
}

static void learn(struct vcpu *vcpu, uint64_t gpa, const uint8_t *host)
{
    uint64_t *known = guess_of(vcpu, gpa), offset = (uint64_t)(uintptr_t)host - gpa;

    if (*known != offset)
        vcpu->confidence = 0;
    else if (vcpu->confidence < CONFIDENT)
        vcpu->confidence++;
    *known = offset;
}

static bool walk(struct vcpu *vcpu, uint64_t va, int access, uint64_t *gpa, uint64_t *paddr, uint8_t **host, int *rights)
{
    uint64_t cr3 = 0;
    int allowed = EPT_READ | EPT_WRITE | EPT_EXECUTE;

    vcpu->va = va;
    vcpu->of_table = 0;
    vcpu->access = access;
    if (!enter_walk(vcpu))
        return refuse(vcpu, GATE_CLOSED, 0);
    vcpu->reg_read(vcpu->uc, vcpu->cr3_id, &cr3);
    *gpa = va;
    bool done = !(cr3 & PTE_ADDRESS) || guest_walk(vcpu, cr3, va, access, gpa, &allowed);
    guess(vcpu, *gpa);
    done = done && reach(vcpu, *gpa, access, paddr, host, rights);
    if (done)
        learn(vcpu, *gpa, *host);
    leave_walk(vcpu);
    *rights &= allowed;
    return done;
}

struct tlb_entry {
    uint64_t paddr;
    uint32_t perms;
};

/* UC_HOOK_TLB_FILL. Never W with X: stores to a page that has X cost ten times as much. */
static bool fill(void *uc, uint64_t va, int access, struct tlb_entry *entry, void *data)
{
    struct vcpu *vcpu = data;
    uint64_t gpa, paddr;
    uint8_t *host;
    int rights = 0;

    (void)uc;
    vcpu->fills++;
    if (access != UC_FETCH)
        for (uint64_t i = 0; i < vcpu->scratch_count; i++)
            if (vcpu->scratch[i].va == (va & -(uint64_t)PAGE)) {
                entry->paddr = vcpu->scratch[i].paddr;
                entry->perms = EPT_READ | EPT_WRITE;
                return true;
            }
    if (!walk(vcpu, va, access, &gpa, &paddr, &host, &rights))
        return false;
    entry->paddr = paddr & -(uint64_t)PAGE;
    entry->perms = rights & (access == UC_FETCH ? EPT_READ | EPT_EXECUTE : EPT_READ | EPT_WRITE);
    return true;
}

enum { LOOK_EVERY = 128, SLICES_ALONE = 100 }; /* blocks; slices: some 20 ms, then signal handlers in Python run */

static bool window_is_open(struct vcpu *vcpu)
{
    uint64_t flags = 0;

    if (!vcpu->wants_window)
        return false;
    vcpu->reg_read(vcpu->uc, vcpu->rflags_id, &flags);
    return flags & RFLAGS_IF;
}

static void look_up(struct vcpu *vcpu)
{
    bool shares = __atomic_load_n(&vcpu->vm->waiting, __ATOMIC_RELAXED) || vcpu->copy_count;

    vcpu->until_look = vcpu->wants_window ? 1 : LOOK_EVERY;
    vcpu->blocks += vcpu->until_look;
    if (__atomic_load_n(vcpu->kicked, __ATOMIC_RELAXED) || __atomic_load_n(vcpu->immediate_exit, __ATOMIC_RELAXED) ||
        vcpu->blocks > (shares ? vcpu->slice : SLICES_ALONE * vcpu->slice) || window_is_open(vcpu)) {
        vcpu->stopped = KICKED;
        vcpu->emu_stop(vcpu->uc);
    }
}

/* FNV-1a. */
static uint64_t hashed(uint64_t hash, const uint8_t *bytes, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    return hash;
}

static uint64_t block_hash(uint64_t address)
{
    return hashed(0xcbf29ce484222325ull, (const uint8_t *)&address, sizeof address);
}

static uint64_t *seen_at(struct vcpu *vcpu, uint64_t hash)
{
    uint64_t at = hash % SEEN;

    while (vcpu->seen[at] && vcpu->seen[at] != (hash | 1))
        at = (at + 1) % SEEN;
    return &vcpu->seen[at];
}

/* IN and OUT are e4 to e7 and ec to ef, INS and OUTS 6c to 6f, IRET cf; other instructions have these bytes, too. */
static bool may_stop(const struct vcpu *vcpu, uint8_t byte)
{
    return (byte & 0xf4) == 0xe4 || (byte & 0xfc) == 0x6c || (byte == 0xcf && vcpu->looks_for_irets);
}

/* unicorn cannot stop at an IN or OUT, so it must not come to one: each block with such a byte is looked at first. */
static bool is_seen(struct vcpu *vcpu, uint64_t address, uint32_t size)
{
    uint64_t hash = block_hash(address), gpa, paddr;
    bool may_be = false;
    int rights = 0;
    uint8_t *host;

    for (uint64_t at = address, left = size, part; left; at += part, left -= part) {
        part = PAGE - at % PAGE < left ? PAGE - at % PAGE : left;
        if (!walk(vcpu, at, UC_FETCH, &gpa, &paddr, &host, &rights))
            return false;
        hash = hashed(hash, host, part);
        for (uint64_t i = 0; i < part; i++)
            may_be |= may_stop(vcpu, host[i]);
    }
    return !may_be || *seen_at(vcpu, hash);
}

bool count_at_call_site(void *return_address, const void *uc, const void *hook, uint32_t *counter);

/* UC_HOOK_BLOCK: between two blocks is where a stop is precise. Once a block has called it, it counts by itself, and
   comes here, with its last argument alone, when there is nothing left to count. */
static void block(void *uc, uint64_t address, uint32_t size, void *data)
{
    struct vcpu *vcpu = data;
    bool counts_by_itself = uc == &vcpu->until_look;

    if (!counts_by_itself && vcpu->looks_for_ports && !is_seen(vcpu, address, size)) {
        vcpu->stopped = UNSEEN;
        vcpu->block = address;
        vcpu->block_bytes = size;
        vcpu->emu_stop(vcpu->uc);
    } else if (vcpu->until_look > 1) {
        vcpu->until_look--;
        if (vcpu->looks_for_ports)
            vcpu->sites += count_at_call_site(__builtin_return_address(0), uc, block, &vcpu->until_look);
    } else {
        look_up(vcpu);
    }
}

/* UC_HOOK_CODE of one address: the instruction there is not executed. */
static void stop(void *uc, uint64_t address, uint32_t size, void *data)
{
    struct vcpu *vcpu = data;

    (void)address;
    (void)size;
    if (!vcpu->looks_for_ports)
        return;
    vcpu->stopped = AT_STOP;
    vcpu->emu_stop(uc);
}

static PyObject *close_gate(PyObject *module, PyObject *argument)
{
    struct vm *vm = PyLong_AsVoidPtr(argument);

    (void)module;
    if (!vm)
        return NULL;
    __atomic_add_fetch(&vm->gate, 1, __ATOMIC_SEQ_CST);
    for (uint64_t i = 0; i < vm->vcpu_count; i++)
        while (__atomic_load_n(&vm->vcpus[i]->walking, __ATOMIC_SEQ_CST))
            sched_yield();
    Py_RETURN_NONE;
}

static PyObject *open_gate(PyObject *module, PyObject *argument)
{
    struct vm *vm = PyLong_AsVoidPtr(argument);

    (void)module;
    if (!vm)
        return NULL;
    __atomic_sub_fetch(&vm->gate, 1, __ATOMIC_SEQ_CST);
    Py_RETURN_NONE;
}

/* look(vcpu, va, access): (gpa, address in this process) as a fill finds them, or None: the refusal is in the vCPU. */
static PyObject *look(PyObject *module, PyObject *arguments)
{
    unsigned long long address, va;
    int access, rights = 0;
    uint64_t gpa, paddr;
    uint8_t *host;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "KKi", &address, &va, &access))
        return NULL;
    if (!walk((struct vcpu *)(uintptr_t)address, va, access, &gpa, &paddr, &host, &rights))
        Py_RETURN_NONE;
    return Py_BuildValue("KK", (unsigned long long)gpa, (unsigned long long)(uintptr_t)host);
}

/* see(vcpu, address, bytes): this block may be run from now on. */
static PyObject *see(PyObject *module, PyObject *arguments)
{
    unsigned long long vcpu_address, address;
    Py_buffer code;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "KKy*", &vcpu_address, &address, &code))
        return NULL;
    struct vcpu *vcpu = (struct vcpu *)(uintptr_t)vcpu_address;
    uint64_t hash = hashed(block_hash(address), code.buf, code.len);
    PyBuffer_Release(&code);
    if (vcpu->seen_count >= SEEN * 3 / 4) {
        memset(vcpu->seen, 0, sizeof vcpu->seen);
        vcpu->seen_count = 0;
    }
    vcpu->seen_count += !*seen_at(vcpu, hash);
    *seen_at(vcpu, hash) = hash | 1;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"close_gate", close_gate, METH_O, "No walk of this VM is under way from now on, until open_gate."},
    {"open_gate", open_gate, METH_O, "The inverse; they nest."},
    {"see", see, METH_VARARGS, "A block that stops before each of its port instructions, if it has any."},
    {"look", look, METH_VARARGS, "Where a vCPU finds a virtual address."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fill", "The TLB fill of x86-64 vCPUs.", -1, methods,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fill(void)
{
    PyObject *made = PyModule_Create(&module);

    if (!made)
        return NULL;
    if (PyModule_AddObject(made, "FILL", PyLong_FromVoidPtr((void *)(uintptr_t)fill)) < 0 ||
        PyModule_AddObject(made, "BLOCK", PyLong_FromVoidPtr((void *)(uintptr_t)block)) < 0 ||
        PyModule_AddObject(made, "STOP", PyLong_FromVoidPtr((void *)(uintptr_t)stop)) < 0 ||
        PyModule_AddIntConstant(made, "VM_BYTES", sizeof(struct vm)) < 0 ||
        PyModule_AddIntConstant(made, "VCPU_BYTES", sizeof(struct vcpu)) < 0) {
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
