/* AVX-512's intrinsics as loops, all that csrc uses: put before a file that is compiled for AVX2, it makes the AVX-512
 * kernels out of it, for CPUs that have none.  Slow, and for tests alone; every operation rounds as the CPU's does.
 * SIMDe 0.7.4 lacks 13 of the 43. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __AVX512F__ 1

typedef int32_t loops_i32 __attribute__((vector_size(64)));
typedef uint32_t loops_u32 __attribute__((vector_size(64)));
typedef int64_t loops_i64 __attribute__((vector_size(64)));
typedef uint16_t loops_u16 __attribute__((vector_size(64)));

#define LOOPS static inline __attribute__((always_inline))
#define FOR(n) for (int i = 0; i < n; i++)

/* ---- the same of floats and doubles: suffix, vector, mask, lane, lanes ---- */

#define FOR_EACH_REAL(f) f(ps, __m512, __mmask16, float, 16) f(pd, __m512d, __mmask8, double, 8)

#define REALS(suffix, vector, mask, real, n)                                                       \
    LOOPS vector loops_max_##suffix(vector a, vector b)                                            \
    {                                                                                              \
        FOR(n) a[i] = a[i] > b[i] ? a[i] : b[i];                                                   \
        return a;                                                                                  \
    }                                                                                              \
    LOOPS vector loops_fnmadd_##suffix(vector a, vector b, vector c)                               \
    {                                                                                              \
        FOR(n)                                                                                     \
        c[i] = sizeof(real) == 4 ? __builtin_fmaf((float)-a[i], (float)b[i], (float)c[i])          \
                                 : __builtin_fma(-a[i], b[i], c[i]);                               \
        return c;                                                                                  \
    }                                                                                              \
    LOOPS mask loops_cmp_##suffix##_mask(vector a, vector b, int what)                             \
    {                                                                                              \
        mask m = 0;                                                                                \
        FOR(n)                                                                                     \
        m |= (what == _CMP_NLT_UQ  ? !(a[i] < b[i])                                                \
              : what == _CMP_ORD_Q ? a[i] == a[i] && b[i] == b[i]                                  \
                                   : (__builtin_trap(), 0))                                        \
             << i;                                                                                 \
        return m;                                                                                  \
    }                                                                                              \
    LOOPS vector loops_mask_mov_##suffix(vector a, mask m, vector b)                               \
    {                                                                                              \
        FOR(n) a[i] = m >> i & 1 ? b[i] : a[i];                                                    \
        return a;                                                                                  \
    }                                                                                              \
    LOOPS vector loops_maskz_mov_##suffix(mask m, vector a)                                        \
    {                                                                                              \
        return loops_mask_mov_##suffix((vector){0}, m, a);                                         \
    }                                                                                              \
    LOOPS vector loops_mask_loadu_##suffix(vector a, mask m, const void *x)                        \
    {                                                                                              \
        FOR(n) if (m >> i & 1) a[i] = ((const real *)x)[i];                                        \
        return a;                                                                                  \
    }                                                                                              \
    LOOPS void loops_mask_storeu_##suffix(void *x, mask m, vector a)                               \
    {                                                                                              \
        FOR(n) if (m >> i & 1)((real *)x)[i] = a[i];                                               \
    }
FOR_EACH_REAL(REALS)

/* ---- parts of vectors ---- */

#define PART(name, whole, part)                                                                    \
    LOOPS part name(whole a, int k)                                                                \
    {                                                                                              \
        part b;                                                                                    \
        memcpy(&b, (char *)&a + k * sizeof b, sizeof b);                                           \
        return b;                                                                                  \
    }
PART(loops_extractf32x4_ps, __m512, __m128)
PART(loops_extractf32x8_ps, __m512, __m256)
PART(loops_half_si512, __m512i, __m256i)
#define loops_castps512_ps128(a) loops_extractf32x4_ps(a, 0)
#define loops_castps512_ps256(a) loops_extractf32x8_ps(a, 0)
#define loops_castsi512_si256(a) loops_half_si512(a, 0)

