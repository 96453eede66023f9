/* A block of a row of many classes, lanes = classes: the loop that makes its terms, and what goes
 * on in that loop meanwhile, prefetching and writing the row before.  Rows are in rows.h. */
#ifndef FASTCE_BLOCKS_H
#define FASTCE_BLOCKS_H

#include "prepare.h"

enum {
    GROUP = 4 * LANES,                      /* elements of one step: four chains of arithmetic */
    BLOCK = 8192 / (ptrdiff_t)sizeof(real), /* with 4 KB 1.03 of the time: loops start more often */
    /* Streaming stores and others in turns wait for each other: bursts of a group cost 0.39 ns an
     * element, of 1 KB 0.35, of 16 KB 0.45 (terms in L2; one thread, AVX-512 of Zen 4).  Zen 5 has
     * them shorter: 512 bytes take 0.95 of the time of 1 KB, but not on AVX2, 1.02. */
    BURST = VECTOR_BYTES == 64 ? 512 / (ptrdiff_t)sizeof(elem) : 1024 / (ptrdiff_t)sizeof(real),
    /* The hardware does not prefetch far enough under so much arithmetic: 0.53 against 0.29 ns.
     * 8 and 16 KB are equal, 4 KB is 1.08 times slower. */
    AHEAD = 8192 / (ptrdiff_t)sizeof(elem),
    /* From L2 to L1 on AVX-512, which takes a line every 2 ns, once it has arrived there: 0.92 of
     * the time on Zen 5, at 512 bytes 0.96. */
    SOON = 4096 / (ptrdiff_t)sizeof(elem),
    /* Logits a group before they are needed, where there are registers to hold them: AVX-512,
     * halves, which are converted, 0.95 of the time, floats 1.00; on AVX2, where they go to memory
     * and back, 1.13. */
    LOADS_EARLY = VECTOR_BYTES == 64,
};

/* Adds a vector so that nothing is lost that matters, for any number of classes: to doubles for
 * float rows (the two halves of the vector, one to each part of the sum), exactly for double ones.
 * Every float is widened by itself: adding four of them first is 0.9 of the time, but costs a
 * confident row's loss the last half of its 2 ulp. */
INLINE void add_vector(wide_exact_sum *total, vreal x)
{
#if !defined(FASTCE_f64)
    total->sum += widen(x, 0);
    total->lost += widen(x, 1);
#else
    add_wide(total, x);
#endif
}

/* The same for a group of floats in memory. */
INLINE void add_group(wide_exact_sum *total, const real *x)
{
    for (int i = 0; i < GROUP; i += LANES) {
        total->sum += widen_at(x + i, 0);
        total->lost += widen_at(x + i, 1);
    }
}

/* The sum of n doubles in memory, whole groups, none above most.  Sums start at a power of two that
 * is no smaller than any of them, so that what an addition loses takes two operations (Fast2Sum),
 * not five: 0.95 of the time. */
INLINE void add_block(wide_exact_sum *total, const real *x, ptrdiff_t n, double most)
{
#if defined(FASTCE_f64)
    const double start = 2 * power_below(most);
    vdouble sum[2] = {splat_double(start), splat_double(start)};
    vdouble lost[2] = {splat_double(0), splat_double(0)};
    for (ptrdiff_t j = 0; j < n; j += 2 * LANES)
        for (int i = 0; i < 2; i++) {
            const vdouble term = *(const vreal *)(x + j + i * LANES), next = sum[i] + term;
            lost[i] += term - (next - sum[i]);
            sum[i] = next;
        }
    for (int i = 0; i < 2; i++) {
        add_wide(total, sum[i] - start);
        total->lost += lost[i];
    }
#else
    (void)total, (void)x, (void)n, (void)most;
#endif
}

/* All lanes of a sum, less a term that is one of them.  Doubles have no bits to spare: three
 * roundings here would take a confident row's loss past its 4 ulp. */
INLINE double sum_of_lanes(const wide_exact_sum *total, double less)
{
#if !defined(FASTCE_f64)
    const vdouble both = total->sum + total->lost;
    double lanes[DOUBLES];
    memcpy(lanes, &both, sizeof both);
    for (int width = DOUBLES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0] - less;
#else
    wide_exact_sum all = *total;
    for (int s = LANES / 2; s; s /= 2) {
        const vinteger other = lane_numbers() ^ s;
        all.lost += SHUFFLE(all.lost, other);
        add_wide(&all, SHUFFLE(all.sum, other));
    }
    return (all.sum[0] - less) + all.lost[0];
#endif
}

