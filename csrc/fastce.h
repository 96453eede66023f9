/* The whole C interface of fastce: what one call is, what a table of kernels holds, who chooses the
 * table and who runs threads.  No maths here (rows.h, columns.h, epilogue.h) and no checks:
 * pointers and shapes have been checked before they get here, labels by check_targets. */
#ifndef FASTCE_H
#define FASTCE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* The kinds of integers that targets may be, and of floats that binary ones may be.  They are read
 * where they are, never copied to another dtype. */
enum {
    FASTCE_I8,
    FASTCE_I16,
    FASTCE_I32,
    FASTCE_I64,
    FASTCE_U8,
    FASTCE_U16,
    FASTCE_U32,
    FASTCE_U64
};
enum { FASTCE_FLOAT = FASTCE_U64 + 1, FASTCE_DOUBLE };

/* The dtypes that logits, grad and hess may have. */
enum { FASTCE_F32, FASTCE_F64, FASTCE_F16, FASTCE_BF16, FASTCE_N_ELEMS };

/* An array as a loss sees it: classes, the innermost row axis (a "run" of rows) and the other row
 * axes.  All strides are in bytes; data is NULL where the array is absent. */
typedef struct {
    char *data;
    ptrdiff_t class_stride;
    ptrdiff_t row_stride;
    const ptrdiff_t *outer_strides; /* [n_outer] */
} fastce_array;

/* What is lost per row, as a function of p, the target's probability: see epilogue.h. */
enum { FASTCE_CROSS_ENTROPY, FASTCE_FOCAL, FASTCE_GENERALIZED, FASTCE_SYMMETRIC, FASTCE_POLY1 };

/* The same from log-probabilities and probabilities in place of logits: see gather.h. */
enum { FASTCE_NLL = 8, FASTCE_LOG_LOSS };

/* What else the same passes give.  The first three have no targets and write to grad (logsumexp: to
 * losses); evaluate writes row_stats. */
enum { FASTCE_SOFTMAX = 16, FASTCE_LOG_SOFTMAX, FASTCE_LOGSUMEXP, FASTCE_EVALUATE };

/* How a row was predicted.  rank: the classes before the target, by logit and then by number. */
typedef struct {
    double loss, entropy, confidence;
    int64_t rank; /* -1: the row is not there */
} fastce_row_stats;

/* Which chunks of work have been claimed.  A thread first claims those of its own part, in order,
 * then what is left of the others': from call to call it has mostly the same rows, which its cache
 * may still hold (60000 x 10, 1000 x 1000: 0.91 of the time of one queue for all). */
enum { FASTCE_MOST_PARTS = 16 };
typedef struct {
    int n_parts;
    _Atomic ptrdiff_t next[FASTCE_MOST_PARTS];
    ptrdiff_t end[FASTCE_MOST_PARTS];
} fastce_work;

/* One call of a loss.  Rows are numbered 0 .. n_rows - 1 in the order of the row axes. */
typedef struct fastce_call {
    ptrdiff_t n_rows, n_classes;
    ptrdiff_t run_length; /* rows of the innermost axis */
    int n_outer;          /* the other row axes */
    const ptrdiff_t *outer_shape;

    fastce_array logits;        /* elem */
    fastce_array grad, hess;    /* out_elem, any of the dtypes; NULL: not wanted */
    fastce_array targets;       /* integers of target_kind; NULL if probabilities are given */
    fastce_array probabilities; /* doubles for double logits, else floats */
    fastce_array where;         /* bytes, one per class: 0 hides it; NULL: all are seen */
    const uint8_t *keep_row;    /* [n_rows]; NULL: all are kept */
    const double *sample_weight, *upstream; /* [n_rows]; NULL: ones */
    const double *class_weight;             /* [n_classes]; NULL: ones */
    void *losses; /* [n_rows], double for double logits, else float; NULL: only the sum is wanted */
    fastce_row_stats *row_stats; /* [n_rows]; evaluate only */
    int out_elem, target_kind;
    int has_ignore_index;
    int64_t ignore_index;

    int loss;           /* FASTCE_CROSS_ENTROPY, ... */
    double alpha, beta; /* its parameters: see epilogue.h */
    double smoothing, logit_scale, z_loss;
    double softcap;    /* 0: none */
    double grad_scale; /* what the reduction multiplies every row's gradient by */

    /* The work: each sum_rows rows leave their own sum, whose size depends on the shape alone, so
     * that no number of threads, no layout and no order of work changes a bit; a thread claims a
     * chunk of one or more such sums at a time. */
    int stream; /* write grad past the caches */
    ptrdiff_t sum_rows, sums_per_run, n_sums;
    ptrdiff_t chunk_rows, chunks_per_run, n_chunks;
    double *sums;  /* [n_sums][2]: a sum, and what its roundings lost */
    char *scratch; /* [n_threads][scratch_size], aligned to 64 bytes */
    size_t scratch_size;
    fastce_work work;
    const struct fastce_kernels *kernels;
} fastce_call;