LOOPS __m512 loops_insertf32x8(__m512 a, __m256 b, int k)
{
    memcpy((char *)&a + k * sizeof b, &b, sizeof b);
    return a;
}

LOOPS __m512 loops_castps256_ps512(__m256 a)
{
    return loops_insertf32x8((__m512){0}, a, 0);
}

LOOPS __m512i loops_castsi256_si512(__m256i a)
{
    return (__m512i)loops_castps256_ps512((__m256)a);
}

LOOPS __m512d loops_load_pd(const void *x)
{
    return *(const __m512d *)x;
}

LOOPS void loops_stream_si512(void *x, __m512i a)
{
    *(__m512i *)x = a;
}

/* ---- conversions ---- */

LOOPS __m512d loops_cvtps_pd(__m256 a)
{
    return __builtin_convertvector(a, __m512d);
}

LOOPS __m256 loops_cvtpd_ps(__m512d a)
{
    return __builtin_convertvector(a, __m256);
}

LOOPS __m512 loops_cvtph_ps(__m256i a)
{
    const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
    return loops_insertf32x8(loops_castps256_ps512(low),
                             _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)), 1);
}

LOOPS __m256i loops_cvtps_ph(__m512 a, int rounding)
{
    if (rounding != _MM_FROUND_TO_NEAREST_INT) __builtin_trap();
    const __m128i low = _mm256_cvtps_ph(loops_extractf32x8_ps(a, 0), _MM_FROUND_TO_NEAREST_INT);
    return _mm256_set_m128i(_mm256_cvtps_ph(loops_extractf32x8_ps(a, 1), _MM_FROUND_TO_NEAREST_INT),
                            low);
}

/* ---- integers ---- */

LOOPS __m512i loops_set1_epi32(int x)
{
    return (__m512i)(x - (loops_i32){0});
}

LOOPS __m512i loops_mask_add_epi32(__m512i a, __mmask16 m, __m512i b, __m512i c)
{
    const __m512i sum = (__m512i)((loops_u32)b + (loops_u32)c);
    return (__m512i)loops_mask_mov_ps((__m512)a, m, (__m512)sum);
}

#define MASK(name, mask, lanes, n, holds)                                                          \
    LOOPS mask name(__m512i a, __m512i b)                                                          \
    {                                                                                              \
        const lanes x = (lanes)a, y = (lanes)b;                                                    \
        mask m = 0;                                                                                \
        FOR(n) m |= (holds) << i;                                                                  \
        return m;                                                                                  \
    }
MASK(loops_cmpeq_epi32_mask, __mmask16, loops_i32, 16, x[i] == y[i])
MASK(loops_cmpeq_epi64_mask, __mmask8, loops_i64, 8, x[i] == y[i])
MASK(loops_test_epi32_mask, __mmask16, loops_i32, 16, (x[i] & y[i]) != 0)
MASK(loops_sign_epi32_mask, __mmask16, loops_i32, 16, x[i] < y[i])
MASK(loops_sign_epi64_mask, __mmask8, loops_i64, 8, x[i] < y[i])
#define loops_movepi32_mask(a) loops_sign_epi32_mask(a, (__m512i){0})
#define loops_movepi64_mask(a) loops_sign_epi64_mask(a, (__m512i){0})

LOOPS __mmask16 loops_test_epi8_mask(__m128i a, __m128i b)
{
    const __m128i none = _mm_cmpeq_epi8(_mm_and_si128(a, b), _mm_setzero_si128());
    return (__mmask16)~_mm_movemask_epi8(none);
}

LOOPS __m512i loops_permutexvar_epi32(__m512i index, __m512i a)
{
    return (__m512i)__builtin_shuffle((loops_i32)a, (loops_i32)index);
}

LOOPS __m512i loops_permutex2var_epi64(__m512i a, __m512i index, __m512i b)
{
    return (__m512i)__builtin_shuffle((loops_i64)a, (loops_i64)b, (loops_i64)index);
}

