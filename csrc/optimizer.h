/* One step of Adam (Kingma and Ba 2015, algorithm 1) over flat arrays, in one pass: NumPy would
 * make ten.  The bias corrections come in as step_size = lr / (1 - beta_1^t) and second_correction
 * = sqrt(1 - beta_2^t), which is PyTorch's way of writing it, epsilon included.
 *
 * A weight whose gradient has become 0, as at the pixels that few images light, has a first moment
 * that shrinks by beta_1 a step, and sticks at some subnormals for ever (0.9 of the smallest rounds
 * to itself): with a tenth of them stuck a step takes 66 us instead of 30 on Zen 4, and far more
 * where subnormals trap into microcode.  Below `tiny`, FLT_MIN / FLT_EPSILON, the moment is set to
 * 0: it moved its weight by less than lr * 1e-23 a step, and lr * tiny is still normal.  The second
 * moment stops at FLT_MIN, `least`: a larger bound would count beside a small epsilon. */
#ifndef FASTCE_OPTIMIZER_H
#define FASTCE_OPTIMIZER_H

#include "simd.h"

static void adam_step(void *params, const void *grad, void *first_moment, void *second_moment,
                      ptrdiff_t n, double step_size, double beta_1, double beta_2, double epsilon,
                      double second_correction)
{
    real *restrict p = params, *restrict m = first_moment, *restrict v = second_moment;
    const real *restrict g = grad;
    const real keep_1 = (real)beta_1, take_1 = (real)(1 - beta_1);
    const real keep_2 = (real)beta_2, take_2 = (real)(1 - beta_2);
    const real size = (real)step_size, eps = (real)epsilon, scale = (real)(1 / second_correction);
    const real tiny = (real)1e-31, least = (real)0x1p-126;
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; i++) {
        const real first = keep_1 * m[i] + take_1 * g[i];
        const real second = keep_2 * v[i] + take_2 * (g[i] * g[i]);
        m[i] = first < tiny && first > -tiny ? 0 : first;
        v[i] = second < least ? 0 : second;
#if !defined(FASTCE_f64)
        p[i] -= size * m[i] / (__builtin_sqrtf(v[i]) * scale + eps);
#else
        p[i] -= size * m[i] / (__builtin_sqrt(v[i]) * scale + eps);
#endif
    }
}

#endif
