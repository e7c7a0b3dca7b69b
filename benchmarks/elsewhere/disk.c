/* Faults of the disk, for a program that is started with LD_PRELOAD.

   What is done to files below the folder in FAULT_FOLDER (made, written, renamed, removed) is counted in
   the first number of the file FAULT_CONTROL. The second number, if it is not 0, is the count at which the
   process is killed, in the middle of a write; the third the count from which the disk is full. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static long *control;
static const char *folder;
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("FAULT_CONTROL");
    folder = getenv("FAULT_FOLDER");
    int fd = file && folder ? open(file, O_RDWR) : -1;
    if (fd < 0) return;
    void *mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED) control = mapped;
}

static int inside(const char *path) {
    return control && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int inside_fd(int fd) {
    char link[64], path[4096];
    if (!control) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* 0: go on; 1: die now; 2: the disk is full */
static int count(void) {
    long number = __atomic_add_fetch(&control[0], 1, __ATOMIC_SEQ_CST);
    if (control[1] && number == control[1]) return 1;
    return control[2] && number >= control[2] ? 2 : 0;
}

#define DIE() raise(SIGKILL)
#define FULL() return errno = ENOSPC, -1

#define WRITING(name, parameters, arguments, half)                        \
    ssize_t name parameters {                                             \
        int what = inside_fd(fd) ? count() : 0;                           \
        if (what == 1) { half; DIE(); }                                   \
        if (what == 2) FULL();                                            \
        return REAL(name) arguments;                                      \
    }
WRITING(write, (int fd, const void *from, size_t size), (fd, from, size),
        (void)!REAL(write)(fd, from, size / 2))
WRITING(pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at),
        (void)!REAL(pwrite)(fd, from, size / 2, at))
WRITING(pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size, at),
        (void)!REAL(pwrite64)(fd, from, size / 2, at))
WRITING(writev, (int fd, const struct iovec *from, int number), (fd, from, number),
        (void)!REAL(writev)(fd, from, number / 2))

#define CHANGING(name, path, parameters, arguments, space)                \
    int name parameters {                                                 \
        int what = inside(path) ? count() : 0;                            \
        if (what == 1) DIE();                                             \
        if (what == 2 && space) FULL();                                   \
        return REAL(name) arguments;                                      \
    }
CHANGING(rename, to, (const char *from, const char *to), (from, to), 0)
CHANGING(renameat, to, (int a, const char *from, int b, const char *to), (a, from, b, to), 0)
CHANGING(unlink, path, (const char *path), (path), 0)
CHANGING(rmdir, path, (const char *path), (path), 0)
CHANGING(mkdir, path, (const char *path, mode_t mode), (path, mode), 1)

#define OPENING(name, parameters, arguments)                              \
    int name parameters {                                                 \
        va_list more;                                                     \
        va_start(more, flags);                                            \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;         \
        va_end(more);                                                     \
        int what = flags & (O_CREAT | O_TRUNC) && inside(path) ? count() : 0; \
        if (what == 1) DIE();                                             \
        if (what == 2 && access(path, F_OK)) FULL();                      \
        return REAL(name) arguments;                                      \
    }
OPENING(open, (const char *path, int flags, ...), (path, flags, mode))
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENING(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPENING(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))