/* Element j of a row of grad. */
INLINE void put(char *row, int as_real, ptrdiff_t j, real x)
{
    if (as_real || ELEM_IS_REAL)
        ((real *)row)[j] = x;
    else
        put_as(OWN_ELEM, row + j * (ptrdiff_t)sizeof(elem), x);
}

/* Elements j .. j + n of a row of grad, at most a vector. */
INLINE void put_vector(char *row, int as_real, ptrdiff_t j, ptrdiff_t n, vreal v)
{
    if (!ELEM_IS_REAL && as_real && n == LANES)
        store_real((real *)row + j, v);
    else if (!ELEM_IS_REAL && as_real)
        for (ptrdiff_t l = 0; l < n; l++) put(row, 1, j + l, v[l]);
    else if (n == LANES)
        store((elem *)row + j, v);
    else
        store_part((elem *)row + j, n, v);
}

/* A row whose terms are known: its gradient is written while a later row is read, whose terms take
 * the place of its own.  Stream: from the first aligned element on by whole vectors, for stores
 * across lines take twice the time. */
typedef struct {
    char *grad; /* NULL: nothing is pending */
    const real *terms;
    ptrdiff_t n_classes;
    int as_real;        /* grad holds reals where the logits are halves */
    ptrdiff_t head;     /* elements before the first aligned one, where it is streamed */
    ptrdiff_t streamed; /* where whole lines end, which are streamed; 0: plain stores */
    real factor, less;  /* grad is term * factor - less */
} pending_row;

/* Elements j .. j + LANES of a pending gradient. */
INLINE vreal pending_vector(const pending_row *row, ptrdiff_t j)
{
    return load_real(row->terms + j) * row->factor - row->less;
}

/* Writes its elements [from, to), at most a vector. */
INLINE void write_part(const pending_row *row, ptrdiff_t from, ptrdiff_t to)
{
    put_vector(row->grad, row->as_real, from, to - from, pending_vector(row, from));
}

/* A whole vector of them, past the caches or not. */
INLINE void write_vector(const int stream, const pending_row *row, ptrdiff_t j)
{
    if (stream)
        store_stream((elem *)row->grad + j, pending_vector(row, j));
    else
        write_part(row, j, j + LANES);
}

/* All whole vectors of them from element j on that end before `end`, past the caches or not.
 * Returns where they end. */
INLINE ptrdiff_t write_vectors(const int stream, const pending_row *row, ptrdiff_t j, ptrdiff_t end)
{
    for (; j + GROUP <= end; j += GROUP)
        for (int i = 0; i < GROUP; i += LANES) write_vector(stream, row, j + i);
    for (; j + LANES <= end; j += LANES) write_vector(stream, row, j);
    return j;
}

/* Elements [from, end) of it, by plain stores. */
INLINE void write_plainly(const pending_row *row, ptrdiff_t from, ptrdiff_t end)
{
    const ptrdiff_t j = write_vectors(0, row, from, end);
    if (j < end) write_part(row, j, end);
}

/* Elements head + [from, from + BURST) of the pending gradient, as far as the row goes.  Reads
 * terms up to head beyond them, which the next row overwrites only afterwards. */
INLINE void write_burst(const pending_row *row, ptrdiff_t from)
{
    const pending_row copy = *row; /* in registers, whatever is stored */
    const ptrdiff_t first = copy.head + from;
    const ptrdiff_t end = first + BURST < copy.n_classes ? first + BURST : copy.n_classes;
    if (from == 0 && copy.head) write_part(&copy, 0, copy.head);
    const ptrdiff_t streamed = copy.streamed < end ? copy.streamed : end;
    write_plainly(&copy, write_vectors(1, &copy, first, streamed), end);
}

/* The group of one that is not streamed at element from, or what is left of it. */
INLINE void write_group(const pending_row *row, ptrdiff_t from)
{
    if (from + GROUP <= row->n_classes)
        for (int i = 0; i < GROUP; i += LANES) write_vector(0, row, from + i);
    else
        write_plainly(row, from, row->n_classes);
}

INLINE void write_pending(pending_row *row)
{
    if (row->grad)
        for (ptrdiff_t j = 0; j < row->n_classes; j += BURST) write_burst(row, j);
    row->grad = NULL;
}

/* One row, contiguous, on its way through the loops below. */
typedef struct {
    const elem *x, *next_x;
    const real *probabilities;
    const char *where; /* and its stride */
    ptrdiff_t where_stride;
    int64_t target;
    double spread; /* smoothing per class that is left */
    double slope;  /* of a cap at the target, where terms are multiplied by slopes */
    int is_even;   /* so far; a hidden class makes it dense */
    ptrdiff_t top_at;
} row_input;

