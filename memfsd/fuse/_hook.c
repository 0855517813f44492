/*
 * fallocate, lseek, ioctl and O_TMPFILE for pyfuse3, which has no handlers for them.
 *
 * pyfuse3 builds its libfuse operation table privately and hands it to fuse_session_new. This module
 * exports a function of that name and is loaded RTLD_GLOBAL before pyfuse3, so the dynamic linker
 * binds pyfuse3 to ours; we add three operations to a copy of the table and call libfuse's own.
 *
 *     kernel -> libfuse -> on_fallocate ... -> handler(request, ...)      in Python, under the GIL
 *     reply_err, reply_lseek, reply_ioctl(request, ...) -> libfuse -> kernel, now or from a later task
 *
 * The same place asks the kernel for FUSE_HANDLE_KILLPRIV_V2, which libfuse 3.14 cannot: without it each write(2)
 * costs a second request, GETXATTR of security.capability. In return the kernel leaves clearing setuid and
 * setgid bits to us and says when, in bits that libfuse drops; `clears_setid` reports them.
 *
 * A write into one run of frames, as most are, goes on from here at once, from libfuse's buffer. pyfuse3 would copy the
 * bytes first and make three coroutines.
 *
 * A request is a number that is never used twice. `pending` maps it to libfuse's fuse_req_t until it is
 * answered, and so every request is answered once and a stale number cannot reach freed memory.
 * All state is guarded by the GIL. Replies keep it: writing to /dev/fuse copies and wakes, it does not wait.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <fuse_lowlevel.h>
#include <linux/fuse.h>

#define EXPORT __attribute__((visibility("default")))
/* The kernel refuses a reply with a larger errno, and the request would stay open. */
#define MAX_ERRNO 511
/* Writes that may follow each other before others have their turn, and how long to wait for the next. */
#define BURST_MAX 16
#define BURST_WAIT_NS 50000

enum { FALLOCATE, LSEEK, IOCTL, WRITE, OPERATION_COUNT };

static PyObject *handlers[OPERATION_COUNT];
static PyObject *pending;
static unsigned long long last_request;
static int session_made;

/* Python to libfuse: the answers. */

static fuse_req_t take(PyObject *request)
{
    PyObject *address = PyDict_GetItemWithError(pending, request);
    if (address == NULL) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_LookupError, "request %R is not waiting for an answer", request);
        return NULL;
    }
    fuse_req_t req = PyLong_AsVoidPtr(address);
    if (PyDict_DelItem(pending, request) < 0)
        return NULL;
    return req;
}

static PyObject *reply_err(PyObject *self, PyObject *args)
{
    PyObject *request;
    int error;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oi:reply_err", &request, &error))
        return NULL;
    if (error < 0 || error > MAX_ERRNO)
        return PyErr_Format(PyExc_ValueError, "errno %d is not in 0..%d", error, MAX_ERRNO);
    fuse_req_t req = take(request);
    if (req == NULL)
        return NULL;
    /* A reply fails only when the caller or the whole connection is gone: nobody is left to answer. */
    fuse_reply_err(req, error);
    Py_RETURN_NONE;
}

static PyObject *reply_lseek(PyObject *self, PyObject *args)
{
    PyObject *request;
    long long offset;
    (void)self;
    if (!PyArg_ParseTuple(args, "OL:reply_lseek", &request, &offset))
        return NULL;
    fuse_req_t req = take(request);
    if (req == NULL)
        return NULL;
    fuse_reply_lseek(req, (off_t)offset);
    Py_RETURN_NONE;
}

static PyObject *reply_ioctl(PyObject *self, PyObject *args)
{
    PyObject *request;
    int result;
    const char *data;
    Py_ssize_t size;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oiy#:reply_ioctl", &request, &result, &data, &size))
        return NULL;
    fuse_req_t req = take(request);
    if (req == NULL)
        return NULL;
    fuse_reply_ioctl(req, result, data, (size_t)size);
    Py_RETURN_NONE;
}

/* libfuse to Python: the requests. */

static PyObject *enter(fuse_req_t req)
{
    PyObject *request = PyLong_FromUnsignedLongLong(++last_request);
    PyObject *address = PyLong_FromVoidPtr(req);
    if (request == NULL || address == NULL || PyDict_SetItem(pending, request, address) < 0)
        Py_CLEAR(request);
    Py_XDECREF(address);
    return request;
}

