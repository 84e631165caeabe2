/* Faults in what a process writes: the n-th call that changes files below a directory kills the
 * process, or finds the disk full or read-only from then on. For LD_PRELOAD; see commands.py.
 *
 * Counted are all processes that share the state, a file that each maps into its memory. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL, READ_ONLY };
enum { PASS, DIE, REFUSE };

struct state {
    int64_t calls; /* so far */
    int64_t at;    /* which one goes wrong, from 1; 0 for none */
    int64_t kind;
    char root[1024]; /* below which calls count; "" for nowhere */
    char what[1024]; /* the call that went wrong */
};

static struct state *state;

__attribute__((constructor)) static void open_state(void) {
    const char *path = getenv("FAULTS_STATE");
    int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) state = found;
    syscall(SYS_close, fd);
}

static int below(const char *path) {
    size_t length = strlen(state->root);
    return length && !strncmp(path, state->root, length);
}

static int descriptor_below(int fd) {
    char name[64], path[1024];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int counts(int directory, const char *path) {
    if (!state || !state->root[0]) return 0;
    if (!path) return descriptor_below(directory);
    return path[0] == '/' || directory == AT_FDCWD ? below(path) : descriptor_below(directory);
}

static int is_file(int fd) {
    struct stat found;
    return !fstat(fd, &found) && S_ISREG(found.st_mode);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What becomes of a call on this file; a full disk refuses it only if something `grows`. */
static int fate(int directory, const char *path, const char *name, int grows) {
    int before = errno;
    int counted = counts(directory, path);
    errno = before;
    if (!counted || (state->kind == FULL && !grows)) return PASS;
    int64_t call = __atomic_add_fetch(&state->calls, 1, __ATOMIC_SEQ_CST);
    if (!state->at || call < state->at) return PASS;
    if (call == state->at) snprintf(state->what, sizeof state->what, "%s %s", name, path ? path : "");
    if (state->kind == FULL || state->kind == READ_ONLY) {
        errno = state->kind == FULL ? ENOSPC : EROFS;
        return REFUSE;
    }
    return state->kind == KILL && call == state->at ? DIE : PASS;
}

#define GUARDED(type, name, parameters, arguments, directory, path, grows)       \
    type name parameters {                                                        \
        static type(*real) parameters;                                            \
        if (!real) real = dlsym(RTLD_NEXT, #name);                                \
        switch (fate(directory, path, #name, grows)) {                            \
            case DIE: die();                                                      \
            case REFUSE: return -1;                                               \
        }                                                                         \
        return real arguments;                                                    \
    }

/* Half of it is written where the process dies, or the disk is full in the middle. */
ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    int found = fd > 2 ? fate(fd, NULL, "write", 1) : PASS;
    if (found == PASS) return real(fd, data, size);
    if (found == DIE) {
        real(fd, data, size / 2);
        die();
    }
    if (state->kind == FULL && state->calls == state->at && size > 1) return real(fd, data, size / 2);
    return -1;
}

GUARDED(ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n), fd, NULL, 1)
GUARDED(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t o), (fd, p, n, o), fd, NULL, 1)
GUARDED(ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t o), (fd, p, n, o), fd, NULL, 1)
GUARDED(ssize_t, sendfile, (int to, int from, off_t *o, size_t n), (to, from, o, n), to, NULL, 1)
GUARDED(ssize_t, sendfile64, (int to, int from, off64_t *o, size_t n), (to, from, o, n), to, NULL, 1)
GUARDED(ssize_t, copy_file_range,
        (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned f), (from, a, to, b, n, f), to,
        NULL, 1)
GUARDED(int, fsync, (int fd), (fd), fd, NULL, is_file(fd))
GUARDED(int, fdatasync, (int fd), (fd), fd, NULL, 1)
GUARDED(int, ftruncate, (int fd, off_t n), (fd, n), fd, NULL, 0)
GUARDED(int, ftruncate64, (int fd, off64_t n), (fd, n), fd, NULL, 0)
GUARDED(int, truncate, (const char *p, off_t n), (p, n), AT_FDCWD, p, 0)
GUARDED(int, truncate64, (const char *p, off64_t n), (p, n), AT_FDCWD, p, 0)
GUARDED(int, rename, (const char *a, const char *b), (a, b), AT_FDCWD, b, 0)
GUARDED(int, renameat, (int c, const char *a, int d, const char *b), (c, a, d, b), d, b, 0)
GUARDED(int, link, (const char *a, const char *b), (a, b), AT_FDCWD, b, 1)
GUARDED(int, linkat, (int c, const char *a, int d, const char *b, int f), (c, a, d, b, f), d, b, 1)
GUARDED(int, symlink, (const char *a, const char *b), (a, b), AT_FDCWD, b, 1)
GUARDED(int, unlink, (const char *p), (p), AT_FDCWD, p, 0)
GUARDED(int, unlinkat, (int d, const char *p, int f), (d, p, f), d, p, 0)
GUARDED(int, rmdir, (const char *p), (p), AT_FDCWD, p, 0)
GUARDED(int, mkdir, (const char *p, mode_t m), (p, m), AT_FDCWD, p, 1)
GUARDED(int, mkdirat, (int d, const char *p, mode_t m), (d, p, m), d, p, 1)

/* Opening counts where it makes or empties a file. */
#define OPENING(name, parameters, arguments, directory)                           \
    int name parameters {                                                         \
        static int(*real) parameters;                                             \
        if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name);             \
        mode_t mode = 0;                                                          \
        if (flags & (O_CREAT | O_TMPFILE)) {                                      \
            va_list more;                                                         \
            va_start(more, flags);                                                \
            mode = va_arg(more, mode_t);                                          \
            va_end(more);                                                         \
        }                                                                         \
        int new = (flags & O_CREAT) && faccessat(directory, path, F_OK, 0);           \
        if (new || (flags & O_TRUNC)) switch (fate(directory, path, #name, new)) {    \
                case DIE: die();                                                  \
                case REFUSE: return -1;                                           \
            }                                                                     \
        return real arguments;                                                    \
    }

OPENING(open, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode), AT_FDCWD)
OPENING(openat, (int d, const char *path, int flags, ...), (d, path, flags, mode), d)
OPENING(openat64, (int d, const char *path, int flags, ...), (d, path, flags, mode), d)
