/* Few classes, lanes = rows, by tiles (tiles.h).  Many classes are in rows.h, options in
 * column_options.h.
 *
 * The order in which a row's terms are added depends on n_classes alone, so that every memory
 * layout gives the same bits. */
#ifndef FASTCE_COLUMNS_H
#define FASTCE_COLUMNS_H

#include "column_options.h"
#include "flat.h"
#include "pairs.h"

/* The maxima of LANES rows, and their references. */
typedef struct {
    vreal max, shift, power;
} column_tops;

INLINE column_tops tops_of(const vreal *group, ptrdiff_t n_classes)
{
    vreal max = group[0];
    for (ptrdiff_t j = 1; j < n_classes; j++) max = maximum(group[j], max);
    const vreal sign_bit = splat(-(real)0);
    const vreal size = (vreal)((vinteger)max & ~(vinteger)sign_bit);
    const vreal shift = (vreal)((vinteger)max & (size > splat((real)SHIFT_FROM)));
    const vreal power = ((max - shift) * (real)LOG2_E + (real)ROUND_MAGIC) - (real)ROUND_MAGIC;
    return (column_tops){max, shift, window_of(power)};
}

/* Whether n rows have one reference. */
INLINE int have_one_reference(const column_tops *tops, ptrdiff_t n)
{
    const vreal power = splat(tops->power[0]);
    vinteger other = (vinteger)splat(0);
    for (ptrdiff_t g = 0; g < n / LANES; g++)
        other |= (tops[g].power != power) | (tops[g].shift != splat(0));
    return n % LANES == 0 && !any(other);
}

/* Part w of a sum over the classes of LANES rows. */
INLINE vdouble sum_of_column(const wide_exact_sum *total, int w)
{
    return WIDE == 1 ? total->sum + total->lost : w ? total->lost : total->sum;
}

/* A row with this term or a larger one has this reference or a higher one, for certain: the term at
 * the lower end of its window, and a margin for roundings. */
#define LEAST_IN_WINDOW (LIFT * KAPPA * (1 + 0x1p-20))

/* A target so far below the others that its term is 0, also in double: then these are the top.  max
 * and the target's logit become the two parts of their logsumexp less the logit, of which the
 * larger is rounded once. */
static __attribute__((cold, noinline)) void sink_target(double shift, double power, ptrdiff_t r,
                                                        row_tile *rows)
{
    const double total = rows->others[r], lift = power - BIAS;
    const double log_total = log_double(splat_double(total / KAPPA))[0];
    rows->max[r] = log_total + lift * LN2_DOUBLE_LOW;
    rows->target_logit[r] = (rows->target_logit[r] - shift) - lift * LN2_DOUBLE_HIGH;
    rows->top[r] = total;
    rows->others[r] = rows->target_term[r] = 0;
}

/* Those of LANES rows. */
static __attribute__((cold, noinline)) void sink_targets(const vreal *shift, const vreal *power,
                                                         ptrdiff_t i, row_tile *rows)
{
    for (ptrdiff_t r = 0; r < LANES; r++)
        if (rows->top[i + r] == 0) sink_target((*shift)[r], (*power)[r], i + r, rows);
}

/* Makes the targets of LANES rows their tops, with the sums of the others.  Returns whether a
 * target's term is below the reference's window. */
INLINE int target_tops(const vdouble *others, vreal shift, vreal power, ptrdiff_t i, row_tile *rows)
{
    vlong is_low = splat_double(0) != 0;
    for (int w = 0; w < WIDE; w++) {
        const ptrdiff_t lane = i + w * DOUBLES;
        const vdouble x = doubles_at(rows->target_logit, lane);
        const vdouble top = exact_terms(x - widen(shift, w), widen(power, w));
        *(vdouble *)(rows->others + lane) = others[w];
        *(vdouble *)(rows->max + lane) = x;
        *(vdouble *)(rows->top + lane) = *(vdouble *)(rows->target_term + lane) = top;
        is_low |= top < LEAST_IN_WINDOW;
    }
    const int has_low = any((vinteger)is_low);
    if (has_low) sink_targets(&shift, &power, i, rows);
    return has_low;
}