/* Calls the handler; takes over args. A handler that raises has not answered, as a rule: EIO then. */
static void dispatch(int operation, fuse_req_t req, PyObject *request, PyObject *args)
{
    PyObject *handler = handlers[operation];
    Py_XINCREF(handler);
    PyObject *result = args != NULL ? PyObject_Call(handler, args, NULL) : NULL;
    if (result == NULL) {
        PyErr_WriteUnraisable(handler);
        if (request == NULL)
            fuse_reply_err(req, EIO);
        else if (take(request) != NULL)
            fuse_reply_err(req, EIO);
        PyErr_Clear();
    }
    Py_XDECREF(result);
    Py_XDECREF(handler);
    Py_XDECREF(args);
    Py_XDECREF(request);
}

/* Without handlers nobody serves: the daemon is starting or ending. */
static int unserved(int operation, fuse_req_t req)
{
    if (handlers[operation] != NULL)
        return 0;
    fuse_reply_err(req, ENOTCONN);
    return 1;
}

static unsigned long long handle_of(const struct fuse_file_info *fi)
{
    return fi != NULL ? fi->fh : 0;
}

static void on_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    if (!unserved(FALLOCATE, req)) {
        PyObject *request = enter(req);
        dispatch(FALLOCATE, req, request,
                 request == NULL ? NULL
                                 : Py_BuildValue("(OKKiLL)", request, (unsigned long long)ino, handle_of(fi),
                                                 mode, (long long)offset, (long long)length));
    }
    PyGILState_Release(gil);
}

static void on_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    if (!unserved(LSEEK, req)) {
        PyObject *request = enter(req);
        dispatch(LSEEK, req, request,
                 request == NULL ? NULL
                                 : Py_BuildValue("(OKKLi)", request, (unsigned long long)ino, handle_of(fi),
                                                 (long long)offset, whence));
    }
    PyGILState_Release(gil);
}

static void on_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg, struct fuse_file_info *fi,
                     unsigned flags, const void *in, size_t in_size, size_t out_size)
{
    (void)arg;
    PyGILState_STATE gil = PyGILState_Ensure();
    if (!unserved(IOCTL, req)) {
        PyObject *request = enter(req);
        /* y# makes None of a null pointer. */
        dispatch(IOCTL, req, request,
                 request == NULL ? NULL
                                 : Py_BuildValue("(OKKIIy#n)", request, (unsigned long long)ino, handle_of(fi),
                                                 cmd, flags, in != NULL ? (const char *)in : "",
                                                 (Py_ssize_t)in_size, (Py_ssize_t)out_size));
    }
    PyGILState_Release(gil);
}

/* What the kernel says beside the requests. libfuse sends and receives through these two from the first reply on. */

static struct fuse_session *session;
static void (*their_init)(void *userdata, struct fuse_conn_info *conn);
static int answers_init;
static int kill_suidgid;
static int from_mapping;
static int by_handle;
static int only_what_faults;

static ssize_t send_reply(int fd, struct iovec *iov, int count, void *userdata)
{
    (void)userdata;
    if (answers_init && count == 2 && iov[1].iov_len >= FUSE_COMPAT_22_INIT_OUT_SIZE)
        ((struct fuse_init_out *)iov[1].iov_base)->flags |= FUSE_HANDLE_KILLPRIV_V2;
    answers_init = 0;
    return writev(fd, iov, count);
}

/* The one who writes, truncates or chowns must lose the file's setuid and setgid bits. */
static int says_kill(const void *buf, size_t size)
{
    const struct fuse_in_header *in = buf;
    const void *arg = in + 1;
    size_t room = size > sizeof *in ? size - sizeof *in : 0;
    switch (size >= sizeof *in ? in->opcode : 0) {
    case FUSE_WRITE:
        return room >= sizeof(struct fuse_write_in) &&
               ((const struct fuse_write_in *)arg)->write_flags & FUSE_WRITE_KILL_SUIDGID;
    case FUSE_SETATTR:
        return room >= sizeof(struct fuse_setattr_in) &&
               ((const struct fuse_setattr_in *)arg)->valid & FATTR_KILL_SUIDGID;
    case FUSE_OPEN:
        return room >= sizeof(struct fuse_open_in) &&
               ((const struct fuse_open_in *)arg)->open_flags & FUSE_OPEN_KILL_SUIDGID;
    case FUSE_FALLOCATE:
        return in->uid != 0; /* has no bit for it */
    default:
        return 0;
    }
}

