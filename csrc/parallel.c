/* The only file with threads.  A task runs once on each thread and claims its own chunks of work, so
 * nothing here knows about rows, and a slow thread simply claims fewer. */
#include "fastce.h"

#if defined(_OPENMP)
#include <omp.h>
#include <pthread.h>

/* libgomp's threads do not survive fork: a region in a child of a process that had one hangs
 * (GCC bug 60035), whichever library ran it.  So a child computes on its own thread. */
static int is_forked_child;

static void note_fork(void)
{
    is_forked_child = 1;
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, note_fork);
}

const char *fastce_threading(void)
{
    return "openmp";
}

void fastce_parallel(void (*task)(void *arg, int thread), void *arg, int n_threads)
{
    if (n_threads <= 1 || is_forked_child) {
        task(arg, 0);
        return;
    }
#pragma omp parallel num_threads(n_threads)
    task(arg, omp_get_thread_num());
}

#else

const char *fastce_threading(void)
{
    return "serial";
}

void fastce_parallel(void (*task)(void *arg, int thread), void *arg, int n_threads)
{
    (void)n_threads;
    task(arg, 0);
}

#endif
