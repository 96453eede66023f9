/* Few classes, lanes = rows: some rows at a time lie in a `tile`, LANES of them to a group, which has a
 * vector for each class; so every step of the arithmetic serves LANES rows.  Many classes are in rows.h.
 *
 * The order in which a row's terms are added depends on n_classes alone, so that every memory
 * layout gives the same bits. */
#ifndef FASTCE_COLUMNS_H
#define FASTCE_COLUMNS_H

#include "strips.h"

/* Up to FEW_CLASSES this file is used (100 classes: 0.6 of the time of rows.h, 128: 1.0).  A tile
 * is TILE rows, or half of them where that leaves more of the smallest L1, 32 KB, to what comes and goes. */
enum {
    FEW_CLASSES = 112,
    VERY_FEW = 32,
    TILE_REALS = FEW_CLASSES * TILE / 2,
    FAR_FROM = 1 << 17 /* elements; fewer stay in L2 */
};

/* Whether an array of elems has its rows one after the other. */
INLINE int is_gapless(const fastce_array *x, ptrdiff_t n_classes)
{
    return x->class_stride == sizeof(elem) && x->row_stride == n_classes * (ptrdiff_t)sizeof(elem);
}

INLINE ptrdiff_t tile_rows(ptrdiff_t n_classes)
{
    return n_classes <= VERY_FEW ? TILE : TILE / 2;
}

/* A group's class 0.  Groups are whole numbers of LANES classes apart, for those are loaded together. */
INLINE vreal *group_of(real *tile, ptrdiff_t n_classes, ptrdiff_t row)
{
    return (vreal *)tile + row / LANES * ((n_classes + LANES - 1) / LANES * LANES);
}

INLINE real *cell(real *tile, ptrdiff_t n_classes, ptrdiff_t row, ptrdiff_t j)
{
    return (real *)(group_of(tile, n_classes, row) + j) + row % LANES;
}

/* LANES rows of contiguous classes to columns, and back, a few classes at a time.  In come as many as a
 * piece of 16 bytes has, so that a vector has pieces of several rows and loads do most of the
 * transposition; halves, which are converted by vectors, by vectors.  Out go whole vectors of classes, and
 * what is left by halves of vectors and pieces (10 classes: 0.91 of the time of a vector that is mostly
 * padding; 32 classes by pieces alone: 1.14).
 *
 * Reads up to a vector beyond a row, so what follows the last row must be readable.  On the way back
 * a row's last piece runs over into the next row, which is written after it; where there is no next
 * row it is written one by one. */
INLINE void rows_to_columns(const elem *x, ptrdiff_t n_classes, vreal *group)
{
    enum { SOME = ELEM_IS_REAL ? PIECE : LANES };
    for (ptrdiff_t j = 0; j < n_classes; j += SOME) {
        vreal v[SOME];
        for (int l = 0; l < SOME; l++) {
            const elem *from = x + l * n_classes + j;
#if defined(FASTCE_f32) || defined(FASTCE_f64)
            v[l] = load_pieces(from, PIECE * n_classes);
#else
            v[l] = load(from);
#endif
        }
        transpose(v, SOME);
        for (int l = 0; l < SOME; l++) group[j + l] = v[l];
    }
}

/* Classes [j, j + some) of LANES rows. */
INLINE void columns_to_rows_by(const int some, ptrdiff_t j, elem *x, ptrdiff_t n_classes,
                               const vreal *group)
{
    vreal v[LANES];
    for (int l = 0; l < some; l++) v[l] = group[j + l];
    transpose(v, some);
#pragma GCC unroll 4
    for (int part = 0; part < LANES / some; part++)
#pragma GCC unroll 16
        for (int l = 0; l < some; l++) {
            const ptrdiff_t from = (part * some + l) * n_classes + j;
            const int has_room = n_classes - j >= some || from + some <= LANES * n_classes;
            if (has_room && some == LANES)
                store(x + from, v[l]);
            else if (has_room)
                store_lanes((real *)(x + from), v[l], some, part);
            else { /* a copy, or v would be in memory instead of registers */
                real lanes[LANES];
                store_real(lanes, v[l]);
                for (ptrdiff_t k = 0; k < n_classes - j; k++)
                    put_as(OWN_ELEM, (char *)(x + from + k), lanes[part * some + k]);
            }
        }
}

/* Whole vectors, then what is left by halves and pieces. */
INLINE void columns_to_rows(elem *x, ptrdiff_t n_classes, const vreal *group)
{
    const int half = LANES / 2, some = ELEM_IS_REAL ? PIECE : LANES;
    ptrdiff_t j = n_classes / LANES * LANES, left = n_classes - j;
    if (some == LANES || left > LANES - some) {
        if (left) columns_to_rows_by(LANES, j, x, n_classes, group);
    } else {
        if (left > half) columns_to_rows_by(some, j + half, x, n_classes, group);
        if (left > some)
            columns_to_rows_by(half, j, x, n_classes, group);
        else if (left)
            columns_to_rows_by(some, j, x, n_classes, group);
    }
    while ((j -= LANES) >= 0) columns_to_rows_by(LANES, j, x, n_classes, group);
}

