/* exp and log on vectors, with their error bounds.  What is done with them is in rows.h, columns.h
 * and epilogue.h.
 *
 * A row's exponentials are wanted relative to its maximum, and x - max is not a float: its rounding
 * error, up to 2^-18 for a difference of 100, would be the whole error of the result.  So the
 * subtraction is not made.  With a reference (shift, power) the row's terms are
 *
 *     exp(x - shift) * 2^(BIAS - power),   shift = 0 as long as |max| <= SHIFT_FROM, else max,
 *
 * and each is computed from x directly: n = round((x - shift) log2 e), r = (x - shift) - n ln 2.
 * Both subtractions are exact: for |max| > SHIFT_FROM every x whose term is not zero lies within a
 * factor 2 of max (Sterbenz); otherwise |n| < 2^10 (2^12 in double) and LN2_HIGH has so few bits
 * that n * LN2_HIGH is exact with or without fused multiply-add.  A new reference changes only the
 * exponents, so no term's bits depend on which maximum was known when it was computed.  With a
 * table n counts parts of a power, and the step has all its bits: minus_product() rounds once, and
 * what is left of the first subtraction, half a step at most, has no more bits than x and the step
 * leave it; the second one rounds.
 *
 * BIAS lifts all terms, so that none is subnormal: a term below 2^-158 of the reference (2^-1150 in
 * double) is 0; that is below the smallest float at any weight up to 2^9.  A maximum may be up to
 * 2^WINDOW of its row's reference.
 *
 * On AVX-512, one or two of whose registers hold a table of 16 numbers, terms take e^r of a 16th of
 * the range: 0.8 of the time of the longer polynomial, summing up included.  Of floats on AVX2 it
 * is a quarter, for a register's halves hold the same 4: 0.95.  (8 take another permutation and as
 * long a polynomial.)  Its entries, powers 2^(i/16) rounded, would be up to 0.79 of 2^-24 off (0.74
 * of 2^-53; of 4 0.54), a good part of a loss's 2 ulp.  But all terms of a row may have a factor in
 * common, for it cancels: KAPPA was searched for among the floats (doubles) so that every
 * KAPPA 2^(i/16) lies within 0.29 (0.22; of 4 0.007) of one.  Terms of float rows that are computed
 * in double have it, too; and KAPPA (1 / KAPPA) is 1, so that two equal logits still have
 * probability 0.5 each. */
#ifndef FASTCE_EXP_LOG_H
#define FASTCE_EXP_LOG_H

#include "simd.h"

#define LOG2_E 1.4426950408889634
#define LN2_DOUBLE_HIGH 0x1.62e42fefa3p-1 /* ln 2 to 41 bits: times 12 bits is exact */
#define LN2_DOUBLE_LOW 0x1.3de6af278ece6p-42

#if !defined(FASTCE_f64)
enum { MANTISSA = 23, EXPONENT_BIAS = 127, BIAS = 32, WINDOW = 64 };
#define LIFT 0x1p32 /* 2^BIAS */
#define LEAST_NORMAL 0x1p-126f
#define MOST_REAL 0x1.fffffep127f
#define SHIFT_FROM 512.0
#define ROUND_MAGIC 0x1.8p23  /* adding it leaves the rounded integer in the low bits */
#define LN2_HIGH 0x1.62e8p-1f /* ln 2 to 14 bits: times 10 bits is exact */
#define LN2_LOW -0x1.e8082ep-16f
#else
enum { MANTISSA = 52, EXPONENT_BIAS = 1023, BIAS = 128, WINDOW = 512 };
#define LIFT 0x1p128
#define LEAST_NORMAL 0x1p-1022
#define MOST_REAL 0x1.fffffffffffffp1023
#define SHIFT_FROM 2048.0
#define ROUND_MAGIC 0x1.8p52
#define LN2_HIGH LN2_DOUBLE_HIGH
#define LN2_LOW LN2_DOUBLE_LOW
#endif

/* The table has 2^TABLE_BITS numbers; 0: there is none. */
#if defined(__AVX512F__) && !defined(FASTCE_f64)
#define TABLE_BITS 4
#define KAPPA 0x1.067aa2p+0
#elif defined(__AVX512F__)
#define TABLE_BITS 4
#define KAPPA 0x1.063bf50da8076p+0
#elif defined(__AVX2__) && !defined(FASTCE_f64)
#define TABLE_BITS 2
#define KAPPA 0x1.07692cp+0
#else
#define TABLE_BITS 0
#define KAPPA 1.0
#endif