/* One call of a binary loss.  An element is a row without classes; all arrays have one shape, by a
 * stride of 0 where they are broadcast, and their class_stride means nothing. */
typedef struct fastce_binary_call {
    ptrdiff_t n_elements, run_length;
    int n_outer;
    const ptrdiff_t *outer_shape;

    fastce_array logits;  /* elem */
    fastce_array losses;  /* doubles for double logits, else floats; NULL: only the sum is wanted */
    fastce_array grad;    /* out_elem; NULL: not wanted */
    fastce_array targets; /* target_kind */
    fastce_array where;   /* bytes; 0: the element is not there; NULL: all are */
    fastce_array sample_weight, pos_weight, upstream; /* doubles; NULL: ones */
    int out_elem, target_kind;

    int is_focal;
    double gamma, one_factor, zero_factor; /* focal: the last two are of targets 1 and 0 */
    double smoothing;
    double grad_scale; /* what the reduction multiplies every gradient by */

    int stream; /* write grad past the caches */
    ptrdiff_t n_chunks;
    double *sums; /* [n_chunks][2]: a chunk's sum and what its rounding lost */
    fastce_work work;
    _Atomic int has_wrong; /* check_binary found a target that cannot be */
    const struct fastce_kernels *kernels;
} fastce_binary_call;

/* One call of a student and its teacher: contiguous rows of floats or doubles. */
typedef struct fastce_distillation {
    ptrdiff_t n_rows, n_classes;
    const void *student, *teacher;
    void *grad; /* NULL: not wanted */
    int student_elem, teacher_elem, grad_elem;
    double temperature;
    const uint8_t *is_there; /* [n_rows]; 0: the row is not read, and its gradient is 0 */
    const double *slopes;    /* [n_rows]: what multiplies a row's p - q */
    double *divergences;     /* [n_rows], of q from p; -1: left to the caller, as is its gradient */

    ptrdiff_t chunk_rows;
    double *scratch; /* [n_threads][scratch_size], aligned to 64 bytes */
    ptrdiff_t scratch_size;
    fastce_work work;
    const struct fastce_kernels *kernels;
} fastce_distillation;

/* The kernels of one dtype, compiled for one ISA. */
typedef struct fastce_kernels {
    /* Fills in the work. */
    void (*plan)(fastce_call *call);
    /* The row of the first label that is neither a class nor ignored, or -1.  weight_sum: what a
     * mean divides by, added up in a fixed order. */
    ptrdiff_t (*check_targets)(const fastce_call *call, double *weight_sum);
    /* Takes chunks until none is left.  Any number of threads may run it at once. */
    void (*cross_entropy)(fastce_call *call, int thread);

    /* The same for binary losses.  check_binary comes first, and adds up weights instead of
     * losses. */
    void (*plan_binary)(fastce_binary_call *call);
    void (*check_binary)(fastce_binary_call *call, int thread);
    void (*binary)(fastce_binary_call *call, int thread);

    void (*distill)(fastce_distillation *call, int thread); /* doubles have it */

    void (*adam_step)(void *params, const void *grad, void *first_moment, void *second_moment,
                      ptrdiff_t n, double step_size, double beta_1, double beta_2, double epsilon,
                      double second_correction);
    void (*stream_copy)(const void *src, void *dst, ptrdiff_t n_bytes);
    double (*stream_read)(const void *src, ptrdiff_t n_bytes);
} fastce_kernels;

/* dispatch.c: the only file that asks what the CPU is. */
typedef struct {
    const char *name;
    const fastce_kernels *kernels[FASTCE_N_ELEMS];
    int (*runs_here)(void);
} fastce_isa;
extern const fastce_isa fastce_isas[]; /* fastest first; the last one has no name */

/* call.c: plans the call, finds it memory and threads, and adds up the losses.  0, or -1 if there
 * is no memory; then nothing has been written. */
int fastce_run(fastce_call *call, int n_threads, double *loss_sum);
int fastce_run_binary(fastce_binary_call *call, int check, int n_threads, double *sum);
int fastce_run_distillation(fastce_distillation *call, int n_threads);

/* parallel.c: the only file with threads.  Runs task(arg, thread) on the caller's thread as number
 * 0 and on up to n_threads - 1 others; returns when all that have begun are done.  It may run on
 * fewer. */
void fastce_parallel(void (*task)(void *arg, int thread), void *arg, int n_threads);
int fastce_use_threading(
    const char *name); /* "pool", "openmp" or "serial"; -1: not in this build */
const char *fastce_threading(void);
const char *fastce_backend(int i); /* of this build, from 0 on; NULL: there are no more */

/* call.c: the yardsticks of the benchmarks on several threads; dst NULL: read, and return the
 * sum. */
double fastce_stream(const fastce_kernels *kernels, const void *src, void *dst, ptrdiff_t n_bytes,
                     int n_threads);
const char *fastce_compiler(void);

#endif