/* The sums of LANES rows' terms without their targets', in the order of flat_sums(). */
INLINE void column_sums(const vreal *group, ptrdiff_t n_classes, vinteger label, vdouble *sums)
{
    const ptrdiff_t left = n_classes % DOUBLES;
    vdouble sum[WIDE][DOUBLES];
#pragma GCC unroll 8
    for (int l = 0; l < DOUBLES; l++) {
        const integer j = (integer)(n_classes - left) + l;
        const vreal e = l < left ? (vreal)((vinteger)group[j] & ~(label == j)) : splat(0);
        for (int w = 0; w < WIDE; w++) sum[w][l] = widen(e, w);
    }
    for (ptrdiff_t k = 0; k < n_classes - left; k += DOUBLES)
#pragma GCC unroll 8
        for (int l = 0; l < DOUBLES; l++) {
            const integer j = (integer)k + l;
            const vreal e = (vreal)((vinteger)group[j] & ~(label == j));
            for (int w = 0; w < WIDE; w++) sum[w][l] += widen(e, w);
        }
    for (int w = 0; w < WIDE; w++) {
#pragma GCC unroll 3
        for (int n = 1; n < DOUBLES; n *= 2)
#pragma GCC unroll 4
            for (int l = 0; l < DOUBLES; l += 2 * n) sum[w][l] += sum[w][l + n];
        sums[w] = sum[w][0];
    }
}

/* Replaces the logits of LANES rows by their terms, and fills the rows' max, top and others: of
 * rows whose targets are their tops. */
INLINE void target_column_terms(vreal *group, ptrdiff_t n_classes, ptrdiff_t i,
                                const integer *labels, const column_tops *tops, row_tile *rows)
{
    const vinteger label = *(const vinteger *)(labels + i);
    const vreference ref = reference_at(tops->power);
    vdouble others[WIDE];
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    for (ptrdiff_t r = 0; r < LANES; r++)
        rows->target_logit[i + r] = *lane_at(group, labels[i + r], r);
    for (ptrdiff_t j = 0; j < n_classes; j++) {
        group[j] = exp_terms(group[j] - tops->shift, &ref);
        if (WIDE == 1) add_vector(&total, (vreal)((vinteger)group[j] & ~(label == (integer)j)));
    }
    if (WIDE == 1)
        others[0] = sum_of_column(&total, 0);
    else
        column_sums(group, n_classes, label, others);
    target_tops(others, tops->shift, tops->power, i, rows);
}

/* The same by maxima; terms may be flat already. */
INLINE void column_terms(const int is_flat, vreal *group, const real *flat, ptrdiff_t n_classes,
                         ptrdiff_t i, const integer *labels, const column_tops *tops,
                         row_tile *rows)
{
    const int some = is_flat ? PIECE : 1;
    const vreal max = tops->max, shift = tops->shift;
    const vreference ref = reference_at(tops->power);
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    vinteger ties = (vinteger)splat(0);
    for (ptrdiff_t r = 0; r < LANES; r++)
        rows->target_logit[i + r] = *lane_at(group, labels[i + r], r);
    for (ptrdiff_t j = 0; j < n_classes; j += some) {
        vreal e[PIECE];
        if (is_flat)
            load_flat(flat, n_classes, j, e);
        else
            e[0] = exp_terms(group[j] - shift, &ref);
        for (int l = 0; l < some && j + l < n_classes; l++) {
            const vinteger is_max = group[j + l] == max;
            ties -= is_max;
            if (!is_flat) group[j] = e[0];
            add_vector(&total, (vreal)((vinteger)e[l] & ~is_max));
        }
    }
    const vreal more_ties = as_reals(ties) - (real)1;
    vdouble top[WIDE];
    top_terms(max - shift, tops->power, &ref, top);
    for (int w = 0; w < WIDE; w++) {
        *(vdouble *)(rows->others + i + w * DOUBLES)
            = sum_of_column(&total, w) + widen(more_ties, w) * top[w];
        *(vdouble *)(rows->max + i + w * DOUBLES) = widen(max, w);
        *(vdouble *)(rows->top + i + w * DOUBLES) = top[w];
    }
    for (ptrdiff_t r = 0; r < LANES; r++)
        rows->target_term[i + r]
            = is_flat ? flat[r * n_classes + labels[i + r]] : *lane_at(group, labels[i + r], r);
}