/* Not a write(2), but the kernel writing back what was stored through a mapping. */
static int says_from_mapping(const void *buf, size_t size)
{
    const struct fuse_in_header *in = buf;
    const struct fuse_write_in *arg = (const void *)(in + 1);
    return size >= sizeof *in + sizeof *arg && in->opcode == FUSE_WRITE && arg->write_flags & FUSE_WRITE_CACHE;
}

/* Not fstat(2), which names no handle, but read(2), which asks for the size first. */
static int says_by_handle(const void *buf, size_t size)
{
    const struct fuse_in_header *in = buf;
    const struct fuse_getattr_in *arg = (const void *)(in + 1);
    return size >= sizeof *in + sizeof *arg && in->opcode == FUSE_GETATTR && arg->getattr_flags & FUSE_GETATTR_FH;
}

/* open(O_TMPFILE) is unknown to libfuse 3.14 and to pyfuse3. The kernel asks for it as for a creation (fuse_create_open
   in fs/fuse/dir.c), with a name that no file can have, "/": so it may go on as one. */
static void tmpfile_as_creation(void *buf, size_t size)
{
    struct fuse_in_header *in = buf;
    if (size >= sizeof *in && in->opcode == FUSE_TMPFILE)
        in->opcode = FUSE_CREATE;
}

/* The descriptor does not block: a caller killed after poll(2) reported its request takes the request along, and this
   read, made with the GIL held, would sleep until the next one. libfuse's callers retry on EINTR, and on nothing else. */
static ssize_t receive(int fd, void *buf, size_t size, void *userdata)
{
    (void)userdata;
    ssize_t got = read(fd, buf, size);
    if (got < 0 && errno == EAGAIN)
        errno = EINTR;
    if (got > 0)
        tmpfile_as_creation(buf, (size_t)got);
    kill_suidgid = got > 0 && says_kill(buf, (size_t)got);
    from_mapping = got > 0 && says_from_mapping(buf, (size_t)got);
    by_handle = got > 0 && says_by_handle(buf, (size_t)got);
    return got;
}

static void (*their_write_buf)(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *bufv, off_t offset,
                               struct fuse_file_info *fi);

/* The handler writes these bytes now, and *done is how many, or an errno below 0. Else 0: it leaves them to pyfuse3. */
static int written_in_place(unsigned long long fh, off_t offset, const struct fuse_buf *buf, long long *done)
{
    PyObject *handler = handlers[WRITE], *data;
    if (handler == NULL || (data = PyMemoryView_FromMemory(buf->mem, (Py_ssize_t)buf->size, PyBUF_READ)) == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_INCREF(handler);
    PyObject *answer = PyObject_CallFunction(handler, "KLO", fh, (long long)offset, data);
    int is_done = answer != NULL && PyLong_Check(answer);
    if (is_done) {
        *done = PyLong_AsLongLong(answer);
        if (*done < -MAX_ERRNO || *done > (long long)buf->size)
            *done = -EIO;
    }
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(handler);
    PyObject *released = PyObject_CallMethod(data, "release", NULL); /* the next request comes to the same memory */
    if (released == NULL)
        PyErr_WriteUnraisable(handler);
    Py_XDECREF(released);
    Py_DECREF(data);
    Py_XDECREF(answer);
    Py_DECREF(handler);
    return is_done;
}

/*
 * Who writes once writes again, as a rule, and at once. So after a write look for the next request right here, for a
 * moment, and spare it the way through trio, which costs more than the write. Ends with the first request that is
 * anything else: that one may have left pyfuse3 a coroutine, which whoever called us then awaits.
 */
static int in_burst, wrote;

static void take_what_follows(void)
{
    static struct fuse_buf buf; /* libfuse gives it memory, for good */
    static const struct timespec moment = {.tv_nsec = BURST_WAIT_NS};
    struct pollfd ready = {.fd = fuse_session_fd(session), .events = POLLIN};
    in_burst = 1;
    wrote = 1;
    for (int i = 0; wrote && i < BURST_MAX; i++) {
        int count;
        Py_BEGIN_ALLOW_THREADS
        count = ppoll(&ready, 1, &moment, NULL);
        Py_END_ALLOW_THREADS
        wrote = 0;
        if (count == 1 && ready.revents == POLLIN && fuse_session_receive_buf(session, &buf) > 0)
            fuse_session_process_buf(session, &buf);
    }
    in_burst = 0;
}

static void on_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *bufv, off_t offset,
                         struct fuse_file_info *fi)
{
    const struct fuse_buf *buf = &bufv->buf[0];
    int in_memory = bufv->count == 1 && bufv->idx == 0 && bufv->off == 0 && !(buf->flags & FUSE_BUF_IS_FD);
    long long done;
    PyGILState_STATE gil = PyGILState_Ensure();
    if (!in_memory || kill_suidgid || !written_in_place(handle_of(fi), offset, buf, &done)) {
        their_write_buf(req, ino, bufv, offset, fi);
    } else if (done < 0) {
        fuse_reply_err(req, (int)-done);
    } else {
        fuse_reply_write(req, (size_t)done);
        wrote = 1;
        if (!in_burst)
            take_what_follows();
    }
    PyGILState_Release(gil);
}

