/* From the statistics of rows to their losses and the coefficients of their gradients, in double,
 * one row a lane.  Options of a loss live here; the loops over classes are in blocks.h and
 * columns.h.
 *
 * With top the term of one class, others the sum of all other terms, total = top + others, t the
 * term of the target and w its weight,
 *
 *     ce          = (max - x_target) + log1p(others / top)
 *     loss        = sample_weight * (w * value + mass * log1p(others / top) + gap + z_loss * lse^2)
 *     grad_j      = factor * term_j - scale * q_j
 *     grad_target = scale * pull * t / total - scale * w * slope * ((top - t) + others) / total
 *                   - scale * q_target
 *
 * where scale is sample_weight, upstream, the reduction's factor and logit_scale, times each other.
 * The class of top is that of the maximum; another one that is as large counts as another.  Where
 * no maximum has to be known it is the target (prepare.h, has_target_top), and where that one's
 * term is 0 all others together, with no others. q is the dense part of the target distribution
 * (probabilities, smoothing), mass its sum and gap the sum of q_j (max - x_j); value and slope are
 * ce and 1, or what a robust loss makes of p; pull is mass + 2 z_loss lse.  Neither lse - x_target
 * nor p - 1 is formed: both would cancel where the model is confident. */
#ifndef FASTCE_EPILOGUE_H
#define FASTCE_EPILOGUE_H

#include "elem.h"
#include "exp_log.h"

enum { TILE = 64 }; /* rows that go through the epilogue together; a multiple of every DOUBLES */

/* [TILE] each. */
typedef struct {
    /* in: of every row */
    _Alignas(64) double max[TILE], target_logit[TILE];
    _Alignas(64) double top[TILE], others[TILE], target_term[TILE];
    _Alignas(64) double shift[TILE], power[TILE]; /* rows.h: what the terms are relative to */
    _Alignas(64) double weight[TILE], sample_weight[TILE], upstream[TILE];
    /* in: where there is a dense part; missed is the sum of q_j (1 - p_j) * total, for poly-1 */
    _Alignas(64) double mass[TILE], gap[TILE], missed[TILE];
    /* out */
    _Alignas(64) double loss[TILE], factor[TILE], scale[TILE], target_grad[TILE];
    _Alignas(64) double whole[TILE]; /* factor times total */
    _Alignas(64) double pull[TILE];  /* where there is a dense part */
    _Alignas(64) double less[TILE];  /* columns.h: even smoothing, taken from every element */
} row_tile;

INLINE vdouble doubles_at(const double *column, ptrdiff_t i)
{
    return *(const vdouble *)(column + i);
}

INLINE vdouble power_double(vdouble u, double exponent)
{
    if (exponent == 0) return splat_double(1);
    if (exponent == 1) return u;
    if (exponent == 2) return u * u;
    return exp_nonpositive(log_double(u) * exponent);
}

/* A robust loss of the target's probability p = e^-ce: its value, and slope in d loss / d x_j =
 * slope * (p_j - [j = target]).  rest is 1 - p; neither has a difference in it.
 *
 *     focal        alpha rest^beta ce                  Lin et al. 2017, eq. 4
 *     generalized  (1 - p^alpha) / alpha               Zhang and Sabuncu 2018, eq. 6
 *     symmetric    alpha ce + beta rest                Wang et al. 2019, eq. 7; beta holds -A
 *     poly-1       ce + alpha rest                     Leng et al. 2022, eq. 6 */
INLINE vdouble robust_loss(const fastce_call *call, vdouble ce, vdouble p, vdouble rest,
                           vdouble *slope)
{
    const double alpha = call->alpha, beta = call->beta;
    switch (call->loss) {
    case FASTCE_FOCAL: {
        const vdouble power = power_double(rest, beta) * alpha;
        const vdouble ratio = select_double(rest > 0, ce / rest, splat_double(1));
        *slope = power * (p * ratio * beta + 1.0);
        /* a target that is masked out, or as good as that: p ratio may be 0 * inf */
        *slope = select_double(p == 0, power, *slope);
        return select_double(power == 0, power, power * ce); /* 0 * inf = 0 */
    }
    case FASTCE_GENERALIZED:
        *slope = exp_nonpositive(ce * -alpha);
        if (alpha < 0x1p-64) /* a product may underflow; it is ce where that is small */
            return select_double(ce * alpha < 0x1p-54, ce, expm1_double(ce * -alpha) / -alpha);
        return expm1_double(ce * -alpha) / -alpha;
    case FASTCE_SYMMETRIC:
        *slope = p * beta + alpha;
        return (alpha != 0 ? ce * alpha : splat_double(0)) + rest * beta;
    default: *slope = p * alpha + 1.0; return ce + rest * alpha;
    }
}

/* weight * value, 0 where a weight of 0 meets a loss of inf. */
INLINE vdouble weighed(vdouble value, vdouble weight)
{
    const vlong nothing = (weight == 0) & (value == __builtin_inf());
    return (vdouble)((vlong)(weight * value) & ~nothing);
}