/* mass, gap and spread of LANES rows that have the same smoothing in all classes but hidden ones;
 * returns whether a class is hidden. */
INLINE int column_even(const fastce_call *call, const vreal *group, ptrdiff_t i,
                       const column_tops *tops, row_tile *rows)
{
    wide_exact_sum logits = {splat_double(0), splat_double(0)};
    vinteger hidden = (vinteger)splat(0);
    for (ptrdiff_t j = 0; j < call->n_classes; j++) {
        const vinteger is_hidden = group[j] == splat(HIDDEN);
        hidden -= is_hidden;
        add_vector(&logits, (vreal)((vinteger)group[j] & ~is_hidden));
    }
    const vreal seen = (real)call->n_classes - as_reals(hidden);
    for (int w = 0; w < WIDE; w++) { /* as in row_options.h, even_gap */
        const ptrdiff_t lane = i + w * DOUBLES;
        const vdouble n = widen(seen, w), spread = call->smoothing / n;
        *(vdouble *)(rows->mass + lane) = splat_double(call->smoothing);
        *(vdouble *)(rows->gap + lane)
            = spread * (n * widen(tops->max, w) - (w ? logits.lost : logits.sum));
        *(vdouble *)(rows->less + lane) = spread;
    }
    return any(hidden != 0);
}

/* After the epilogue: what is taken from every element, and no longer from the target's alone. */
static void take_smoothing(ptrdiff_t n, row_tile *rows)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        rows->less[i] *= rows->scale[i];
        if (rows->target_logit[i] > (double)HIDDEN) rows->target_grad[i] -= rows->less[i];
    }
}

/* Gradients of hidden classes but targets, from which nothing is to be taken. */
static void clear_hidden(const fastce_array *x, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_classes,
                         const integer *labels, real *tile, const row_tile *rows)
{
    const char *from = x->data + first * x->row_stride;
    for (ptrdiff_t i = 0; i < n; i++, from += x->row_stride)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            if (get((const elem *)(from + j * x->class_stride)) == HIDDEN && j != labels[i])
                *cell(tile, n_classes, i, j) = (real)(rows->factor[i] * 0); /* NaN stays */
}

/* A thread's work on rows of few classes, and what it has at hand: n rows of a run from row first
 * on. */
typedef struct {
    _Alignas(64) real tile[TILE_REALS];
    row_tile rows;
    row_stream stream;
    flat_rows flat;
    option_tiles *more; /* NULL where the gradient is linear */
    int is_pair, may_be_flat, has_target_top, streams;
    int may_guess;              /* the last whole tile had one reference */
    real guess;                 /* its power */
    ptrdiff_t first, n, padded; /* n in whole groups */
    ptrdiff_t n_ahead;          /* rows that follow without a gap */
    int has_hidden, is_flat;
    ptrdiff_t n_absent, absent[TILE]; /* which of them are not there, by number in the tile */
    _Alignas(64) int64_t targets[TILE];
    _Alignas(64) integer labels[TILE]; /* the same, but 0 where there is none */
} tile_worker;

/* The terms of those rows whose factor is_extreme, in the tile or flat. */
static __attribute__((cold, noinline)) void rescale_tile(tile_worker *worker, ptrdiff_t n_classes)
{
    for (ptrdiff_t r = 0; r < worker->n; r++) {
        if (!is_extreme(&worker->rows, r)) continue;
        const double part = rescale_row(&worker->rows, r);
        if (worker->is_flat)
            rescale_terms(worker->flat.terms + r * n_classes, 1, n_classes, part);
        else
            rescale_terms(cell(worker->tile, n_classes, r, 0), LANES, n_classes, part);
    }
}