static void (*their_setattr)(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                             struct fuse_file_info *fi);

/* Of a time to be set to now the kernel sends both bits and its own coarse clock, and pyfuse3 prefers that: it
   may be older than what was written before. With one bit pyfuse3 asks the clock that all other times are from. */
static void on_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    if (to_set & FUSE_SET_ATTR_ATIME_NOW)
        to_set &= ~FUSE_SET_ATTR_ATIME;
    if (to_set & FUSE_SET_ATTR_MTIME_NOW)
        to_set &= ~FUSE_SET_ATTR_MTIME;
    their_setattr(req, ino, attr, to_set, fi);
}

static void on_init(void *userdata, struct fuse_conn_info *conn)
{
    static const struct fuse_custom_io io = {.writev = send_reply, .read = receive};
    if (their_init != NULL)
        their_init(userdata, conn);
    /* Else a file that was written is read again: its new time looks to the kernel like another's write. But all
       data of cached files goes through this kernel. Where read(2) is to be refused it must ask us first, and it does
       so only with this. */
    if (!only_what_faults)
        conn->want &= ~(unsigned)FUSE_CAP_AUTO_INVAL_DATA;
    else
        conn->max_readahead = 0;
    /* When an asynchronous direct write completes, the kernel drops no cached pages (fuse_aio_complete in
       fs/fuse/file.c): what a buffered reader cached meanwhile would stay stale. It drops them after a synchronous one. */
    conn->want &= ~(unsigned)FUSE_CAP_ASYNC_DIO;
    /* Only now is the session's descriptor the mounted one. If it fails, the kernel clears the bits itself. */
    answers_init = fuse_session_custom_io(session, &io, fuse_session_fd(session)) == 0;
    if (answers_init)
        fcntl(fuse_session_fd(session), F_SETFL, fcntl(fuse_session_fd(session), F_GETFL) | O_NONBLOCK);
}

/* The two names under which callers make a session; the headers have macros and inlines for them. */

struct libfuse_version;
typedef struct fuse_session *new_fn(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef struct fuse_session *new_versioned_fn(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
                                              struct libfuse_version *, void *);

static void *libfuse_function(const char *name, const char *version)
{
    void *function = dlvsym(RTLD_NEXT, name, version);
    return function != NULL ? function : dlsym(RTLD_NEXT, name);
}

/* A copy of the caller's table with our operations, for free(); the caller's may be shorter than ours. */
static struct fuse_lowlevel_ops *extended(const struct fuse_lowlevel_ops *op, size_t *op_size)
{
    size_t size = *op_size > sizeof *op ? *op_size : sizeof *op;
    struct fuse_lowlevel_ops *table = calloc(1, size);
    if (table == NULL)
        return NULL;
    memcpy(table, op, *op_size);
    table->fallocate = on_fallocate;
    table->lseek = on_lseek;
    table->ioctl = on_ioctl;
    their_setattr = table->setattr;
    if (their_setattr != NULL)
        table->setattr = on_setattr;
    their_init = table->init;
    table->init = on_init;
    their_write_buf = table->write_buf;
    if (their_write_buf != NULL)
        table->write_buf = on_write_buf;
    *op_size = size;
    return table;
}

EXPORT struct fuse_session *hook_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
                                             size_t op_size, void *userdata) __asm__("fuse_session_new");
EXPORT struct fuse_session *hook_session_new_versioned(struct fuse_args *args,
                                                       const struct fuse_lowlevel_ops *op, size_t op_size,
                                                       struct libfuse_version *version, void *userdata)
    __asm__("fuse_session_new_versioned");

struct fuse_session *hook_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
                                      size_t op_size, void *userdata)
{
    new_fn *real = (new_fn *)libfuse_function("fuse_session_new", "FUSE_3.0");
    struct fuse_lowlevel_ops *table = real != NULL ? extended(op, &op_size) : NULL;
    if (table == NULL)
        return NULL;
    session = real(args, table, op_size, userdata);
    free(table);
    session_made |= session != NULL;
    return session;
}

