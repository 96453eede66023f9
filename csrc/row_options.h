/* Options of many classes: what they do to a block before its terms are made, and to a row's
 * gradient after its sum is known.  Those of few classes are in column_options.h. */
#ifndef FASTCE_ROW_OPTIONS_H
#define FASTCE_ROW_OPTIONS_H

#include "blocks.h"

/* One row's scratch, [n_classes] up to a whole GROUP each. */
typedef struct {
    real *terms;
    real *dense; /* q */
    real *chain; /* d z / d x, unless terms are multiplied by it */
} row_scratch;

/* Copies a block through the options and fills up its last group with -inf; fills chain, and dense
 * of the row.  Returns the maximum.  What a step needs of the call is in variables, which stores
 * cannot change. */
static real prepare_block(const fastce_call *call, const row_input *row, ptrdiff_t start,
                          ptrdiff_t n, real *block, real *chain, real *row_dense)
{
    const ptrdiff_t padded = (n + GROUP - 1) / GROUP * GROUP;
    const real scale = (real)call->logit_scale;
    const vreal softcap = splat((real)call->softcap);
    const int has_cap = call->softcap != 0, has_dense = is_dense(call) && !row->is_even;
    const int is_as_given = row->probabilities && !call->class_weight && call->smoothing == 0;
    vreal largest = splat(HIDDEN);
    const elem *from = row->x + start;
    const ptrdiff_t whole = row->where ? 0 : n / LANES * LANES;
    for (ptrdiff_t j = 0; j < whole && !has_cap; j += LANES) {
        const vreal x = load(from + j) * scale;
        *(vreal *)(block + j) = x;
        largest = maximum(x, largest); /* NaN is passed over */
    }
    for (ptrdiff_t j = 0; j < whole && has_cap; j += LANES)
        *(vreal *)(block + j) = begin_cap(load(from + j), scale, softcap, (vreal *)(chain + j));
    for (ptrdiff_t j = whole; j < padded; j += LANES) {
        vreal x = load_up_to(from, j, n, HIDDEN);
        if (row->where) {
            char seen[LANES] = {0};
            for (ptrdiff_t l = 0; l < LANES && j + l < n; l++)
                seen[l] = row->where[(start + j + l) * row->where_stride];
            x = select_seen(seen, x, splat(HIDDEN));
        }
        const vreal z = has_cap ? begin_cap(x, scale, softcap, (vreal *)(chain + j)) : x * scale;
        *(vreal *)(block + j) = z;
        if (!has_cap) largest = maximum(z, largest);
    }
    for (ptrdiff_t j = 0; j < padded && has_cap; j += LANES) {
        vreal *const c = (vreal *)(chain + j), *const z = (vreal *)(block + j);
        *z = end_cap(*z, *c, softcap, c);
        largest = maximum(*z, largest);
    }
    if (is_as_given) {
        memcpy(row_dense + start, row->probabilities + start, (size_t)n * sizeof(real));
        memset(row_dense + start + n, 0, (size_t)(padded - n) * sizeof(real));
    }
    for (ptrdiff_t j = 0; has_dense && !is_as_given && j < padded; j += LANES) {
        const ptrdiff_t left = n - j < LANES ? n - j : LANES;
        vreal probability = splat(0), class_weight = splat(1);
        if (row->probabilities && left == LANES)
            probability = load_real(row->probabilities + start + j);
        else if (row->probabilities)
            for (ptrdiff_t l = 0; l < left; l++) probability[l] = row->probabilities[start + j + l];
        if (call->class_weight)
            for (ptrdiff_t l = 0; l < left; l++)
                class_weight[l] = (real)call->class_weight[start + j + l];
        *(vreal *)(row_dense + start + j) = dense_part(
            call, *(const vreal *)(block + j), probability, splat((real)row->spread), class_weight);
    }
    return largest_lane(largest);
}

/* Classes of a row that neither a mask hides nor the scale, by overflow; NaN is not hidden, but its
 * row is NaN anyway. */
static ptrdiff_t count_seen(const fastce_call *call, const row_input *row)
{
    const real scale
        = call->softcap != 0 ? 1 : (real)call->logit_scale; /* a cap meets the overflow */
    ptrdiff_t seen = 0;
    for (ptrdiff_t j = 0; j < call->n_classes; j++)
        seen += (get(row->x + j) * scale != HIDDEN)
                & (!row->where || row->where[j * row->where_stride] != 0);
    return seen;
}

