/* A student's divergence from its teacher, row by row, in double whatever the logits are, so that
 * it is in the table of doubles alone.  The formula is in fastce/_distillation.py, with the few
 * rows that are left to it: where classes are hidden by one of both, or logarithms are 500
 * apart. */
#ifndef FASTCE_DISTILLATION_H
#define FASTCE_DISTILLATION_H

#include "targets.h"

#if defined(FASTCE_f64)

/* n elements from `first` on as doubles, to whole vectors, beyond them hidden ones. */
static void read_as_doubles(const void *x, int elem, ptrdiff_t first, ptrdiff_t n, double *to)
{
    if (elem == FASTCE_F64)
        memcpy(to, (const double *)x + first, (size_t)n * sizeof *to);
    else
        for (ptrdiff_t j = 0; j < n; j++) to[j] = ((const float *)x)[first + j];
    for (ptrdiff_t j = n; j % LANES; j++) to[j] = -__builtin_inf();
}

/* The inverse, of n of them. */
static void write_doubles(void *x, int elem, ptrdiff_t first, ptrdiff_t n, const double *from)
{
    if (elem == FASTCE_F64)
        memcpy((double *)x + first, from, (size_t)n * sizeof *from);
    else
        for (ptrdiff_t j = 0; j < n; j++) ((float *)x)[first + j] = (float)from[j];
}

/* What the teacher's logits y are above the student's x, and what that lost to rounding (Knuth). */
INLINE vdouble difference(vdouble y, vdouble x, vdouble *lost)
{
    const vdouble u = y - x, back = u - y;
    *lost = (y - (u - back)) - (x + back);
    return u;
}

/* The largest of n student's logits and, at its class, what the teacher's is above it. */
static double largest_of(const double *s, const double *t, ptrdiff_t n, vdouble *above,
                         vdouble *lost)
{
    vdouble largest = splat(-__builtin_inf());
    for (ptrdiff_t j = 0; j < n; j += LANES) largest = maximum(load_real(s + j), largest);
    const double top = largest_lane(largest);
    ptrdiff_t k = 0;
    while (k < n - 1 && s[k] != top) k++;
    *above = difference(splat(t[k]), splat(s[k]), lost);
    return top;
}

/* q (d + expm1(-d)) of classes whose p is q less `less` and whose log(q / p) is d.  It cancels near
 * 0: below 0.1 by its series up to d^10 / 10!, whose next term is 5e-17 of it; beyond, roundings
 * are 20 times as large in it. */
INLINE vdouble divergence_terms(vdouble q, vdouble d, vdouble less)
{
    static const double one_over[] = {1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040, 1. / 720,
                                      1. / 120,     1. / 24,     1. / 6,     1. / 2};
    vdouble series = splat(one_over[0]);
    for (size_t i = 1; i < sizeof one_over / sizeof *one_over; i++)
        series = one_over[i] - d * series;
    return select_double((d < 0.1) & (d > -0.1), q * (d * d * series), q * d - less);
}

/* The divergence of a row, or -1 where it is left to others; scratch is three rows of `size`, the
 * last one for slope (p - q). */
static double divergence_of_row(const fastce_distillation *call, ptrdiff_t row, ptrdiff_t size,
                                double *scratch, double slope)
{
    const ptrdiff_t n = call->n_classes;
    const double inverse_T = 1 / call->temperature;
    double *s = scratch, *t = s + size, *m = t + size;
    vdouble above, above_lost;
    read_as_doubles(call->student, call->student_elem, row * n, n, s);
    read_as_doubles(call->teacher, call->teacher_elem, row * n, n, t);
    const double top = largest_of(s, t, n, &above, &above_lost);
    const vdouble hidden_logit = splat(-__builtin_inf());
    vlong is_rare = {0};
    wide_exact_sum total = {splat(0), splat(0)}, excess = total, divergence = total;
    vdouble mean = splat(0); /* a plain sum: what all share does not count */

    /* s becomes the terms of p, t the logarithms of q / p but for a number that all share */
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vdouble x = load_real(s + j), y = load_real(t + j);
        const vdouble e = exp_nonpositive((x - top) * inverse_T);
        vdouble lost;
        const vdouble u = difference(y, x, &lost), d = (u - above) + (lost - above_lost);
        const vlong is_hidden = (x == hidden_logit) & (y == hidden_logit);
        const vdouble v = (vdouble)((vlong)(d * inverse_T) & ~is_hidden);
        is_rare |= (e == 0) & ~is_hidden;
        add_wide(&total, e);
        mean += e * v;
        store_real(s + j, e);
        store_real(t + j, v);
    }
    const double inverse_total = 1 / total_of(&total);
    double center = 0;
    for (int l = 0; l < LANES; l++) center += mean[l] * inverse_total;
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vdouble v = load_real(t + j) - center, x = expm1_double(v);
        is_rare |= ~((v < 500) & (v > -500));
        add_wide(&excess, load_real(s + j) * x);
        store_real(t + j, v);
        store_real(m + j, x);
    }
    if (any(is_rare)) return -1;
    /* q is p e^v / (1 + above_one), which is no less than 1, for v is 0 in the mean */
    const double sum = total_of(&excess) * inverse_total, above_one = sum > 0 ? sum : 0;
    vdouble inverse;
    const vdouble shared = log_of_sum(splat(1), splat(above_one), &inverse);
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vdouble p = load_real(s + j) * inverse_total, d = load_real(t + j) - shared;
        const vdouble more = p * ((load_real(m + j) - above_one) * inverse); /* q - p */
        add_wide(&divergence, divergence_terms(p + more, d, more));
        store_real(m + j, more * -slope);
    }
    return total_of(&divergence);
}

/* Chunks of rows until none is left. */
static void distill(fastce_distillation *call, int thread)
{
    const ptrdiff_t n = call->n_classes, size = call->scratch_size / 3;
    double *scratch = call->scratch + thread * call->scratch_size, *slopes = scratch + 2 * size;
    for (ptrdiff_t chunk; (chunk = claim(&call->work, thread)) >= 0;) {
        const ptrdiff_t first = chunk * call->chunk_rows, last = first + call->chunk_rows;
        for (ptrdiff_t r = first; r < last && r < call->n_rows; r++) {
            double divergence = 0;
            if (call->is_there[r])
                divergence = divergence_of_row(call, r, size, scratch, call->slopes[r]);
            else
                memset(slopes, 0, (size_t)n * sizeof *slopes);
            call->divergences[r] = divergence;
            if (call->grad && divergence != -1)
                write_doubles(call->grad, call->grad_elem, r * n, n, slopes);
        }
    }
}

#endif
#endif
