/* The only file that asks what the CPU is: the ISAs this build has, fastest first, and whether the
 * CPU and the operating system both support them.  The compiler's levels (x86-64-v3, -v4) name the
 * same instruction sets here and in setup.py. */
#include "fastce.h"

#define DECLARE(isa)                                                                               \
    extern const fastce_kernels fastce_##isa##_f32, fastce_##isa##_f64, fastce_##isa##_f16,        \
        fastce_##isa##_bf16
#define TABLES(isa)                                                                                \
    {&fastce_##isa##_f32, &fastce_##isa##_f64, &fastce_##isa##_f16, &fastce_##isa##_bf16}

DECLARE(baseline);

static int always(void)
{
    return 1;
}

#if defined(__x86_64__)
DECLARE(avx2);
DECLARE(avx512);

static int has_avx2(void)
{
    return __builtin_cpu_supports("x86-64-v3");
}

static int has_avx512(void)
{
    return __builtin_cpu_supports("x86-64-v4");
}
#endif

const fastce_isa fastce_isas[] = {
#if defined(__x86_64__)
    {"avx512", TABLES(avx512), has_avx512},
    {"avx2", TABLES(avx2), has_avx2},
#endif
    {"baseline", TABLES(baseline), always},
    {0},
};