/* Targets and weights. */
static void read_labels(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const ptrdiff_t n = worker->n;
    int64_t *targets = worker->targets;
    row_tile *rows = &worker->rows;
    const int all_there = read_rows(call, run, worker->first, n, targets, rows);
    worker->n_absent = 0;
    for (ptrdiff_t i = 0; !all_there && i < n; i++) { /* branches would be mispredicted */
        worker->absent[worker->n_absent] = i;
        worker->n_absent += targets[i] < 0;
    }
    for (ptrdiff_t i = n; i < worker->padded; i++) {
        targets[i] = -1;
        rows->weight[i] = 0;
    }
    for (ptrdiff_t i = 0; call->smoothing != 0 && i < n; i++)
        rows->weight[i] *= 1 - call->smoothing;
    for (ptrdiff_t i = 0; i < worker->padded; i++)
        worker->labels[i] = targets[i] < 0 ? 0 : (integer)targets[i];
}

/* Contiguous logits: as they are, or masked in flat->terms. */
INLINE const elem *read_flat(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const elem *x = row_of(&run->logits, worker->first);
    if (!run->where.data) return x;
    mask_flat(x, row_of(&run->where, worker->first), worker->n * call->n_classes, &worker->flat);
    return (const elem *)worker->flat.terms;
}

/* Logits to the tile, through the options.  Whatever a row holds that is not there, it is not
 * seen. */
static void read_tile(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes, first = worker->first, n = worker->n;
    real *tile = worker->tile;
    option_tiles *more = worker->more;
    const fastce_array *from = &run->logits;
    fastce_array masked = {.class_stride = sizeof(elem), .row_stride = run->logits.row_stride};
    ptrdiff_t n_ahead = worker->n_ahead;
    const int is_flat = run->where.data && can_mask_flat(call);
    if (is_flat) {
        masked.data = (char *)read_flat(call, run, worker) - first * masked.row_stride;
        from = &masked;
        n_ahead = LANES;
    }
    load_tile(from, first, n, n_ahead, n_classes, tile);
    if (run->where.data && !is_flat) mask_tile(&run->where, first, n, n_classes, tile);
    if (more || call->logit_scale != 1)
        prepare_tile(call, run, first, n, worker->n_ahead, tile, more);
    for (ptrdiff_t k = 0; k < worker->n_absent; k++)
        for (ptrdiff_t i = worker->absent[k], j = 0; j < n_classes; j++) {
            *cell(tile, n_classes, i, j) = 0;
            if (more)
                *cell(more->logits, n_classes, i, j) = *cell(more->dense, n_classes, i, j)
                    = *cell(more->chain, n_classes, i, j) = 0;
        }
}

INLINE void prefetch_next(const fastce_call *call, const row_run *run, const tile_worker *worker,
                          ptrdiff_t i)
{
    if (call->n_rows * call->n_classes >= PREFETCH_FROM && worker->n_ahead >= worker->n)
        prefetch_rows(call, run, worker->first + worker->n + i);
}

/* Flat terms of all rows; what a row holds that is not there does not matter.  Returns the largest
 * logit. */
INLINE real all_flat_terms(const fastce_call *call, const elem *x, real power, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes, n = worker->n * n_classes;
    flat_rows *flat = &worker->flat;
    const vreal largest = call->logit_scale == 1
                              ? flat_terms(AS_THEY_ARE, x, n, 1, power, flat)
                              : flat_terms(SCALED, x, n, (real)call->logit_scale, power, flat);
    for (ptrdiff_t k = 0; k < worker->n_absent; k++)
        memset(flat->terms + worker->absent[k] * n_classes, 0, (size_t)n_classes * sizeof(real));
    return largest_lane(largest);
}

/* Whether no row with this power as its reference has a shift. */
INLINE int has_no_shift(double power)
{
    return power * LN2_DOUBLE_HIGH > -SHIFT_FROM && (power + WINDOW) * LN2_DOUBLE_HIGH < SHIFT_FROM;
}

/* Reads the logits of rows' targets, and takes their terms out of the flat ones.  A row that is not
 * there gets a logit of 0, and a term within the window.  In one loop, in which what is written is
 * not soon read: two, before and after terms are computed, took 1.2 of the time on Zen 5. */
