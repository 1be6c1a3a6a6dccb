/* Counts the calls that change files below a folder, and lets one of them fail or end the process.
 *
 * Loaded by LD_PRELOAD; told by the environment, which is read anew after a fork:
 *   FAULTS_FOLDER   the absolute path of the folder; nothing is counted without it
 *   FAULTS_KINDS    what counts, such as "open,write"; left out: all of
 *                   open (for writing), write, rename, sync, remove, link, mkdir
 *   FAULTS_COUNTER  a file of 8 bytes, the number of calls so far: all processes share it
 *   FAULTS_TRACE    a file that gets a line a call: its number, when (monotonic s), kind, path
 *   FAULTS_AT       the number of the call that is hit, from 1; left out or 0: none
 *   FAULTS_LASTING  1: all later calls of these kinds are hit, too
 *   FAULTS_ACTION   ENOSPC, EIO or kill (SIGKILL); a write gets half of its bytes out before
 *   FAULTS_SLEEP    microseconds to sleep before each call
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define TEXT const char *
#define BYTES int, const void *, size_t
#define PAIR(...) __VA_ARGS__
#define TOLD(name) getenv("FAULTS_" name)

static pid_t known; /* the process whose environment has been read */
static char folder[PATH_MAX];
static const char *kinds, *action, *trace;
static long at, lasting, pause_us, *counter;

static long number(const char *text) { return text ? atol(text) : 0; }

static void read_environment(void) {
    const char *path = TOLD("COUNTER"), *below = TOLD("FOLDER");
    int descriptor = path ? REAL(int, open, const char *, int, ...)(path, O_RDWR) : -1;
    counter = NULL;
    if (descriptor >= 0) {
        counter = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        close(descriptor);
    }
    snprintf(folder, sizeof folder, "%s", below ? below : "");
    kinds = TOLD("KINDS"), action = TOLD("ACTION"), trace = TOLD("TRACE");
    at = number(TOLD("AT")), lasting = number(TOLD("LASTING")), pause_us = number(TOLD("SLEEP"));
    known = getpid();
}

/* Gives the path that a call means: `path`, which begins at the open `place`, or without a path
 * what is open there. Links to folders are followed. Nothing if it cannot be told. */
static int resolve(char *whole, int place, const char *path) {
    char from[64], given[2 * PATH_MAX];
    ssize_t size = 0;
    if (!path || path[0] != '/') {
        const char *form = place == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d";
        snprintf(from, sizeof from, form, place);
        if ((size = readlink(from, given, PATH_MAX - 1)) < 0) return 0;
        if (path) given[size++] = '/';
    }
    snprintf(given + size, PATH_MAX, "%s", path ? path : "");
    char *name = strrchr(given, '/');
    if (given[0] != '/' || !path) return snprintf(whole, PATH_MAX, "%s", given);
    *name = 0;
    if (!realpath(given[0] ? given : "/", whole)) return 0;
    return snprintf(whole + strlen(whole), PATH_MAX, "/%s", name + 1);
}

/* Counts a call. Its fault, if it has one: an error number, or -1 for a kill. */
static int fault_of(const char *kind, int place, const char *path) {
    char whole[2 * PATH_MAX], line[2 * PATH_MAX + 64];
    int saved = errno;
    if (known != getpid()) read_environment();
    size_t length = strlen(folder);
    if (!folder[0] || !counter || (kinds && !strstr(kinds, kind))) return 0;
    int found = resolve(whole, place, path);
    errno = saved;
    if (!found || strncmp(whole, folder, length) || !strchr("/", whole[length])) return 0;
    if (pause_us) usleep(pause_us);
    long mine = __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
    int log = trace ? REAL(int, open, TEXT, int, ...)(trace, O_WRONLY | O_APPEND) : -1;
    if (log >= 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        ssize_t size = snprintf(line, sizeof line, "%ld %ld.%09ld %s %s\n", mine, now.tv_sec,
                                now.tv_nsec, kind, whole);
        if (REAL(ssize_t, write, BYTES)(log, line, size) < size) abort();
        close(log);
    }
    errno = saved;
    if (!action || !at || (lasting ? mine < at : mine != at)) return 0;
    return !strcmp(action, "kill") ? -1 : !strcmp(action, "EIO") ? EIO : ENOSPC;
}

static int hit(int fault) {
    if (fault < 0) kill(known, SIGKILL);
    errno = fault;
    return -1;
}

#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define OPEN(name, place, taken, given, ...)                                           \
    int name(__VA_ARGS__, int flags, ...) {                                            \
        va_list rest;                                                                  \
        va_start(rest, flags);                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;        \
        va_end(rest);                                                                  \
        int fault = CHANGES(flags) ? fault_of("open", place, path) : 0;                \
        return fault ? hit(fault) : REAL(int, name, taken, int, ...)(given, flags, mode); \
    }