/* What a row's exponentials are relative to: a logit, and a power of two. */
typedef struct {
    real shift;
    real power;
} reference;

/* Its power as exp_terms() takes it.  lowest: with a table, the d below which terms are 0; without
 * one, what d is clamped to, whose term is 0 already.  magic: what rounds n, with the power in
 * it. */
typedef struct {
    vreal lowest, magic;
} vreference;

/* The power of two that maxima with this one are relative to, the same for WINDOW of them: logits
 * from -11 to 33, or to 266 in double, have one in common. */
INLINE vreal window_of(vreal power)
{
    const real first = -WINDOW / 4, below = (real)(0.5 - 0.5 / WINDOW); /* floor by rounding */
    const vreal n = ((power - first) * (real)(1.0 / WINDOW) - below + (real)ROUND_MAGIC);
    return (n - (real)ROUND_MAGIC) * (real)WINDOW + first;
}

/* The reference of a row with this maximum; a NaN or inf makes the row NaN by being its shift. */
INLINE reference reference_of(real max)
{
    if (!(__builtin_fabs((double)max) <= SHIFT_FROM)) return (reference){max, 0};
    return (reference){0, window_of(splat((real)__builtin_rint((double)max * LOG2_E)))[0]};
}

/* Whether that is the reference of max, for certain: it may be, too, half a power beyond.  ref has
 * no shift. */
INLINE int is_inside(const reference *ref, real max)
{
    const double above = (double)max * LOG2_E - (double)ref->power;
    return (above >= 0) & (above <= WINDOW - 1) & (__builtin_fabs((double)max) <= SHIFT_FROM);
}

INLINE vreference reference_at(vreal power)
{
#if TABLE_BITS
    const vreal floor = power - (real)(EXPONENT_BIAS - 1 + BIAS); /* the least normal float */
    return (vreference){floor * (real)(LN2_DOUBLE_HIGH),
                        ((real)BIAS - power) * (real)(1 << TABLE_BITS) + (real)ROUND_MAGIC};
#else
    /* x at which the exponent field reaches 0, and with it the term */
    const vreal floor = power - (real)(EXPONENT_BIAS + BIAS);
    return (vreference){floor * (real)(LN2_DOUBLE_HIGH), (real)ROUND_MAGIC - floor};
#endif
}

/* e^r - 1 for |r| <= 0.3467: a minimax fit of (e^r - 1 - r) / r^2 weighted by e^-r, relative error
 * of e^r 2^-28.2 (2^-57.9).  By pairs of powers it takes as many operations as Horner's scheme in a
 * shorter chain, beyond which the CPU sees more: rows of many classes in 0.97 (0.88 to 0.95) of the
 * time on AVX2. */
INLINE vreal expm1_reduced(vreal r)
{
    const vreal z = r * r;
#if !defined(FASTCE_f64)
    vreal p = z * 0x1.6a23cap-10f + (r * 0x1.123a1fp-7f + 0x1.5558f3p-5f);
    p = p * z + (r * 0x1.555492p-3f + 0x1.fffffcp-2f);
#else
    vreal p = r * 0x1.ad7f3b22740dcp-26 + 0x1.28ad9b7868661p-22;
    p = p * z + (r * 0x1.71df25b516d4cp-19 + 0x1.a01999e274b14p-16);
    p = p * z + (r * 0x1.a01a012a0e7e8p-13 + 0x1.6c16c18438a89p-10);
    p = p * z + (r * 0x1.1111111127d10p-7 + 0x1.555555555083fp-5);
    p = p * z + (r * 0x1.55555555554f9p-3 + 0x1.000000000000ap-1);
#endif
    return p * z + r;
}

/* The same for doubles; float rows need less of it: relative error of e^r 2^-28.2, a 16th of the
 * last bit of a float being 2^-28. */