/* Splits x into two factors of which one is 1.  What may be tiny is to be multiplied by the one
 * that is returned, which is not small, first, and by `small` last: nothing underflows on the
 * way. */
INLINE vdouble split_factor(vdouble x, vdouble *small)
{
    const vdouble one = splat_double(1);
    const vlong is_large = (x > one) | (x < -one);
    *small = select_double(is_large, one, x);
    return select_double(is_large, x, one);
}

/* amount * part / total.  Terms are lifted: of doubles part / total may be subnormal where the
 * product is not, and so may amount / total. */
INLINE vdouble share_of(vdouble amount, vdouble part, vdouble inverse)
{
    if (WIDE > 1) return amount * (part * inverse);
    vdouble small;
    const vdouble large = split_factor(amount, &small);
    return part * (inverse * large) * small;
}

/* Whether the targets have a dense part. */
INLINE int is_dense(const fastce_call *call)
{
    return call->probabilities.data || call->smoothing != 0;
}

/* 1 / total and log(total / top) of rows.  log_of_sum() works on bits, and would make a number of
 * an infinite maximum: max - max makes such a row NaN.  (And NaNs, for the same reason, are
 * anything but plain.) */
INLINE void log_sums(row_tile *rows, ptrdiff_t n, double *inverse, double *log_sum)
{
    for (ptrdiff_t i = 0; i < n; i += DOUBLES) {
        const vdouble max = doubles_at(rows->max, i), top = doubles_at(rows->top, i);
        const vdouble others = doubles_at(rows->others, i) + (max - max);
        vdouble inverse_of_row;
        const vdouble log_of_row = log_of_sum(top, others, &inverse_of_row);
        *(vdouble *)(rows->others + i) = others;
        *(vdouble *)(inverse + i) = plain_nan_double(inverse_of_row);
        *(vdouble *)(log_sum + i) = plain_nan_double(log_of_row);
    }
}

/* The same for what has no targets: factor makes terms probabilities, scale is log(total / top). */
static void primitive_epilogue(row_tile *rows, ptrdiff_t n)
{
    log_sums(rows, n, rows->factor, rows->scale);
    for (ptrdiff_t i = 0; i < n; i++) rows->loss[i] = rows->max[i] + rows->scale[i];
}

static void epilogue(const fastce_call *call, row_tile *rows, ptrdiff_t n)
{
    if (call->loss == FASTCE_SOFTMAX || call->loss == FASTCE_LOG_SOFTMAX
        || call->loss == FASTCE_LOGSUMEXP) {
        primitive_epilogue(rows, n);
        return;
    }
    const int dense = is_dense(call);
    _Alignas(64) double inverse_total[TILE], log_ratio[TILE];
    log_sums(rows, n, inverse_total, log_ratio); /* not in the loop below: a chain of everything is
                                                    longer than the CPU looks ahead */
    for (ptrdiff_t i = 0; i < n; i += DOUBLES) {
        const vdouble max = doubles_at(rows->max, i);
        const vdouble target_logit = doubles_at(rows->target_logit, i);
        const vdouble top = doubles_at(rows->top, i), weight = doubles_at(rows->weight, i);
        const vdouble sample_weight = doubles_at(rows->sample_weight, i);
        const vdouble others = doubles_at(rows->others, i);
        const vdouble target_term
            = select_double(target_logit == max, top, doubles_at(rows->target_term, i));
        const vdouble rest = (top - target_term) + others;
        const vdouble inverse = doubles_at(inverse_total, i), log_sum = doubles_at(log_ratio, i);
        vdouble value = (max - target_logit) + log_sum, slope = splat_double(1);
        if (call->loss != FASTCE_CROSS_ENTROPY && call->loss != FASTCE_EVALUATE)
            value = robust_loss(call, value, target_term * inverse, rest * inverse, &slope);
        vdouble loss = weighed(value, weight);
        vdouble pull = splat_double(0);
        if (dense) {
            pull = doubles_at(rows->mass, i);
            loss += pull * log_sum + doubles_at(rows->gap, i);
            if (call->loss == FASTCE_POLY1) {
                const vdouble missed = doubles_at(rows->missed, i) * inverse;
                loss += missed * call->alpha;
                pull += (pull - missed) * call->alpha;
            }
        }
        if (call->z_loss != 0) {
            const vdouble lse = max + log_sum;
            loss += lse * lse * call->z_loss;
            pull += lse * (2 * call->z_loss);
        }
        const vdouble scale = plain_nan_double(sample_weight * doubles_at(rows->upstream, i)
                                               * (call->grad_scale * call->logit_scale));
        const vdouble pushed = scale * weight * slope;
        vdouble whole = pushed, target_grad = splat_double(0);
        if (dense || call->z_loss != 0) { /* or a scale of inf would meet 0 */
            whole += scale * pull;
            target_grad = share_of(scale * pull, target_term, inverse);
        }
        if (dense) *(vdouble *)(rows->pull + i) = pull;

        *(vdouble *)(rows->loss + i) = sample_weight * loss;
        *(vdouble *)(rows->whole + i) = whole;
        *(vdouble *)(rows->factor + i) = whole * inverse;
        *(vdouble *)(rows->scale + i) = scale;
        *(vdouble *)(rows->target_grad + i) = target_grad - share_of(pushed, rest, inverse);
    }
}

