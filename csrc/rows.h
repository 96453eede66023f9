/* Many classes, one row after the other, lanes = classes.  Few classes are in columns.h.
 *
 * A row is read from memory once and written once, and one exponential is computed per element.
 * It goes block by block: a block is copied to L1 while its maximum is taken, then its terms (see
 * exp_log.h) go to `terms`, a row that stays in L2.  Only when the row ends is its sum known; then
 * the gradient is one multiplication per term.  That is done while the next row is being read, group
 * by group, so that memory is read and written at an even pace under the arithmetic.
 *
 * The row's largest element is left out of the sum (its term is `top`, in double), for others / top
 * must be exact also where it is tiny: sum - top would cancel. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "targets.h"

enum {
    GROUP = 4 * LANES,                          /* elements of one step: four chains of arithmetic */
    BLOCK = 4096 / (ptrdiff_t)sizeof(real),     /* a page: the block, its terms and the previous row
                                                   share the smallest L1, 32 KB */
    LINE = 64 / (ptrdiff_t)sizeof(elem),        /* elements of a cache line */
};

/* Adds a vector so that nothing is lost that matters, for any number of classes: to doubles for float
 * rows (the two halves of the vector, one to each part of the sum), exactly for double ones.  Every
 * float is widened by itself: adding four of them first is 0.8 of the time, but costs a confident
 * row's loss the last half of its 2 ulp. */
INLINE void add_vector(wide_exact_sum *total, vreal x)
{
#if defined(FASTCE_f32)
    total->sum += widen(x, 0);
    total->lost += widen(x, 1);
#else
    add_wide(total, x);
#endif
}

