/* Many classes, one row after the other, lanes = classes.  Few classes are in columns.h.
 *
 * A row is read from memory once and written once, and one exponential is computed per element: its
 * terms (see exp_log.h) go to `terms`, a row that stays in L2.  What they are relative to is guessed to be
 * what the row before had, so that the maximum is taken on the way; where the guess is wrong, and with
 * options that change logits or large ones, a block is copied to L1 first.  Only when the row ends is its
 * sum known; then the gradient is one multiplication per term.  That is done while the next row is being
 * read, so that memory is read and written at an even pace under the arithmetic.
 *
 * The row's largest element is taken out of the sum (in the loss its term is `top`, in double), and where
 * that would cancel, for others / top must be exact also where it is tiny, they are added up without it.
 *
 * Rows go by batches, each with terms of its own, so that the epilogue, whose latency is that of 400
 * elements, serves several rows at once. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "prepare.h"

enum {
    GROUP = 4 * LANES,                      /* elements of one step: four chains of arithmetic */
    BLOCK = 8192 / (ptrdiff_t)sizeof(real), /* with 4 KB 1.03 of the time: loops start more often */
    /* Streaming stores and others in turns wait for each other: bursts of a group cost 0.39 ns an
     * element, of 1 KB 0.35, of 16 KB 0.45 (terms in L2; one thread, AVX-512). */
    BURST = 1024 / (ptrdiff_t)sizeof(real),
    /* The hardware does not prefetch far enough under so much arithmetic: 0.53 against 0.29 ns.
     * 8 and 16 KB are equal, 4 KB is 1.08 times slower. */
    AHEAD = 8192 / (ptrdiff_t)sizeof(elem),
    BATCH_BYTES = 64 << 10,              /* terms of a batch stay in L2, 256 KB at least */
    LINE = 64 / (ptrdiff_t)sizeof(elem), /* elements of a cache line */
    STREAM_BYTES = LANES * sizeof(elem), /* what a streaming store is aligned to */
};

/* Adds a vector so that nothing is lost that matters, for any number of classes: to doubles for float
 * rows (the two halves of the vector, one to each part of the sum), exactly for double ones.  Every
 * float is widened by itself: adding four of them first is 0.8 of the time, but costs a confident
 * row's loss the last half of its 2 ulp. */
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

/* All lanes of a sum, less a term that is one of them.  Doubles have no bits to spare: three roundings here
 * would take a confident row's loss past its 4 ulp. */
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
        all.lost += __builtin_shuffle(all.lost, other);
        add_wide(&all, __builtin_shuffle(all.sum, other));
    }
    return (all.sum[0] - less) + all.lost[0];
#endif
}

/* Others that are so small a part of a block's largest term are added up without it.  One rounding of
 * floats in double is 2^-53 of it, a block has 128 in a lane and 4 of the lanes: with 2^-19 they stay below
 * 2^-26.9 of the others, an eighth of their last bit.  Doubles lose 2^-94 of it, at most 2^-58 of the
 * others. */
#if !defined(FASTCE_f64)
#define CROWDED_OUT 0x1p-19
#else
#define CROWDED_OUT 0x1p-36
#endif

