/* nll_loss and log_loss: the logits hold log-probabilities or probabilities already, so there is no
 * softmax and no pass over classes: of a row with a label one number is read.  The gradient has one
 * element per row, or those of the soft targets; it is written to every class all the same. */
#ifndef FASTCE_GATHER_H
#define FASTCE_GATHER_H

#include "targets.h"

INLINE int is_gathered(const fastce_call *call)
{
    return call->loss == FASTCE_NLL || call->loss == FASTCE_LOG_LOSS;
}

/* log(u) in double for any u. */
INLINE vdouble log_of_any(vdouble u)
{
    const vlong small = u < 0x1p-1022, bad = ~(u >= 0);
    const vdouble normal = select_double(small, u * 0x1p54, u);
    vdouble value = log_normal(normal);
    value -= (vdouble)((vlong)splat_double(54 * LN2_DOUBLE_HIGH) & small);
    value -= (vdouble)((vlong)splat_double(54 * LN2_DOUBLE_LOW) & small);
    value = select_double(u == 0, splat_double(-__builtin_inf()), value);
    value = select_double(u == __builtin_inf(), u, value);
    return select_double(bad, splat_double(__builtin_nan("")), value);
}

/* Entry j of row i, as where lets it be seen: hidden is of probability 0. */
INLINE double entry(const fastce_call *call, const row_run *run, ptrdiff_t i, ptrdiff_t j)
{
    if (run->where.data
        && !run->where.data[i * run->where.row_stride + j * run->where.class_stride])
        return call->loss == FASTCE_NLL ? -__builtin_inf() : 0;
    return get((const elem *)(run->logits.data + i * run->logits.row_stride
                              + j * run->logits.class_stride));
}

/* -log p of LANES entries. */
INLINE vdouble negative_log(const fastce_call *call, vdouble x)
{
    return call->loss == FASTCE_NLL ? -x : -log_of_any(x);
}

/* factor * d(-log p) / dx; 0 for a class that has no weight, whatever its entry. */
INLINE double gathered_grad(const fastce_call *call, double factor, double x)
{
    return factor == 0 ? 0 : call->loss == FASTCE_NLL ? -factor : -factor / (x + 0); /* not -0 */
}

INLINE char *grad_at(const row_run *run, ptrdiff_t i, ptrdiff_t j)
{
    return run->grad.data + i * run->grad.row_stride + j * run->grad.class_stride;
}

INLINE void clear_row(const fastce_call *call, const row_run *run, ptrdiff_t i)
{
    const int elem_is = call->out_elem;
    const ptrdiff_t size = elem_is == FASTCE_F64 ? 8 : elem_is == FASTCE_F32 ? 4 : 2;
    if (run->grad.class_stride == size)
        memset(grad_at(run, i, 0), 0, (size_t)(call->n_classes * size));
    else
        for (ptrdiff_t j = 0; j < call->n_classes; j++) put_as(elem_is, grad_at(run, i, j), 0);
}

/* Row i with soft targets: its loss without sample weight; writes its gradient. */
static double soft_row(const fastce_call *call, const row_run *run, ptrdiff_t i, double scale)
{
    exact_sum loss = {0, 0};
    for (ptrdiff_t j = 0; j < call->n_classes; j++) {
        const fastce_array *soft = &run->probabilities;
        double q = *(const real *)(soft->data + i * soft->row_stride + j * soft->class_stride);
        if (call->class_weight) q *= call->class_weight[j];
        const double x = entry(call, run, i, j);
        if (q != 0) add(&loss, q * negative_log(call, splat_double(x))[0]); /* 0 * inf = 0 */
        if (run->grad.data)
            put_as(call->out_elem, grad_at(run, i, j), (real)gathered_grad(call, scale * q, x));
    }
    return result(loss.sum, loss.lost);
}

static void gather_rows(fastce_call *call, int thread)
{
    int64_t targets[TILE];
    row_tile rows;
    memset(&rows, 0, sizeof rows); /* the lanes after the last row are computed too */
    start_rows(&rows);
    for (cursor at; claim_chunk(call, thread, &at);) {
        const row_run *run = &at.run;
        exact_sum sum = {0, 0};
        for (ptrdiff_t first = at.row; first < at.end; first += TILE) {
            const ptrdiff_t n = at.end - first < TILE ? at.end - first : TILE;
            read_rows(call, run, first, n, targets, &rows);
            if (call->targets.data) {
                for (ptrdiff_t i = 0; i < n; i++)
                    if (targets[i] >= 0) rows.max[i] = entry(call, run, first + i, targets[i]);
                for (ptrdiff_t i = 0; i < n; i += DOUBLES)
                    *(vdouble *)(rows.loss + i) = negative_log(call, doubles_at(rows.max, i));
            }
            for (ptrdiff_t i = 0; i < n; i++) {
                const double scale = rows.sample_weight[i] * rows.upstream[i] * call->grad_scale;
                const double weight = rows.weight[i];
                const int there = targets[i] >= 0, hard = call->targets.data != NULL;
                double loss = weight == 0 ? 0 : weight * rows.loss[i]; /* 0 * inf = 0 */
                if (there && !hard) {
                    loss = soft_row(call, run, first + i, scale);
                } else if (run->grad.data) {
                    clear_row(call, run, first + i);
                    if (there)
                        put_as(call->out_elem, grad_at(run, first + i, targets[i]),
                               (real)gathered_grad(call, scale * weight, rows.max[i]));
                }
                loss = there ? rows.sample_weight[i] * loss : 0;
                if (call->losses) ((real *)call->losses)[run->first + first + i] = (real)loss;
                add(&sum, loss);
            }
        }
        leave(call->sums, at.chunk, sum);
    }
}

#endif