OPEN(open, AT_FDCWD, TEXT, path, TEXT path)
OPEN(open64, AT_FDCWD, TEXT, path, TEXT path)
OPEN(openat, place, PAIR(int, TEXT), PAIR(place, path), int place, TEXT path)
OPEN(openat64, place, PAIR(int, TEXT), PAIR(place, path), int place, TEXT path)

#define STREAM(name)                                                                \
    FILE *name(const char *path, const char *mode) {                                \
        int fault = strpbrk(mode, "wa+") ? fault_of("open", AT_FDCWD, path) : 0;    \
        if (fault) return hit(fault), NULL;                                         \
        return REAL(FILE *, name, const char *, const char *)(path, mode);          \
    }
STREAM(fopen)
STREAM(fopen64)

#define WRITE(name, half, taken, given, ...)                                        \
    ssize_t name(__VA_ARGS__) {                                                     \
        int fault = fault_of("write", descriptor, NULL);                             \
        if (!fault) return REAL(ssize_t, name, taken)(given);                       \
        if (REAL(ssize_t, name, taken)(half) < 0) return -1;                        \
        return hit(fault);                                                          \
    }
WRITE(write, PAIR(descriptor, data, size / 2), BYTES, PAIR(descriptor, data, size), int descriptor,
      const void *data, size_t size)
WRITE(pwrite, PAIR(descriptor, data, size / 2, where), PAIR(BYTES, off_t),
      PAIR(descriptor, data, size, where), int descriptor, const void *data, size_t size,
      off_t where)
WRITE(pwrite64, PAIR(descriptor, data, size / 2, where), PAIR(BYTES, off64_t),
      PAIR(descriptor, data, size, where), int descriptor, const void *data, size_t size,
      off64_t where)
WRITE(writev, PAIR(descriptor, parts, count / 2), PAIR(int, const struct iovec *, int),
      PAIR(descriptor, parts, count), int descriptor, const struct iovec *parts, int count)
WRITE(sendfile, PAIR(descriptor, source, where, size / 2), PAIR(int, int, off_t *, size_t),
      PAIR(descriptor, source, where, size), int descriptor, int source, off_t *where, size_t size)
WRITE(sendfile64, PAIR(descriptor, source, where, size / 2), PAIR(int, int, off64_t *, size_t),
      PAIR(descriptor, source, where, size), int descriptor, int source, off64_t *where,
      size_t size)

#define CALL(name, fault_found, taken, given, ...)                                  \
    int name(__VA_ARGS__) {                                                         \
        int fault = fault_found;                                                    \
        return fault ? hit(fault) : REAL(int, name, taken)(given);                  \
    }
CALL(rename, fault_of("rename", AT_FDCWD, to), PAIR(TEXT, TEXT), PAIR(from, to), TEXT from, TEXT to)
CALL(renameat, fault_of("rename", new, to), PAIR(int, TEXT, int, TEXT), PAIR(old, from, new, to),
     int old, TEXT from, int new, TEXT to)
CALL(link, fault_of("link", AT_FDCWD, to), PAIR(TEXT, TEXT), PAIR(from, to), TEXT from, TEXT to)
CALL(linkat, fault_of("link", new, to), PAIR(int, TEXT, int, TEXT, int),
     PAIR(old, from, new, to, flags), int old, TEXT from, int new, TEXT to, int flags)
CALL(symlink, fault_of("link", AT_FDCWD, to), PAIR(TEXT, TEXT), PAIR(from, to), TEXT from, TEXT to)
CALL(unlink, fault_of("remove", AT_FDCWD, path), TEXT, path, TEXT path)
CALL(unlinkat, fault_of("remove", place, path), PAIR(int, TEXT, int), PAIR(place, path, flags),
     int place, TEXT path, int flags)
CALL(rmdir, fault_of("remove", AT_FDCWD, path), TEXT, path, TEXT path)
CALL(mkdir, fault_of("mkdir", AT_FDCWD, path), PAIR(TEXT, mode_t), PAIR(path, mode), TEXT path,
     mode_t mode)
CALL(mkdirat, fault_of("mkdir", place, path), PAIR(int, TEXT, mode_t), PAIR(place, path, mode),
     int place, TEXT path, mode_t mode)
CALL(fsync, fault_of("sync", descriptor, NULL), int, descriptor, int descriptor)
CALL(fdatasync, fault_of("sync", descriptor, NULL), int, descriptor, int descriptor)
CALL(ftruncate, fault_of("write", descriptor, NULL), PAIR(int, off_t), PAIR(descriptor, size),
     int descriptor, off_t size)
CALL(ftruncate64, fault_of("write", descriptor, NULL), PAIR(int, off64_t), PAIR(descriptor, size),
     int descriptor, off64_t size)
