/* What logits and grad hold in memory: elem, which is real itself or, for float16 and bfloat16,
 * half of a float.  Halves are converted in registers, exactly on the way in and rounded once, to
 * even, on the way out; everything between is in simd.h's reals. */
#ifndef FASTCE_ELEM_H
#define FASTCE_ELEM_H

#include "fastce.h"
#include "simd.h"

#if defined(FASTCE_f32)
enum { OWN_ELEM = FASTCE_F32, ELEM_IS_REAL = 1 };
typedef float elem;
#elif defined(FASTCE_f64)
enum { OWN_ELEM = FASTCE_F64, ELEM_IS_REAL = 1 };
typedef double elem;
#elif defined(FASTCE_f16)
enum { OWN_ELEM = FASTCE_F16, ELEM_IS_REAL = 0 };
typedef uint16_t elem;
#else
enum { OWN_ELEM = FASTCE_BF16, ELEM_IS_REAL = 0 };
typedef uint16_t elem;
#endif

enum { REAL_ELEM = sizeof(real) == 8 ? FASTCE_F64 : FASTCE_F32 };
enum {
    LINE = 64 / (ptrdiff_t)sizeof(elem), /* elements of a cache line */
    STREAM_BYTES = LANES * sizeof(elem), /* what a streaming store is aligned to */
};

#if !defined(FASTCE_f32) && !defined(FASTCE_f64)
typedef uint16_t velem __attribute__((vector_size(VECTOR_BYTES / 2)));
typedef uint16_t velem_anywhere __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2)));
typedef uint32_t vbits __attribute__((vector_size(VECTOR_BYTES)));
#endif

INLINE float bits_to_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

INLINE uint32_t float_to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* float16: 5 bits of exponent.  Shifted into a float's place it is 2^112 too small, also where it
 * is subnormal; inf and NaN then still lack the upper exponent bits. */
INLINE float from_f16(uint16_t h)
{
    const uint32_t shifted = (uint32_t)(h & 0x7fff) << 13;
    const uint32_t magnitude = float_to_bits(bits_to_float(shifted) * 0x1p112f)
                               | (shifted >= 0x0f800000 ? 0x7f800000 : 0);
    return bits_to_float(magnitude | (uint32_t)(h & 0x8000) << 16);
}

/* Half of the last bit kept is added, one less where that bit is 0 already.  A subnormal is rounded
 * by an addition to 0.5, whose last bit is 2^-24, the step of the subnormals. */
INLINE uint16_t to_f16(float x)
{
    const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffff;
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const uint32_t small = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000;
    uint32_t half = magnitude < 0x38800000 ? small : normal;
    half = magnitude >= 0x477ff000 ? 0x7c00 : half; /* 65520 and above round to inf */
    half = magnitude > 0x7f800000 ? 0x7e00 : half;
    return (uint16_t)(half | sign);
}

/* bfloat16: the upper half of a float. */
INLINE float from_bf16(uint16_t h)
{
    return bits_to_float((uint32_t)h << 16);
}