/* Rows first .. first + n of an array to the tile, zeros in the lanes beyond n.  n_ahead: how many
 * rows follow without a gap, and may be read. */
static void load_tile(const fastce_array *x, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_ahead,
                      ptrdiff_t n_classes, real *tile)
{
    const ptrdiff_t row_stride = x->row_stride, class_stride = x->class_stride;
    const char *source = x->data + first * row_stride;
    ptrdiff_t i = 0;
    if (row_stride == sizeof(elem)) {
        const ptrdiff_t whole = n / LANES * LANES;
        for (ptrdiff_t j = 0; j < n_classes; j++)
            for (i = 0; i < whole; i += LANES)
                group_of(tile, n_classes, i)[j]
                    = load((const elem *)(source + j * class_stride) + i);
    } else if (is_gapless(x, n_classes)) {
        for (; i < n; i += LANES) {
            const elem *from = (const elem *)source + i * n_classes;
            const ptrdiff_t left = n - i < LANES ? n - i : LANES;
            if (left == 1) break; /* by vectors it would take 1.15 of a 1 x 10 call's time */
            elem last[(FEW_CLASSES + 1) * LANES];
            /* too few rows, or too little to read beyond the last */
            if (left < LANES || (n - i - LANES + n_ahead) * n_classes < LANES) {
                memcpy(last, from, (size_t)(left * n_classes) * sizeof(elem));
                memset(last + left * n_classes, 0,
                       (size_t)((LANES - left) * n_classes) * sizeof(elem));
                from = last;
            }
            rows_to_columns(from, n_classes, group_of(tile, n_classes, i));
        }
    }
    if (i < n && n % LANES) /* the lanes beyond n */
        for (ptrdiff_t j = 0; j < n_classes; j++) group_of(tile, n_classes, n)[j] = splat(0);
    for (; i < n; i++)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            *cell(tile, n_classes, i, j)
                = get((const elem *)(source + i * row_stride + j * class_stride));
}

/* With stream, past the caches where classes are far apart: planes a power of two apart share a few
 * cache sets, and stores that have to read their lines first wait for one another. */
static void store_tile(const fastce_array *x, int out_elem, int stream, ptrdiff_t first,
                       ptrdiff_t n, ptrdiff_t n_classes, real *tile)
{
    const ptrdiff_t row_stride = x->row_stride, class_stride = x->class_stride;
    char *out = x->data + first * row_stride;
    ptrdiff_t i = 0;
    if (out_elem != OWN_ELEM) {
        for (; i < n; i++)
            for (ptrdiff_t j = 0; j < n_classes; j++)
                put_as(out_elem, out + i * row_stride + j * class_stride,
                       *cell(tile, n_classes, i, j));
    } else if (row_stride == sizeof(elem)) {
        const ptrdiff_t whole = n / LANES * LANES;
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            elem *to = (elem *)(out + j * class_stride);
            if (stream && (uintptr_t)to % STREAM_BYTES == 0)
                for (i = 0; i < whole; i += LANES)
                    store_stream(to + i, group_of(tile, n_classes, i)[j]);
            else
                for (i = 0; i < whole; i += LANES) store(to + i, group_of(tile, n_classes, i)[j]);
        }
    } else if (is_gapless(x, n_classes)) {
        for (; i + LANES <= n; i += LANES)
            columns_to_rows((elem *)out + i * n_classes, n_classes, group_of(tile, n_classes, i));
        if (n - i > 1) {
            elem last[FEW_CLASSES * LANES];
            columns_to_rows(last, n_classes, group_of(tile, n_classes, i));
            memcpy((elem *)out + i * n_classes, last, (size_t)((n - i) * n_classes) * sizeof(elem));
            i = n;
        }
    }
    for (; i < n; i++)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            put_as(OWN_ELEM, out + i * row_stride + j * class_stride, *cell(tile, n_classes, i, j));
}

/* Gradients of contiguous rows on their way past the caches: rows that are not a whole number of lines
 * wait here for the next ones.  rows[0 .. n) belong at `to`. */
typedef struct {
    elem *to;
    ptrdiff_t n;
    _Alignas(64) elem rows[TILE_REALS + LINE];
} row_stream;

INLINE int streams_rows(const fastce_call *call, const fastce_array *grad)
{
    return call->stream && grad->data && call->out_elem == OWN_ELEM
           && is_gapless(grad, call->n_classes);
}