struct fuse_session *hook_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
                                                size_t op_size, struct libfuse_version *version,
                                                void *userdata)
{
    new_versioned_fn *real =
        (new_versioned_fn *)libfuse_function("fuse_session_new_versioned", "FUSE_3.17");
    struct fuse_lowlevel_ops *table = real != NULL ? extended(op, &op_size) : NULL;
    if (table == NULL)
        return NULL;
    session = real(args, table, op_size, version, userdata);
    free(table);
    session_made |= session != NULL;
    return session;
}

/* The module. */

static PyObject *set_handlers(PyObject *self, PyObject *args)
{
    PyObject *given[OPERATION_COUNT];
    (void)self;
    given[WRITE] = Py_None;
    if (!PyArg_ParseTuple(args, "OOO|O:set_handlers", &given[FALLOCATE], &given[LSEEK], &given[IOCTL], &given[WRITE]))
        return NULL;
    for (int i = 0; i < OPERATION_COUNT; i++)
        if (given[i] != Py_None && !PyCallable_Check(given[i]))
            return PyErr_Format(PyExc_TypeError, "%R is neither callable nor None", given[i]);
    for (int i = 0; i < OPERATION_COUNT; i++) {
        PyObject *old = handlers[i];
        handlers[i] = given[i] == Py_None ? NULL : Py_NewRef(given[i]);
        Py_XDECREF(old);
    }
    Py_RETURN_NONE;
}

static PyObject *active(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyBool_FromLong(session_made);
}

static PyObject *clears_setid(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyBool_FromLong(kill_suidgid);
}

static PyObject *is_writeback(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyBool_FromLong(from_mapping);
}

static PyObject *is_by_handle(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    return PyBool_FromLong(by_handle);
}

static PyObject *no_readahead(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    only_what_faults = 1;
    Py_RETURN_NONE;
}

/* After that libfuse frees the session, and threads of VMs may still ask. */
static int is_serving(void)
{
    return session != NULL && handlers[LSEEK] != NULL;
}

static PyObject *has_pending(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    struct pollfd ready = {.fd = is_serving() ? fuse_session_fd(session) : -1, .events = POLLIN};
    return PyBool_FromLong(poll(&ready, 1, 0) == 1 && ready.revents & POLLIN);
}

static PyObject *write_back(PyObject *self, PyObject *args)
{
    unsigned long long ino;
    long long offset, length;
    int result;
    (void)self;
    if (!PyArg_ParseTuple(args, "KLL:write_back", &ino, &offset, &length))
        return NULL;
    if (!is_serving())
        Py_RETURN_NONE;
    Py_BEGIN_ALLOW_THREADS
    result = fuse_lowlevel_notify_inval_inode(session, (fuse_ino_t)ino, (off_t)offset, (off_t)length);
    Py_END_ALLOW_THREADS
    if (result < 0 && result != -ENOENT) { /* ENOENT: the kernel does not know the inode, and so caches nothing of it */
        errno = -result;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"set_handlers", set_handlers, METH_VARARGS, "Callables for fallocate, lseek, ioctl, write; None: ENOTCONN, but for write."},
    {"reply_err", reply_err, METH_VARARGS, "Answer a request with an errno, 0 for success."},
    {"reply_lseek", reply_lseek, METH_VARARGS, "Answer an lseek request with an offset."},
    {"reply_ioctl", reply_ioctl, METH_VARARGS, "Answer an ioctl request with a result and bytes."},
    {"clears_setid", clears_setid, METH_NOARGS, "Whether the request just received clears setuid and setgid bits."},
    {"is_writeback", is_writeback, METH_NOARGS, "Whether the request just received writes back what a mapping stored."},
    {"is_by_handle", is_by_handle, METH_NOARGS, "Whether the getattr just received is a read(2)'s, and no fstat(2)'s."},
    {"no_readahead", no_readahead, METH_NOARGS, "Before the mount: pages are read one by one as they are touched."},
    {"has_pending", has_pending, METH_NOARGS, "Whether the kernel has requests for us that were not received yet."},
    {"write_back", write_back, METH_VARARGS, "Have the kernel write back and drop what it caches of a range of a file."},
    {"active", active, METH_NOARGS, "Whether a session was made through this module."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "memfsd.fuse._hook",
    .m_doc = "fallocate, lseek and ioctl for pyfuse3; see memfsd.fuse.hook.",
    .m_size = -1,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__hook(void)
{
    pending = PyDict_New();
    return pending != NULL ? PyModule_Create(&module) : NULL;
}
