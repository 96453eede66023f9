/* From the statistics of rows to their losses and the factors of their gradients, in double, one
 * row a lane.  Options of a loss live here; the loops over classes are in rows.h and columns.h.
 *
 * With top the term of the row's maximum, others the sum of all other terms (a tie counts as
 * another) and t the term of the target,
 *
 *     loss        = weight * ((max - x_target) + log1p(others / top))
 *     grad_j      = weight * grad_scale / (top + others) * term_j          for j != target
 *     grad_target = -weight * grad_scale / (top + others) * ((top - t) + others)
 *
 * Neither lse - x_target nor p - 1 is formed: both would cancel where the model is confident. */
#ifndef FASTCE_EPILOGUE_H
#define FASTCE_EPILOGUE_H

#include "exp_log.h"
#include "fastce.h"

enum { TILE = 64 }; /* rows that go through the epilogue together; a multiple of every DOUBLES */

/* [TILE] each.  in: all of the first six; out: the last three. */
typedef struct {
    _Alignas(64) double max[TILE], target_logit[TILE];
    _Alignas(64) double top[TILE], others[TILE], target_term[TILE];
    _Alignas(64) double weight[TILE];
    _Alignas(64) double loss[TILE], factor[TILE], target_grad[TILE];
} row_tile;

INLINE vdouble doubles_at(const double *column, ptrdiff_t i)
{
    return *(const vdouble *)(column + i);
}

static void epilogue(const fastce_call *call, row_tile *rows, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i += DOUBLES) {
        const vdouble max = doubles_at(rows->max, i), target_logit = doubles_at(rows->target_logit, i);
        const vdouble top = doubles_at(rows->top, i), weight = doubles_at(rows->weight, i);
        /* a maximum of +-inf makes the row NaN */
        const vdouble others = doubles_at(rows->others, i) + (max - max);
        const vdouble target_term
            = select_double(target_logit == max, top, doubles_at(rows->target_term, i));

        const vdouble inverse = 1.0 / (top + others);
        const vdouble loss = (max - target_logit) + log1p_double(others / top, top * inverse);
        const vlong nothing = (weight == 0) & (loss == __builtin_inf()); /* 0 * -inf = 0 */
        const vdouble factor = weight * call->grad_scale * inverse;

        *(vdouble *)(rows->loss + i) = (vdouble)((vlong)(weight * loss) & ~nothing);
        *(vdouble *)(rows->factor + i) = factor;
        *(vdouble *)(rows->target_grad + i) = -factor * ((top - target_term) + others);
    }
}

/* A sum in double that keeps what its roundings lose (Knuth's two-sum), of numbers or of lanes. */
typedef struct {
    double sum, lost;
} exact_sum;

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

INLINE double total_of(const wide_exact_sum *total)
{
    exact_sum all = {0, 0};
    double lost = 0;
    for (int l = 0; l < DOUBLES; l++) {
        add(&all, total->sum[l]);
        lost += total->lost[l];
    }
    return result(all.sum, all.lost + lost);
}

#endif
