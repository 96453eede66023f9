/* The only file with threads.  A task runs on the caller's thread and on any others that come in
 * time; each claims its own chunks of work, so nothing here knows about rows, and a slow thread
 * simply claims fewer.
 *
 * The default is a pool of our own in which help is optional: a caller that has claimed the last
 * chunk waits only for helpers that have begun, never for one that has still to wake.  An OpenMP
 * team waits for every member: after 20 ms of idleness, beside a busy process or beside a second
 * OpenMP runtime, libgomp made calls of 50 microseconds take 1 to 10 milliseconds.  It stays as a
 * back-end. */
#define _GNU_SOURCE /* a thread's CPUs */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#include "fastce.h"

/* A helper looks for work this many pauses long (15 to 50 microseconds) before it sleeps: back-to-
 * back calls find it awake, and it burns no core while the caller does something else. */
enum { MOST_HELPERS = 255, PAUSES = 1000 };

typedef enum { SERIAL, POOL, OPENMP } backend;
static const char *const names[] = {"serial", "pool", "openmp"};
static backend used = POOL;
/* libgomp's threads do not survive fork, and it hangs (GCC bug 60035). */
static int is_forked_child;

static struct {
    pthread_mutex_t caller; /* held by the one call that has the pool; others run alone */
    pthread_mutex_t sleep;
    pthread_cond_t wake;
    int n_helpers;
    void (*task)(void *arg, int thread);
    void *arg;
    int n_threads;
    pthread_t caller_thread;
    int caller_cpu;
    unsigned long caller_mode;
    _Atomic unsigned round; /* counts the jobs */
    _Atomic int is_open;    /* the job takes helpers */
    _Atomic int n_joined, n_active, n_asleep;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER,
          .sleep = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

/* How a thread rounds, and whether it flushes subnormals.  Helpers do as their caller does: where
 * that had been told to flush (torch.set_flush_denormal, libraries built with -ffast-math) after
 * they had been made, half of the gradients that are subnormal were 0, and others with every
 * call. */
static unsigned long float_mode(void)
{
#if defined(__SSE2__)
    return _mm_getcsr();
#elif defined(__aarch64__)
    unsigned long mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
#else
    return 0;
#endif
}

static void set_float_mode(unsigned long mode)
{
#if defined(__SSE2__)
    _mm_setcsr((unsigned)mode);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
    (void)mode;
#endif
}

#if defined(__linux__)
/* A thread that is woken starts where the scheduler likes, often on the caller's CPU, where it can
 * only take turns with it: calls of 50 microseconds in turns with PyTorch's spinning threads took
 * 1.4 to 1.6 times as long as alone, the first ones after idleness 1.0 times.  Of the CPUs that the
 * caller may use, a helper leaves the caller's: 0.9 and 0.6 times.  While it moves it is not
 * counted: nobody waits for it.  It keeps to the CPUs that are left until it is in the way
 * again. */
static void step_aside(void)
{
    cpu_set_t cpus;
    const int here = sched_getcpu();
    atomic_fetch_add(&pool.n_active, 1); /* or the caller may be gone */
    const int in_the_way = atomic_load(&pool.is_open) && here == pool.caller_cpu
                           && pthread_getaffinity_np(pool.caller_thread, sizeof cpus, &cpus) == 0;
    atomic_fetch_sub(&pool.n_active, 1);
    if (!in_the_way) return;
    CPU_CLR((size_t)here, &cpus);
    if (CPU_COUNT(&cpus)) pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);
}
#else
#define sched_getcpu() 0
static void step_aside(void)
{
}
#endif

static void *help(void *unused)
{
    unsigned seen = atomic_load(&pool.round) - 1; /* the job that this helper was made for */
    (void)unused;
    for (;;) {
        for (int i = 0; i < PAUSES && atomic_load(&pool.round) == seen; i++) PAUSE();
        if (atomic_load(&pool.round) == seen) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.n_asleep, 1);
            while (atomic_load(&pool.round) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.n_asleep, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = atomic_load(&pool.round);
        step_aside();
        /* First count in, then look: the caller first closes, then waits for the count. */
        atomic_fetch_add(&pool.n_active, 1);
        if (atomic_load(&pool.is_open)) {
            const int thread = 1 + atomic_fetch_add(&pool.n_joined, 1);
            set_float_mode(pool.caller_mode);
            if (thread < pool.n_threads) pool.task(pool.arg, thread);
        }
        atomic_fetch_sub(&pool.n_active, 1);
    }
    return NULL;
}

static void start_helpers(int n)
{
    sigset_t all, before;
    pthread_t thread;
    if (pool.n_helpers >= n) return;
    /* Signals are the program's business, on its own threads, but those that a thread raises
     * itself: blocked, they would end the process before a handler (faulthandler's) hears of
     * them. */
    const int own[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    sigfillset(&all);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&all, own[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.n_helpers < n && pthread_create(&thread, NULL, help, NULL) == 0) {
        pthread_detach(thread);
        pool.n_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void run_in_pool(void (*task)(void *arg, int thread), void *arg, int n_threads)
{
    if (n_threads - 1 > MOST_HELPERS) n_threads = 1 + MOST_HELPERS;
    pool.task = task;
    pool.arg = arg;
    pool.n_threads = n_threads;
    pool.caller_thread = pthread_self();
    pool.caller_cpu = sched_getcpu();
    pool.caller_mode = float_mode();
    atomic_store(&pool.n_joined, 0);
    atomic_store(&pool.is_open, 1);
    atomic_fetch_add(&pool.round, 1);
    start_helpers(n_threads - 1);
    if (atomic_load(&pool.n_asleep)) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    task(arg, 0);
    atomic_store(&pool.is_open, 0);
    for (int i = 0; atomic_load(&pool.n_active); i++)
        if (i < PAUSES)
            PAUSE();
        else
            sched_yield();
}

/* The child of a fork has the caller's thread alone: a new pool, with nobody in it. */
static void after_fork(void)
{
    is_forked_child = 1;
    memset(&pool, 0, sizeof pool);
    pthread_mutex_init(&pool.caller, NULL);
    pthread_mutex_init(&pool.sleep, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, after_fork);
}

#if defined(_OPENMP)
enum { N_BACKENDS = OPENMP + 1 };
#else
enum { N_BACKENDS = OPENMP };
#endif

int fastce_use_threading(const char *name)
{
    for (int i = 0; i < N_BACKENDS; i++)
        if (!strcmp(name, names[i])) {
            used = (backend)i;
            return 0;
        }
    return -1;
}

const char *fastce_threading(void)
{
    return names[used];
}

const char *fastce_backend(int i)
{
    return i < N_BACKENDS ? names[i] : NULL;
}

void fastce_parallel(void (*task)(void *arg, int thread), void *arg, int n_threads)
{
    if (n_threads > 1 && used == POOL && pthread_mutex_trylock(&pool.caller) == 0) {
        run_in_pool(task, arg, n_threads);
        pthread_mutex_unlock(&pool.caller);
        return;
    }
#if defined(_OPENMP)
    if (n_threads > 1 && used == OPENMP && !is_forked_child) {
        const unsigned long mode = float_mode();
#pragma omp parallel num_threads(n_threads)
        {
            set_float_mode(mode);
            task(arg, omp_get_thread_num());
        }
        return;
    }
#endif
    task(arg, 0);
}