INLINE vdouble expm1_reduced_double(vdouble r)
{
#if !defined(FASTCE_f64)
    const vdouble z = r * r;
    vdouble p = z * 0x1.6a23f1474fbefp-10 + (r * 0x1.123a0ac624cefp-7 + 0x1.5558f276d863fp-5);
    p = p * z + (r * 0x1.5554911f34269p-3 + 0x1.fffffb988f250p-2);
    return p * z + r;
#else
    return expm1_reduced(r);
#endif
}

/* e^x times the power of two that magic adds to the exponent, as scale + scale * what is
 * returned. */
INLINE vreal expm1_polynomial(vreal x, vreal lowest, vreal magic, vreal *scale)
{
    const vreal d = maximum(lowest, x);
    const vreal biased = d * (real)LOG2_E + magic; /* low bits: n and what is in magic */
    const vreal n = biased - magic;
    const vreal r = (d - n * LN2_HIGH) - n * LN2_LOW;
    *scale = (vreal)((vinteger)biased << MANTISSA);
    return expm1_reduced(r);
}

#if TABLE_BITS
/* The bits of KAPPA 2^(i/16) less those of i above the mantissa's other bits, which are i again in
 * the shifted n + i/16: one addition puts both together.  Then ln 2 / 16 in two parts, and a
 * minimax fit of (e^r - 1 - r) / r^2 for |r| <= 0.0217, highest power first: relative error of e^r
 * 2^-28.9 (2^-56.2).  Of 4 numbers it is ln 2 / 4, |r| <= 0.0868 and 2^-27.4. */
static const _Alignas(64) integer less_index[] = {
#if defined(FASTCE_f64)
    0x3ff063bf50da8076, 0x3ff01d82495a4d0e, 0x3fefdf7eb216cb4e, 0x3fefaa11c2499718,
    0x3fef7d9cd1b032a0, 0x3fef5a858752a97c, 0x3fef41360a5c5d4a, 0x3fef321d351e74d7,
    0x3fef2daeca5470b8, 0x3fef3463acc47e17, 0x3fef46ba19564297, 0x3fef6535e3bc0b24,
    0x3fef9060b5cb83e0, 0x3fefc8ca51a469ce, 0x3ff00f08d6c4ffca, 0x3ff063b90a2d78b4,
#elif TABLE_BITS == 4
    0x3f833d51, 0x3f810ccc, 0x3f7f1e22, 0x3f7d743e, 0x3f7c122b, 0x3f7afb17, 0x3f7a3254, 0x3f79bb5a,
    0x3f7999c8, 0x3f79d165, 0x3f7a6625, 0x3f7b5c27, 0x3f7cb7ba, 0x3f7e7d5c, 0x3f80b1c0, 0x3f8359cd,
#else
    0x3f83b496, 0x3f7ca001, 0x3f7a4274, 0x3f7d8050, 0x3f83b496, 0x3f7ca001, 0x3f7a4274, 0x3f7d8050,
#endif
};
#if defined(FASTCE_f64)
#define STEP 0x1.62e42fefa39efp-5
#define STEP_LOW 0x1.abc9e3b39803fp-60
static const real short_fit[] = {0x1.6c14c6eb8be49p-10, 0x1.11123aae74320p-7, 0x1.55555558fca6dp-5,
                                 0x1.555555548f890p-3, 0x1.fffffffffffb9p-2};
#elif TABLE_BITS == 4
#define STEP 0x1.62e430p-5f
#define STEP_LOW -0x1.05c610p-33f
static const real short_fit[] = {0x1.5556dep-3f, 0x1.0001ecp-1f};
#else
#define STEP 0x1.62e430p-3f
#define STEP_LOW -0x1.05c610p-31f
static const real short_fit[] = {0x1.5520eap-5f, 0x1.5571f0p-3f, 0x1.000006p-1f};
#endif

/* exp(d) * 2^(BIAS - power) * KAPPA in two parts: it is scale * (1 + what is returned).  index is
 * the table's. */
INLINE vreal exp_parts(vreal d, const vreference *ref, vinteger *index, vreal *scale)
{
    const vreal biased /* low bits: 2^TABLE_BITS (n - power + BIAS) + i */
        = d * (real)((1 << TABLE_BITS) * LOG2_E) + ref->magic;
    const vreal n = biased - ref->magic;
    const vreal r = minus_product(minus_product(d, n, splat(STEP)), n, splat(STEP_LOW));
    *index = (vinteger)biased;
    *scale = (vreal)(look_up(less_index, *index) + (*index << (MANTISSA - TABLE_BITS)));
    vreal p = splat(short_fit[0]);
    for (size_t i = 1; i < sizeof short_fit / sizeof *short_fit; i++) p = p * r + short_fit[i];
    return p * (r * r) + r;
}
#endif