/* n elements more have come to where out->n was: whole lines go. */
static void stream_rows(row_stream *out, ptrdiff_t n)
{
    enum { REALS = VECTOR_BYTES / sizeof(elem) }; /* elements of a vector, as they are */
    out->n += n;
    ptrdiff_t done = (ptrdiff_t)(-(uintptr_t)out->to % 64 / sizeof(elem));
    if (done > out->n) done = out->n;
    memcpy(out->to, out->rows, (size_t)done * sizeof(elem)); /* only at the start of a chunk */
    for (; done + LINE <= out->n; done += LINE)
        for (ptrdiff_t i = done; i < done + LINE; i += REALS) {
            vreal bits; /* halves, maybe, and where no real could be */
            memcpy(&bits, out->rows + i, sizeof bits);
            store_real_stream((real *)(out->to + i), bits);
        }
    out->to += done;
    out->n -= done;
    memmove(out->rows, out->rows + done, (size_t)out->n * sizeof(elem));
}

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

/* Contiguous rows, if their maxima share a reference and gradients are linear, have their terms computed as they
 * lie: only maxima and sums need columns, and what goes back needs no transposition (10 classes: 0.8 of the
 * time).  row has, for every element of LANES rows, which of them it is of. */
typedef struct {
    _Alignas(64) real terms[TILE_REALS + LANES];
    _Alignas(64) integer row[(FEW_CLASSES + 1) * LANES];
} flat_rows;

INLINE int can_be_flat(const fastce_call *call)
{
    return ELEM_IS_REAL && VECTOR_BYTES > 16 && call->run_length >= LANES && is_linear(call)
           && call->loss < FASTCE_SOFTMAX && call->grad.data && call->out_elem == OWN_ELEM
           && is_gapless(&call->logits, call->n_classes)
           && is_gapless(&call->grad, call->n_classes);
}

static void number_rows(flat_rows *flat, ptrdiff_t n_classes)
{
    for (integer r = 0; r < LANES; r++) /* each runs over into the next */
        for (ptrdiff_t j = 0; j < n_classes; j += LANES)
            store_real((real *)flat->row + r * n_classes + j, (vreal)splat_integer(r));
}

/* The terms of n rows as they lie, where all have one reference; returns whether they have. */
static int flat_terms(const elem *x, ptrdiff_t n, ptrdiff_t n_classes, const column_tops *tops,
                      flat_rows *flat)
{
    const vreal power = splat(tops->power[0]);
    vinteger other = (vinteger)splat(0);
    for (ptrdiff_t g = 0; g < n / LANES; g++)
        other |= (tops[g].power != power) | (tops[g].shift != splat(0));
    if (n % LANES || any(other)) return 0;
    const vreference ref = spread(power);
    for (ptrdiff_t j = 0; j < n * n_classes; j += LANES)
        *(vreal *)(flat->terms + j) = exp_terms(load(x + j), &ref);
    return 1;
}

/* The gradient of n rows from their flat terms. */
INLINE void flat_gradient(const int even, const flat_rows *flat, ptrdiff_t n, ptrdiff_t n_classes,
                          const integer *targets, const row_tile *rows, real *grad)
{
    for (ptrdiff_t i = 0; i < n; i += LANES, grad += LANES * n_classes) {
        const real *terms = flat->terms + i * n_classes;
        const vreal factor = narrow(rows->factor + i);
        const vreal less = narrow(rows->less + i), target_grad = narrow(rows->target_grad + i);
        const vinteger target = *(const vinteger *)(targets + i);
        const vinteger at = lane_numbers() * (integer)n_classes + target;
        for (ptrdiff_t j = 0; j < LANES * n_classes; j += LANES) {
            const vinteger row = *(const vinteger *)(flat->row + j);
            vreal g = *(const vreal *)(terms + j) * __builtin_shuffle(factor, row);
            if (even) g -= __builtin_shuffle(less, row);
            store_real(grad + j,
                       select_equal(lane_numbers() + (integer)j, __builtin_shuffle(at, row),
                                    __builtin_shuffle(target_grad, row), g));
        }
    }
}

/* Replaces the logits of LANES rows by their terms, unless these are flat, and fills the rows' max, top,
 * others and what is at the target, which is picked up on the way (and replaced on the way back): a
 * comparison in every column costs less than to gather a number from each row, 4096 x 10 in 0.9 of the
 * time. */
