/*
 * A trace's ring: events as they happen, and their text when it is written.
 *
 * The thread where an event happens pays for put(): a clock, a CPU and three references in a record of a ring that was
 * allocated before. Text is made in text(), by the trace's thread, many lines in one go. The GIL is the lock of both,
 * held for a tenth of a microsecond and for a third of one for each line, so that nobody waits where a fault would notice.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

struct record {
    long long ns;
    int tid, cpu;
    PyObject *event, *task, *values;
};

struct ring {
    PyObject_HEAD
    PyObject *wanted, *filters, *word, *decoders;
    struct record *records;
    Py_ssize_t capacity, first, count;
    unsigned long long lost;
    char ended;
};

struct text {
    char *at, *start, *end;
};

static PyObject *line_name;
static __thread int tid;

static void forget_tid(void)
{
    tid = 0;
}

/* -- at the event */

static PyObject *ring_put(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct ring *ring = (struct ring *)self;
    struct timespec now;
    struct record *record;
    Py_ssize_t at;
    int is_wanted;

    if (count != 3 || !PyUnicode_Check(args[1]) || !PyTuple_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "put(event, task, values): an Event, a str, a tuple");
        return NULL;
    }
    is_wanted = PySet_Contains(ring->wanted, args[0]);
    if (is_wanted < 0)
        return NULL;
    if (!is_wanted)
        Py_RETURN_NONE;
    if (ring->ended || ring->count == ring->capacity) {
        ring->lost++;
        Py_RETURN_NONE;
    }
    if (!tid)
        tid = gettid();
    clock_gettime(CLOCK_MONOTONIC, &now);
    at = ring->first + ring->count++;
    record = &ring->records[at < ring->capacity ? at : at - ring->capacity];
    record->ns = now.tv_sec * 1000000000LL + now.tv_nsec;
    record->tid = tid;
    record->cpu = sched_getcpu();
    record->event = Py_NewRef(args[0]);
    record->task = Py_NewRef(args[1]);
    record->values = Py_NewRef(args[2]);
    Py_RETURN_NONE;
}

/* -- its text */

static int reserve(struct text *text, size_t size)
{
    size_t used = text->at - text->start, total = text->end - text->start;
    char *grown;

    if ((size_t)(text->end - text->at) >= size)
        return 0;
    total = 2 * total > used + size ? 2 * total : used + size;
    grown = PyMem_Realloc(text->start, total);
    if (!grown) {
        PyErr_NoMemory();
        return -1;
    }
    text->start = grown;
    text->at = grown + used;
    text->end = grown + total;
    return 0;
}

static int add(struct text *text, const char *bytes, size_t size)
{
    if (reserve(text, size))
        return -1;
    memcpy(text->at, bytes, size);
    text->at += size;
    return 0;
}

static int add_spaces(struct text *text, Py_ssize_t count)
{
    if (count > 0 && reserve(text, count))
        return -1;
    for (; count > 0; count--)
        *text->at++ = ' ';
    return 0;
}

static int add_digits(struct text *text, unsigned long long value, unsigned base, int width, char fill)
{
    char digits[32], *digit = digits + sizeof(digits);

    do
        *--digit = "0123456789abcdef"[value % base];
    while (value /= base);
    while (digits + sizeof(digits) - digit < width && digit > digits)
        *--digit = fill;
    return add(text, digit, digits + sizeof(digits) - digit);
}

/* As Python's % has it: what has a sign keeps it, whatever the conversion. */
static int add_number(struct text *text, PyObject *value, unsigned base, int width)
{
    int overflow, failed;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    unsigned long long large;
    PyObject *shown, *bytes;

    if (number == -1 && PyErr_Occurred())
        return -1;
    if (!overflow)
        return number >= 0 ? add_digits(text, number, base, width, '0') :
               add(text, "-", 1) ?: add_digits(text, 0ULL - number, base, width - 1, '0');
    large = PyLong_AsUnsignedLongLong(value);
    if (!PyErr_Occurred())
        return add_digits(text, large, base, width, '0');
    PyErr_Clear();
    shown = PyUnicode_FromString(base == 16 ? "%x" : "%d");
    bytes = shown ? PyUnicode_Format(shown, value) : NULL;
    Py_XDECREF(shown);
    if (!bytes)
        return -1;
    failed = add(text, PyUnicode_DATA(bytes), PyUnicode_GET_LENGTH(bytes));
    Py_DECREF(bytes);
    return failed;
}

