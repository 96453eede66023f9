/* Many classes whose neighbours are not neighbours in memory (channels first, Fortran order, steps), or
 * a gradient of another dtype: LANES rows at a time are copied to contiguous scratch, computed there in
 * place by rows.h, and copied out.  So every layout has the bits of the contiguous one. */
#ifndef FASTCE_STRIPS_H
#define FASTCE_STRIPS_H

#include "rows.h"

#if defined(FASTCE_f32)
enum { OWN_ELEM = FASTCE_F32 };
#else
enum { OWN_ELEM = FASTCE_F64 };
#endif

INLINE void store_as(int out_elem, char *to, real x)
{
    if (out_elem == FASTCE_F32)
        *(float *)to = (float)x;
    else
        *(double *)to = (double)x;
}

INLINE ptrdiff_t strip_width(ptrdiff_t n_classes)
{
    return (ptrdiff_t)(row_scratch_size(n_classes) / sizeof(elem));
}

/* Rows first .. first + n to strip[LANES][width]. */
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
            transpose(v);
            for (int l = 0; l < LANES; l++) store(strip + l * width + j, v[l]);
        }
    for (; j < n_classes; j++)
        for (ptrdiff_t i = 0; i < n; i++)
            strip[i * width + j]
                = *(const elem *)(source + i * x->row_stride + j * x->class_stride);
}

static void store_strip(const fastce_array *x, int out_elem, ptrdiff_t first, ptrdiff_t n,
                        ptrdiff_t n_classes, const elem *strip)
{
    const ptrdiff_t width = strip_width(n_classes);
    char *out = x->data + first * x->row_stride;
    ptrdiff_t j = 0;
    if (x->row_stride == sizeof(elem) && n == LANES && out_elem == OWN_ELEM)
        for (; j + LANES <= n_classes; j += LANES) {
            vreal v[LANES];
            for (int l = 0; l < LANES; l++) v[l] = load(strip + l * width + j);
            transpose(v);
            for (int l = 0; l < LANES; l++)
                store((elem *)(out + (j + l) * x->class_stride), v[l]);
        }
    for (; j < n_classes; j++)
        for (ptrdiff_t i = 0; i < n; i++)
            store_as(out_elem, out + i * x->row_stride + j * x->class_stride, strip[i * width + j]);
}

/* Whether rows.h can work on the arrays themselves. */
INLINE int is_contiguous(const fastce_call *call)
{
    const fastce_array *arrays[] = {&call->logits, &call->grad, &call->hess, &call->probabilities};
    for (int k = 0; k < 4; k++)
        if (arrays[k]->data && arrays[k]->class_stride != sizeof(elem)) return 0;
    return !call->grad.data || call->out_elem == OWN_ELEM;
}

/* Bytes of one strip; there are three: logits (then grad), hess, probabilities. */
INLINE size_t strip_size(ptrdiff_t n_classes)
{
    return LANES * row_scratch_size(n_classes);
}

static void cross_entropy_strips(fastce_call *call, int thread)
{
    const ptrdiff_t n_classes = call->n_classes, width = strip_width(n_classes);
    char *scratch = call->scratch + (size_t)thread * call->scratch_size
                    + 3 * row_scratch_size(n_classes);
    elem *strip = (elem *)scratch, *hess = (elem *)(scratch + strip_size(n_classes));
    elem *probabilities = (elem *)(scratch + 2 * strip_size(n_classes));
    row_worker worker;
    start_worker(call, thread, &worker);
    worker.pending.stream = 0;
    for (cursor at; claim_chunk(call, &at);) {
        const row_run *run = &at.run;
        for (ptrdiff_t first = at.row; first < at.end; first += LANES) {
            const ptrdiff_t n = at.end - first < LANES ? at.end - first : LANES;
            load_strip(&run->logits, first, n, n_classes, strip);
            if (run->probabilities.data)
                load_strip(&run->probabilities, first, n, n_classes, probabilities);
            for (ptrdiff_t i = 0; i < n; i++)
                one_row(call, &worker, run, first + i, strip + i * width,
                        i + 1 < n ? strip + (i + 1) * width : NULL,
                        run->probabilities.data ? probabilities + i * width : NULL,
                        run->grad.data ? strip + i * width : NULL,
                        run->hess.data ? hess + i * width : NULL);
            write_pending(&worker.pending, worker.scratch.terms, n_classes);
            if (run->grad.data)
                store_strip(&run->grad, call->out_elem, first, n, n_classes, strip);
            if (run->hess.data)
                store_strip(&run->hess, call->out_elem, first, n, n_classes, hess);
        }
    }
}

#endif