INLINE void column_terms(const int is_flat, vreal *group, const real *flat, ptrdiff_t n_classes,
                         ptrdiff_t i, const integer *targets, const column_tops *tops,
                         row_tile *rows)
{
    enum { MOST = ELEM_IS_REAL ? PIECE : 1 };
    const int some = is_flat ? MOST : 1;
    const vreal max = tops->max, shift = tops->shift;
    const vreference ref = spread(tops->power);
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    const vinteger target = *(const vinteger *)(targets + i);
    vinteger ties = (vinteger)splat(0);
    vreal target_logit = splat(0), target_term = splat(0);
    for (ptrdiff_t j = 0; j < n_classes; j += some) {
        vreal e[MOST];
        if (is_flat) {
            for (int l = 0; l < MOST; l++)
                e[l] = load_pieces(flat + l * n_classes + j, PIECE * n_classes);
            transpose(e, MOST);
        } else {
            e[0] = exp_terms(group[j] - shift, &ref);
        }
        for (int l = 0; l < some && j + l < n_classes; l++) {
            const vreal x = group[j + l];
            const vinteger is_max = x == max, number = splat_integer(j + l);
            target_logit = select_equal(target, number, x, target_logit);
            target_term = select_equal(target, number, e[l], target_term);
            ties -= is_max;
            if (!is_flat) group[j] = e[0];
            add_vector(&total, (vreal)((vinteger)e[l] & ~is_max));
        }
    }
    const vreal more_ties = __builtin_convertvector(ties, vreal) - (real)1;
    vdouble top[WIDE];
    top_terms(max - shift, tops->power, &ref, top);
    for (int w = 0; w < WIDE; w++) {
        double *to = rows->others + i + w * DOUBLES;
        const vdouble others = WIDE == 1 ? total.sum + total.lost : w ? total.lost : total.sum;
        *(vdouble *)to = others + widen(more_ties, w) * top[w];
        *(vdouble *)(rows->max + i + w * DOUBLES) = widen(max, w);
        *(vdouble *)(rows->top + i + w * DOUBLES) = top[w];
        *(vdouble *)(rows->target_logit + i + w * DOUBLES) = widen(target_logit, w);
        *(vdouble *)(rows->target_term + i + w * DOUBLES) = widen(target_term, w);
    }
}

/* mass, gap and spread of LANES rows that have the same smoothing in all classes but hidden ones; returns
 * whether there are any. */
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
    const vreal seen = (real)call->n_classes - __builtin_convertvector(hidden, vreal);
    for (int w = 0; w < WIDE; w++) { /* as in rows.h, row_terms */
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
                         const integer *targets, real *tile, const row_tile *rows)
{
    const char *from = x->data + first * x->row_stride;
    for (ptrdiff_t i = 0; i < n; i++, from += x->row_stride)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            if (get((const elem *)(from + j * x->class_stride)) == HIDDEN && j != targets[i])
                *cell(tile, n_classes, i, j) = (real)(rows->factor[i] * 0); /* NaN stays */
}

/* Brings the terms of those of DOUBLES rows down whose factor is_tiny; in the tile or flat. */
static void shrink_terms(real *tile, real *flat, ptrdiff_t n_classes, ptrdiff_t i, row_tile *rows)
{
    for (ptrdiff_t r = i; r < i + DOUBLES; r++)
        if (is_tiny(rows->factor[r])) {
            const double part = shrink_row(rows, r);
            for (ptrdiff_t j = 0; j < n_classes; j++)
                *(flat ? flat + r * n_classes + j : cell(tile, n_classes, r, j)) *= (real)part;
        }
}

/* What a tile of rows has besides its logits, where a call has options. */
typedef struct {
    _Alignas(64) real dense[TILE_REALS], chain[TILE_REALS], hess[TILE_REALS];
    _Alignas(64) real logits[TILE_REALS]; /* what the softmax sees */
} option_tiles;

/* Which classes of LANES rows are not masked, by columns: numbers that are not 0; so are lanes from n on. */
static void where_to_columns(const fastce_array *where, ptrdiff_t row, ptrdiff_t n,
                             ptrdiff_t n_classes, vreal *seen)
{
    elem rows[(FEW_CLASSES + 1) * LANES];
    const char *from = where->data + row * where->row_stride;
    if (n >= LANES && where->class_stride == 1 && where->row_stride == n_classes)
        for (ptrdiff_t k = 0; k < LANES * n_classes; k++) rows[k] = from[k] != 0;
    else
        for (ptrdiff_t l = 0; l < LANES; l++)
            for (ptrdiff_t j = 0; j < n_classes; j++)
                rows[l * n_classes + j]
                    = l >= n || from[l * where->row_stride + j * where->class_stride];
    rows_to_columns(rows, n_classes, seen);
}

/* The probabilities of class j of LANES rows; zeros from lane n on. */
INLINE vreal probabilities_at(const fastce_array *q, ptrdiff_t row, ptrdiff_t n, ptrdiff_t j)
{
    const char *from = q->data + row * q->row_stride + j * q->class_stride;
    _Alignas(64) real lanes[LANES];
    for (ptrdiff_t l = 0; l < LANES; l++)
        lanes[l] = l < n ? *(const real *)(from + l * q->row_stride) : 0;
    return *(const vreal *)lanes;
}