/* A NaN is not rounded: a carry from its lower half, which may be any, would make it 0 or -0. */
INLINE uint16_t to_bf16(float x)
{
    const uint32_t bits = float_to_bits(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
}

/* A vector of bfloat16 is rounded without a look at NaNs, 0.95 of the time: a carry cannot hurt one
 * that comes from bfloat16 logits or from arithmetic, whose lower half is 0.  One from a caller's
 * floats or doubles may have any bits, and would become 0: this makes it the quiet NaN first. */
INLINE vreal plain_nan(vreal v)
{
#if defined(FASTCE_bf16)
    return select_real(v == v, v, splat(__builtin_nanf("")));
#else
    return v;
#endif
}

INLINE vdouble plain_nan_double(vdouble v)
{
#if defined(FASTCE_bf16)
    return select_double(v == v, v, splat_double(__builtin_nan("")));
#else
    return v;
#endif
}

INLINE real get(const elem *x)
{
#if defined(FASTCE_f16)
    return from_f16(*x);
#elif defined(FASTCE_bf16)
    return from_bf16(*x);
#else
    return *x;
#endif
}

/* Stores x as any of the dtypes that grad may have. */
INLINE void put_as(int out_elem, char *to, real x)
{
    switch (out_elem) {
    case FASTCE_F32: *(float *)to = (float)x; break;
    case FASTCE_F64: *(double *)to = (double)x; break;
    case FASTCE_F16: *(uint16_t *)to = to_f16((float)x); break;
    default: *(uint16_t *)to = to_bf16((float)x);
    }
}

#if defined(FASTCE_bf16) && defined(__AVX512F__)
/* Both in fewer operations than the compiler makes of the plain formula: 0.83 of a long row's time.
 * Rounding takes NaNs to be plain_nan()s. */
INLINE vreal spread_bf16(velem halves)
{
    static const _Alignas(64) uint16_t to_upper[32]
        = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
           0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
    return (vreal)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, *(const __m512i *)to_upper,
                                                 _mm512_castsi256_si512((__m256i)halves));
}

INLINE velem round_to_bf16(vreal v)
{
    static const _Alignas(64) uint16_t uppers[32]
        = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
    const __m512i bits = (__m512i)v;
    const __mmask16 is_odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i below_half = (__m512i)((vbits)v + 0x7fff);
    const __m512i rounded
        = _mm512_mask_add_epi32(below_half, is_odd, below_half, _mm512_set1_epi32(1));
    return (velem)_mm512_castsi512_si256(
        _mm512_permutexvar_epi16(*(const __m512i *)uppers, rounded));
}
#elif defined(FASTCE_bf16) && defined(__AVX2__)
/* The same: 0.91 of a long row's time. */
INLINE vreal spread_bf16(velem halves)
{
    const __m256i to_upper
        = _mm256_setr_epi8(-1, -1, 0, 1, -1, -1, 2, 3, -1, -1, 4, 5, -1, -1, 6, 7, -1, -1, 8, 9, -1,
                           -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15);
    return (vreal)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)halves), to_upper);
}

INLINE velem round_to_bf16(vreal v)
{
    const __m256i uppers
        = _mm256_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1, 2, 3, 6, 7,
                           10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i bits = (__m256i)v;
    const __m256i half /* of the last bit kept, less one where that bit is 0: to even */
        = (__m256i)_mm256_blendv_ps((__m256)_mm256_set1_epi32(0x7fff),
                                    (__m256)_mm256_set1_epi32(0x8000),
                                    (__m256)_mm256_slli_epi32(bits, 15));
    const __m256i rounded = _mm256_shuffle_epi8(_mm256_add_epi32(bits, half), uppers);
    return (velem)_mm256_castsi256_si128(_mm256_permute4x64_epi64(rounded, 8));
}
#endif

/* Parts of a vector: the first n lanes, 0 <= n < LANES; the others are `rest`. */
#if defined(__AVX512F__)
INLINE vreal load_part(const elem *x, ptrdiff_t n, real rest)
{
    const unsigned first = (1u << n) - 1;
#if defined(FASTCE_f32)
    return _mm512_mask_loadu_ps(splat(rest), (__mmask16)first, x);
#elif defined(FASTCE_f64)
    return _mm512_mask_loadu_pd(splat(rest), (__mmask8)first, x);
#else
    const __m256i h = _mm256_maskz_loadu_epi16((__mmask16)first, x);
#if defined(FASTCE_f16)
    const __m512 v = _mm512_cvtph_ps(h);
#else
    const __m512 v = spread_bf16((velem)h);
#endif
    return _mm512_mask_mov_ps(splat(rest), (__mmask16)first, v);
#endif
}
#else
INLINE vreal load_part(const elem *x, ptrdiff_t n, real rest)
{
    _Alignas(64) real v[LANES];
    for (ptrdiff_t l = 0; l < LANES; l++) v[l] = l < n ? get(x + l) : rest;
    return *(const vreal *)v;
}
#endif