/* The term of x in double, times 2^lift. */
INLINE double exact_term(double x, double lift, const reference *ref)
{
    return exact_terms(splat_double(x - (double)ref->shift), splat_double(ref->power - lift))[0];
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

/* The last row whose terms are known: its gradient is written while the next row is read. */
typedef struct {
    char *grad;  /* NULL: nothing is pending */
    int as_real; /* grad holds reals where the logits are halves */
    ptrdiff_t
        head; /* elements before the first aligned one: stores across lines take twice the time */
    int stream;
    real factor, less; /* grad is term * factor - less */
} pending_row;

/* Elements [from, to) of a pending gradient, less than a vector of them. */
INLINE void write_part(const pending_row *row, const real *terms, ptrdiff_t from, ptrdiff_t to)
{
    const vreal g = load_real(terms + from) * row->factor - row->less;
    put_vector(row->grad, row->as_real, from, to - from, g);
}

INLINE void write_vector(const pending_row *row, const real *terms, ptrdiff_t j)
{
    const vreal g = load_real(terms + j) * row->factor - row->less;
    if (row->stream)
        store_stream((elem *)row->grad + j, g);
    else
        put_vector(row->grad, row->as_real, j, LANES, g);
}

/* Elements head + [from, from + BURST) of the pending gradient, as far as the row goes.  Reads terms up
 * to head beyond them, which the next row overwrites only afterwards. */
INLINE void write_burst(const pending_row *row, const real *terms, ptrdiff_t from,
                        ptrdiff_t n_classes)
{
    const ptrdiff_t first = row->head + from;
    const ptrdiff_t end = first + BURST < n_classes ? first + BURST : n_classes;
    const pending_row copy = *row; /* in registers, whatever is stored */
    ptrdiff_t j = first;
    if (from == 0 && row->head) write_part(row, terms, 0, row->head);
    for (; j + LANES <= end; j += LANES) write_vector(&copy, terms, j);
    if (j < end) write_part(row, terms, j, end);
}

INLINE void write_pending(pending_row *row, const real *terms, ptrdiff_t n_classes)
{
    if (row->grad)
        for (ptrdiff_t j = 0; j < n_classes; j += BURST) write_burst(row, terms, j, n_classes);
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
    int is_even;   /* so far; a hidden class makes it dense */
    ptrdiff_t top_at;
} row_input;

/* Fetches what will be read AHEAD of element j: past the end of a row, the next one. */
INLINE void prefetch_group(const row_input *input, ptrdiff_t n_classes, ptrdiff_t j)
{
    const ptrdiff_t at = j + AHEAD;
    const elem *from = at < n_classes || !input->next_x ? input->x : input->next_x - n_classes;
    for (ptrdiff_t i = 0; i < GROUP; i += LINE) prefetch_to_l2(from + at + i);
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

/* The sum of a block's terms without the largest, which would take the others' last bits with it.  It is
 * found only now: to find every row's maximum and hide it before the terms are computed takes a misprediction
 * and a load that waits for a store, 17 ns a row. */
static double sum_of_others(real *terms, ptrdiff_t n, ptrdiff_t *top_at)
{
    wide_exact_sum sum = {splat_double(0), splat_double(0)};
    vreal largest = splat(0);
    for (ptrdiff_t j = 0; j < n; j += LANES)
        largest = maximum(*(const vreal *)(terms + j), largest);
    const real top = largest_lane(largest);
    *top_at = find(terms, top);
    terms[*top_at] = 0;
    for (ptrdiff_t j = 0; j < n; j += LANES) add_vector(&sum, *(const vreal *)(terms + j));
    terms[*top_at] = top;
    return sum_of_lanes(&sum, 0);
}

/* Whether a row's terms are read again after its sum is known. */
INLINE int needs_terms(const fastce_call *call)
{
    return (call->grad.data && call->loss != FASTCE_LOG_SOFTMAX) || call->loss == FASTCE_EVALUATE
           || (call->loss == FASTCE_POLY1 && is_dense(call));
}

/* Bytes of one row of scratch: whole groups, and readable a vector beyond the last class. */
INLINE size_t row_scratch_size(ptrdiff_t n_classes)
{
    return (size_t)(n_classes + LANES + GROUP - 1) / GROUP * GROUP * sizeof(real);
}

/* Bytes of scratch of a row in a batch; rows in a batch.  A plain loss alone keeps nothing of a row. */
INLINE size_t batch_row_size(const fastce_call *call)
{
    if (is_plain(call)) return needs_terms(call) ? row_scratch_size(call->n_classes) : 0;
    return 3 * row_scratch_size(call->n_classes);
}

INLINE ptrdiff_t batch_rows(const fastce_call *call)
{
    if (batch_row_size(call) == 0) return TILE;
    /* of even rows the rest of the scratch is hardly ever used */
    const ptrdiff_t n
        = BATCH_BYTES
          / (ptrdiff_t)(is_even(call) ? row_scratch_size(call->n_classes) : batch_row_size(call));
    return n < 1 ? 1 : n > TILE ? TILE : n;
}

/* One row's scratch, [n_classes] up to a whole GROUP each. */
typedef struct {
    real *terms;
    real *dense; /* q */
    real *chain; /* d z / d x */
} row_scratch;

/* Elements j .. j + LANES of n; rest beyond. */
INLINE vreal load_up_to(const elem *x, ptrdiff_t j, ptrdiff_t n, real rest)
{
    if (j + LANES <= n) return load(x + j);
    return j < n ? load_part(x + j, n - j, rest) : splat(rest);
}

/* Copies a block through the options and fills up its last group with -inf; fills dense and chain.
 * Returns the maximum. */
static real prepare_block(const fastce_call *call, const row_input *row, ptrdiff_t start,
                          ptrdiff_t n, real *block, const row_scratch *scratch)
{
    const ptrdiff_t end = (n + LANES - 1) / LANES * LANES;
    vreal largest = splat(HIDDEN);
    for (ptrdiff_t j = 0; j < (n + GROUP - 1) / GROUP * GROUP; j += LANES)
        *(vreal *)(block + j) = load_up_to(row->x + start, j, n, HIDDEN);
    if (row->where)
        for (ptrdiff_t j = 0; j < n; j++)
            if (!row->where[(start + j) * row->where_stride]) block[j] = HIDDEN;
    for (ptrdiff_t j = 0; j < end; j += LANES) {
        vreal chain, z = prepare_logits(call, *(const vreal *)(block + j), &chain);
        *(vreal *)(block + j) = z;
        largest = maximum(z, largest); /* NaN is passed over */
        if (call->softcap != 0) *(vreal *)(scratch->chain + start + j) = chain;
        if (is_dense(call) && !row->is_even) {
            const ptrdiff_t left = n - j < LANES ? n - j : LANES;
            vreal probability = splat(0), class_weight = splat(1);
            if (row->probabilities && left == LANES)
                probability = load_real(row->probabilities + start + j);
            else if (row->probabilities)
                for (ptrdiff_t l = 0; l < left; l++)
                    probability[l] = row->probabilities[start + j + l];
            if (call->class_weight)
                for (ptrdiff_t l = 0; l < left; l++)
                    class_weight[l] = (real)call->class_weight[start + j + l];
            *(vreal *)(scratch->dense + start + j)
                = dense_part(call, z, probability, splat((real)row->spread), class_weight);
        }
    }
    return largest_lane(largest);
}

/* Classes of a row that no mask hides; NaN is not hidden, but its row is NaN anyway. */
static ptrdiff_t count_seen(const fastce_call *call, const row_input *row)
{
    ptrdiff_t seen = 0;
    for (ptrdiff_t j = 0; j < call->n_classes; j++)
        seen += (get(row->x + j) != HIDDEN)
                & (!row->where || row->where[j * row->where_stride] != 0);
    return seen;
}

INLINE double spread_of(const fastce_call *call, const row_input *row)
{
    return call->smoothing / (double)(row->is_even ? call->n_classes : count_seen(call, row));
}

/* Four vectors of logits: of the row itself, or of what prepare_block() made of it. */
INLINE void load_group(const elem *x, const real *block, real shift, vreal *v)
{
    for (int i = 0; i < GROUP; i += LANES)
        v[i / LANES] = block ? *(const vreal *)(block + i) - shift : load(x + i);
}

/* The terms of n elements of a row from start on go to `to`, their sum to `total`, and meanwhile what is
 * pending is written.  block is NULL, or holds the elements.  Returns their maximum. */
INLINE real block_terms(const row_input *input, ptrdiff_t n_classes, ptrdiff_t start, ptrdiff_t n,
                        const real *block, real shift, const vreference *ref, real *to,
                        const pending_row *pending, const real *pending_terms,
                        wide_exact_sum *total)
{
    const elem *x = input->x + start;
    const ptrdiff_t whole = n / GROUP * GROUP;
    _Alignas(64) elem tail[GROUP]; /* the last group where it is partial */
    wide_exact_sum sum = {splat_double(0), splat_double(0)};
    vreal max = splat(HIDDEN), ahead[4];
    if (!block && whole < n)
        for (ptrdiff_t l = 0; l < GROUP; l += LANES)
            store(tail + l, load_up_to(x, whole + l, n, HIDDEN));
    load_group(whole ? x : tail, block, shift, ahead);
    for (ptrdiff_t j = 0; j < n; j += GROUP) {
        if (pending->grad && (start + j) % BURST == 0)
            write_burst(pending, pending_terms, start + j, n_classes);
        prefetch_group(input, n_classes, start + j);
        /* Loaded a group early: halves, which are converted, in 0.95 of the time, floats in 1.00. */
        vreal v[4], e[4];
        memcpy(v, ahead, sizeof v);
        if (j + GROUP < n)
            load_group(j + GROUP < whole ? x + j + GROUP : tail, block ? block + j + GROUP : NULL,
                       shift, ahead);
        for (int i = 0; i < 4; i++) {
            max = maximum(v[i], max); /* NaN is passed over */
            e[i] = exp_terms(v[i], ref);
        }
        for (int i = 0; i < 4; i++) *(vreal *)(to + j + i * LANES) = e[i];
        /* Floats are added up a group late, from L1, for the CPU does not look ahead as far as one
         * chain of term, conversion and sum is long: 0.95 of the time; of doubles 1.02. */
        if (WIDE == 1)
            for (int i = 0; i < 4; i++) add_vector(&sum, e[i]);
        else if (j)
            add_group(&sum, to + j - GROUP);
    }
    if (WIDE > 1) add_group(&sum, to + (n - 1) / GROUP * GROUP);
    *total = sum;
    return largest_lane(max);
}

/* Adds to the smoothing's part of the logits, where it is even.  By multiplications, which other units do than
 * conversions and additions. */
INLINE void smooth_logits(const row_input *input, ptrdiff_t start, ptrdiff_t n, wide_exact_sum *sum)
{
    const elem *x = input->x + start;
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vreal v = load_up_to(x, j, n, 0);
        sum->sum += widen(v, 0) * input->spread;
        sum->lost += widen(v, WIDE - 1) * input->spread;
    }
}

/* mass and gap of such a row: in double a sum of floats, and this difference, has 29 bits to spare. */
INLINE void even_gap(const fastce_call *call, const row_input *input,
                     const wide_exact_sum *smoothed, row_tile *rows, ptrdiff_t r)
{
    const double whole = input->spread * (double)call->n_classes;
    rows->mass[r] = call->smoothing;
    rows->gap[r] = whole * rows->max[r] - sum_of_lanes(smoothed, 0);
}

/* The target's term, where something is made of it; at the top it is not used. */
INLINE double term_of_target(const fastce_call *call, const real *terms, double target_logit,
                             int64_t target, const reference *ref)
{
    if (terms) return terms[target];
    return call->loss == FASTCE_CROSS_ENTROPY ? 0 : exact_term(target_logit, 0, ref);
}

/* The statistics of a row into lane r, its terms, and on the way the gradient of the pending row.  guess
 * is the reference of the row before. */
static void row_terms(const fastce_call *call, const row_blocks *cut, row_input *input,
                      const row_scratch *scratch, const pending_row *pending, real *block,
                      reference *guess, row_tile *rows, ptrdiff_t r)
{
    const ptrdiff_t n_classes = call->n_classes;
    const int64_t target = input->target;
    const int keep_terms = scratch->terms != NULL;
    const int needs_top = !is_plain(call) && !input->is_even;
    const int dense = is_dense(call) && !input->is_even;
    const pending_row nothing = {.grad = NULL};
    real *terms = scratch->terms;
    wide_exact_sum mass = {splat_double(0), splat_double(0)}, gap = mass;
    reference ref = *guess;
    vreference vref = spread(splat(ref.power));
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    wide_exact_sum smoothed = {splat_double(0), splat_double(0)};
    double max = -__builtin_inf(), target_logit = 0;
    double others = 0; /* but for those in total */
    real top_term = 0;

    for (ptrdiff_t b = 0; b < cut->n_blocks; b++) {
        const ptrdiff_t start = block_start(cut, b), n = block_start(cut, b + 1) - start;
        const elem *x = input->x + start;
        const int direct = !needs_top && !is_transformed(call) && ref.shift == 0;
        int is_done = direct;
        real *to = keep_terms ? terms + start : block;
        wide_exact_sum sum = {splat_double(0), splat_double(0)};
        const real block_max = direct ? block_terms(input, n_classes, start, n, NULL, 0, &vref, to,
                                                    pending, terms, &sum)
                                      : prepare_block(call, input, start, n, block, scratch);
        if (input->is_even) smooth_logits(input, start, n, &smoothed);
        if (target >= start && target < start + n)
            target_logit = direct ? get(input->x + target) : block[target - start];

        const int has_top = block_max > max;
        if (has_top) {
            others += top_term; /* the former maximum is one of them */
            const double power = __builtin_rint(((double)block_max - (double)ref.shift) * LOG2_E);
            const reference old = ref;
            if (max == -__builtin_inf() || power - (double)ref.power >= WINDOW)
                ref = reference_of(block_max);
            if (ref.shift != old.shift || ref.power != old.power) {
                vref = spread(splat(ref.power));
                if (max > -__builtin_inf()) {
                    /* exact when the shift stays 0: a power of two */
                    const double change
                        = exact_term(old.shift, (double)old.power - BIAS, &ref) / KAPPA;
                    total.sum *= change;
                    total.lost *= change;
                    others *= change;
                    if (keep_terms) /* change may be too small for a real */
                        for (ptrdiff_t j = 0; j < start; j++)
                            terms[j] = (real)((double)terms[j] * change);
                }
                if (direct) prepare_block(call, input, start, n, block, scratch);
                is_done = 0;
            }
            if (dense && max > -__builtin_inf())
                add_wide(&gap, (mass.sum + mass.lost) * (block_max - max));
            max = block_max;
            input->top_at = needs_top ? start + find(block, max) : -1;
        }
        if (dense)
            for (ptrdiff_t j = 0; j < n; j += LANES)
                for (int w = 0; w < WIDE; w++)
                    add_gap(*(const vreal *)(scratch->dense + start + j),
                            *(const vreal *)(block + j), splat_double(max), w, &mass, &gap);
        if (!is_done)
            block_terms(input, n_classes, start, n, block, ref.shift, &vref, to,
                        direct ? &nothing : pending, terms, &sum);
        if (has_top) {
            top_term = exp_term(max - ref.shift, &vref);
            double left = sum_of_lanes(&sum, top_term);
            if (left < CROWDED_OUT * top_term) {
                left = sum_of_others(to, n, &input->top_at);
                input->top_at += start;
            }
            others += left;
        } else {
            add_wide(&total, sum.sum);
            add_wide(&total, sum.lost);
        }
    }
    *guess = ref;
    rows->max[r] = max;
    rows->shift[r] = ref.shift;
    rows->power[r] = ref.power;
    rows->target_logit[r] = target_logit;
    rows->others[r] = sum_of_lanes(&total, 0) + others;
    rows->target_term[r] = term_of_target(call, terms, target_logit, target, &ref);
    if (dense) {
        rows->mass[r] = total_of(&mass);
        rows->gap[r] = total_of(&gap);
    } else if (input->is_even) {
        even_gap(call, input, &smoothed, rows, r);
    }
}

/* The same for a row of one block whose gradient is linear: 1000 classes in 0.91 of the time, 128 in 0.7.  Returns
 * whether the guess was right; if not, only what was pending is done. */
static int short_row_terms(const fastce_call *call, row_input *input, real *terms,
                           pending_row *pending, real *block, const reference *guess,
                           row_tile *rows, ptrdiff_t r)
{
    const ptrdiff_t n_classes = call->n_classes;
    const vreference vref = spread(splat(guess->power));
    real *to = terms ? terms : block;
    wide_exact_sum sum;
    const real max
        = block_terms(input, n_classes, 0, n_classes, NULL, 0, &vref, to, pending, terms, &sum);
    pending->grad = NULL;
    if (!is_inside(guess, max)) return 0;
    const real top_term = exp_term(max, &vref);
    double others = sum_of_lanes(&sum, top_term);
    if (others < CROWDED_OUT * top_term) others = sum_of_others(to, n_classes, &input->top_at);
    rows->max[r] = max;
    rows->shift[r] = 0;
    rows->power[r] = guess->power;
    rows->others[r] = others;
    rows->target_logit[r] = get(input->x + input->target);
    rows->target_term[r] = term_of_target(call, terms, rows->target_logit[r], input->target, guess);
    if (input->is_even) {
        wide_exact_sum smoothed = {splat_double(0), splat_double(0)};
        smooth_logits(input, 0, n_classes, &smoothed);
        even_gap(call, input, &smoothed, rows, r);
    }
    return 1;
}

/* The gradient and the Hessian's diagonal of a row with options, at once: the next row's options
 * need the scratch.  With p_j = term_j / total the second derivative is
 * factor * term_j * (1 - p_j) + 2 z_loss scale p_j^2 in z, then the chain rule. */
static void write_row(const fastce_call *call, const row_input *input, const row_scratch *scratch,
                      const row_tile *rows, ptrdiff_t r, int as_real, char *grad, char *hess)
{
    const ptrdiff_t n_classes = call->n_classes;
    const double inverse = 1 / (rows->top[r] + rows->others[r]);
    const double scale = rows->scale[r], logit_scale = call->logit_scale, softcap = call->softcap;
    const vreal factor = splat((real)rows->factor[r]), wide_scale = splat((real)scale);
    const vreal cross = splat((real)rows->cross[r]), to_p = splat((real)inverse);
    const vreal square = splat((real)(2 * call->z_loss * scale));
    const real *dense = is_dense(call) ? scratch->dense : NULL;
    const real *chain = softcap != 0 ? scratch->chain : NULL;

    /* the two elements that the formulas below would cancel in: [0] the target or, of dense
     * targets, the top; [1] the top */
    double exact_grad = rows->target_grad[r];
    ptrdiff_t exact_at = input->target;
    if (call->probabilities.data) {
        const int sure = rows->top[r] > rows->others[r];
        exact_at = sure && call->loss != FASTCE_POLY1 ? input->top_at : -1;
        if (exact_at >= 0)
            exact_grad = scale
                         * ((rows->mass[r] - dense[exact_at]) + (rows->pull[r] - rows->mass[r])
                            - rows->pull[r] * (rows->others[r] * inverse));
    } else if (dense) {
        exact_grad -= scale * dense[exact_at];
    }

    for (ptrdiff_t j = 0; j < n_classes; j += LANES) {
        const vreal term = *(const vreal *)(scratch->terms + j);
        const vreal p = term * to_p;
        vreal grad_z = term * factor, rest = (real)1 - p;
        if (dense) {
            const vreal q = *(const vreal *)(dense + j);
            grad_z -= q * wide_scale;
            if (call->loss == FASTCE_POLY1) grad_z -= term * q * cross;
        }
        if (exact_at >= j && exact_at < j + LANES) grad_z[exact_at - j] = (real)exact_grad;
        if (input->top_at >= j && input->top_at < j + LANES)
            rest[input->top_at - j] = (real)(rows->others[r] * inverse);
        vreal hess_z = term * factor * rest + p * p * square;
        if (chain) {
            const vreal c = *(const vreal *)(chain + j);
            if (hess) {
                vreal x = splat(0), unused;
                for (ptrdiff_t l = 0; l < LANES && j + l < n_classes; l++)
                    x[l] = get(input->x + j + l);
                const vreal z = prepare_logits(call, x, &unused);
                const vreal bent = z * (real)(-2 / (softcap * softcap)) * c;
                /* where z is -inf, or NaN that is hidden, c is 0 and so is everything */
                const vreal curve = (vreal)((vinteger)bent & (z > splat(HIDDEN)));
                hess_z = hess_z * c * c + grad_z * curve;
            }
            grad_z *= c;
        }
        const ptrdiff_t left = n_classes - j < LANES ? n_classes - j : LANES;
        put_vector(grad, as_real, j, left, grad_z * (real)logit_scale);
        if (hess)
            put_vector(hess, as_real, j, left, hess_z * (real)logit_scale * (real)logit_scale);
    }
}

/* (x - max) - log_sum in double, rounded once: at the top class the loss itself. */
static void write_log_softmax(const elem *x, ptrdiff_t n_classes, const row_tile *rows, ptrdiff_t r,
                              int as_real, char *out)
{
    const double max = rows->max[r], log_sum = rows->scale[r];
    for (ptrdiff_t j = 0; j < n_classes; j++)
        put(out, as_real, j, (real)(((double)get(x + j) - max) - log_sum));
}

/* logsumexp of a row whose maximum is max = +-inf: max, unless the row holds NaN. */
static double infinite_logsumexp(double max, const elem *x, ptrdiff_t n_classes)
{
    for (ptrdiff_t j = 0; j < n_classes; j++)
        if (get(x + j) != get(x + j)) return __builtin_nan("");
    return max;
}

/* How a row was predicted; its entropy is log_sum + sum of p_j (max - x_j). */
static void evaluate_row(const fastce_call *call, const row_input *input, const real *terms,
                         const row_tile *rows, ptrdiff_t r, fastce_row_stats *stats)
{
    const real at_target = get(input->x + input->target);
    const double total = rows->top[r] + rows->others[r];
    ptrdiff_t before = 0;
    double spread = 0;
    for (ptrdiff_t j = 0; j < call->n_classes; j++) {
        const real x = get(input->x + j);
        before += (x > at_target) | ((x == at_target) & (j < input->target));
        spread += terms[j] > 0 ? (double)terms[j] * (rows->max[r] - (double)x) : 0;
    }
    if (!(total > 0)) before = call->n_classes; /* a row that is NaN is right for nobody */
    vdouble inverse;
    const vdouble log_sum
        = log_of_sum(splat_double(rows->top[r]), splat_double(rows->others[r]), &inverse);
    *stats = (fastce_row_stats){rows->loss[r], log_sum[0] + spread / total, rows->top[r] / total,
                                before};
}

/* A thread's work on rows of many classes; pending are the rows of the batch before. */
typedef struct {
    ptrdiff_t batch;
    row_blocks cut;
    size_t row_size, batch_row_size; /* of scratch, bytes */
    char *scratch;
    pending_row pending[TILE];
    row_input inputs[TILE];
    _Alignas(64) real block[BLOCK + GROUP];
    reference guess;
    row_tile rows;
    exact_sum sum;
} row_worker;

static void start_worker(const fastce_call *call, int thread, row_worker *worker)
{
    worker->batch = batch_rows(call);
    worker->cut = cut_rows(call->n_classes);
    worker->row_size = row_scratch_size(call->n_classes);
    worker->batch_row_size = batch_row_size(call);
    worker->scratch = call->scratch + (size_t)thread * call->scratch_size;
    for (ptrdiff_t r = 0; r < worker->batch; r++) worker->pending[r].grad = NULL;
    worker->guess = reference_of(0);
    worker->sum = (exact_sum){0, 0};
    memset(&worker->rows, 0, sizeof worker->rows); /* lanes beyond the last row are computed, too */
}

static row_scratch scratch_of(const fastce_call *call, const row_worker *worker, ptrdiff_t r)
{
    char *scratch = worker->scratch + (size_t)r * worker->batch_row_size;
    return (row_scratch){
        .terms = needs_terms(call) ? (real *)scratch : NULL,
        .dense = is_dense(call) ? (real *)(scratch + worker->row_size) : NULL,
        .chain = call->softcap != 0 ? (real *)(scratch + 2 * worker->row_size) : NULL,
    };
}

INLINE void *row_of(const fastce_array *array, ptrdiff_t i)
{
    return array->data ? array->data + i * array->row_stride : NULL;
}

/* What is left to do for row i of a run, lane r of the batch, after its epilogue. */
static void finish_row(const fastce_call *call, row_worker *worker, const row_run *run, ptrdiff_t i,
                       ptrdiff_t r, int as_real, int stream, char *grad, char *hess)
{
    row_tile *rows = &worker->rows;
    const row_input *input = &worker->inputs[r];
    const row_scratch scratch = scratch_of(call, worker, r);
    const ptrdiff_t n_classes = call->n_classes;
    fastce_row_stats *stats = call->row_stats ? call->row_stats + run->first + i : NULL;

    if (input->target < 0) {
        const size_t row_bytes = (size_t)n_classes * (as_real ? sizeof(real) : sizeof(elem));
        if (stats) *stats = (fastce_row_stats){.rank = -1};
        if (grad) memset(grad, 0, row_bytes);
        if (hess) memset(hess, 0, row_bytes);
        rows->loss[r] = 0;
        return;
    }
    if (call->loss == FASTCE_LOGSUMEXP && rows->max[r] - rows->max[r] != 0)
        rows->loss[r] = infinite_logsumexp(rows->max[r], input->x, n_classes);
    if (call->loss == FASTCE_LOG_SOFTMAX)
        write_log_softmax(input->x, n_classes, rows, r, as_real, grad);
    if (!scratch.terms) return;

    if (stats) evaluate_row(call, input, scratch.terms, rows, r, stats);
    if (!grad) return;
    if (call->loss < FASTCE_SOFTMAX && is_tiny(rows->factor[r])) {
        const double part = shrink_row(rows, r);
        for (ptrdiff_t j = 0; j < n_classes; j += LANES)
            *(vreal *)(scratch.terms + j) *= (real)part;
    }
    if (!is_plain(call) && !input->is_even) {
        write_row(call, input, &scratch, rows, r, as_real, grad, hess);
        return;
    }
    if (call->loss == FASTCE_SOFTMAX && rows->others[r] == 0) /* 1, whatever roundings make of it */
        scratch.terms[input->top_at] = (real)(rows->factor[r] = 1);
    const real factor = (real)rows->factor[r];
    const size_t out_size = as_real ? sizeof(real) : sizeof(elem);
    if (call->loss != FASTCE_SOFTMAX) {
        /* by the very number that will multiply it; where that overflowed, so shall the gradient */
        const double divisor = factor - factor == 0 ? factor : rows->factor[r];
        scratch.terms[input->target] = divisor == 0 ? 0 : (real)(rows->target_grad[r] / divisor);
    }
    if (stream) { /* lines that it shares with its neighbours are read before they are written */
        prefetch_for_write(grad);
        prefetch_for_write(grad + (size_t)n_classes * out_size - 1);
    }
    worker->pending[r] = (pending_row){
        .grad = grad,
        .as_real = as_real,
        .stream = stream,
        .head = (ptrdiff_t)(-(uintptr_t)grad % (VECTOR_BYTES / sizeof(real) * out_size) / out_size),
        .factor = factor,
        .less = input->is_even ? (real)(rows->scale[r] * input->spread) : 0,
    };
}

/* n rows of a run from row first on, a batch at most.  Their classes are contiguous in `arrays`, whose
 * row 0 is row `origin` of the run; next_x is what will be read after them. */
static void row_batch(const fastce_call *call, row_worker *worker, const row_run *run,
                      ptrdiff_t first, ptrdiff_t n, const row_run *arrays, ptrdiff_t origin,
                      int as_real, int stream, const elem *next_x)
{
    row_tile *rows = &worker->rows;
    int64_t targets[TILE];
    const int is_short = worker->cut.n_blocks == 1 && is_linear(call);
    read_rows(call, run, first, n, targets, rows);
    for (ptrdiff_t r = 0; r < n; r++) {
        row_input *input = &worker->inputs[r];
        const ptrdiff_t at = first + r - origin;
        *input = (row_input){
            .x = row_of(&arrays->logits, at),
            .next_x = r + 1 < n ? row_of(&arrays->logits, at + 1) : next_x,
            .probabilities = row_of(&arrays->probabilities, at),
            .where = row_of(&run->where, first + r),
            .where_stride = run->where.class_stride,
            .target = targets[r],
            .is_even = is_even(call),
            .top_at = -1,
        };
        const row_scratch scratch = scratch_of(call, worker, r);
        if (input->target < 0) { /* whatever the row holds, it is not read */
            write_pending(&worker->pending[r], scratch.terms, call->n_classes);
            rows->max[r] = rows->shift[r] = rows->power[r] = rows->others[r] = 0;
            continue;
        }
        if (call->smoothing != 0) {
            input->spread = spread_of(call, input);
            rows->weight[r] *= 1 - call->smoothing;
        }
        if (!(is_short && worker->guess.shift == 0
              && short_row_terms(call, input, scratch.terms, &worker->pending[r], worker->block,
                                 &worker->guess, rows, r)))
            row_terms(call, &worker->cut, input, &scratch, &worker->pending[r], worker->block,
                      &worker->guess, rows, r);
        worker->pending[r].grad = NULL;
        if (input->is_even && rows->gap[r] - rows->gap[r] != 0) { /* -inf, or NaN */
            input->is_even = 0;
            input->spread = spread_of(call, input);
            row_terms(call, &worker->cut, input, &scratch, &worker->pending[r], worker->block,
                      &worker->guess, rows, r);
        }
        if (!call->targets.data) rows->target_logit[r] = rows->max[r]; /* there is none */
    }
    for (ptrdiff_t r = 0; r < n; r += DOUBLES)
        *(vdouble *)(rows->top + r) = exact_terms(
            doubles_at(rows->max, r) - doubles_at(rows->shift, r), doubles_at(rows->power, r));
    for (ptrdiff_t r = 0; r < n; r++) {
        const row_scratch scratch = scratch_of(call, worker, r);
        if (call->loss == FASTCE_POLY1 && is_dense(call) && targets[r] >= 0) {
            wide_exact_sum overlap = {splat_double(0), splat_double(0)};
            for (ptrdiff_t j = 0; j < call->n_classes; j += LANES)
                add_vector(&overlap, *(const vreal *)(scratch.dense + j)
                                         * *(const vreal *)(scratch.terms + j));
            rows->overlap[r] = sum_of_lanes(&overlap, 0);
        }
    }
    epilogue(call, rows, n);
    ptrdiff_t part = first / call->sum_rows;
    for (ptrdiff_t r = 0; r < n; r++) {
        const ptrdiff_t i = first + r, at = i - origin;
        finish_row(call, worker, run, i, r, as_real, stream, row_of(&arrays->grad, at),
                   row_of(&arrays->hess, at));
        if (call->losses) ((real *)call->losses)[run->first + i] = (real)rows->loss[r];
        add(&worker->sum, rows->loss[r]);
        if (i + 1 == (part + 1) * call->sum_rows || i + 1 == call->run_length) {
            leave(call->sums, run->first / call->run_length * call->sums_per_run + part++,
                  worker->sum);
            worker->sum = (exact_sum){0, 0};
        }
    }
}

static void finish_worker(const fastce_call *call, row_worker *worker)
{
    for (ptrdiff_t r = 0; r < worker->batch; r++)
        write_pending(&worker->pending[r], scratch_of(call, worker, r).terms, call->n_classes);
    if (call->stream) store_fence();
}

/* Rows whose classes are contiguous in every array.  A chunk is claimed one batch early, so that its
 * first row is prefetched. */
static void cross_entropy_rows(fastce_call *call, int thread)
{
    const int as_real = call->out_elem != OWN_ELEM;
    const int stream = call->stream && is_linear(call) && !as_real;
    row_worker worker;
    cursor next;
    start_worker(call, thread, &worker);
    for (int more = claim_chunk(call, thread, &next); more;) {
        const cursor at = next;
        const ptrdiff_t left = at.end - at.row, n = left < worker.batch ? left : worker.batch;
        next.row += n;
        more = next.row < next.end || claim_chunk(call, thread, &next);
        row_batch(call, &worker, &at.run, at.row, n, &at.run, 0, as_real, stream,
                  more ? row_of(&next.run.logits, next.row) : NULL);
    }
    finish_worker(call, &worker);
}

#endif
