/* What options do to logits, a vector at a time, on their way into the loops of terms: masks and
 * scale; and the dense part of the target distribution.  A cap is in exp_log.h; where a whole block
 * or tile goes through them is elsewhere. */
#ifndef FASTCE_PREPARE_H
#define FASTCE_PREPARE_H

#include "targets.h"

#define HIDDEN (-(real)__builtin_inf())

/* Whether logits are changed. */
INLINE int is_transformed(const fastce_call *call)
{
    return call->where.data || call->logit_scale != 1 || call->softcap != 0;
}

/* Whether the dense part is one number in all classes: smoothing alone, as long as no class is
 * hidden.  Not in double, where a row's sum of max - x would have to be exact. */
INLINE int is_even(const fastce_call *call)
{
    return WIDE > 1 && call->smoothing != 0 && !call->probabilities.data && !call->class_weight
           && !is_transformed(call) && !call->hess.data && call->loss < FASTCE_POLY1;
}

/* What becomes of logits on their way into a loop of terms. */
enum { AS_THEY_ARE, SCALED, MASKED_AND_SCALED };

INLINE vreal change_logits(const int change, vreal x, const char *seen, real scale)
{
    if (change == MASKED_AND_SCALED) x = select_seen(seen, x, splat(HIDDEN));
    return change ? as_rounded(x * scale) : x;
}

/* q for logits z: class_weight * ((1 - smoothing) * probability + spread), where spread, smoothing
 * over the number of classes left, goes to those alone.  Mass given to a hidden class stays
 * there. */
INLINE vreal dense_part(const fastce_call *call, vreal z, vreal probability, vreal spread,
                        vreal class_weight)
{
    const vreal left = (vreal)((vinteger)spread & (z > splat(HIDDEN)));
    return class_weight * (probability * (real)(1 - call->smoothing) + left);
}

/* Whether there is no gradient to be made of terms: log_softmax, logsumexp, evaluate. */
INLINE int has_no_gradient(const fastce_call *call)
{
    return call->loss > FASTCE_SOFTMAX;
}

/* Whether the gradient of every class but the target is term * factor - less, with one factor and
 * one less a row (less is 0 without even smoothing), and terms that a cap's slopes may be in:
 * logits need not be kept beside terms, and rows of many classes are written while the next ones
 * are read. */
INLINE int is_product(const fastce_call *call)
{
    return !(call->hess.data || (is_dense(call) && !is_even(call)) || has_no_gradient(call));
}

/* Whether it is so of the exponentials themselves, without slopes. */
INLINE int is_linear(const fastce_call *call)
{
    return call->softcap == 0 && is_product(call);
}

/* Whether a row's target is its top, in the sense of epilogue.h, instead of its maximum: where a
 * loss depends on the target's probability alone, others / target is all that it takes, and no
 * maximum has to be known, nor ties. */
INLINE int has_target_top(const fastce_call *call)
{
    return is_linear(call) && call->smoothing == 0 && call->z_loss == 0 && call->targets.data
           && call->loss < FASTCE_SOFTMAX;
}

/* Adds q to mass and q (max - z) to gap, for one part of each vector.  Floats leave doubles 29 bits
 * to spare, unless probabilities are negative. */
INLINE void add_gap(vreal q, vreal z, vdouble max, int part, wide_exact_sum *mass,
                    wide_exact_sum *gap)
{
    const vdouble wide_q = widen(q, part);
    const vdouble distance = (max - widen(z, part)) * wide_q;
    const vdouble part_of_gap = (vdouble)((vlong)distance & (wide_q != 0)); /* 0 * inf = 0 */
#if defined(FASTCE_f64)
    add_wide(mass, wide_q);
    add_wide(gap, part_of_gap);
#else
    mass->sum += wide_q;
    gap->sum += part_of_gap;
#endif
}

#endif
