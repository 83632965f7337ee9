/* The wall clock of a process, moved by what another process writes into a file: see clock.py, which compiles this.
 *
 * Put before libc by LD_PRELOAD. SKALDS_CHAOS_CLOCK names a file of eight bytes, nanoseconds to add as an int64; it is
 * mapped once, so that a change holds for every process at once, and a fork keeps it. Without the file nothing moves.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000LL

typedef int (*gettime_t)(clockid_t, struct timespec *);

static const int64_t unmoved = 0;
static const volatile int64_t *offset_ns = &unmoved;

__attribute__((constructor)) static void map_offset(void)
{
    const char *path = getenv("SKALDS_CHAOS_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof *offset_ns, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        offset_ns = mapped;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    static gettime_t libc_gettime;
    if (!libc_gettime)
        libc_gettime = (gettime_t)dlsym(RTLD_NEXT, "clock_gettime");
    int failed = libc_gettime(clock, at);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = at->tv_sec * SECOND_NS + at->tv_nsec + *offset_ns;
        at->tv_sec = ns / SECOND_NS;
        at->tv_nsec = ns % SECOND_NS;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone; /* obsolete */
    int failed = clock_gettime(CLOCK_REALTIME, &now);
    if (!failed) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return failed;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

int timespec_get(struct timespec *at, int base)
{
    return base == TIME_UTC && clock_gettime(CLOCK_REALTIME, at) == 0 ? base : 0;
}