/* Logits of rows first .. first + n through mask, scale and cap; dense gets q. */
static void prepare_tile(const fastce_call *call, const row_run *run, ptrdiff_t first, ptrdiff_t n,
                         real *tile, option_tiles *more)
{
    const ptrdiff_t n_classes = call->n_classes;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        vreal *group = group_of(tile, n_classes, i);
        vreal *logits = group_of(more->logits, n_classes, i);
        vreal *chain = group_of(more->chain, n_classes, i);
        vreal *dense = group_of(more->dense, n_classes, i);
        vreal seen = splat(0), *where = logits;
        if (run->where.data) where_to_columns(&run->where, first + i, n - i, n_classes, where);
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            vreal x = group[j];
            if (run->where.data) x = select_real(where[j] != 0, x, splat(HIDDEN));
            group[j] = logits[j] = prepare_logits(call, x, chain + j);
            seen -= __builtin_convertvector(logits[j] > splat(HIDDEN), vreal);
        }
        const vreal spread = (real)call->smoothing / seen;
        for (ptrdiff_t j = 0; is_dense(call) && j < n_classes; j++) {
            const vreal probability
                = run->probabilities.data
                      ? probabilities_at(&run->probabilities, first + i, n - i, j)
                      : splat(0);
            const double class_weight = call->class_weight ? call->class_weight[j] : 1;
            dense[j] = dense_part(call, logits[j], probability, spread, splat((real)class_weight));
        }
    }
}

/* mass, gap and, for poly-1, overlap of LANES rows whose max is known. */
INLINE void column_dense(const fastce_call *call, real *tile, option_tiles *more, ptrdiff_t i,
                         row_tile *rows)
{
    const vreal *terms = group_of(tile, call->n_classes, i);
    const vreal *dense = group_of(more->dense, call->n_classes, i);
    const vreal *logits = group_of(more->logits, call->n_classes, i);
    for (int w = 0; w < WIDE; w++) {
        const ptrdiff_t lane = i + w * DOUBLES;
        wide_exact_sum mass = {splat_double(0), splat_double(0)}, gap = mass;
        vdouble overlap = splat_double(0);
        for (ptrdiff_t j = 0; j < call->n_classes; j++)
            add_gap(dense[j], logits[j], doubles_at(rows->max, lane), w, &mass, &gap);
        for (ptrdiff_t j = 0; call->loss == FASTCE_POLY1 && j < call->n_classes; j++)
            overlap += widen(dense[j], w) * widen(terms[j], w);
        for (int l = 0; l < DOUBLES; l++) {
            rows->mass[lane + l] = result(mass.sum[l], mass.lost[l]);
            rows->gap[lane + l] = result(gap.sum[l], gap.lost[l]);
        }
        *(vdouble *)(rows->overlap + lane) = overlap;
    }
}

/* The gradient and the Hessian's diagonal of LANES rows with options, over their terms: the formulas
 * are in rows.h, write_row. */