/* Beyond these a factor would, as a real, lose bits (be subnormal, or nearly) or be inf.  The terms
 * of such a row are multiplied by a power of two, and its factor divided by it: the one that brings
 * the larger of top and others to between 1 and 2, or the factor below the upper bound. */
#if !defined(FASTCE_f64)
#define LEAST_FACTOR 0x1p-120
#define MOST_FACTOR 0x1p120
#else
#define LEAST_FACTOR 0x1p-960
#define MOST_FACTOR __builtin_inf()
#endif

INLINE int is_extreme(const row_tile *rows, ptrdiff_t r)
{
    const double size = __builtin_fabs(rows->factor[r]);
    return (size < LEAST_FACTOR || size > MOST_FACTOR) && rows->whole[r] != 0;
}

/* Whether one of n rows is. */
INLINE int has_extreme(const row_tile *rows, ptrdiff_t n)
{
    vlong extreme = splat_double(0) != 0;
    for (ptrdiff_t i = 0; i < n; i += DOUBLES) {
        const vdouble factor = doubles_at(rows->factor, i);
        const vdouble size = (vdouble)((vlong)factor & ~(vlong)splat_double(-0.0));
        extreme
            |= ((size < LEAST_FACTOR) | (size > MOST_FACTOR)) & (doubles_at(rows->whole, i) != 0);
    }
    return any((vinteger)extreme);
}

/* The power of two next below x, which is not negative; 0 of what is not normal, inf of inf. */
INLINE double power_below(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= (uint64_t)0x7ff << 52;
    memcpy(&x, &bits, sizeof bits);
    return x;
}

/* Divides what a row has but its terms by the power of two; returns what the terms are to be
 * multiplied by, in double. */
INLINE double rescale_row(row_tile *rows, ptrdiff_t r)
{
    const double size = __builtin_fabs(rows->factor[r]);
    const double largest = rows->top[r] > rows->others[r] ? rows->top[r] : rows->others[r];
    const double power
        = power_below(size > MOST_FACTOR && size - size == 0 ? MOST_FACTOR / size : largest);
    rows->top[r] /= power;
    rows->others[r] /= power;
    rows->factor[r] = rows->whole[r] / (rows->top[r] + rows->others[r]);
    return 1 / power;
}

/* Not inlined: rarely needed, and called in two places. */
static __attribute__((cold, noinline)) void rescale_terms(real *terms, ptrdiff_t stride,
                                                          ptrdiff_t n, double part)
{
    for (ptrdiff_t j = 0; j < n; j++) terms[j * stride] = (real)(terms[j * stride] * part);
}

/* A sum in double that keeps what its roundings lose (Knuth's two-sum), of numbers or of lanes. */
typedef struct {
    double sum, lost;
} exact_sum;

/* (Where floats are added up as doubles nothing needs to be kept: then these are the sums of the
 * two halves of vectors, see add_vector() in blocks.h.) */
typedef struct {
    vdouble sum, lost;
} wide_exact_sum;

#define TWO_SUM(total, x)                                                                          \
    const __typeof__(x) sum = total->sum + x, part = sum - total->sum;                             \
    total->lost += (total->sum - (sum - part)) + (x - part);                                       \
    total->sum = sum

INLINE void add(exact_sum *total, double x)
{
    TWO_SUM(total, x);
}

INLINE void add_wide(wide_exact_sum *total, vdouble x)
{
    TWO_SUM(total, x);
}

/* inf and NaN have no rounding error, but the formula makes inf NaN. */
INLINE double result(double sum, double lost)
{
    return sum - sum == 0 ? sum + lost : sum;
}

/* The same of lanes. */
INLINE vdouble results_of(const wide_exact_sum *total)
{
    const vlong is_finite = total->sum - total->sum == 0;
    return select_double(is_finite, total->sum + total->lost, total->sum);
}

INLINE exact_sum sum_of(const wide_exact_sum *total)
{
    exact_sum all = {0, 0};
    double lost = 0;
    for (int l = 0; l < DOUBLES; l++) {
        add(&all, total->sum[l]);
        lost += total->lost[l];
    }
    all.lost += lost;
    return all;
}

INLINE double total_of(const wide_exact_sum *total)
{
    const exact_sum all = sum_of(total);
    return result(all.sum, all.lost);
}

/* Leaves a sum for call.c to add up with the others.  With both its parts, how rows are grouped,
 * which differs between layouts, is 2^-100 of the whole. */
INLINE void leave(double *sums, ptrdiff_t n, exact_sum sum)
{
    sums[2 * n] = sum.sum;
    sums[2 * n + 1] = sum.sum - sum.sum == 0 ? sum.lost : 0;
}

#endif
