/* One call from plan to result: memory, threads, and the sum of the losses in a fixed order.  The
 * maths is in the kernels, the threads in parallel.c. */
#include <stdlib.h>

#include "fastce.h"

const char *fastce_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

/* By Knuth's two-sums; inf and NaN have no rounding error. */
static double sum_in_order(const double *terms, ptrdiff_t n)
{
    double sum = 0, lost = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double x = terms[i], next = sum + x, part = next - sum;
        if (next - next == 0) lost += (sum - (next - part)) + (x - part);
        sum = next;
    }
    return sum + lost;
}

static int useful_threads(int n_threads, ptrdiff_t n_chunks)
{
    if ((ptrdiff_t)n_threads > n_chunks) n_threads = (int)n_chunks;
    return n_threads < 1 ? 1 : n_threads;
}

/* One part for each thread, but one for all where nothing stays in a cache: threads that are far
 * apart in memory took 1.05 times as long there. */
static void share(fastce_work *work, ptrdiff_t n_chunks, int n_threads, int stream)
{
    const int most = stream ? 1 : FASTCE_MOST_PARTS;
    work->n_parts = n_threads < most ? n_threads : most;
    for (int i = 0; i < work->n_parts; i++) {
        atomic_store_explicit(&work->next[i], i ? work->end[i - 1] : 0, memory_order_relaxed);
        work->end[i] = i + 1 < work->n_parts ? n_chunks * (i + 1) / work->n_parts : n_chunks;
    }
}

static void run_kernel(void *arg, int thread)
{
    fastce_call *call = arg;
    call->kernels->cross_entropy(call, thread);
}

int fastce_run(fastce_call *call, int n_threads, double *loss_sum)
{
    double few_sums[128]; /* small calls allocate nothing */
    void *sums = NULL, *scratch = NULL;

    n_threads = useful_threads(n_threads, call->n_chunks);
    call->sums = few_sums;
    if (call->n_sums > 64) call->sums = sums = malloc((size_t)call->n_sums * 2 * sizeof(double));
    if (call->scratch_size) {
        scratch = malloc(call->scratch_size * (size_t)n_threads + 64); /* below 2^58 */
        call->scratch = (char *)(((uintptr_t)scratch + 63) / 64 * 64);
    }
    const int failed = !call->sums || (call->scratch_size && !scratch);
    if (!failed) {
        share(&call->work, call->n_chunks, n_threads, call->stream);
        fastce_parallel(run_kernel, call, n_threads);
        *loss_sum = sum_in_order(call->sums, 2 * call->n_sums);
    }
    call->sums = NULL;
    free(sums);
    free(scratch);
    return failed ? -1 : 0;
}

static void run_check_binary(void *arg, int thread)
{
    fastce_binary_call *call = arg;
    call->kernels->check_binary(call, thread);
}

static void run_binary(void *arg, int thread)
{
    fastce_binary_call *call = arg;
    call->kernels->binary(call, thread);
}

int fastce_run_binary(fastce_binary_call *call, int check, int n_threads, double *sum)
{
    double few_sums[64];
    void *sums = NULL;
    call->kernels->plan_binary(call);
    n_threads = useful_threads(n_threads, call->n_chunks);
    call->sums = few_sums;
    if (call->n_chunks > 32)
        call->sums = sums = malloc((size_t)call->n_chunks * 2 * sizeof(double));
    const int failed = !call->sums;
    if (!failed) {
        share(&call->work, call->n_chunks, n_threads, call->stream);
        fastce_parallel(check ? run_check_binary : run_binary, call, n_threads);
        *sum = sum_in_order(call->sums, 2 * call->n_chunks);
    }
    call->sums = NULL;
    free(sums);
    return failed ? -1 : 0;
}

static void run_distill(void *arg, int thread)
{
    fastce_distillation *call = arg;
    call->kernels->distill(call, thread);
}

int fastce_run_distillation(fastce_distillation *call, int n_threads)
{
    enum { CHUNK_ELEMENTS = 4096, PAD = 8 /* doubles of 64 bytes */ };
    const ptrdiff_t rows = CHUNK_ELEMENTS / call->n_classes;
    call->chunk_rows = rows < 1 ? 1 : rows;
    const ptrdiff_t n_chunks = (call->n_rows + call->chunk_rows - 1) / call->chunk_rows;
    n_threads = useful_threads(n_threads, n_chunks);
    call->scratch_size = 3 * ((call->n_classes + PAD - 1) / PAD * PAD);
    void *scratch = malloc((size_t)call->scratch_size * sizeof(double) * (size_t)n_threads + 64);
    if (!scratch) return -1;
    call->scratch = (double *)(((uintptr_t)scratch + 63) / 64 * 64);
    share(&call->work, n_chunks, n_threads, 0);
    fastce_parallel(run_distill, call, n_threads);
    free(scratch);
    return 0;
}

typedef struct {
    const fastce_kernels *kernels;
    const char *src;
    char *dst;
    ptrdiff_t n_bytes;
    _Atomic ptrdiff_t next;
    _Atomic double sum;
} stream;

static void run_stream(void *arg, int thread)
{
    enum { PART = 1 << 18 };
    stream *job = arg;
    ptrdiff_t start;
    double sum = 0, before;
    (void)thread;
    while ((start = atomic_fetch_add(&job->next, PART)) < job->n_bytes) {
        const ptrdiff_t n = job->n_bytes - start < PART ? job->n_bytes - start : PART;
        if (job->dst)
            job->kernels->stream_copy(job->src + start, job->dst + start, n);
        else
            sum += job->kernels->stream_read(job->src + start, n);
    }
    before = atomic_load(&job->sum);
    while (!atomic_compare_exchange_weak(&job->sum, &before, before + sum)) continue;
}

double fastce_stream(const fastce_kernels *kernels, const void *src, void *dst, ptrdiff_t n_bytes,
                     int n_threads)
{
    stream job = {.kernels = kernels, .src = src, .dst = dst, .n_bytes = n_bytes};
    fastce_parallel(run_stream, &job, n_threads);
    return atomic_load(&job.sum);
}