/* exp(d) * 2^(BIAS - power) * KAPPA, d = x - shift.  The relative error is below 2^-23.4 (2^-52.4):
 * half a unit for the last sum, a quarter for r, the rest for the other roundings.  With the table
 * of 16 it is below 2^-23.55 (2^-52.5): half a unit for the last sum, 0.14 (0.11) for the table;
 * with that of 4 below 2^-23.8.  d = -inf gives 0, NaN NaN. */
INLINE vreal exp_terms(vreal d, const vreference *ref)
{
    vreal scale;
#if TABLE_BITS
    vinteger index;
    const vreal part = exp_parts(d, ref, &index, &scale);
    return zero_below(d, ref->lowest, part * scale + scale);
#else
    const vreal part = expm1_polynomial(d, ref->lowest, ref->magic, &scale);
    return part * scale + scale;
#endif
}

/* One term, with the bits that it has in a vector of others.  Behind the compiler's back: where it
 * sees that all lanes are equal, it multiplies one of them by itself and adds in a vector, which
 * rounds twice. */
INLINE real exp_term(real d, const vreference *ref)
{
    vreal all = splat(d);
    __asm__("" : "+m"(all));
    return exp_terms(all, ref)[0];
}

/* exp(d) * 2^(BIAS - power) * KAPPA in double, for a result that is a normal double; NaN or inf
 * give anything. */
INLINE vdouble normal_terms(vdouble d, vdouble power)
{
#if TABLE_BITS && defined(FASTCE_f64) /* the same bits as a term's */
    const vreference ref = reference_at(power);
    return exp_terms(d, &ref);
#else
    const vdouble magic = splat_double(0x1.8p52), shifted = d * LOG2_E + magic;
    const vdouble n = shifted - magic;
    const vdouble r = (d - n * LN2_DOUBLE_HIGH) - n * LN2_DOUBLE_LOW;
    const vdouble biased = shifted - (power - (1023 + BIAS));
    return (expm1_reduced_double(r) * KAPPA + KAPPA) * (vdouble)((vlong)biased << 52);
#endif
}

/* The same for d of any size. */
INLINE vdouble exact_terms(vdouble d, vdouble power)
{
#if TABLE_BITS && defined(FASTCE_f64)
    return normal_terms(d, power);
#else
    const vdouble least = (power - (1022.0 + BIAS)) * LN2_DOUBLE_HIGH;
    const vlong is_less = d < least;
    return (vdouble)((vlong)normal_terms(select_double(is_less, least, d), power) & ~is_less);
#endif
}

#if TABLE_BITS && !defined(FASTCE_f64)
/* What the table's floats lack of KAPPA 2^(i/16), relative to it. */
static const _Alignas(64) real lacking[] = {
#if TABLE_BITS == 4
    0,           -5.4734e-9f, 1.4338e-8f,   -2.7637e-9f, -6.3433e-9f, 1.3469e-12f,
    1.6542e-8f,  1.1931e-8f,  -1.5342e-8f,  1.5537e-8f,  1.0328e-8f,  1.6780e-8f,
    -1.2498e-8f, 2.4781e-9f,  -4.7526e-10f, 7.0457e-10f,
#else
    0, -3.9341e-10f, -3.2023e-10f, -1.9838e-11f, 0, -3.9341e-10f, -3.2023e-10f, -1.9838e-11f,
#endif
};
#endif

/* The terms of rows' largest elements in double; d is not below -0.35 of the reference.  A float's
 * parts are good enough to be put together in double: relative error 2^-27.9, 2^-28.9 for the fit
 * and two roundings of a number below 2^-5; of a table of 4 2^-26.1, 2^-27.4 for the fit and a
 * number below 2^-3.5.  In 0.95 of the time of exact_terms().  For what needs the maximum of rows
 * of few classes: softmax, smoothing, z-loss, options. */
