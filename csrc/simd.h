/* The vectors that the maths is written in, for one element type and one ISA, on the compiler's
 * own vector types (gcc, clang): arithmetic, comparisons and shifts are plain operators there.
 * Only what those lack is spelled out per ISA: maximum, streaming stores, prefetch.
 *
 * Compiled with -DFASTCE_f32 or -DFASTCE_f64; a*b + c becomes one instruction where the ISA has
 * fused multiply-add (-ffp-contract=fast), and nothing below depends on whether it does. */
#ifndef FASTCE_SIMD_H
#define FASTCE_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#if defined(FASTCE_f32)
typedef float real;
typedef int32_t integer;
#else
typedef double real;
typedef int64_t integer;
#endif
typedef real elem; /* what logits and grad hold in memory */

#define INLINE static inline __attribute__((always_inline))

typedef real vreal __attribute__((vector_size(VECTOR_BYTES)));
typedef integer vinteger __attribute__((vector_size(VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vlong __attribute__((vector_size(VECTOR_BYTES)));
typedef real vreal_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real))));

enum {
    LANES = VECTOR_BYTES / sizeof(real),
    DOUBLES = VECTOR_BYTES / sizeof(double),
    WIDE = LANES / DOUBLES, /* vdoubles that hold as many numbers as a vreal */
};

INLINE vreal splat(real x)
{
    return x - (vreal){0};
}

INLINE vdouble splat_double(double x)
{
    return x - (vdouble){0};
}

INLINE vreal load(const elem *x)
{
    return *(const vreal_anywhere *)x;
}

INLINE void store(elem *x, vreal v)
{
    *(vreal_anywhere *)x = v;
}

/* x must be aligned to VECTOR_BYTES. */
INLINE void store_stream(elem *x, vreal v)
{
#if defined(__AVX512F__)
    _mm512_stream_si512((__m512i *)x, (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256((__m256i *)x, (__m256i)v);
#elif defined(__SSE2__)
    _mm_stream_si128((__m128i *)x, (__m128i)v);
#else
    *(vreal *)x = v;
#endif
}

/* Streaming stores are ordered after this. */
INLINE void store_fence(void)
{
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

INLINE void prefetch(const void *x)
{
    __builtin_prefetch(x, 0, 3);
}

INLINE vreal select_real(vinteger mask, vreal yes, vreal no)
{
    return (vreal)(((vinteger)yes & mask) | ((vinteger)no & ~mask));
}

INLINE vdouble select_double(vlong mask, vdouble yes, vdouble no)
{
    return (vdouble)(((vlong)yes & mask) | ((vlong)no & ~mask));
}

/* The larger of the two; b where either is NaN. */
INLINE vreal maximum(vreal a, vreal b)
{
#if defined(__AVX512F__) && defined(FASTCE_f32)
    return _mm512_max_ps(a, b);
#elif defined(__AVX512F__)
    return _mm512_max_pd(a, b);
#elif defined(__AVX2__) && defined(FASTCE_f32)
    return _mm256_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_pd(a, b);
#elif defined(__SSE2__) && defined(FASTCE_f32)
    return _mm_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_pd(a, b);
#else
    return select_real(a > b, a, b);
#endif
}

/* Part number part of v as doubles, 0 <= part < WIDE. */
INLINE vdouble widen(vreal v, int part)
{
#if defined(FASTCE_f32)
    typedef float half __attribute__((vector_size(VECTOR_BYTES / 2)));
    half h;
    memcpy(&h, (const char *)&v + part * (VECTOR_BYTES / 2), sizeof h);
    return __builtin_convertvector(h, vdouble);
#else
    (void)part;
    return v;
#endif
}

#endif