LOOPS __m512i loops_permutexvar_epi16(__m512i index, __m512i a)
{
    return (__m512i)__builtin_shuffle((loops_u16)a, (loops_u16)index);
}

LOOPS __m512i loops_maskz_permutexvar_epi16(__mmask32 m, __m512i index, __m512i a)
{
    loops_u16 b = (loops_u16)loops_permutexvar_epi16(index, a);
    FOR(32) b[i] = m >> i & 1 ? b[i] : 0;
    return (__m512i)b;
}

LOOPS __m256i loops_maskz_loadu_epi16(__mmask16 m, const void *x)
{
    uint16_t a[16] = {0};
    FOR(16) if (m >> i & 1) a[i] = ((const uint16_t *)x)[i];
    return _mm256_loadu_si256((const __m256i *)a);
}

LOOPS void loops_mask_storeu_epi16(void *x, __mmask16 m, __m256i a)
{
    uint16_t b[16];
    memcpy(b, &a, sizeof b);
    FOR(16) if (m >> i & 1)((uint16_t *)x)[i] = b[i];
}

/* ---- the names ---- */

#define _mm256_mask_storeu_epi16 loops_mask_storeu_epi16
#define _mm256_maskz_loadu_epi16 loops_maskz_loadu_epi16
#define _mm512_castps256_ps512 loops_castps256_ps512
#define _mm512_castps512_ps128 loops_castps512_ps128
#define _mm512_castps512_ps256 loops_castps512_ps256
#define _mm512_castsi256_si512 loops_castsi256_si512
#define _mm512_castsi512_si256 loops_castsi512_si256
#define _mm512_cmp_pd_mask loops_cmp_pd_mask
#define _mm512_cmp_ps_mask loops_cmp_ps_mask
#define _mm512_cmpeq_epi32_mask loops_cmpeq_epi32_mask
#define _mm512_cmpeq_epi64_mask loops_cmpeq_epi64_mask
#define _mm512_cvtpd_ps loops_cvtpd_ps
#define _mm512_cvtph_ps loops_cvtph_ps
#define _mm512_cvtps_pd loops_cvtps_pd
#define _mm512_cvtps_ph loops_cvtps_ph
#define _mm512_extractf32x4_ps loops_extractf32x4_ps
#define _mm512_extractf32x8_ps loops_extractf32x8_ps
#define _mm512_fnmadd_pd loops_fnmadd_pd
#define _mm512_fnmadd_ps loops_fnmadd_ps
#define _mm512_insertf32x8 loops_insertf32x8
#define _mm512_load_pd loops_load_pd
#define _mm512_mask_add_epi32 loops_mask_add_epi32
#define _mm512_mask_loadu_pd loops_mask_loadu_pd
#define _mm512_mask_loadu_ps loops_mask_loadu_ps
#define _mm512_mask_mov_pd loops_mask_mov_pd
#define _mm512_mask_mov_ps loops_mask_mov_ps
#define _mm512_mask_storeu_pd loops_mask_storeu_pd
#define _mm512_mask_storeu_ps loops_mask_storeu_ps
#define _mm512_maskz_mov_pd loops_maskz_mov_pd
#define _mm512_maskz_mov_ps loops_maskz_mov_ps
#define _mm512_maskz_permutexvar_epi16 loops_maskz_permutexvar_epi16
#define _mm512_max_pd loops_max_pd
#define _mm512_max_ps loops_max_ps
#define _mm512_movepi32_mask loops_movepi32_mask
#define _mm512_movepi64_mask loops_movepi64_mask
#define _mm512_permutex2var_epi64 loops_permutex2var_epi64
#define _mm512_permutexvar_epi16 loops_permutexvar_epi16
#define _mm512_permutexvar_epi32 loops_permutexvar_epi32
#define _mm512_set1_epi32 loops_set1_epi32
#define _mm512_stream_si512 loops_stream_si512
#define _mm512_test_epi32_mask loops_test_epi32_mask
#define _mm_test_epi8_mask loops_test_epi8_mask
