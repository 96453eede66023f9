/* The yardsticks of the benchmarks: a copy with streaming stores and a plain read, both with
 * prefetch, as fast as this machine's memory goes. */
#ifndef FASTCE_STREAM_H
#define FASTCE_STREAM_H

#include "simd.h"

enum { PREFETCH_AHEAD = 2048 /* bytes; 1024 to 4096 are equal, none is 1.2 times slower */ };

/* dst must be aligned to 64 bytes, n_bytes a multiple of 64. */
static void stream_copy(const void *src, void *dst, ptrdiff_t n_bytes)
{
    const char *from = src;
    char *to = dst;
    for (ptrdiff_t i = 0; i < n_bytes; i += 64) {
        prefetch(from + i + PREFETCH_AHEAD);
        for (int j = 0; j < 64; j += VECTOR_BYTES)
            store_real_stream((real *)(to + i + j), load_real((const real *)(from + i + j)));
    }
    store_fence();
}

/* The sum of what was read, so that no compiler leaves the reading out. */
static double stream_read(const void *src, ptrdiff_t n_bytes)
{
    const char *from = src;
    vreal sum[4] = {splat(0), splat(0), splat(0), splat(0)};
    for (ptrdiff_t i = 0; i + 4 * VECTOR_BYTES <= n_bytes; i += 4 * VECTOR_BYTES)
        for (int j = 0; j < 4; j++) {
            prefetch(from + i + j * VECTOR_BYTES + PREFETCH_AHEAD);
            sum[j] += load_real((const real *)(from + i + j * VECTOR_BYTES));
        }
    const vreal all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    for (int l = 0; l < LANES; l++) total += (double)all[l];
    return total;
}

#endif