/* The row that element j + AHEAD is of, as if it was one with this row: past its end it is the next
 * one. */
INLINE const elem *row_ahead(const row_input *input, ptrdiff_t n_classes, ptrdiff_t j)
{
    return j + AHEAD < n_classes || !input->next_x ? input->x : input->next_x - n_classes;
}

/* How rows are cut into blocks: n_blocks of n_groups each, the first n_longer of one more. */
typedef struct {
    ptrdiff_t n_classes, n_blocks, n_groups, n_longer;
} row_blocks;

INLINE row_blocks cut_rows(ptrdiff_t n_classes)
{
    const ptrdiff_t n_blocks = (n_classes + BLOCK - 1) / BLOCK;
    const ptrdiff_t n_groups = (n_classes + GROUP - 1) / GROUP;
    return (row_blocks){n_classes, n_blocks, n_groups / n_blocks, n_groups % n_blocks};
}

/* Where block b starts. */
INLINE ptrdiff_t block_start(const row_blocks *cut, ptrdiff_t b)
{
    const ptrdiff_t longer = b < cut->n_longer ? b : cut->n_longer;
    return b == cut->n_blocks ? cut->n_classes : (b * cut->n_groups + longer) * GROUP;
}

/* Where the first x in block is; there is one. */
INLINE ptrdiff_t find(const real *block, real x)
{
    const vreal wanted = splat(x);
    for (ptrdiff_t j = 0;; j += GROUP) {
        vinteger held[4];
        for (int i = 0; i < 4; i++) held[i] = *(const vreal *)(block + j + i * LANES) == wanted;
        if (!any((held[0] | held[1]) | (held[2] | held[3]))) continue;
        int i = 0;
        while (!any(held[i])) i++;
        return j + i * LANES + first_lane(held[i]);
    }
}

/* Elements j .. j + LANES of n; rest beyond. */
INLINE vreal load_up_to(const elem *x, ptrdiff_t j, ptrdiff_t n, real rest)
{
    if (j + LANES <= n) return load(x + j);
    return j < n ? load_part(x + j, n - j, rest) : splat(rest);
}

/* A logit as the softmax sees it, for linear gradients. */
INLINE real logit_at(const fastce_call *call, const row_input *row, int64_t j)
{
    if (row->where && !row->where[j * row->where_stride]) return HIDDEN;
    return get(row->x + j) * (real)call->logit_scale;
}

/* Where a block's logits are: in block, which prepare_block() made, or in x and, where there is a
 * mask, seen. */
typedef struct {
    const real *block;
    const elem *x;
    const char *seen;
    real scale, shift;
} block_input;

/* Its four vectors from j on. */
INLINE void load_group(const int change, const block_input *in, ptrdiff_t j, vreal *v)
{
    for (int i = 0; i < GROUP; i += LANES) {
        const vreal z
            = in->block ? *(const vreal *)(in->block + j + i) - in->shift : load(in->x + j + i);
        const char *seen = change == MASKED_AND_SCALED ? in->seen + j + i : NULL;
        v[i / LANES] = change_logits(change, z, seen, in->scale);
    }
}

/* What a block's loop has made so far: the largest logit, and the sum of all terms but `late`, a
 * group.  Floats are added up a group late, from L1, for the CPU does not look ahead as far as one
 * chain of term, conversion and sum is long: 0.95 of the time. */
typedef struct {
    vreal max;
    wide_exact_sum sum;
    const real *late;
} block_sums;

/* The terms of n elements of a row, the first of which is element at, go to `to`.  From memory
 * (far), what is at `fetched` is prefetched meanwhile; from a cache, what is pending is written. */