INLINE void column_options(const fastce_call *call, real *tile, option_tiles *more, ptrdiff_t i,
                           const integer *targets, const row_tile *rows)
{
    const ptrdiff_t n_classes = call->n_classes;
    vreal *terms = group_of(tile, n_classes, i), *hess = group_of(more->hess, n_classes, i);
    const vreal *q = group_of(more->dense, n_classes, i);
    const vreal *chain = group_of(more->chain, n_classes, i);
    const vreal *logits = group_of(more->logits, n_classes, i);
    const int soft = call->probabilities.data != NULL, dense = is_dense(call);
    const vreal max = narrow(rows->max + i);
    vinteger top_at = splat_integer(n_classes - 1), exact_at = *(const vinteger *)(targets + i);
    for (ptrdiff_t j = n_classes - 1; j-- > 0;)
        top_at = (vinteger)select_real(logits[j] == max, (vreal)splat_integer(j), (vreal)top_at);
    _Alignas(64) double inverse[LANES], rest_of_top[LANES], square[LANES], exact[LANES],
        lead[LANES];
    for (int w = 0; w < WIDE; w++) {
        const vdouble top = doubles_at(rows->top, i + w * DOUBLES);
        const vdouble others = doubles_at(rows->others, i + w * DOUBLES);
        *(vdouble *)(lead + w * DOUBLES) = top - others;
        *(vdouble *)(inverse + w * DOUBLES) = 1 / (top + others);
        *(vdouble *)(rest_of_top + w * DOUBLES) = others * doubles_at(inverse, w * DOUBLES);
        *(vdouble *)(square + w * DOUBLES)
            = doubles_at(rows->scale, i + w * DOUBLES) * (2 * call->z_loss);
    }
    if (soft) /* the top, where the row is sure of it */
        exact_at
            = call->loss == FASTCE_POLY1 ? splat_integer(-1) : top_at | ~(narrow(lead) > splat(0));
    vreal q_exact = splat(0);
    for (ptrdiff_t j = 0; dense && j < n_classes; j++)
        q_exact = select_equal(exact_at, splat_integer(j), q[j], q_exact);
    for (int w = 0; w < WIDE; w++) {
        const ptrdiff_t lane = i + w * DOUBLES;
        const vdouble scale = doubles_at(rows->scale, lane), own = widen(q_exact, w);
        vdouble at = doubles_at(rows->target_grad, lane);
        if (soft) {
            const vdouble mass = doubles_at(rows->mass, lane), pull = doubles_at(rows->pull, lane);
            const vdouble rest = doubles_at(rest_of_top, w * DOUBLES);
            at = scale * ((mass - own) + (pull - mass) - pull * rest);
        } else if (dense) {
            at -= scale * own;
        }
        *(vdouble *)(exact + w * DOUBLES) = at;
    }
    const vreal factor = narrow(rows->factor + i), scale = narrow(rows->scale + i);
    const vreal cross = narrow(rows->cross + i), to_p = narrow(inverse), twice = narrow(square);
    const vreal exact_grad = narrow(exact), exact_rest = narrow(rest_of_top);
    const real outer = (real)call->logit_scale;
    const real bend = (real)(-2 / (call->softcap * call->softcap));
    for (ptrdiff_t j = 0; j < n_classes; j++) {
        const vinteger number = splat_integer(j);
        const vreal term = terms[j], c = chain[j], z = logits[j];
        vreal grad_z = term * factor;
        if (dense) grad_z -= q[j] * scale;
        if (call->loss == FASTCE_POLY1 && dense) grad_z -= term * q[j] * cross;
        grad_z = select_equal(exact_at, number, exact_grad, grad_z);
        if (call->hess.data) {
            const vreal p = term * to_p;
            const vreal rest = select_equal(top_at, number, exact_rest, (real)1 - p);
            vreal hess_z = term * factor * rest + p * p * twice;
            if (call->softcap != 0) {
                /* where z is -inf, c is 0 and so is everything */
                const vreal curve = (vreal)((vinteger)(z * bend * c) & (z > splat(HIDDEN)));
                hess_z = hess_z * c * c + grad_z * curve;
            }
            hess[j] = hess_z * outer * outer;
        }
        terms[j] = (call->softcap != 0 ? grad_z * c : grad_z) * outer;
    }
}

/* As in rows.h, write_log_softmax: (x - max) - log_sum in double. */
static void log_softmax_tile(real *tile, option_tiles *more, ptrdiff_t n_classes, ptrdiff_t n,
                             const row_tile *rows)
{
    for (ptrdiff_t i = 0; i < n; i += LANES)
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            _Alignas(64) double value[LANES];
            for (int w = 0; w < WIDE; w++)
                *(vdouble *)(value + w * DOUBLES)
                    = (widen(group_of(more->logits, n_classes, i)[j], w)
                       - doubles_at(rows->max, i + w * DOUBLES))
                      - doubles_at(rows->scale, i + w * DOUBLES);
            group_of(tile, n_classes, i)[j] = narrow(value);
        }
}

/* As in rows.h, evaluate_row. */
static void evaluate_tile(const fastce_call *call, real *tile, option_tiles *more, ptrdiff_t n,
                          const int64_t *targets, const row_tile *rows, fastce_row_stats *stats)
{
    const ptrdiff_t n_classes = call->n_classes;
    for (ptrdiff_t i = 0; i < n; i++) {
        elem x[FEW_CLASSES];
        real terms[FEW_CLASSES];
        const row_input input = {.x = x, .target = targets[i]};
        stats[i] = (fastce_row_stats){.rank = -1};
        if (targets[i] < 0) continue;
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            put_as(OWN_ELEM, (char *)(x + j), *cell(more->logits, n_classes, i, j));
            terms[j] = *cell(tile, n_classes, i, j);
        }
        evaluate_row(call, &input, terms, rows, i, stats + i);
    }
}

/* LANES rows of the next tile: too many streams for the hardware to follow where classes are far
 * apart, and steps too odd where they are not (200000 x 10: 0.83 of the time). */