INLINE void take_targets(const int is_masked, const fastce_call *call, const row_run *run,
                         tile_worker *worker)
{
    const elem *x = row_of(&run->logits, worker->first);
    const char *seen = is_masked ? (const char *)row_of(&run->where, worker->first) : NULL;
    const real scale = (real)call->logit_scale;
    const integer *labels = worker->labels;
    real *terms = worker->flat.terms;
    ptrdiff_t row = 0; /* its first element */
    for (ptrdiff_t i = 0; i < worker->n; i += LANES)
        for (ptrdiff_t r = i; r < i + LANES; r++, row += call->n_classes) {
            const ptrdiff_t at = row + labels[r];
            worker->rows.target_logit[r]
                = is_masked && !seen[at] ? (double)HIDDEN : (double)(get(x + at) * scale);
            terms[at] = 0;
        }
    for (ptrdiff_t k = 0; k < worker->n_absent; k++) {
        const ptrdiff_t r = worker->absent[k];
        worker->rows.target_logit[r] = 0;
        terms[r * call->n_classes + labels[r]] = (real)(2 * LIFT);
    }
}

/* Whether all rows have a term within the window.  Hardly ever called: most targets have one. */
static __attribute__((cold, noinline)) int reach_window(ptrdiff_t n_classes,
                                                        const tile_worker *worker)
{
    for (ptrdiff_t r = 0; r < worker->n; r++) {
        const real *terms = worker->flat.terms + r * n_classes;
        ptrdiff_t j = 0;
        if (!(worker->rows.target_term[r] < LEAST_IN_WINDOW)) continue;
        while (j < n_classes && !(terms[j] >= LEAST_IN_WINDOW)) j++;
        if (j == n_classes) return 0;
    }
    return 1;
}

/* The flat terms of rows whose targets are their tops, and what the epilogue is made from, without
 * a look at their maxima: rows are taken to have the reference of the tile before.  Returns whether
 * they have, for certain; if not, nothing is done. */
static int guess_terms(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes;
    const real power = worker->guess;
    /* the logit at the upper end of the reference's window */
    const double most = ((double)power + WINDOW - 1) * LN2_DOUBLE_HIGH;
    const elem *x = read_flat(call, run, worker);
    const real *terms = worker->flat.terms;
    int has_low = 0;
    if (!(all_flat_terms(call, x, power, worker) <= most)) return 0; /* terms may be anything */
    if (run->where.data)
        take_targets(1, call, run, worker);
    else
        take_targets(0, call, run, worker);
    for (ptrdiff_t i = 0; i < worker->n; i += LANES, terms += LANES * n_classes) {
        vdouble others[WIDE];
        prefetch_next(call, run, worker, i);
        flat_sums(terms, n_classes, others);
        has_low |= target_tops(others, splat(0), splat(power), i, &worker->rows);
    }
    worker->is_flat = !has_low || reach_window(n_classes, worker);
    return worker->is_flat;
}

/* The terms, flat or in the tile, and what the epilogue is made from. */
static void tile_terms(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes, padded = worker->padded;
    row_tile *rows = &worker->rows;
    const integer *labels = worker->labels;
    column_tops tops[TILE / LANES];
    worker->has_hidden = 0;
    for (ptrdiff_t i = 0; i < padded; i += LANES) {
        const vreal *group = group_of(worker->tile, n_classes, i);
        tops[i / LANES] = tops_of(group, n_classes);
        if (is_even(call))
            worker->has_hidden |= column_even(call, group, i, tops + i / LANES, rows);
    }
    const int has_one = have_one_reference(tops, worker->n);
    if (worker->n % LANES == 0) {
        worker->guess = tops->power[0];
        worker->may_guess = has_one && has_no_shift(worker->guess);
    }
    worker->is_flat
        = worker->may_be_flat && !worker->has_target_top && !worker->has_hidden && has_one;
    if (worker->is_flat) /* read_tile() has masked them */
        all_flat_terms(call,
                       run->where.data ? (const elem *)worker->flat.terms
                                       : row_of(&run->logits, worker->first),
                       tops->power[0], worker);
    for (ptrdiff_t i = 0; i < padded; i += LANES) {
        const column_tops *top = tops + i / LANES;
        vreal *group = group_of(worker->tile, n_classes, i);
        const real *flat = worker->flat.terms + i * n_classes;
        prefetch_next(call, run, worker, i);
        if (worker->has_target_top)
            target_column_terms(group, n_classes, i, labels, top, rows);
        else if (worker->is_flat)
            column_terms(1, group, flat, n_classes, i, labels, top, rows);
        else
            column_terms(0, group, NULL, n_classes, i, labels, top, rows);
        if (worker->more && is_dense(call)) column_dense(call, worker->tile, worker->more, i, rows);
    }
    if (!call->targets.data) memcpy(rows->target_logit, rows->max, sizeof rows->max);
}

