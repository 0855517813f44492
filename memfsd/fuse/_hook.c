/*
 * fallocate, lseek and ioctl for pyfuse3, which has no handlers for them.
 *
 * pyfuse3 builds its libfuse operation table privately and hands it to fuse_session_new. This module
 * exports a function of that name and is loaded RTLD_GLOBAL before pyfuse3, so the dynamic linker
 * binds pyfuse3 to ours; we add three operations to a copy of the table and call libfuse's own.
 *
 *     kernel -> libfuse -> on_fallocate ... -> handler(request, ...)      in Python, under the GIL
 *     reply_err, reply_lseek, reply_ioctl(request, ...) -> libfuse -> kernel, now or from a later task
 *
 * A request is a number that is never used twice. `pending` maps it to libfuse's fuse_req_t until it is
 * answered, and so every request is answered once and a stale number cannot reach freed memory.
 * All state is guarded by the GIL. Replies keep it: writing to /dev/fuse copies and wakes, it does not wait.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <fuse_lowlevel.h>

#define EXPORT __attribute__((visibility("default")))
/* The kernel refuses a reply with a larger errno, and the request would stay open. */
#define MAX_ERRNO 511

enum { FALLOCATE, LSEEK, IOCTL, OPERATION_COUNT };

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
    /* A reply fails only when the caller or the whole connection is gone: nobody is left to be told. */
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
    struct fuse_session *session = real(args, table, op_size, userdata);
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
    struct fuse_session *session = real(args, table, op_size, version, userdata);
    free(table);
    session_made |= session != NULL;
    return session;
}

/* The module. */

static PyObject *set_handlers(PyObject *self, PyObject *args)
{
    PyObject *given[OPERATION_COUNT];
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO:set_handlers", &given[FALLOCATE], &given[LSEEK], &given[IOCTL]))
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

static PyMethodDef methods[] = {
    {"set_handlers", set_handlers, METH_VARARGS, "Callables for fallocate, lseek, ioctl; None: ENOTCONN."},
    {"reply_err", reply_err, METH_VARARGS, "Answer a request with an errno, 0 for success."},
    {"reply_lseek", reply_lseek, METH_VARARGS, "Answer an lseek request with an offset."},
    {"reply_ioctl", reply_ioctl, METH_VARARGS, "Answer an ioctl request with a result and bytes."},
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