INLINE void top_terms(vreal d, vreal power, const vreference *ref, vdouble *tops)
{
#if TABLE_BITS && !defined(FASTCE_f64)
    vinteger index;
    vreal scale;
    const vreal part
        = exp_parts(d, ref, &index, &scale) + (vreal)look_up((const integer *)lacking, index);
    for (int w = 0; w < WIDE; w++) tops[w] = widen(part, w) * widen(scale, w) + widen(scale, w);
    (void)power;
#else
    for (int w = 0; w < WIDE; w++) tops[w] = normal_terms(widen(d, w), widen(power, w));
    (void)ref;
#endif
}

/* softcap * tanh(x * scale / softcap) and its derivative in x * scale, elementwise, in two steps:
 * in one they are a chain so long that the CPU cannot look ahead to the next.  With u = e^(-2|y|)
 * it is (1 - u) / (1 + u) and 4u / (1 + u)^2: neither 1 - tanh^2 nor, where u is near 1, 1 - u
 * cancels.  Between the steps are 1 - u with the sign of y, and u; or -2 and 0 where x is -inf,
 * which stays -inf; x * scale may overflow to it and does not. */
INLINE vreal begin_cap(vreal x, real scale, vreal softcap, vreal *u)
{
    const vinteger sign = (vinteger)splat(-(real)0), hidden = x == splat(-(real)__builtin_inf());
    const vreal y = maximum(splat(-MOST_REAL), x * scale) / softcap; /* NaN stays */
    const vreal d = (vreal)((vinteger)(y + y) | sign);               /* -2|y| */
    vreal power;
    const vreal part = expm1_polynomial(d, splat(EXPONENT_BIAS * (real)-LN2_DOUBLE_HIGH),
                                        splat((real)ROUND_MAGIC + EXPONENT_BIAS), &power);
    *u = part * power + power;
    const vreal difference = ((real)1 - power) - part * power;
    return select_real(hidden, splat(-2), (vreal)((vinteger)difference | ((vinteger)y & sign)));
}

INLINE vreal end_cap(vreal difference, vreal u, vreal softcap, vreal *derivative)
{
    const vinteger sign = (vinteger)splat(-(real)0), hidden = difference == splat(-2);
    const vreal inverse = (real)1 / ((real)2 - (vreal)((vinteger)difference & ~sign));
    *derivative = (vreal)((vinteger)(u * (real)4 * (inverse * inverse)) & ~hidden);
    return difference * inverse * softcap;
}

/* x as n ln 2 + r; the low bits of biased are n in the place of a double's exponent. */
INLINE vdouble reduce_double(vdouble x, vlong *biased)
{
    const vdouble magic = splat_double(0x1.8p52 + 1023), shifted = x * LOG2_E + magic;
    const vdouble n = shifted - magic;
    *biased = (vlong)shifted;
    return (x - n * LN2_DOUBLE_HIGH) - n * LN2_DOUBLE_LOW;
}

/* e^x in double for -700 < x < 700. */
INLINE vdouble exp_double(vdouble x)
{
    vlong biased;
    const vdouble r = reduce_double(x, &biased);
    return (expm1_reduced_double(r) + 1.0) * (vdouble)(biased << 52);
}

/* x, but not below lowest; NaN stays. */
INLINE vdouble not_below(double lowest, vdouble x)
{
    return select_double(x < lowest, splat_double(lowest), x);
}

/* e^x in double for x <= 0; 0 below -700. */
INLINE vdouble exp_nonpositive(vdouble x)
{
    return (vdouble)((vlong)exp_double(not_below(-700, x)) & ~(x < -700));
}

/* e^x - 1 in double for x < 700, without cancellation: 2^n (e^r - 1) + (2^n - 1). */
INLINE vdouble expm1_double(vdouble x)
{
    vlong biased;
    const vdouble r = reduce_double(not_below(-700, x), &biased);
    const vdouble scale = (vdouble)(biased << 52);
    return expm1_reduced_double(r) * scale + (scale - 1.0);
}

/* log(a / b) = k ln 2 + 2 atanh(s), where 2^k is a power of two next to a / b and, with c = 2^k b,
 * s = (a - c) / (a + c).  The difference of the bits of two doubles is 2^52 times that of their
 * logarithms, but for 0.086, so that |s| < 0.2005; there the fit's relative error is 2^-35.3
 * (2^-55.8). */