INLINE double sum_lanes(const wide_exact_sum *total)
{
    vdouble v = total->sum + total->lost;
    double lanes[DOUBLES];
    memcpy(lanes, &v, sizeof v);
    for (int width = DOUBLES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* exp(x - shift) * 2^(lift + BIAS - power) in double. */
INLINE double exact_term(double x, double lift, const reference *ref)
{
    const double d = x - ref->shift;
    if (d < -10000) return 0; /* below any double, whatever the powers are */
    const double n = __builtin_rint(d * LOG2_E);
    const vdouble e = exp_double(splat_double((d - n * LN2_DOUBLE_HIGH) - n * LN2_DOUBLE_LOW));
    const double exponent = 1023 + BIAS + n + lift - ref->power;
    if (exponent < 1) return 0;
    const int64_t bits = (int64_t)exponent << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return e[0] * scale;
}

/* The last row whose terms are known: its gradient is written while the next row is read. */
typedef struct {
    elem *grad; /* NULL: nothing is pending */
    ptrdiff_t stride;
    ptrdiff_t head; /* elements before the first aligned one; 0 if not streaming */
    int stream;
    real factor;
} pending_row;

INLINE void write_scalar(const pending_row *row, const real *terms, ptrdiff_t from, ptrdiff_t to)
{
    for (ptrdiff_t j = from; j < to; j++)
        *(elem *)((char *)row->grad + j * row->stride) = row->factor * terms[j];
}

/* Elements head + [from, from + GROUP) of the pending gradient, as far as the row goes.  Reads terms up to
 * head beyond the group, which the next row overwrites only afterwards. */
INLINE void write_group(const pending_row *row, const real *terms, ptrdiff_t from,
                        ptrdiff_t n_classes)
{
    const ptrdiff_t first = row->head + from;
    if (from == 0) write_scalar(row, terms, 0, row->head < n_classes ? row->head : n_classes);
    if (first + GROUP > n_classes || row->stride != sizeof(elem)) {
        write_scalar(row, terms, first, first + GROUP < n_classes ? first + GROUP : n_classes);
        return;
    }
    const vreal factor = splat(row->factor);
    if (row->stream)
        for (int i = 0; i < GROUP; i += LANES)
            store_stream(row->grad + first + i, load(terms + first + i) * factor);
    else
        for (int i = 0; i < GROUP; i += LANES)
            store(row->grad + first + i, load(terms + first + i) * factor);
}

/* Copies n elements to block, filled up with -inf to a whole group; returns their maximum, NaN
 * passed over. */
INLINE real load_block(const char *x, ptrdiff_t stride, ptrdiff_t n, real *block)
{
    const vreal lowest = splat(-(real)__builtin_inf());
    vreal max[4] = {lowest, lowest, lowest, lowest};
    ptrdiff_t whole = stride == sizeof(elem) ? n / GROUP * GROUP : 0;
    const ptrdiff_t end = (n + GROUP - 1) / GROUP * GROUP;
    for (ptrdiff_t j = 0; j < whole; j += GROUP)
        for (int i = 0; i < 4; i++) {
            const vreal v = load((const elem *)x + j + i * LANES);
            max[i] = maximum(v, max[i]);
            *(vreal *)(block + j + i * LANES) = v;
        }
    for (ptrdiff_t j = whole; j < n; j++) block[j] = *(const elem *)(x + j * stride);
    for (ptrdiff_t j = n; j < end; j++) block[j] = -(real)__builtin_inf();
    for (ptrdiff_t j = whole; j < end; j += LANES)
        max[0] = maximum(*(const vreal *)(block + j), max[0]);
    const vreal all = maximum(maximum(max[0], max[1]), maximum(max[2], max[3]));
    real largest = all[0];
    for (int i = 1; i < LANES; i++) largest = all[i] > largest ? all[i] : largest;
    return largest;
}

/* Where the first x in block is; there is one. */
INLINE ptrdiff_t find(const real *block, real x)
{
    const vreal wanted = splat(x);
    ptrdiff_t j = 0;
    for (;; j += GROUP) {
        vinteger held = *(const vreal *)(block + j) == wanted;
        for (int i = LANES; i < GROUP; i += LANES)
            held |= *(const vreal *)(block + j + i) == wanted;
        if (any(held)) break;
    }
    while (block[j] != x) j++;
    return j;
}

/* The statistics of row x, its terms, and on the way the gradient of the pending row. */
static void row_terms(const fastce_call *call, const char *x, const char *next_x, int64_t target,
                      real *terms, const pending_row *pending, row_tile *row)
{
    const ptrdiff_t n_classes = call->n_classes, stride = call->logits.class_stride;
    const int keep_terms = call->grad.data != NULL;
    _Alignas(64) real block[BLOCK];
    reference ref = {0, 0};
    vreference vref = spread(splat(0), splat(0));
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    double max = -__builtin_inf(), top = 0, target_logit = 0;
    double extra = 0; /* terms of former maxima */

    for (ptrdiff_t start = 0; start < n_classes; start += BLOCK) {
        const ptrdiff_t n = n_classes - start < BLOCK ? n_classes - start : BLOCK;
        const char *ahead = start + BLOCK < n_classes ? x + (start + BLOCK) * stride : next_x;
        const real block_max = load_block(x + start * stride, stride, n, block);
        if (target >= start && target < start + n) target_logit = block[target - start];

        ptrdiff_t top_at = -1;
        if (block_max > max) {
            const double power
                = __builtin_rint(((double)block_max - (double)ref.shift) * LOG2_E);
            if (start == 0 || max == -__builtin_inf() || power - (double)ref.power > HEADROOM) {
                /* the terms so far are too small for the new maximum: a new reference */
                const double old_top = top;
                const real old_shift = ref.shift, old_power = ref.power;
                ref.shift = __builtin_fabs((double)block_max) > SHIFT_FROM ? block_max : 0;
                ref.power = (real)__builtin_rint(((double)block_max - (double)ref.shift) * LOG2_E);
                vref = spread(splat(ref.shift), splat(ref.power));
                if (old_top > 0) {
                    /* exact when the shift stays 0: a power of two */
                    const double change = exact_term(old_shift, (double)old_power - BIAS, &ref);
                    total.sum *= change;
                    total.lost *= change;
                    extra *= change;
                    top *= change;
                    if (keep_terms)
                        for (ptrdiff_t j = 0; j < start; j += LANES)
                            *(vreal *)(terms + j) *= (real)change;
                }
            }
            extra += top;
            max = block_max;
            top = exact_term(max, 0, &ref);
            top_at = find(block, block_max);
            block[top_at] = -(real)__builtin_inf();
        }

        for (ptrdiff_t j = 0; j < n; j += GROUP) {
            if (pending->grad) write_group(pending, terms, start + j, n_classes);
            if (ahead)
                for (ptrdiff_t i = 0; i < GROUP; i += LINE)
                    prefetch(ahead + (j + i) * (ptrdiff_t)sizeof(elem));
            vreal e[4];
            for (int i = 0; i < 4; i++)
                e[i] = exp_terms(*(const vreal *)(block + j + i * LANES), &vref);
            if (keep_terms)
                for (int i = 0; i < 4; i++) *(vreal *)(terms + start + j + i * LANES) = e[i];
            for (int i = 0; i < 4; i++) add_vector(&total, e[i]);
        }
        if (keep_terms && top_at >= 0) terms[start + top_at] = (real)top;
    }
    row->max[0] = max;
    row->target_logit[0] = target_logit;
    row->top[0] = top;
    row->others[0] = sum_lanes(&total) + extra;
    row->target_term[0] = keep_terms ? terms[target] : 0;
}

/* Where a thread is: a row of the chunk it has claimed.  The row after it is known in time to be
 * prefetched, for which the next chunk is claimed one row early. */
typedef struct {
    ptrdiff_t chunk, row, end;
} cursor;

INLINE int claim_chunk(fastce_call *call, cursor *at)
{
    at->chunk = atomic_fetch_add_explicit(&call->next_chunk, 1, memory_order_relaxed);
    if (at->chunk >= call->n_chunks) return 0;
    at->row = at->chunk * call->chunk_rows;
    at->end = at->row + call->chunk_rows < call->n_rows ? at->row + call->chunk_rows : call->n_rows;
    return 1;
}

INLINE int next_row(fastce_call *call, cursor *at)
{
    return ++at->row < at->end || claim_chunk(call, at);
}

static void zero_row(const fastce_call *call, ptrdiff_t row)
{
    char *grad = call->grad.data + row * call->grad.row_stride;
    for (ptrdiff_t j = 0; j < call->n_classes; j++)
        *(elem *)(grad + j * call->grad.class_stride) = 0;
}

static void cross_entropy_rows(fastce_call *call, int thread)
{
    real *terms = (real *)(call->scratch + (size_t)thread * call->scratch_size);
    real *losses = call->losses;
    pending_row pending = {.grad = NULL, .stride = call->grad.class_stride, .stream = call->stream};
    exact_sum chunk_sum = {0, 0};
    row_tile tile;
    memset(&tile, 0, sizeof tile);

    cursor next;
    int more = claim_chunk(call, &next);
    while (more) {
        const cursor at = next;
        int64_t target;
        more = next_row(call, &next);
        read_rows(call, at.row, 1, &target, tile.weight);
        if (target < 0) {
            if (call->grad.data) zero_row(call, at.row);
            tile.loss[0] = 0;
        } else {
            const char *x = call->logits.data + at.row * call->logits.row_stride;
            const char *next_x = more ? call->logits.data + next.row * call->logits.row_stride : NULL;
            row_terms(call, x, next_x, target, terms, &pending, &tile);
            epilogue(call, &tile, 1);
            if (call->grad.data) {
                const double factor = tile.factor[0];
                elem *grad = (elem *)(call->grad.data + at.row * call->grad.row_stride);
                terms[target] = factor == 0 ? 0 : (real)(tile.target_grad[0] / factor);
                pending.factor = (real)factor;
                pending.grad = grad;
                if (pending.stream)
                    pending.head = (ptrdiff_t)(-(uintptr_t)grad % VECTOR_BYTES / sizeof(elem));
            }
        }
        if (losses) losses[at.row] = (real)tile.loss[0];
        add(&chunk_sum, tile.loss[0]);
        if (!more || next.chunk != at.chunk) {
            call->chunk_sums[at.chunk] = result(chunk_sum.sum, chunk_sum.lost);
            chunk_sum = (exact_sum){0, 0};
        }
    }
    if (pending.grad)
        for (ptrdiff_t j = 0; j < call->n_classes; j += GROUP)
            write_group(&pending, terms, j, call->n_classes);
    store_fence();
}

#endif
