/* Fails the k-th file operation below a directory, whoever asks for it: loaded before the C library (LD_PRELOAD).

   Operations are counted from streamgd_arm on, or from the start of the process if STREAMGD_FAULT_DIRECTORY, _AT,
   _ERRNO and _PARTIAL are set. Files that are opened for reading are let alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define DESCRIPTORS 65536

static char directory[4096];
static atomic_long count, failing;
static atomic_int error_number, partial, pending;
static atomic_char watched[DESCRIPTORS];

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

void streamgd_arm(const char *where, long at, int number, int is_partial) {
    strncpy(directory, where, sizeof directory - 1);
    memset((void *)watched, 0, sizeof watched);
    atomic_store(&count, 0);
    atomic_store(&failing, at);
    atomic_store(&error_number, number);
    atomic_store(&partial, is_partial);
    atomic_store(&pending, 0);
}

long streamgd_count(void) { return atomic_load(&count); }

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("STREAMGD_FAULT_DIRECTORY"), *at = getenv("STREAMGD_FAULT_AT");
    const char *number = getenv("STREAMGD_FAULT_ERRNO"), *is_partial = getenv("STREAMGD_FAULT_PARTIAL");
    if (where && at && number && is_partial) streamgd_arm(where, atol(at), atoi(number), atoi(is_partial));
}

static int below(const char *path) {
    size_t n = strlen(directory);
    return n && strncmp(path, directory, n) == 0 && (path[n] == 0 || path[n] == '/');
}

static int mine(int descriptor) {
    return descriptor >= 0 && descriptor < DESCRIPTORS && atomic_load(&watched[descriptor]);
}

static int fails(void) {
    if (atomic_fetch_add(&count, 1) + 1 != atomic_load(&failing)) return 0;
    errno = atomic_load(&error_number);
    return 1;
}

static int watch(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) atomic_store(&watched[descriptor], 1);
    return descriptor;
}

#define OPENED(path, flags) (below(path) && (flags & (O_WRONLY | O_RDWR | O_CREAT | O_DIRECTORY)))
#define MODE mode_t mode = 0; if (flags & (O_CREAT | __O_TMPFILE)) { \
    va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

#define OPEN(name) int name(const char *path, int flags, ...) { \
    REAL(name); MODE \
    if (!OPENED(path, flags)) return real(path, flags, mode); \
    return fails() ? -1 : watch(real(path, flags, mode)); }
OPEN(open)
OPEN(open64)

#define OPENAT(name) int name(int at, const char *path, int flags, ...) { \
    REAL(name); MODE \
    if (!OPENED(path, flags)) return real(at, path, flags, mode); \
    return fails() ? -1 : watch(real(at, path, flags, mode)); }
OPENAT(openat)
OPENAT(openat64)

static int fails_to_write(int descriptor, int divisible) {
    if (!mine(descriptor)) return 0;
    if (atomic_exchange(&pending, 0)) { errno = atomic_load(&error_number); return 1; }
    if (!fails()) return 0;
    if (!atomic_load(&partial) || !divisible) return 1;
    atomic_store(&pending, 1);
    return 2;
}

ssize_t write(int descriptor, const void *data, size_t n) {
    REAL(write);
    int how = fails_to_write(descriptor, n > 1);
    return how == 1 ? -1 : real(descriptor, data, how == 2 ? n / 2 : n);
}

ssize_t writev(int descriptor, const struct iovec *pieces, int n) {
    REAL(writev);
    return fails_to_write(descriptor, 0) ? -1 : real(descriptor, pieces, n);
}

#define PWRITE(name, offset) ssize_t name(int descriptor, const void *data, size_t n, offset place) { \
    REAL(name); \
    int how = fails_to_write(descriptor, n > 1); \
    return how == 1 ? -1 : real(descriptor, data, how == 2 ? n / 2 : n, place); }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FLUSH(name) int name(int descriptor) { \
    REAL(name); return mine(descriptor) && fails() ? -1 : real(descriptor); }
FLUSH(fsync)
FLUSH(fdatasync)

/* It is closed all the same, as Linux does. */
int close(int descriptor) {
    REAL(close);
    int known = mine(descriptor);
    if (known) atomic_store(&watched[descriptor], 0);
    int result = real(descriptor);
    return known && fails() ? -1 : result;
}

#define CUT(name, length) int name(int descriptor, length n) { \
    REAL(name); return mine(descriptor) && fails() ? -1 : real(descriptor, n); }
CUT(ftruncate, off_t)
CUT(ftruncate64, off64_t)

int rename(const char *from, const char *to) {
    REAL(rename); return below(to) && fails() ? -1 : real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); return below(to) && fails() ? -1 : real(a, from, b, to);
}
int link(const char *from, const char *to) {
    REAL(link); return below(to) && fails() ? -1 : real(from, to);
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat); return below(to) && fails() ? -1 : real(a, from, b, to, flags);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir); return below(path) && fails() ? -1 : real(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    REAL(mkdirat); return below(path) && fails() ? -1 : real(at, path, mode);
}
int fchmod(int descriptor, mode_t mode) {
    REAL(fchmod); return mine(descriptor) && fails() ? -1 : real(descriptor, mode);
}
int chmod(const char *path, mode_t mode) {
    REAL(chmod); return below(path) && fails() ? -1 : real(path, mode);
}
