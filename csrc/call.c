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

static void run_kernel(void *arg, int thread)
{
    fastce_call *call = arg;
    call->kernels->cross_entropy(call, thread);
}

int fastce_run(fastce_call *call, int n_threads, double *loss_sum)
{
    double few_sums[64]; /* small calls allocate nothing */
    void *sums = NULL, *scratch = NULL;

    if ((ptrdiff_t)n_threads > call->n_chunks) n_threads = (int)call->n_chunks;
    if (n_threads < 1) n_threads = 1;
    call->chunk_sums = few_sums;
    if (call->n_chunks > 64)
        call->chunk_sums = sums = malloc((size_t)call->n_chunks * sizeof(double));
    if (call->scratch_size) {
        scratch = malloc(call->scratch_size * (size_t)n_threads + 64);
        call->scratch = (char *)(((uintptr_t)scratch + 63) / 64 * 64);
    }
    const int failed = !call->chunk_sums || (call->scratch_size && !scratch);
    if (!failed) {
        atomic_store(&call->next_chunk, 0);
        fastce_parallel(run_kernel, call, n_threads);

        double sum = 0, lost = 0; /* Neumaier's sum; inf and NaN have no rounding error */
        for (ptrdiff_t i = 0; i < call->n_chunks; i++) {
            const double x = call->chunk_sums[i], next = sum + x, part = next - sum;
            if (next - next == 0) lost += (sum - (next - part)) + (x - part);
            sum = next;
        }
        *loss_sum = sum + lost;
    }
    free(sums);
    free(scratch);
    return failed ? -1 : 0;
}