static int add_str(struct text *text, PyObject *str)
{
    PyObject *bytes;
    int failed;

    if (!PyUnicode_Check(str)) {
        PyErr_SetString(PyExc_TypeError, "a value of %s is no str");
        return -1;
    }
    if (PyUnicode_IS_ASCII(str))
        return add(text, PyUnicode_DATA(str), PyUnicode_GET_LENGTH(str));
    bytes = PyUnicode_AsEncodedString(str, "utf-8", "backslashreplace");
    if (!bytes)
        return -1;
    failed = add(text, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes));
    Py_DECREF(bytes);
    return failed;
}

/* The rest of the line from its name on: %s, %d, %u and %x, the numbers also as in %08x. */
static int add_values(struct text *text, PyObject *line, PyObject *values)
{
    Py_ssize_t size, next = 0;
    const char *at = PyUnicode_AsUTF8AndSize(line, &size), *end = at + size, *literal;
    PyObject *value;
    int width;

    if (!at)
        return -1;
    for (;;) {
        literal = at;
        at = memchr(at, '%', end - at);
        if (!at)
            break;
        if (add(text, literal, at - literal))
            return -1;
        for (width = 0, at++; *at >= '0' && *at <= '9'; at++)
            width = 10 * width + *at - '0';
        if (next == PyTuple_GET_SIZE(values)) {
            PyErr_Format(PyExc_TypeError, "too few values for %R", line);
            return -1;
        }
        value = PyTuple_GET_ITEM(values, next++);
        if (*at == 's' ? add_str(text, value) : add_number(text, value, *at == 'x' ? 16 : 10, width))
            return -1;
        at++;
    }
    return add(text, literal, end - literal);
}

/* A name in one word: what is not a plain one is made one by `word`. */
static PyObject *one_word(struct ring *ring, PyObject *name)
{
    const Py_UCS1 *at;
    Py_ssize_t size = PyUnicode_GET_LENGTH(name), i = 0;

    if (PyUnicode_IS_ASCII(name))
        for (at = PyUnicode_1BYTE_DATA(name); i < size && at[i] > ' ' && at[i] < 0x7f; i++)
            ;
    return size && i == size ? Py_NewRef(name) : PyObject_CallOneArg(ring->word, name);
}

/* `            vm0/0-4711    [001] .....  8712.003417` */
static int add_head(struct ring *ring, struct text *text, struct record *record)
{
    PyObject *task = one_word(ring, record->task);
    size_t before;
    int failed;

    if (!task)
        return -1;
    failed = add_spaces(text, 16 - PyUnicode_GET_LENGTH(task)) || add_str(text, task) || add(text, "-", 1);
    Py_DECREF(task);
    before = text->at - text->start;
    return failed || add_digits(text, record->tid, 10, 0, 0) ||
           add_spaces(text, 7 - (text->at - text->start - before)) || add(text, " [", 2) ||
           add_digits(text, record->cpu, 10, 3, '0') || add(text, "] ..... ", 8) ||
           add_digits(text, record->ns / 1000000000, 10, 5, ' ') || add(text, ".", 1) ||
           add_digits(text, record->ns / 1000 % 1000000, 10, 6, '0') ? -1 : 0;
}

/* 1: it passes the filter of its event. */
static int passes(struct ring *ring, struct record *record)
{
    PyObject *filter = PyDict_GetItemWithError(ring->filters, record->event), *common, *values, *answer;
    int result;

    if (!filter || filter == Py_None)
        return PyErr_Occurred() ? -1 : 1;
    common = Py_BuildValue("(iOi)", record->tid, record->task, record->cpu);
    values = common ? PySequence_Concat(record->values, common) : NULL;
    Py_XDECREF(common);
    answer = values ? PyObject_CallOneArg(filter, values) : NULL;
    Py_XDECREF(values);
    result = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return result;
}

/* Raw values become those of the event's fields; 0: they are none. */
static int decode(struct ring *ring, struct record *record)
{
    PyObject *decoder = PyDict_GetItemWithError(ring->decoders, record->event), *values;

    if (!decoder)
        return PyErr_Occurred() ? -1 : 1;
    values = PyObject_Call(decoder, record->values, NULL);
    if (!values || values == Py_None) {
        Py_XDECREF(values);
        return values ? 0 : -1;
    }
    if (!PyTuple_Check(values)) {
        Py_DECREF(values);
        PyErr_SetString(PyExc_TypeError, "a decoder returns a tuple, or None");
        return -1;
    }
    Py_SETREF(record->values, values);
    return 1;
}

static int add_line(struct ring *ring, struct text *text, struct record *record)
{
    int is_shown = decode(ring, record), failed;
    PyObject *line;

    if (is_shown > 0)
        is_shown = passes(ring, record);
    if (is_shown <= 0)
        return is_shown;
    line = PyObject_GetAttr(record->event, line_name);
    if (!line)
        return -1;
    failed = add_head(ring, text, record) || add_values(text, line, record->values);
    Py_DECREF(line);
    return failed ? -1 : 0;
}

