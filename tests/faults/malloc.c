/* Allocations that fail on request: LD_PRELOAD this library, then call fault_arm from the thread
 * whose allocations are to be counted.
 *
 *     gcc -shared -fPIC -O1 malloc.c -o failing.so -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static __thread long countdown;  /* 0: not armed */
static __thread long counted;
static __thread size_t least;    /* bytes: smaller allocations neither count nor fail */

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static int (*real_memalign)(void **, size_t, size_t);
static void *(*real_aligned)(size_t, size_t);

static char early[65536];  /* dlsym itself allocates */
static size_t n_early;

static void begin(void) {
    real_malloc = dlsym(RTLD_NEXT, "malloc");
    real_realloc = dlsym(RTLD_NEXT, "realloc");
    real_memalign = dlsym(RTLD_NEXT, "posix_memalign");
    real_aligned = dlsym(RTLD_NEXT, "aligned_alloc");
    real_calloc = dlsym(RTLD_NEXT, "calloc");
}

/* Fail the n-th allocation from now on of at least `bytes`; 0 for none. */
void fault_arm(long n, size_t bytes) { countdown = n; counted = 0; least = bytes; }
long fault_counted(void) { return counted; }

static int counts_down(size_t size) {
    if (!countdown || size < least) return 0;
    if (++counted != countdown) return 0;
    errno = ENOMEM;
    return 1;
}

/* Only allocations of our modules fail here. NumPy 2.4 ends with a segmentation fault where there
 * is no room for buffers of its own, such as those of a conversion or of indexing; arrays are
 * allocated by the functions below, whose failure it reports. */
static int fails_for(const void *caller, size_t size) {
    Dl_info info;
    if (!countdown || size < least) return 0;
    if (!dladdr(caller, &info) || !info.dli_fname) return 0;
    return strstr(info.dli_fname, "sparselsh/_core/") != NULL && counts_down(size);
}
#define fails(size) fails_for(__builtin_return_address(0), size)

void *malloc(size_t size) {
    if (!real_malloc) begin();
    return fails(size) ? NULL : real_malloc(size);
}

void *calloc(size_t n, size_t size) {
    if (!real_calloc) {
        void *p = early + n_early;
        n_early += (n * size + 63) / 64 * 64;
        return n_early <= sizeof early ? p : NULL;
    }
    return fails(n * size) ? NULL : real_calloc(n, size);
}

void *realloc(void *p, size_t size) {
    if (!real_realloc) begin();
    return fails(size) ? NULL : real_realloc(p, size);
}

int posix_memalign(void **p, size_t alignment, size_t size) {
    if (!real_memalign) begin();
    return fails(size) ? ENOMEM : real_memalign(p, alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    if (!real_aligned) begin();
    return fails(size) ? NULL : real_aligned(alignment, size);
}

/* The allocations of NumPy's arrays: a handler for PyDataMem_SetHandler (NEP 49). */
static void *data_malloc(void *context, size_t size) {
    return counts_down(size) ? NULL : real_malloc(size);
}
static void *data_calloc(void *context, size_t n, size_t size) {
    return counts_down(n * size) ? NULL : real_calloc(n, size);
}
static void *data_realloc(void *context, void *p, size_t size) {
    return counts_down(size) ? NULL : real_realloc(p, size);
}
static void data_free(void *context, void *p, size_t size) { free(p); }

static struct {
    char name[127];
    unsigned char version;
    struct {
        void *context;
        void *(*malloc)(void *, size_t);
        void *(*calloc)(void *, size_t, size_t);
        void *(*realloc)(void *, void *, size_t);
        void (*free)(void *, void *, size_t);
    } allocator;
} handler = {"failing", 1, {NULL, data_malloc, data_calloc, data_realloc, data_free}};

void *fault_handler(void) { return &handler; }

/* The end of the process at the n-th system call that changes files, as by kill -9. */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

static long until_kill; /* 0: not armed */
static long n_calls;

void fault_kill_at(long n) { until_kill = n; n_calls = 0; }
long fault_file_calls(void) { return n_calls; }

static void count_call(void) {
    if (++n_calls == until_kill) raise(SIGKILL);
}

ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    count_call();
    return real(fd, data, size);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    count_call();
    return real(fd);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    count_call();
    int result = real(from, to);
    count_call();
    return result;
}

int fchmod(int fd, mode_t mode) {
    static int (*real)(int, mode_t);
    if (!real) real = dlsym(RTLD_NEXT, "fchmod");
    count_call();
    return real(fd, mode);
}
