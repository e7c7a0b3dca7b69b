/* Lets the n-th call of the system below one folder fail. For LD_PRELOAD; test_failing_calls.py builds it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { READS, WRITES };
enum { ONCE, FROM_THEN_ON, HALF };

static char below[4096];
static char last[64];
static int wanted_error, way;
static long nth = -1, count;
static unsigned char watched[1 << 16]; /* by descriptor */

/* Count calls below a folder; the nth fails, none if nth is 0. */
void arm(const char *folder, long number, int error, int how)
{
    strncpy(below, folder, sizeof below - 1);
    wanted_error = error, way = how, count = 0, nth = number;
}
long counted(void) { return count; }
const char *failed(void) { return last; }

static int is_below(const char *path)
{
    return nth >= 0 && path && !strncmp(path, below, strlen(below));
}
static int is_watched(int descriptor)
{
    return nth >= 0 && descriptor >= 0 && descriptor < (int)sizeof watched && watched[descriptor];
}
static int fails(const char *name, int kind)
{
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    int is_it = number == nth || (way == FROM_THEN_ON && nth > 0 && number > nth && kind == WRITES);
    if (!is_it) return 0;
    if (!last[0]) strncpy(last, name, sizeof last - 1);
    errno = way == HALF ? EIO : wanted_error; /* only a write can be done by half */
    return 1;
}
static int noted(int descriptor, const char *path)
{
    if (descriptor >= 0 && descriptor < (int)sizeof watched) watched[descriptor] = is_below(path);
    return descriptor;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPENS(name, parameters, ...)                                                  \
    int name parameters                                                               \
    {                                                                                 \
        va_list rest;                                                                 \
        va_start(rest, flags);                                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;       \
        va_end(rest);                                                                 \
        if (is_below(path) && fails(#name, flags & O_ACCMODE ? WRITES : READS)) return -1; \
        return noted(REAL(name)(__VA_ARGS__, flags, mode), path);                     \
    }
OPENS(open, (const char *path, int flags, ...), path)
OPENS(open64, (const char *path, int flags, ...), path)
OPENS(openat, (int at, const char *path, int flags, ...), at, path)
OPENS(openat64, (int at, const char *path, int flags, ...), at, path)

#define OF_DESCRIPTOR(type, name, kind, parameters, ...)                              \
    type name parameters                                                              \
    {                                                                                 \
        if (is_watched(descriptor) && fails(#name, kind)) return (type)-1;            \
        return REAL(name)(__VA_ARGS__);                                               \
    }
OF_DESCRIPTOR(ssize_t, read, READS, (int descriptor, void *to, size_t size), descriptor, to, size)
OF_DESCRIPTOR(int, fsync, WRITES, (int descriptor), descriptor)
OF_DESCRIPTOR(int, ftruncate, WRITES, (int descriptor, off_t size), descriptor, size)
OF_DESCRIPTOR(int, ftruncate64, WRITES, (int descriptor, off64_t size), descriptor, size)
OF_DESCRIPTOR(int, fstat64, READS, (int descriptor, struct stat64 *to), descriptor, to)
OF_DESCRIPTOR(void *, mmap64, READS,
              (void *at, size_t size, int protection, int flags, int descriptor, off64_t from),
              at, size, protection, flags, descriptor, from)

ssize_t write(int descriptor, const void *from, size_t size)
{
    if (is_watched(descriptor) && fails("write", WRITES)) {
        if (way != HALF || size < 2) return -1;
        size /= 2;
    }
    return REAL(write)(descriptor, from, size);
}
int close(int descriptor)
{
    int fail = is_watched(descriptor) && fails("close", READS);
    if (descriptor >= 0 && descriptor < (int)sizeof watched) watched[descriptor] = 0;
    int code = REAL(close)(descriptor); /* as the kernel does: it is closed whatever it says */
    if (fail) errno = wanted_error;
    return fail ? -1 : code;
}

#define OF_PATH(type, failure, name, kind, parameters, ...)                           \
    type name parameters                                                              \
    {                                                                                 \
        if (is_below(path) && fails(#name, kind)) return failure;                     \
        return REAL(name)(__VA_ARGS__);                                               \
    }
OF_PATH(int, -1, unlink, READS, (const char *path), path)
OF_PATH(int, -1, rmdir, READS, (const char *path), path)
OF_PATH(int, -1, mkdir, WRITES, (const char *path, mode_t mode), path, mode)
OF_PATH(int, -1, rename, WRITES, (const char *path, const char *to), path, to)
OF_PATH(int, -1, stat64, READS, (const char *path, struct stat64 *to), path, to)
OF_PATH(int, -1, lstat64, READS, (const char *path, struct stat64 *to), path, to)
OF_PATH(DIR *, NULL, opendir, READS, (const char *path), path)
