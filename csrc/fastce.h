/* The whole C interface of fastce: what one call is, what a table of kernels holds, who chooses
 * the table and who runs threads.  No maths here (rows.h, columns.h, epilogue.h) and no checks:
 * every pointer, shape and label has been checked before it gets here. */
#ifndef FASTCE_H
#define FASTCE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Integer kinds of targets.  They are read where they are, never copied to another dtype. */
enum { FASTCE_I8, FASTCE_I16, FASTCE_I32, FASTCE_I64, FASTCE_U8, FASTCE_U16, FASTCE_U32, FASTCE_U64 };

/* How far apart a row's neighbours lie in one array, in bytes.  data is NULL where it is absent. */
typedef struct {
    char *data;
    ptrdiff_t row_stride;
    ptrdiff_t class_stride;
} fastce_array;

/* One call of a loss.  Rows are numbered 0 .. n_rows - 1. */
typedef struct fastce_call {
    ptrdiff_t n_rows, n_classes;
    fastce_array logits;        /* elem, any strides */
    fastce_array grad;          /* elem; NULL: loss alone */
    fastce_array targets;       /* integers of target_kind */
    fastce_array sample_weight; /* double; NULL: ones */
    const double *class_weight; /* [n_classes]; NULL: ones */
    void *losses;               /* [n_rows], double for double logits, else float; may be NULL */
    int target_kind;
    int has_ignore_index;
    int64_t ignore_index;
    double grad_scale; /* what the reduction multiplies every row's gradient by */
    int stream;        /* write grad past the caches */

    /* The work: rows go in chunks whose size depends on the shape alone, and each chunk leaves
     * its own sum, so that no number of threads and no order of work changes a bit. */
    ptrdiff_t chunk_rows, n_chunks;
    double *chunk_sums; /* [n_chunks] */
    char *scratch;      /* [n_threads][scratch_size], aligned to 64 bytes */
    size_t scratch_size;
    _Atomic ptrdiff_t next_chunk;
    const struct fastce_kernels *kernels;
} fastce_call;

/* The kernels of one dtype, compiled for one ISA. */
typedef struct fastce_kernels {
    /* Fills chunk_rows, n_chunks, scratch_size and stream. */
    void (*plan)(fastce_call *call);
    /* The row of the first label that is neither a class nor ignored, or -1.  n_valid: rows that
     * are not ignored; weight_sum: their sample_weight * class_weight[target], in a fixed order. */
    ptrdiff_t (*check_targets)(const fastce_call *call, ptrdiff_t *n_valid, double *weight_sum);
    /* Takes chunks until none is left.  Any number of threads may run it at once. */
    void (*cross_entropy)(fastce_call *call, int thread);

    void (*adam_step)(void *params, const void *grad, void *first_moment, void *second_moment,
                      ptrdiff_t n, double step_size, double beta_1, double beta_2, double epsilon,
                      double second_correction);
    void (*stream_copy)(const void *src, void *dst, ptrdiff_t n_bytes);
    double (*stream_read)(const void *src, ptrdiff_t n_bytes);
} fastce_kernels;

/* dispatch.c: the only file that asks what the CPU is. */
enum { FASTCE_F32, FASTCE_F64, FASTCE_N_ELEMS };
typedef struct {
    const char *name;
    const fastce_kernels *kernels[FASTCE_N_ELEMS];
    int (*runs_here)(void);
} fastce_isa;
extern const fastce_isa fastce_isas[]; /* fastest first; the last one has no name */

/* call.c: plans the call, finds it memory and threads, and adds up the losses.  0, or -1 if there
 * is no memory; then nothing has been written. */
int fastce_run(fastce_call *call, int n_threads, double *loss_sum);

/* parallel.c: the only file with threads.  Runs task(arg, thread) on the caller's thread as number 0
 * and on up to n_threads - 1 others; returns when all that have begun are done.  It may run on fewer. */
void fastce_parallel(void (*task)(void *arg, int thread), void *arg, int n_threads);
int fastce_use_threading(const char *name); /* "pool", "openmp" or "serial"; -1: not in this build */
const char *fastce_threading(void);

/* call.c: the yardsticks of the benchmarks on several threads; dst NULL: read, and return the sum. */
double fastce_stream(const fastce_kernels *kernels, const void *src, void *dst, ptrdiff_t n_bytes,
                     int n_threads);
const char *fastce_compiler(void);

#endif