/* The rows' losses and factors, and what is special in their terms. */
static void tile_epilogue(const fastce_call *call, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes, n = worker->n, padded = worker->padded;
    real *tile = worker->tile;
    row_tile *rows = &worker->rows;
    epilogue(call, rows, padded);
    for (ptrdiff_t k = 0; k < worker->n_absent; k++) { /* also where the mean divides by 0 */
        const ptrdiff_t i = worker->absent[k];
        rows->loss[i] = rows->whole[i] = rows->factor[i] = rows->scale[i] = rows->target_grad[i]
            = 0;
    }
    for (ptrdiff_t i = n; i < padded; i++) rows->loss[i] = rows->whole[i] = rows->factor[i] = 0;
    if (is_even(call)) take_smoothing(padded, rows);
    for (ptrdiff_t i = 0; i < n && call->loss == FASTCE_LOGSUMEXP; i++)
        if (rows->max[i] - rows->max[i] != 0) { /* as infinite_logsumexp in row_options.h */
            rows->loss[i] = rows->max[i];
            for (ptrdiff_t j = 0; j < n_classes; j++) {
                const double z = *cell(worker->more->logits, n_classes, i, j);
                if (z != z) rows->loss[i] = z;
            }
        }
    if (call->loss < FASTCE_SOFTMAX && has_extreme(rows, n)) rescale_tile(worker, n_classes);
    /* where one class is all there is: 1, not what roundings make of it */
    for (ptrdiff_t i = 0; i < n && call->loss == FASTCE_SOFTMAX; i++)
        if (rows->others[i] == 0) {
            for (ptrdiff_t j = 0; j < n_classes; j++)
                *cell(tile, n_classes, i, j) = *cell(tile, n_classes, i, j) > 0;
            rows->factor[i] = 1;
        }
}

/* term * factor - less, over the terms, but at the targets. */
INLINE void linear_gradient(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes;
    const row_tile *rows = &worker->rows;
    for (ptrdiff_t i = 0; i < worker->padded; i += LANES) {
        const vreal factor = narrow(rows->factor + i);
        const vreal less = is_even(call) ? narrow(rows->less + i) : splat(0);
        vreal *group = group_of(worker->tile, n_classes, i);
        for (ptrdiff_t j = 0; j < n_classes; j++) group[j] = group[j] * factor - less;
        for (ptrdiff_t r = 0; call->loss != FASTCE_SOFTMAX && r < LANES; r++)
            *lane_at(group, worker->labels[i + r], r) = (real)rows->target_grad[i + r];
    }
    if (worker->has_hidden)
        clear_hidden(&run->logits, worker->first, worker->n, n_classes, worker->labels,
                     worker->tile, rows);
}