INLINE void prefetch_rows(const fastce_call *call, const row_run *run, ptrdiff_t first)
{
    const ptrdiff_t size = sizeof(elem), n_classes = call->n_classes;
    const char *logits = run->logits.data + first * run->logits.row_stride;
    if (run->logits.row_stride == size) {
        for (ptrdiff_t j = 0; j < n_classes; j++) prefetch(logits + j * run->logits.class_stride);
    } else if (run->logits.row_stride == n_classes * size) {
        for (ptrdiff_t i = 0; i < LANES * n_classes * size; i += 64)
            if (n_classes <= FEW_CLASSES / 2) /* two tiles fit in L1: 0.96 of the time */
                prefetch(logits + i);
            else /* 0.76 */
                prefetch_to_l2(logits + i);
        if (!call->stream && call->grad.data && run->grad.row_stride == n_classes * size) {
            const char *grad = run->grad.data + first * run->grad.row_stride;
            for (ptrdiff_t i = 0; i < LANES * n_classes * size; i += 64)
                prefetch_for_write(grad + i);
        }
    }
}

/* n rows of a run from row first on, a tile at most. */
static void one_tile(const fastce_call *call, const row_run *run, ptrdiff_t first, ptrdiff_t n,
                     ptrdiff_t n_ahead, real *tile, row_tile *rows, option_tiles *more,
                     flat_rows *flat, row_stream *out)
{
    const ptrdiff_t n_classes = call->n_classes, padded = (n + LANES - 1) / LANES * LANES;
    int64_t targets[TILE];
    _Alignas(64) integer wanted[TILE]; /* targets as the arithmetic compares them, if at all */
    const int all_there = read_rows(call, run, first, n, targets, rows);
    load_tile(&run->logits, first, n, n_ahead, n_classes, tile);
    for (ptrdiff_t i = n; i < padded; i++) {
        targets[i] = -1;
        rows->weight[i] = rows->sample_weight[i] = rows->upstream[i] = 0;
    }
    if (!all_there)
        for (ptrdiff_t i = 0; i < n; i++)
            if (targets[i] < 0) /* whatever the row holds, it is not seen */
                for (ptrdiff_t j = 0; j < n_classes; j++) *cell(tile, n_classes, i, j) = 0;
    if (more) prepare_tile(call, run, first, n, tile, more);
    if (call->smoothing != 0)
        for (ptrdiff_t i = 0; i < n; i++) rows->weight[i] *= 1 - call->smoothing;
    if (!all_there && more) /* nor are its mask and its probabilities */
        for (ptrdiff_t i = 0; i < n; i++)
            for (ptrdiff_t j = 0; targets[i] < 0 && j < n_classes; j++)
                *cell(tile, n_classes, i, j) = *cell(more->logits, n_classes, i, j)
                    = *cell(more->dense, n_classes, i, j) = 0;

    for (ptrdiff_t i = 0; i < padded; i++)
        wanted[i] = call->loss == FASTCE_SOFTMAX ? -1 : (integer)targets[i];
    const int is_far = call->n_rows * n_classes >= FAR_FROM;
    const int even = is_even(call);
    int hidden = 0;
    column_tops tops[TILE / LANES];
    for (ptrdiff_t i = 0; i < padded; i += LANES) {
        const vreal *group = group_of(tile, n_classes, i);
        tops[i / LANES] = tops_of(group, n_classes);
        if (even) hidden |= column_even(call, group, i, tops + i / LANES, rows);
    }
    const int is_flat
        = flat && all_there && !hidden
          && flat_terms((const elem *)row_of(&run->logits, first), n, n_classes, tops, flat);
    for (ptrdiff_t i = 0; i < padded; i += LANES) {
        vreal *group = group_of(tile, n_classes, i);
        if (is_far && n_ahead >= n) prefetch_rows(call, run, first + n + i);
        if (is_flat)
            column_terms(1, group, flat->terms + i * n_classes, n_classes, i, wanted,
                         tops + i / LANES, rows);
        else
            column_terms(0, group, NULL, n_classes, i, wanted, tops + i / LANES, rows);
    }
    if (more && is_dense(call))
        for (ptrdiff_t i = 0; i < padded; i += LANES) column_dense(call, tile, more, i, rows);
    if (!call->targets.data) memcpy(rows->target_logit, rows->max, sizeof rows->max);
    epilogue(call, rows, padded);
    if (!all_there)
        for (ptrdiff_t i = 0; i < n; i++)
            if (targets[i] < 0) { /* also where the mean divides by 0 */
                rows->loss[i] = rows->factor[i] = rows->scale[i] = rows->target_grad[i] = 0;
                rows->cross[i] = 0;
            }
    for (ptrdiff_t i = n; i < padded; i++) rows->loss[i] = rows->factor[i] = 0;
    if (even) take_smoothing(padded, rows);
    for (ptrdiff_t i = 0; i < n && call->loss == FASTCE_LOGSUMEXP; i++)
        if (rows->max[i] - rows->max[i] != 0) { /* as infinite_logsumexp in rows.h */
            rows->loss[i] = rows->max[i];
            for (ptrdiff_t j = 0; j < n_classes; j++) {
                const double z = *cell(more->logits, n_classes, i, j);
                if (z != z) rows->loss[i] = z;
            }
        }
    for (ptrdiff_t i = 0; i < n && call->loss < FASTCE_SOFTMAX; i += DOUBLES)
        if (any((vinteger)are_tiny(doubles_at(rows->factor, i))))
            shrink_terms(tile, is_flat ? flat->terms : NULL, n_classes, i, rows);
    /* where one class is all there is: 1, not what roundings make of it */
    for (ptrdiff_t i = 0; i < n && call->loss == FASTCE_SOFTMAX; i++)
        if (rows->others[i] == 0) {
            for (ptrdiff_t j = 0; j < n_classes; j++)
                *cell(tile, n_classes, i, j) = *cell(tile, n_classes, i, j) > 0;
            rows->factor[i] = 1;
        }
    if (call->losses)
        for (ptrdiff_t i = 0; i < n; i++)
            ((real *)call->losses)[run->first + first + i] = (real)rows->loss[i];
    if (call->row_stats)
        evaluate_tile(call, tile, more, n, targets, rows, call->row_stats + run->first + first);
    if (!call->grad.data) return;

    if (call->loss == FASTCE_LOG_SOFTMAX) {
        log_softmax_tile(tile, more, n_classes, n, rows);
    } else if (more) {
        for (ptrdiff_t i = 0; i < padded; i += LANES)
            column_options(call, tile, more, i, wanted, rows);
        if (call->hess.data)
            store_tile(&run->hess, call->out_elem, call->stream, first, n, n_classes, more->hess);
    } else if (!is_flat) {
        for (ptrdiff_t i = 0; i < padded; i += LANES) {
            const vreal factor = narrow(rows->factor + i);
            const vreal target_grad = narrow(rows->target_grad + i);
            const vreal less = even ? narrow(rows->less + i) : splat(0);
            const vinteger target = *(const vinteger *)(wanted + i);
            vreal *group = group_of(tile, n_classes, i);
            for (ptrdiff_t j = 0; j < n_classes; j++)
                group[j]
                    = select_equal(target, splat_integer(j), target_grad, group[j] * factor - less);
        }
        if (hidden) clear_hidden(&run->logits, first, n, n_classes, wanted, tile, rows);
    }
    fastce_array grad = run->grad;
    if (out) grad.data = (char *)(out->rows + out->n) - first * grad.row_stride;
    real *flat_grad = (real *)(grad.data + first * grad.row_stride);
    if (is_flat && even)
        flat_gradient(1, flat, n, n_classes, wanted, rows, flat_grad);
    else if (is_flat)
        flat_gradient(0, flat, n, n_classes, wanted, rows, flat_grad);
    else
        store_tile(&grad, call->out_elem, call->stream && !out, first, n, n_classes, tile);
    if (out) stream_rows(out, n * n_classes);
}