#if defined(FASTCE_f32) || defined(FASTCE_f64)

INLINE vreal load(const elem *x)
{
    return load_real(x);
}

INLINE void store(elem *x, vreal v)
{
    store_real(x, v);
}

/* x must be aligned to the bytes that are stored. */
INLINE void store_stream(elem *x, vreal v)
{
    store_real_stream(x, v);
}

#else

INLINE vreal load(const elem *x)
{
#if defined(FASTCE_f16) && defined(__AVX512F__)
    return _mm512_cvtph_ps((__m256i) * (const velem_anywhere *)x);
#elif defined(FASTCE_f16) && defined(__F16C__)
    return _mm256_cvtph_ps((__m128i) * (const velem_anywhere *)x);
#elif defined(__AVX2__)
    return spread_bf16(*(const velem_anywhere *)x);
#else
    const vbits h = __builtin_convertvector(*(const velem_anywhere *)x, vbits);
#if defined(FASTCE_bf16)
    return (vreal)(h << 16);
#else
    const vbits shifted = (h & 0x7fff) << 13;
    const vbits magnitude = (vbits)((vreal)shifted * 0x1p112f)
                            | ((vbits)((vinteger)shifted >= 0x0f800000) & 0x7f800000);
    return (vreal)(magnitude | (h & 0x8000) << 16);
#endif
#endif
}

/* Of bfloat16, NaNs are to be plain_nan()s. */
INLINE velem to_elems(vreal v)
{
#if defined(FASTCE_f16) && defined(__AVX512F__)
    return (velem)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(FASTCE_f16) && defined(__F16C__)
    return (velem)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
    return round_to_bf16(v);
#else
    const vbits bits = (vbits)v;
#if defined(FASTCE_bf16)
    const vbits half = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#else
    const vbits magnitude = bits & 0x7fffffff;
    const vbits is_nan = (vbits)((vinteger)magnitude > 0x7f800000);
    const vbits normal = (magnitude + 0xc8000fff + ((magnitude >> 13) & 1)) >> 13;
    const vbits small = (vbits)((vreal)magnitude + 0.5f) - 0x3f000000;
    const vbits is_small = (vbits)((vinteger)magnitude < 0x38800000);
    const vbits is_large = (vbits)((vinteger)magnitude >= 0x477ff000);
    vbits half = (small & is_small) | (normal & ~is_small);
    half = (half & ~is_large) | (0x7c00 & is_large);
    half = (half & ~is_nan) | (0x7e00 & is_nan);
    half |= (bits >> 16) & 0x8000;
#endif
    return __builtin_convertvector(half, velem);
#endif
}

INLINE void store(elem *x, vreal v)
{
    *(velem_anywhere *)x = to_elems(v);
}

INLINE void store_stream(elem *x, vreal v)
{
#if defined(__AVX512F__)
    _mm256_stream_si256((__m256i *)x, (__m256i)to_elems(v));
#elif defined(__AVX2__)
    _mm_stream_si128((__m128i *)x, (__m128i)to_elems(v));
#else
    *(velem_anywhere *)x = to_elems(v);
#endif
}

#endif

INLINE void store_part(elem *x, ptrdiff_t n, vreal v)
{
#if defined(__AVX512F__) && defined(FASTCE_f32)
    _mm512_mask_storeu_ps(x, (__mmask16)((1u << n) - 1), v);
#elif defined(__AVX512F__) && defined(FASTCE_f64)
    _mm512_mask_storeu_pd(x, (__mmask8)((1u << n) - 1), v);
#elif defined(__AVX512F__)
    _mm256_mask_storeu_epi16(x, (__mmask16)((1u << n) - 1), (__m256i)to_elems(v));
#else
    elem lanes[LANES];
    store(lanes, v);
    for (ptrdiff_t l = 0; l < n; l++) x[l] = lanes[l];
#endif
}

#endif
