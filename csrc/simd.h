/* The vectors that the maths is written in, for one element type and one ISA, on the compiler's own
 * vector types (gcc 12, clang 19 or newer): arithmetic, comparisons and shifts are plain operators
 * there.  Only what those lack is spelled out per ISA: maximum, masks, table look-ups, widening,
 * streaming stores.
 *
 * Compiled with -DFASTCE_f64 or, with float as real, one of -DFASTCE_f32, _f16, _bf16; a*b + c
 * becomes one instruction where the ISA has fused multiply-add (-ffp-contract=fast), and nothing
 * below depends on whether it does. */
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

/* What the maths is done in. */
#if defined(FASTCE_f64)
typedef double real;
typedef int64_t integer;
#else
typedef float real;
typedef int32_t integer;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef real vreal __attribute__((vector_size(VECTOR_BYTES)));
typedef integer vinteger __attribute__((vector_size(VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t vlong __attribute__((vector_size(VECTOR_BYTES)));
typedef real vreal_anywhere __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real))));
typedef integer vinteger_anywhere
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(integer))));

enum {
    LANES = VECTOR_BYTES / sizeof(real),
    DOUBLES = VECTOR_BYTES / sizeof(double),
    WIDE = LANES / DOUBLES, /* vdoubles that hold as many numbers as a vreal */
};

INLINE vreal splat(real x)
{
    return x - (vreal){0};
}

INLINE vinteger splat_integer(ptrdiff_t n)
{
    return (integer)n - (vinteger){0};
}

INLINE vdouble splat_double(double x)
{
    return x - (vdouble){0};
}

INLINE vreal load_real(const real *x)
{
    return *(const vreal_anywhere *)x;
}

INLINE void store_real(real *x, vreal v)
{
    *(vreal_anywhere *)x = v;
}

/* x must be aligned to VECTOR_BYTES. */
INLINE void store_real_stream(real *x, vreal v)
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

INLINE void prefetch_for_write(const void *x)
{
    __builtin_prefetch(x, 1, 3);
}

/* To L2 only: what is on its way from memory to L1 holds one of the few buffers that L1 has for
 * misses, and rows.h needs them for what it keeps in L2. */
INLINE void prefetch_to_l2(const void *x)
{
    __builtin_prefetch(x, 0, 2);
}

/* v as it is rounded: the compiler may not make a product and what is added to it one operation.
 * (Without AVX512VL, it is AVX-512 in loops, as tests have it on other CPUs: no register is as
 * large.) */
INLINE vreal as_rounded(vreal v)
{
#if defined(__AVX512VL__)
    __asm__("" : "+v"(v));
#elif defined(__SSE2__) && !defined(__AVX512F__)
    __asm__("" : "+x"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#else
    __asm__("" : "+m"(v));
#endif
    return v;
}

INLINE vreal select_real(vinteger mask, vreal yes, vreal no)
{
    return (vreal)(((vinteger)yes & mask) | ((vinteger)no & ~mask));
}

/* yes where a is b, else no. */
INLINE vreal select_equal(vinteger a, vinteger b, vreal yes, vreal no)
{
#if defined(__AVX512F__) && !defined(FASTCE_f64)
    return _mm512_mask_mov_ps(no, _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b), yes);
#elif defined(__AVX512F__)
    return _mm512_mask_mov_pd(no, _mm512_cmpeq_epi64_mask((__m512i)a, (__m512i)b), yes);
#else
    return select_real(a == b, yes, no);
#endif
}

/* yes where bytes are not 0, else no. */
INLINE vreal select_seen(const char *bytes, vreal yes, vreal no)
{
#if defined(__AVX512F__) && !defined(FASTCE_f64)
    const __m128i seen = _mm_loadu_si128((const __m128i *)bytes);
    return _mm512_mask_mov_ps(no, _mm_test_epi8_mask(seen, seen), yes);
#elif defined(__AVX512F__)
    const __m128i seen = _mm_loadl_epi64((const __m128i *)bytes);
    return _mm512_mask_mov_pd(no, (__mmask8)_mm_test_epi8_mask(seen, seen), yes);
#elif defined(__AVX2__) && !defined(FASTCE_f64)
    /* gcc 12 converts vectors of 8 bytes one by one: rows under a mask took 1.5 times as long */
    const __m256i seen = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
    return select_real((vinteger)seen != 0, yes, no);
#elif defined(__AVX2__)
    const __m256i seen = _mm256_cvtepi8_epi64(_mm_loadu_si32(bytes));
    return select_real((vinteger)seen != 0, yes, no);
#else
    typedef char vbytes __attribute__((vector_size(LANES)));
    vbytes seen;
    memcpy(&seen, bytes, sizeof seen);
    return select_real(__builtin_convertvector(seen, vinteger) != 0, yes, no);
#endif
}