INLINE double spread_of(const fastce_call *call, const row_input *row)
{
    return call->smoothing / (double)(row->is_even ? call->n_classes : count_seen(call, row));
}

/* Adds quarters of n logits up, for even smoothing: in double exactly but for cancellation beyond
 * 29 bits.  Quarters, for multiplications that add are done by other units than additions and
 * conversions (0.9 of the time). */
INLINE void add_quarters(const elem *x, ptrdiff_t n, wide_exact_sum *sum)
{
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vreal v = load_up_to(x, j, n, 0);
        sum->sum += widen(v, 0) * 0.25;
        if (WIDE > 1) sum->lost += widen(v, WIDE - 1) * 0.25;
    }
}

/* mass and gap of such a row, with the sum of its quarters. */
INLINE void even_gap(const fastce_call *call, const row_input *input,
                     const wide_exact_sum *quarters, row_tile *rows, ptrdiff_t r)
{
    const double sum = 4 * sum_of_lanes(quarters, 0);
    rows->mass[r] = call->smoothing;
    rows->gap[r] = input->spread * ((double)call->n_classes * rows->max[r] - sum);
}

/* The gradient and the Hessian's diagonal of a row with options, at once: the next row's options
 * need the scratch.  With p_j = term_j / total the second derivative is factor * term_j * (1 - p_j)
 * + 2 z_loss scale p_j^2 in z, then the chain rule; one logit_scale is in factor and scale. */
static void write_row(const fastce_call *call, const row_input *input, const row_scratch *scratch,
                      const row_tile *rows, ptrdiff_t r, int as_real, char *grad, char *hess)
{
    const ptrdiff_t n_classes = call->n_classes;
    const double inverse = 1 / (rows->top[r] + rows->others[r]);
    const double scale = rows->scale[r], softcap = call->softcap;
    const vreal factor = splat((real)rows->factor[r]), wide_scale = splat((real)scale);
    const vreal cross = splat((real)(scale * call->alpha)), to_p = splat((real)inverse);
    const vreal square = splat(call->z_loss != 0 ? (real)(2 * call->z_loss * scale) : 0);
    const real *dense = is_dense(call) ? scratch->dense : NULL;
    const real *chain = softcap != 0 ? scratch->chain : NULL;

    /* the two elements that the formulas below would cancel in: [0] the target or, of dense
     * targets, the top; [1] the top */
    const vdouble others = splat_double(rows->others[r]), to_ps = splat_double(inverse);
    const double exact_slope = share_of(splat_double(rows->whole[r]), others, to_ps)[0];
    double exact_grad = rows->target_grad[r];
    const int is_poly1 = call->loss == FASTCE_POLY1;
    const ptrdiff_t top_at = input->top_at;
    ptrdiff_t exact_at = input->target;
    if (call->probabilities.data) {
        const int sure = rows->top[r] > rows->others[r];
        exact_at = sure && !is_poly1 ? top_at : -1;
        if (exact_at >= 0)
            exact_grad
                = scale * ((rows->mass[r] - dense[exact_at]) + (rows->pull[r] - rows->mass[r]))
                  - exact_slope;
    } else if (dense) {
        exact_grad -= scale * dense[exact_at];
    }

    for (ptrdiff_t j = 0; j < n_classes; j += LANES) {
        const ptrdiff_t left = n_classes - j < LANES ? n_classes - j : LANES;
        const vreal term = *(const vreal *)(scratch->terms + j), p = term * to_p;
        vreal grad_z = term * factor;
        if (dense) {
            const vreal q = *(const vreal *)(dense + j);
            grad_z -= q * wide_scale;
            if (is_poly1) grad_z -= q * p * cross;
        }
        if (exact_at >= j && exact_at < j + LANES)
            grad_z = with_lane(grad_z, exact_at - j, (real)exact_grad);
        const vreal c = chain ? *(const vreal *)(chain + j) : splat(1);
        if (hess) {
            vreal slope = term * factor * ((real)1 - p);
            if (top_at >= j && top_at < j + LANES)
                slope = with_lane(slope, top_at - j, (real)(exact_slope * p[top_at - j]));
            vreal hess_z = slope + p * p * square;
            if (chain) {
                const vreal cap = splat((real)softcap);
                vreal x = splat(0), u, unused;
                for (ptrdiff_t l = 0; l < left; l++) x[l] = get(input->x + j + l);
                const vreal difference = begin_cap(x, (real)call->logit_scale, cap, &u);
                const vreal z = end_cap(difference, u, cap, &unused);
                const vreal bent = z * (real)(1 / softcap) * c * (real)(-2 / softcap);
                /* where z is -inf, or NaN that is hidden, c is 0 and so is everything */
                const vreal curve = (vreal)((vinteger)bent & (z > splat(HIDDEN)));
                hess_z = hess_z * c * c + grad_z * curve;
            }
            put_vector(hess, as_real, j, left, plain_nan(hess_z * (real)call->logit_scale));
        }
        put_vector(grad, as_real, j, left, plain_nan(chain ? grad_z * c : grad_z));
    }
}

