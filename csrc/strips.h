/* Many classes whose neighbours are not neighbours in memory (channels first, Fortran order,
 * steps), or a gradient of another dtype: LANES rows at a time are copied to contiguous scratch,
 * computed there by rows.h, and copied out.  So every layout has the bits of the contiguous one. */
#ifndef FASTCE_STRIPS_H
#define FASTCE_STRIPS_H

#include "rows.h"

INLINE ptrdiff_t strip_width(ptrdiff_t n_classes)
{
    return (ptrdiff_t)(row_scratch_size(n_classes) / sizeof(real));
}

/* Rows first .. first + n of logits to strip[LANES][width]. */
static void load_strip(const fastce_array *x, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_classes,
                       elem *strip)
{
    const ptrdiff_t width = strip_width(n_classes);
    const char *source = x->data + first * x->row_stride;
    ptrdiff_t j = 0;
    if (x->row_stride == sizeof(elem) && n == LANES)
        for (; j + LANES <= n_classes; j += LANES) {
            vreal v[LANES];
            for (int l = 0; l < LANES; l++)
                v[l] = load((const elem *)(source + (j + l) * x->class_stride));
            transpose(v, LANES);
            for (int l = 0; l < LANES; l++) store(strip + l * width + j, v[l]);
        }
    for (; j < n_classes; j++)
        for (ptrdiff_t i = 0; i < n; i++)
            strip[i * width + j]
                = *(const elem *)(source + i * x->row_stride + j * x->class_stride);
}

static void load_probabilities(const fastce_array *x, ptrdiff_t first, ptrdiff_t n,
                               ptrdiff_t n_classes, real *strip)
{
    const ptrdiff_t width = strip_width(n_classes);
    const char *source = x->data + first * x->row_stride;
    for (ptrdiff_t j = 0; j < n_classes; j++)
        for (ptrdiff_t i = 0; i < n; i++)
            strip[i * width + j]
                = *(const real *)(source + i * x->row_stride + j * x->class_stride);
}

static void store_strip(const fastce_array *x, int out_elem, ptrdiff_t first, ptrdiff_t n,
                        ptrdiff_t n_classes, const real *strip)
{
    const ptrdiff_t width = strip_width(n_classes);
    char *out = x->data + first * x->row_stride;
    ptrdiff_t j = 0;
    if (x->row_stride == sizeof(elem) && n == LANES && out_elem == OWN_ELEM)
        for (; j + LANES <= n_classes; j += LANES) {
            vreal v[LANES];
            for (int l = 0; l < LANES; l++) v[l] = load_real(strip + l * width + j);
            transpose(v, LANES);
            for (int l = 0; l < LANES; l++) store((elem *)(out + (j + l) * x->class_stride), v[l]);
        }
    for (; j < n_classes; j++)
        for (ptrdiff_t i = 0; i < n; i++)
            put_as(out_elem, out + i * x->row_stride + j * x->class_stride, strip[i * width + j]);
}

/* Whether rows.h can work on the arrays themselves. */
INLINE int is_contiguous(const fastce_call *call)
{
    const int out_real = call->out_elem == REAL_ELEM;
    const ptrdiff_t out_size = out_real ? sizeof(real) : sizeof(elem);
    if (call->logits.class_stride != sizeof(elem)) return 0;
    if (call->probabilities.data && call->probabilities.class_stride != sizeof(real)) return 0;
    if (!call->grad.data) return 1;
    return (out_real || call->out_elem == OWN_ELEM) && call->grad.class_stride == out_size
           && (!call->hess.data || call->hess.class_stride == out_size);
}

/* Bytes of one strip. */
INLINE size_t strip_size(const fastce_call *call)
{
    const ptrdiff_t n = call->run_length < LANES ? call->run_length : LANES;
    return (size_t)n * row_scratch_size(call->n_classes);
}

/* Bytes of those that a call needs, logits first. */
INLINE size_t strips_size(const fastce_call *call)
{
    const int n = 1 + (call->grad.data != NULL) + (call->hess.data != NULL)
                  + (call->probabilities.data != NULL);
    return (size_t)n * strip_size(call);
}

static void cross_entropy_strips(fastce_call *call, int thread)
{
    const ptrdiff_t n_classes = call->n_classes, width = strip_width(n_classes);
    const ptrdiff_t real_stride = width * (ptrdiff_t)sizeof(real);
    row_worker worker;
    start_worker(call, thread, &worker);
    /* behind what rows need */
    char *scratch = call->scratch + (size_t)(thread + 1) * call->scratch_size - strips_size(call);
    row_run strip = {.logits = {.data = scratch, .row_stride = width * (ptrdiff_t)sizeof(elem)}};
    const fastce_array *wanted[] = {&call->grad, &call->hess, &call->probabilities};
    fastce_array *more[] = {&strip.grad, &strip.hess, &strip.probabilities};
    for (int k = 0; k < 3; k++)
        if (wanted[k]->data)
            *more[k]
                = (fastce_array){.data = scratch += strip_size(call), .row_stride = real_stride};

    for (cursor at; claim_chunk(call, thread, &at);) {
        const row_run *run = &at.run;
        for (ptrdiff_t first = at.row; first < at.end; first += LANES) {
            const ptrdiff_t n = at.end - first < LANES ? at.end - first : LANES;
            load_strip(&run->logits, first, n, n_classes, (elem *)strip.logits.data);
            if (strip.probabilities.data)
                load_probabilities(&run->probabilities, first, n, n_classes,
                                   (real *)strip.probabilities.data);
            for (ptrdiff_t done = 0, some; done < n; done += some) {
                some = n - done < worker.batch ? n - done : worker.batch;
                row_batch(call, &worker, run, first + done, some, &strip, first, 1, 0, NULL);
            }
            finish_worker(call, &worker);
            if (strip.grad.data)
                store_strip(&run->grad, call->out_elem, first, n, n_classes,
                            (const real *)strip.grad.data);
            if (strip.hess.data)
                store_strip(&run->hess, call->out_elem, first, n, n_classes,
                            (const real *)strip.hess.data);
        }
    }
}

#endif