INLINE void group_terms(const int change, const int far, const block_input *in, ptrdiff_t n,
                        const elem *fetched, const pending_row *pending, ptrdiff_t at,
                        const vreference *ref, real *to, block_sums *sums)
{
    vreal max = sums->max, ahead[4];
    wide_exact_sum sum = sums->sum;
    const real *late = sums->late;
    const pending_row copy = *pending; /* in registers, whatever is stored */
    if (LOADS_EARLY) load_group(change, in, 0, ahead);
    for (ptrdiff_t j = 0; j < n; j += GROUP) {
        if (!far && copy.grad) write_group(&copy, at + j);
        for (ptrdiff_t i = 0; i < GROUP; i += LINE) {
            if (far) prefetch_to_l2(fetched + j + i);
            if (VECTOR_BYTES == 64) prefetch(in->x + j + i + SOON);
        }
        vreal v[4], e[4];
        if (LOADS_EARLY) {
            memcpy(v, ahead, sizeof v);
            if (j + GROUP < n) load_group(change, in, j + GROUP, ahead);
        } else {
            load_group(change, in, j, v);
        }
        for (int i = 0; i < 4; i++) {
            max = maximum(v[i], max); /* NaN is passed over */
            e[i] = exp_terms(v[i], ref);
            *(vreal *)(to + j + i * LANES) = e[i];
        }
        if (WIDE > 1) add_group(&sum, late);
        late = to + j;
    }
    *sums = (block_sums){max, sum, late};
}

/* The terms of n elements of a row from start on go to `to`, their sum to `total`, and meanwhile
 * what is pending is written: by bursts where the call streams, else group by group.  block is
 * NULL, or holds the elements.  Returns their maximum. */
INLINE real block_terms(const int change, const fastce_call *call, const row_input *input,
                        ptrdiff_t start, ptrdiff_t n, const real *block, real shift,
                        const vreference *ref, real *to, const pending_row *pending,
                        wide_exact_sum *total)
{
    const ptrdiff_t whole = n / GROUP * GROUP;
    static const _Alignas(64) real nothing[GROUP];
    const char *seen = change == MASKED_AND_SCALED ? input->where + start : NULL;
    const elem *x = input->x + start;
    _Alignas(64) elem tail[GROUP]; /* the last group, where it is partial */
    char tail_seen[GROUP] = {0};
    block_sums sums = {splat(HIDDEN), {splat_double(0), splat_double(0)}, nothing};
    if (!block && whole < n)
        for (ptrdiff_t l = 0; l < GROUP; l += LANES)
            store(tail + l, load_up_to(x, whole + l, n, HIDDEN));
    if (seen) memcpy(tail_seen, seen + whole, (size_t)(n - whole));
    for (ptrdiff_t from = 0, length; from < n; from += length) {
        const ptrdiff_t at = start + from, is_whole = from < whole;
        const block_input in = {
            .block = block ? block + from : NULL,
            .x = is_whole ? x + from : tail,
            .seen = seen && is_whole ? seen + from : tail_seen,
            .scale = (real)call->logit_scale,
            .shift = shift,
        };
        length = (is_whole ? whole : n) - from; /* up to the partial group */
        if (!call->stream) {
            group_terms(change, 0, &in, length, NULL, pending, at, ref, to + from, &sums);
            continue;
        }
        if (pending->grad && at % BURST == 0) write_burst(pending, at);
        if (length > BURST - at % BURST) length = BURST - at % BURST; /* up to the next burst */
        const elem *fetched = row_ahead(input, call->n_classes, at) + at + AHEAD;
        group_terms(change, 1, &in, length, fetched, pending, at, ref, to + from, &sums);
    }
    const real largest = largest_lane(sums.max);
    if (WIDE > 1)
        add_group(&sums.sum, sums.late);
    else
        add_block(&sums.sum, to, n, exp_term(largest, ref));
    *total = sums.sum;
    return largest;
}

/* Whether masks and scale are met in the loop of terms (in a block beforehand: 1.3 times as
 * long). */
INLINE int is_direct(const fastce_call *call)
{
    return (is_linear(call) || has_no_gradient(call))
           && (!call->where.data || call->where.class_stride == 1);
}

/* block_terms() of logits that a mask or the scale changes. */
static real changed_terms(const fastce_call *call, const row_input *input, ptrdiff_t start,
                          ptrdiff_t n, const vreference *ref, real *to, const pending_row *pending,
                          wide_exact_sum *total)
{
    return input->where
               ? block_terms(MASKED_AND_SCALED, call, input, start, n, NULL, 0, ref, to, pending,
                             total)
               : block_terms(SCALED, call, input, start, n, NULL, 0, ref, to, pending, total);
}

/* The terms of elements that come as they are, or as mask and scale make them. */
INLINE real direct_terms(const int is_changed, const fastce_call *call, const row_input *input,
                         ptrdiff_t start, ptrdiff_t n, const vreference *ref, real *to,
                         const pending_row *pending, wide_exact_sum *total)
{
    return is_changed
               ? changed_terms(call, input, start, n, ref, to, pending, total)
               : block_terms(AS_THEY_ARE, call, input, start, n, NULL, 0, ref, to, pending, total);
}

#endif