/* (x - max) - log_sum in double, rounded once: at the top class the loss itself. */
static void write_log_softmax(const elem *x, ptrdiff_t n_classes, const row_tile *rows, ptrdiff_t r,
                              int as_real, char *out)
{
    const double max = rows->max[r], log_sum = rows->scale[r];
    for (ptrdiff_t j = 0; j < n_classes; j += LANES) {
        const vreal logits = load_up_to(x, j, n_classes, 0);
        _Alignas(64) double value[LANES];
        for (int w = 0; w < WIDE; w++)
            *(vdouble *)(value + w * DOUBLES) = (widen(logits, w) - max) - log_sum;
        const ptrdiff_t n = n_classes - j < LANES ? n_classes - j : LANES;
        put_vector(out, as_real, j, n, plain_nan(narrow(value)));
    }
}

/* logsumexp of a row whose maximum is max = +-inf: max, unless the row holds NaN. */
static double infinite_logsumexp(double max, const elem *x, ptrdiff_t n_classes)
{
    for (ptrdiff_t j = 0; j < n_classes; j++)
        if (get(x + j) != get(x + j)) return __builtin_nan("");
    return max;
}

/* What one part of each vector adds to an entropy less log_sum: p_j (max - x_j), of terms. */
INLINE vdouble spread_part(vreal terms, vreal logits, vdouble max, int part)
{
    const vdouble term = widen(terms, part), spread = term * (max - widen(logits, part));
    return (vdouble)((vlong)spread & (term > 0)); /* 0 * inf = 0 */
}

/* How a row was predicted; `before` is how many classes come before its target, by logit and then
 * by number, spread the sum of spread_part(). */
INLINE fastce_row_stats stats_of(const fastce_call *call, const row_tile *rows, ptrdiff_t r,
                                 int64_t before, double spread)
{
    const double total = rows->top[r] + rows->others[r];
    vdouble inverse;
    const vdouble log_sum
        = log_of_sum(splat_double(rows->top[r]), splat_double(rows->others[r]), &inverse);
    if (!(total > 0)) before = call->n_classes; /* a row that is NaN is right for nobody */
    return (fastce_row_stats){rows->loss[r], log_sum[0] + spread / total, rows->top[r] / total,
                              before};
}

/* Of a row in memory, and its terms. */
static void evaluate_row(const fastce_call *call, const row_input *input, const real *terms,
                         const row_tile *rows, ptrdiff_t r, fastce_row_stats *stats)
{
    const ptrdiff_t n_classes = call->n_classes;
    const vreal at_target = splat(get(input->x + input->target));
    const vdouble max = splat_double(rows->max[r]);
    vinteger before = splat_integer(0);
    vdouble spread = splat_double(0);
    for (ptrdiff_t j = 0; j < n_classes; j += LANES) {
        const vreal logits = load_up_to(input->x, j, n_classes, HIDDEN);
        ptrdiff_t left = input->target - j; /* that are lower than the target */
        left = left < 0 ? 0 : left < LANES ? left : LANES;
        const vinteger is_lower = lane_numbers() < splat_integer(left);
        before -= (logits > at_target) | ((logits == at_target) & is_lower);
        for (int w = 0; w < WIDE; w++)
            spread += spread_part(*(const vreal *)(terms + j), logits, max, w);
    }
    int64_t n_before = 0;
    double sum = 0;
    for (int l = 0; l < LANES; l++) n_before += before[l];
    for (int l = 0; l < DOUBLES; l++) sum += spread[l];
    *stats = stats_of(call, rows, r, n_before, sum);
}

#endif