/* The oldest leaves the ring; the caller owns its references. */
static struct record taken(struct ring *ring)
{
    struct record record = ring->records[ring->first];

    ring->first = ring->first + 1 < ring->capacity ? ring->first + 1 : 0;
    ring->count--;
    return record;
}

static void drop(struct record *record)
{
    Py_DECREF(record->event);
    Py_DECREF(record->task);
    Py_DECREF(record->values);
}

static PyObject *ring_text(PyObject *self, PyObject *most)
{
    struct ring *ring = (struct ring *)self;
    Py_ssize_t left = PyLong_AsSsize_t(most);
    struct text text = { NULL, NULL, NULL };
    struct record record;
    PyObject *bytes = NULL;
    int failed = left == -1 && PyErr_Occurred();

    while (!failed && left-- > 0 && ring->count) {
        record = taken(ring); /* before a filter lets another thread have the GIL */
        failed = add_line(ring, &text, &record);
        drop(&record);
    }
    if (!failed)
        bytes = PyBytes_FromStringAndSize(text.start, text.at - text.start);
    PyMem_Free(text.start);
    return bytes;
}

static PyObject *ring_take_lost(PyObject *self, PyObject *unused)
{
    struct ring *ring = (struct ring *)self;
    unsigned long long lost = ring->lost;

    (void)unused;
    ring->lost = 0;
    return PyLong_FromUnsignedLongLong(lost);
}

static void empty(struct ring *ring)
{
    struct record record;

    while (ring->count) {
        record = taken(ring);
        drop(&record);
    }
}

static PyObject *ring_end(PyObject *self, PyObject *unused)
{
    (void)unused;
    ((struct ring *)self)->ended = 1;
    empty((struct ring *)self);
    Py_RETURN_NONE;
}

static Py_ssize_t ring_length(PyObject *self)
{
    return ((struct ring *)self)->count;
}

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    struct ring *ring = (struct ring *)type->tp_alloc(type, 0);

    (void)named;
    if (!ring)
        return NULL;
    if (!PyArg_ParseTuple(args, "nO!O!OO!", &ring->capacity, &PySet_Type, &ring->wanted, &PyDict_Type, &ring->filters,
                          &ring->word, &PyDict_Type, &ring->decoders)) {
        ring->wanted = ring->filters = ring->word = ring->decoders = NULL;
        Py_DECREF(ring);
        return NULL;
    }
    Py_INCREF(ring->wanted);
    Py_INCREF(ring->filters);
    Py_INCREF(ring->word);
    Py_INCREF(ring->decoders);
    ring->records = ring->capacity > 0 ? PyMem_RawCalloc(ring->capacity, sizeof(struct record)) : NULL;
    if (!ring->records) {
        Py_DECREF(ring);
        return PyErr_NoMemory();
    }
    return (PyObject *)ring;
}

static void ring_dealloc(PyObject *self)
{
    struct ring *ring = (struct ring *)self;

    empty(ring);
    PyMem_RawFree(ring->records);
    Py_XDECREF(ring->wanted);
    Py_XDECREF(ring->filters);
    Py_XDECREF(ring->word);
    Py_XDECREF(ring->decoders);
    Py_TYPE(self)->tp_free(self);
}

static PyMethodDef methods[] = {
    { "put", (PyCFunction)(void (*)(void))ring_put, METH_FASTCALL, NULL },
    { "text", ring_text, METH_O, NULL },
    { "take_lost", ring_take_lost, METH_NOARGS, NULL },
    { "end", ring_end, METH_NOARGS, NULL },
    { NULL, NULL, 0, NULL },
};
static PySequenceMethods as_sequence = { .sq_length = ring_length };
static PyTypeObject ring_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "memfsd.common._ring.Ring",
    .tp_basicsize = sizeof(struct ring),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = ring_new,
    .tp_dealloc = ring_dealloc,
    .tp_methods = methods,
    .tp_as_sequence = &as_sequence,
};
static struct PyModuleDef module = { PyModuleDef_HEAD_INIT, .m_name = "memfsd.common._ring", .m_size = -1 };

PyMODINIT_FUNC PyInit__ring(void)
{
    PyObject *made;

    if (PyType_Ready(&ring_type) || pthread_atfork(NULL, NULL, forget_tid))
        return NULL;
    line_name = PyUnicode_InternFromString("line");
    made = PyModule_Create(&module);
    if (!made || !line_name || PyModule_AddObjectRef(made, "Ring", (PyObject *)&ring_type)) {
        Py_XDECREF(made);
        return NULL;
    }
    return made;
}