/* Integers below 2^51 as doubles; AVX2 has no conversion of 64-bit ones. */
INLINE vdouble as_doubles(vlong n)
{
    return (vdouble)(n + 0x4338000000000000) - 0x1.8p52;
}

INLINE vreal as_reals(vinteger n)
{
#if defined(FASTCE_f64)
    return as_doubles(n);
#else
    return __builtin_convertvector(n, vreal);
#endif
}

/* Lanes of v, a vector of any type, by a vector of their numbers. */
#if defined(__clang__)
#define SHUFFLE(v, index) __builtin_shufflevector(v, index)
#else
#define SHUFFLE(v, index) __builtin_shuffle(v, index)
#endif

/* Lanes of a and b by their numbers, which are known at compile time; b's follow a's. */
INLINE vreal shuffle_two(vreal a, vreal b, vinteger index)
{
#if defined(__clang__) /* makes one instruction of all three */
    return select_real((index & LANES) != 0, SHUFFLE(b, index), SHUFFLE(a, index));
#else
    return __builtin_shuffle(a, b, index);
#endif
}

/* Lanes of v by an index made of lane_index()es: lane l of the result is lane r of v where the
 * index's is lane_index(r).  (AVX2 permutes doubles as pairs of halves only, so an index names two
 * of them.) */
#if defined(__AVX2__) && !defined(__AVX512F__) && defined(FASTCE_f64)
typedef int32_t vhalves __attribute__((vector_size(VECTOR_BYTES)));

INLINE vinteger lane_index(integer r)
{
    return splat_integer((2 * r + 1) << 32 | 2 * r);
}

INLINE vreal pick(vreal v, vinteger index)
{
    return (vreal)SHUFFLE((vhalves)v, (vhalves)index);
}
#else
INLINE vinteger lane_index(integer r)
{
    return splat_integer(r);
}

INLINE vreal pick(vreal v, vinteger index)
{
    return SHUFFLE(v, index);
}
#endif

/* v with another number in one lane; v[lane] = x would keep v in memory wherever it is used. */
INLINE vreal with_lane(vreal v, ptrdiff_t lane, real x)
{
    real lanes[LANES];
    memcpy(lanes, &v, sizeof v);
    lanes[lane] = x;
    memcpy(&v, lanes, sizeof v);
    return v;
}

INLINE vdouble select_double(vlong mask, vdouble yes, vdouble no)
{
    return (vdouble)(((vlong)yes & mask) | ((vlong)no & ~mask));
}

/* The larger of the two; b where either is NaN. */
INLINE vreal maximum(vreal a, vreal b)
{
#if defined(__AVX512F__) && !defined(FASTCE_f64)
    return _mm512_max_ps(a, b);
#elif defined(__AVX512F__)
    return _mm512_max_pd(a, b);
#elif defined(__AVX2__) && !defined(FASTCE_f64)
    return _mm256_max_ps(a, b);
#elif defined(__AVX2__)
    return _mm256_max_pd(a, b);
#elif defined(__SSE2__) && !defined(FASTCE_f64)
    return _mm_max_ps(a, b);
#elif defined(__SSE2__)
    return _mm_max_pd(a, b);
#else
    return select_real(a > b, a, b);
#endif
}

#if defined(__AVX512F__) || (defined(__AVX2__) && !defined(FASTCE_f64))
/* The number of an aligned table that the low bits of index name: 16 of them, or 4 twice. */
INLINE vinteger look_up(const integer *table, vinteger index)
{
#if !defined(__AVX512F__)
    return (vinteger)_mm256_permutevar_ps(*(const __m256 *)table, (__m256i)index);
#elif !defined(FASTCE_f64)
    return (vinteger)_mm512_permutexvar_epi32((__m512i)index, *(const __m512i *)table);
#else
    const __m512i *half = (const __m512i *)table;
    return (vinteger)_mm512_permutex2var_epi64(half[0], (__m512i)index, half[1]);
#endif
}

/* c - a * b, rounded once, whatever the compiler is told. */
INLINE vreal minus_product(vreal c, vreal a, vreal b)
{
#if !defined(__AVX512F__)
    return _mm256_fnmadd_ps(a, b, c);
#elif !defined(FASTCE_f64)
    return _mm512_fnmadd_ps(a, b, c);
#else
    return _mm512_fnmadd_pd(a, b, c);
#endif
}