static void cross_entropy_columns(fastce_call *call, int thread)
{
    _Alignas(64) real tile[TILE_REALS];
    const ptrdiff_t most = tile_rows(call->n_classes);
    row_tile rows;
    row_stream stream, *out = streams_rows(call, &call->grad) ? &stream : NULL;
    option_tiles *more = NULL;
    flat_rows of_flat, *flat = can_be_flat(call) ? &of_flat : NULL;
    if (flat) number_rows(flat, call->n_classes);
    if (!is_linear(call))
        more = (option_tiles *)(call->scratch + (size_t)thread * call->scratch_size);

    for (cursor at; claim_chunk(call, thread, &at);) {
        wide_exact_sum chunk_sum = {splat_double(0), splat_double(0)};
        ptrdiff_t n;
        stream.to = row_of(&at.run.grad, at.row);
        stream.n = 0;
        for (ptrdiff_t first = at.row; first < at.end; first += n) {
            const uintptr_t grad = (uintptr_t)row_of(&at.run.grad, first);
            n = at.end - first < most ? at.end - first : most;
            if (call->stream && at.run.grad.row_stride == sizeof(elem) && grad % STREAM_BYTES
                && n > LANES) /* streaming needs alignment */
                n = (ptrdiff_t)((STREAM_BYTES - grad % STREAM_BYTES) / sizeof(elem));
            one_tile(call, &at.run, first, n, call->run_length - first - n, tile, &rows, more, flat,
                     out);
            for (ptrdiff_t i = 0; i < n; i += DOUBLES)
                add_wide(&chunk_sum, doubles_at(rows.loss, i));
        }
        if (out) memcpy(out->to, out->rows, (size_t)out->n * sizeof(elem));
        leave(call->sums, at.chunk, sum_of(&chunk_sum)); /* a chunk is one sum here */
    }
    if (call->stream) store_fence();
}

#endif