/* The gradient, made from the terms, to where it belongs. */
static void write_tile(const fastce_call *call, const row_run *run, tile_worker *worker)
{
    const ptrdiff_t n_classes = call->n_classes, first = worker->first, n = worker->n;
    const row_tile *rows = &worker->rows;
    row_stream *out = worker->streams ? &worker->stream : NULL;
    real *tile = worker->tile;
    if (call->loss == FASTCE_LOG_SOFTMAX) {
        log_softmax_tile(tile, worker->more, n_classes, n, rows);
    } else if (worker->more) {
        for (ptrdiff_t i = 0; i < worker->padded; i += LANES)
            column_options(call, tile, worker->more, i, worker->labels, rows);
        if (call->hess.data)
            store_tile(&run->hess, call->out_elem, call->stream, first, n, n_classes,
                       worker->more->hess);
    } else if (!worker->is_flat && !worker->is_pair) {
        linear_gradient(call, run, worker);
    }
    fastce_array grad = run->grad;
    if (out) grad.data = (char *)(out->rows + out->n) - first * grad.row_stride;
    elem *to = (elem *)(grad.data + first * grad.row_stride);
    if (!worker->is_flat)
        store_tile(&grad, call->out_elem, call->stream && !out, first, n, n_classes, tile);
    else if (is_even(call))
        flat_gradient(1, &worker->flat, n, n_classes, worker->labels, rows, to);
    else
        flat_gradient(0, &worker->flat, n, n_classes, worker->labels, rows, to);
    if (out) stream_rows(out, n * n_classes);
}

/* n rows of a run from row first on, a tile at most. */
INLINE void one_tile(const fastce_call *call, const row_run *run, tile_worker *worker,
                     ptrdiff_t first, ptrdiff_t n)
{
    worker->first = first;
    worker->n = n;
    worker->padded = (n + LANES - 1) / LANES * LANES;
    worker->n_ahead = call->run_length - first - n;
    read_labels(call, run, worker);
    const int can_guess
        = worker->may_be_flat && worker->has_target_top && worker->may_guess && n % LANES == 0;
    if (!can_guess || !guess_terms(call, run, worker)) {
        read_tile(call, run, worker);
        if (!worker->is_pair) tile_terms(call, run, worker);
    }
    if (worker->is_pair)
        pair_tile(call, worker->padded, worker->targets, worker->tile, &worker->rows);
    else
        tile_epilogue(call, worker);
    if (call->losses)
        for (ptrdiff_t i = 0; i < n; i++)
            ((real *)call->losses)[run->first + first + i] = (real)worker->rows.loss[i];
    if (call->row_stats)
        evaluate_tile(call, worker->tile, worker->more, n, worker->targets, &worker->rows,
                      call->row_stats + run->first + first);
    if (call->grad.data) write_tile(call, run, worker);
}

static void cross_entropy_columns(fastce_call *call, int thread)
{
    const ptrdiff_t most = tile_rows(call->n_classes);
    tile_worker worker;
    start_rows(&worker.rows);
    worker.streams = streams_rows(call, &call->grad);
    worker.is_pair = is_pair(call);
    worker.may_be_flat = can_be_flat(call) && !worker.is_pair;
    worker.has_target_top = has_target_top(call);
    worker.guess = reference_of(0).power;
    worker.may_guess = 1;
    worker.is_flat = worker.has_hidden = 0;
    worker.more
        = is_linear(call) ? NULL : (void *)(call->scratch + (size_t)thread * call->scratch_size);
    if (worker.may_be_flat) number_rows(&worker.flat, call->n_classes);

    for (cursor at; claim_chunk(call, thread, &at);) {
        wide_exact_sum chunk_sum = {splat_double(0), splat_double(0)};
        ptrdiff_t n;
        worker.stream.to = row_of(&at.run.grad, at.row);
        worker.stream.n = 0;
        for (ptrdiff_t first = at.row; first < at.end; first += n) {
            n = at.end - first < most ? at.end - first : most;
            if (call->stream && call->out_elem == OWN_ELEM && at.run.grad.row_stride == sizeof(elem)
                && n == most) { /* whole lines are streamed: up to the first one in class 0 */
                const uintptr_t grad = (uintptr_t)row_of(&at.run.grad, first);
                n -= most < LINE ? 0 : (ptrdiff_t)(grad % 64 / sizeof(elem));
            }
            one_tile(call, &at.run, &worker, first, n);
            for (ptrdiff_t i = 0; i < n; i += DOUBLES)
                add_wide(&chunk_sum, doubles_at(worker.rows.loss, i));
        }
        if (worker.streams) stream_rest(&worker.stream);
        leave(call->sums, at.chunk, sum_of(&chunk_sum)); /* a chunk is one sum here */
    }
    if (call->stream) store_fence();
}

#endif