/* v where not x < limit, else 0. */
INLINE vreal zero_below(vreal x, vreal limit, vreal v)
{
#if !defined(__AVX512F__)
    return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), v);
#elif !defined(FASTCE_f64)
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
#else
    return _mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x, limit, _CMP_NLT_UQ), v);
#endif
}
#endif

/* 0, 1, 2, ...: what constant shuffles are made from.  Spelled out, for the compiler folds no
 * vector that is read from memory, and then makes the shuffles anew each time: 64 classes took 1.2
 * times as long. */
INLINE vinteger lane_numbers(void)
{
#if VECTOR_BYTES == 64 && !defined(FASTCE_f64)
    return (vinteger){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif VECTOR_BYTES == 64 || (VECTOR_BYTES == 32 && !defined(FASTCE_f64))
    return (vinteger){0, 1, 2, 3, 4, 5, 6, 7};
#elif VECTOR_BYTES == 32 || !defined(FASTCE_f64)
    return (vinteger){0, 1, 2, 3};
#else
    return (vinteger){0, 1};
#endif
}

/* Of n vectors, cut into parts of n lanes: v[i] lane j becomes v[j] lane i, in every part.  At step
 * s, blocks of s x s lanes off the diagonal change places; n is a constant, the loops unroll and
 * each shuffle is one instruction or two. */
INLINE void transpose(vreal *v, int n)
{
    const vinteger lane = lane_numbers();
#pragma GCC unroll 8
    for (int s = 1; s < n; s *= 2) {
        const vinteger upper = (lane & s) != 0;
        const vinteger first = lane + (upper & (LANES - s));
        const vinteger second = lane + ((~upper & s) | (upper & LANES));
#pragma GCC unroll 16
        for (int i = 0; i < n; i++)
            if (!(i & s)) {
                const vreal a = v[i], b = v[i + s];
                v[i] = shuffle_two(a, b, first);
                v[i + s] = shuffle_two(a, b, second);
            }
    }
}

/* A vector's pieces of 16 bytes, from and to places that are stride reals apart. */
enum { PIECE = 16 / sizeof(real) };

INLINE vreal load_pieces(const real *x, ptrdiff_t stride)
{
#if defined(__AVX512F__) /* by halves: three insertions into whole vectors take 1.5 times as long */
    const real *y = x + 2 * stride;
    const __m256 low = _mm256_loadu2_m128((const float *)(x + stride), (const float *)x);
    const __m256 high = _mm256_loadu2_m128((const float *)(y + stride), (const float *)y);
    return (vreal)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#elif defined(__AVX2__)
    return (vreal)_mm256_loadu2_m128((const float *)(x + stride), (const float *)x);
#else
    (void)stride;
    return load_real(x);
#endif
}

/* Part number part of v, cut into parts of n lanes: halves or pieces. */
INLINE void store_lanes(real *x, vreal v, int n, int part)
{
#if defined(__AVX512F__)
    const __m512 all = (__m512)v;
    if (n == LANES / 2)
        _mm256_storeu_ps((float *)x,
                         part ? _mm512_extractf32x8_ps(all, 1) : _mm512_castps512_ps256(all));
    else
        _mm_storeu_ps((float *)x, part == 0   ? _mm512_castps512_ps128(all)
                                  : part == 1 ? _mm512_extractf32x4_ps(all, 1)
                                  : part == 2 ? _mm512_extractf32x4_ps(all, 2)
                                              : _mm512_extractf32x4_ps(all, 3));
#elif defined(__AVX2__)
    const __m256 all = (__m256)v;
    (void)n;
    _mm_storeu_ps((float *)x, part ? _mm256_extractf128_ps(all, 1) : _mm256_castps256_ps128(all));
#else
    (void)n, (void)part;
    store_real(x, v);
#endif
}

/* The largest lane, NaN passed over unless all are. */
INLINE real largest_lane(vreal v)
{
    const vinteger lane = lane_numbers();
#pragma GCC unroll 8
    for (int s = LANES / 2; s; s /= 2) v = maximum(v, SHUFFLE(v, lane ^ s));
    return v[0];
}

/* Whether any lane of a comparison holds. */
INLINE int any(vinteger mask)
{
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#elif defined(__SSE2__)
    return _mm_movemask_epi8((__m128i)mask) != 0;
#else
    int held = 0;
    for (int l = 0; l < LANES; l++) held |= mask[l] != 0;
    return held;
#endif
}

/* The first lane where a comparison holds, as it does somewhere. */
INLINE int first_lane(vinteger mask)
{
#if defined(__AVX512F__) && defined(FASTCE_f64)
    return __builtin_ctz(_mm512_movepi64_mask((__m512i)mask));
#elif defined(__AVX512F__)
    return __builtin_ctz(_mm512_movepi32_mask((__m512i)mask));
#elif defined(__AVX2__)
    return __builtin_ctz((unsigned)_mm256_movemask_epi8((__m256i)mask)) / (int)sizeof(real);
#elif defined(__SSE2__)
    return __builtin_ctz((unsigned)_mm_movemask_epi8((__m128i)mask)) / (int)sizeof(real);
#else
    int lane = 0;
    while (!mask[lane]) lane++;
    return lane;
#endif
}

/* Part number part of v as doubles, 0 <= part < WIDE. */
INLINE vdouble widen(vreal v, int part)
{
#if defined(FASTCE_f64)
    (void)part;
    return v;
#elif defined(__AVX512F__)
    return _mm512_cvtps_pd(part ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(part ? _mm256_extractf128_ps(v, 1) : _mm256_castps256_ps128(v));
#elif defined(__SSE2__)
    return _mm_cvtps_pd(part ? _mm_movehl_ps(v, v) : (__m128)v);
#else
    vdouble wide;
    for (int l = 0; l < DOUBLES; l++) wide[l] = v[part * DOUBLES + l];
    return wide;
#endif
}

/* The same from memory, aligned to VECTOR_BYTES, which saves moving a part to where it is
 * converted. */
INLINE vdouble widen_at(const real *x, int part)
{
#if defined(__AVX512F__) && !defined(FASTCE_f64)
    return _mm512_cvtps_pd(_mm256_load_ps(x + part * DOUBLES));
#elif defined(__AVX2__) && !defined(FASTCE_f64)
    return _mm256_cvtps_pd(_mm_load_ps(x + part * DOUBLES));
#else
    return widen(*(const vreal *)x, part);
#endif
}

/* DOUBLES of them from anywhere. */
INLINE vdouble widen_from(const real *x)
{
#if defined(FASTCE_f64)
    return load_real(x);
#elif defined(__AVX512F__)
    return _mm512_cvtps_pd(_mm256_loadu_ps(x));
#elif defined(__AVX2__)
    return _mm256_cvtps_pd(_mm_loadu_ps(x));
#else
    vdouble wide = {0};
    for (int l = 0; l < DOUBLES; l++) wide[l] = x[l];
    return wide;
#endif
}

/* The numbers of their lanes, spelled out as lane_numbers() are. */
INLINE vlong double_numbers(void)
{
#if VECTOR_BYTES == 64
    return (vlong){0, 1, 2, 3, 4, 5, 6, 7};
#elif VECTOR_BYTES == 32
    return (vlong){0, 1, 2, 3};
#else
    return (vlong){0, 1};
#endif
}

/* The sums of neighbours, n lanes each, in a and in b; a's come first. */
INLINE vdouble add_neighbours(const int n, vdouble a, vdouble b)
{
    const vlong lane = double_numbers(), lower = lane + (lane & n) / n * (DOUBLES - n);
    const vlong upper = lower + n;
#if defined(__clang__)
    return select_double((lower & DOUBLES) != 0, SHUFFLE(b, lower), SHUFFLE(a, lower))
           + select_double((upper & DOUBLES) != 0, SHUFFLE(b, upper), SHUFFLE(a, upper));
#else
    return __builtin_shuffle(a, b, lower) + __builtin_shuffle(a, b, upper);
#endif
}

/* The inverse of widen: all parts as one vector, rounded. */
INLINE vreal narrow(const double *x)
{
#if defined(FASTCE_f64)
    return *(const vreal *)x;
#elif defined(__AVX512F__)
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(_mm512_load_pd(x))),
                              _mm512_cvtpd_ps(_mm512_load_pd(x + DOUBLES)), 1);
#elif defined(__AVX2__)
    return _mm256_set_m128(_mm256_cvtpd_ps(_mm256_load_pd(x + DOUBLES)),
                           _mm256_cvtpd_ps(_mm256_load_pd(x)));
#elif defined(__SSE2__)
    return _mm_movelh_ps(_mm_cvtpd_ps(_mm_load_pd(x)), _mm_cvtpd_ps(_mm_load_pd(x + DOUBLES)));
#else
    vreal v;
    for (int l = 0; l < LANES; l++) v[l] = (real)x[l];
    return v;
#endif
}

#endif
