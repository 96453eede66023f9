/* One step of Adam (Kingma and Ba 2015, algorithm 1) over flat arrays, in one pass: NumPy would make
 * ten.  The bias corrections come in as step_size = lr / (1 - beta_1^t) and second_correction =
 * sqrt(1 - beta_2^t), which is PyTorch's way of writing it, epsilon included. */
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
#pragma omp simd
    for (ptrdiff_t i = 0; i < n; i++) {
        m[i] = keep_1 * m[i] + take_1 * g[i];
        v[i] = keep_2 * v[i] + take_2 * (g[i] * g[i]);
#if defined(FASTCE_f32)
        p[i] -= size * m[i] / (__builtin_sqrtf(v[i]) * scale + eps);
#else
        p[i] -= size * m[i] / (__builtin_sqrt(v[i]) * scale + eps);
#endif
    }
}

#endif