INLINE vlong nearest_power(vdouble a, vdouble b)
{
    return ((vlong)a - (vlong)b + ((int64_t)1 << 51)) >> 52;
}

INLINE vdouble log_from(vlong k, vdouble s)
{
    const vdouble z = s * s;
#if !defined(FASTCE_f64)
    vdouble t = z * 0x1.edb6d44d512bdp-3 + 0x1.23e83ccd43c1bp-2;
    t = t * z + 0x1.999be2a215450p-2;
    t = t * z + 0x1.5555541da2196p-1;
#else
    vdouble t = z * 0x1.3af2de709f0fcp-3 + 0x1.384c18e05a4f5p-3;
    t = t * z + 0x1.7475387558af3p-3;
    t = t * z + 0x1.c71bff50abe8ap-3;
    t = t * z + 0x1.249249b55b78bp-2;
    t = t * z + 0x1.99999998ec37cp-2;
    t = t * z + 0x1.5555555555787p-1;
#endif
    const vdouble kd = as_doubles(k);
    return kd * LN2_DOUBLE_HIGH + ((s + s) + (s * (t * z) + kd * LN2_DOUBLE_LOW));
}

/* log(u) in double for normal u > 0. */
INLINE vdouble log_normal(vdouble u)
{
    const vlong k = nearest_power(u, splat_double(1));
    const vdouble scaled = (vdouble)((vlong)u - (k << 52));
    return log_from(k, (scaled - 1.0) / (scaled + 1.0));
}

/* log((top + others) / top), for any others >= 0, and 1 / (top + others).  Where k is 0, s has
 * others for its numerator, unrounded. */
INLINE vdouble log_of_sum(vdouble top, vdouble others, vdouble *inverse)
{
    const vdouble total = top + others;
    const vlong k = nearest_power(total, top);
    const vdouble near = (vdouble)((vlong)top + (k << 52));
    const vdouble above = others - (near - top), sum = others + (near + top);
#if !defined(FASTCE_f64) /* one division for two, and two roundings more */
    const vdouble both = 1.0 / (total * sum);
    *inverse = both * sum;
    return log_from(k, above * (both * total));
#else
    *inverse = 1.0 / total;
    return log_from(k, above / sum);
#endif
}

/* log(u) for normal u, and -inf at 0. */
INLINE vdouble log_double(vdouble u)
{
    const vdouble value = log_normal(u) + (u - u); /* of bits: NaN would be a number */
    return select_double(u == 0, splat_double(-__builtin_inf()), value);
}

/* log1p(u) and 1 / (1 + u) for 0 <= u <= 1.  With s = u / (2 + u) the logarithm is 2 atanh(s) =
 * u - s (u - R(s^2)), which keeps u exact; R is a minimax fit, relative error 2^-33 (2^-59). */
INLINE vdouble log1p_of_term(vdouble u, vdouble *inverse)
{
#if !defined(FASTCE_f64)
    /* one division for both: it costs as much as all the rest */
    const vdouble both = 1.0 / ((u + 1.0) * (u + 2.0));
    const vdouble s = u * (u + 1.0) * both;
    *inverse = (u + 2.0) * both;
    const vdouble z = s * s;
    vdouble r = z * 0x1.f1733ebc83223p-3 + 0x1.b6e6ccd029d4bp-3;
    r = r * z + 0x1.2508b103cf334p-2;
    r = r * z + 0x1.9996af961f969p-2;
    r = r * z + 0x1.5555584c24fc0p-1;
#else
    const vdouble s = u / (u + 2.0);
    *inverse = 1.0 / (u + 1.0);
    const vdouble z = s * s;
    vdouble r = z * 0x1.5c5c1ab375b69p-3 + 0x1.55cf5fd70fa55p-4;
    r = r * z + 0x1.efd18bf1f6e9bp-4;
    r = r * z + 0x1.10682ee648bf3p-3;
    r = r * z + 0x1.3b1dd3ac67ce3p-3;
    r = r * z + 0x1.745cb459ad0a6p-3;
    r = r * z + 0x1.c71c741a06fc8p-3;
    r = r * z + 0x1.249249209110dp-2;
    r = r * z + 0x1.99999999a06c1p-2;
    r = r * z + 0x1.5555555555535p-1;
#endif
    return u - s * (u - r * z);
}

#endif
