/* Few classes between memory and a `tile`: some rows at a time, LANES of them to a group, which has
 * a vector for each class, so that every step of the arithmetic serves LANES rows.  The arithmetic
 * is in columns.h. */
#ifndef FASTCE_TILES_H
#define FASTCE_TILES_H

#include "prepare.h"

/* A tile is TILE rows, or a half or a quarter of them, where that leaves more of the smallest L1,
 * 32 KB, to what comes and goes. */
enum {
    MOST_FEW_CLASSES = sizeof(real) == 4 && VECTOR_BYTES > 16 ? 224 : 112,
    VERY_FEW = 32,          /* up to so many: whole tiles */
    TILE_REALS = 3584,      /* halves of tiles up to 112 classes, quarters up to 224 */
    PREFETCH_FROM = 1 << 17 /* elements; fewer stay in L2 */
};

/* Up to so many classes columns.h is used.  Floats of 128 and 200 classes take 0.72 of the time of
 * rows.h where targets are tops, so that neither maxima are looked for nor logits turned into
 * columns, channels first 0.45; but with a z-loss or soft targets 1.4, doubles 1.3, the baseline,
 * which turns them, 1.3. */
INLINE ptrdiff_t few_classes(const fastce_call *call)
{
    return has_target_top(call) ? MOST_FEW_CLASSES : 112;
}

/* Whether an array of elems has its rows one after the other. */
INLINE int is_gapless(const fastce_array *x, ptrdiff_t n_classes)
{
    return x->class_stride == sizeof(elem) && x->row_stride == n_classes * (ptrdiff_t)sizeof(elem);
}

INLINE ptrdiff_t tile_rows(ptrdiff_t n_classes)
{
    return n_classes <= VERY_FEW ? TILE : n_classes <= TILE_REALS / 32 ? 32 : 16;
}

/* A group's class 0.  Groups are whole numbers of LANES classes apart, for those are loaded
 * together. */
INLINE vreal *group_of(real *tile, ptrdiff_t n_classes, ptrdiff_t row)
{
    return (vreal *)tile + row / LANES * ((n_classes + LANES - 1) / LANES * LANES);
}

/* Class j of one of a group's rows. */
INLINE real *lane_at(vreal *group, ptrdiff_t j, ptrdiff_t lane)
{
    return (real *)(group + j) + lane;
}

INLINE real *cell(real *tile, ptrdiff_t n_classes, ptrdiff_t row, ptrdiff_t j)
{
    return lane_at(group_of(tile, n_classes, row), j, row % LANES);
}

/* LANES rows of contiguous classes to columns, and back, a few classes at a time.  In come as many
 * as a piece of 16 bytes has, so that a vector has pieces of several rows and loads do most of the
 * transposition; halves, which are converted by vectors, by vectors.  Out go whole vectors of
 * classes, and what is left by halves of vectors and pieces (10 classes: 0.91 of the time of a
 * vector that is mostly padding; 32 classes by pieces alone: 1.14).
 *
 * Reads up to a vector beyond a row, so what follows the last row must be readable; in place
 * another thread may be writing there, and those lanes are never looked at.  On the way back a
 * row's last piece runs over into the next row, which is written after it; where there is no next
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

/* The same for two classes: two shuffles each way. */
INLINE void pairs_to_columns(const elem *x, vreal *group)
{
    const vreal a = load(x), b = load(x + LANES);
    group[0] = shuffle_two(a, b, lane_numbers() * 2);
    group[1] = shuffle_two(a, b, lane_numbers() * 2 + 1);
}

INLINE void columns_to_pairs(elem *x, const vreal *group)
{
    const vinteger pair = lane_numbers() / 2 + (lane_numbers() & 1) * LANES;
    store(x, shuffle_two(group[0], group[1], pair));
    store(x + LANES, shuffle_two(group[0], group[1], pair + LANES / 2));
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
        for (; n_classes == 2 && i + LANES <= n; i += LANES)
            pairs_to_columns((const elem *)source + i * 2, group_of(tile, 2, i));
        for (; i < n; i += LANES) {
            const elem *from = (const elem *)source + i * n_classes;
            const ptrdiff_t left = n - i < LANES ? n - i : LANES;
            if (left == 1) break; /* by vectors it would take 1.15 of a 1 x 10 call's time */
            elem last[(MOST_FEW_CLASSES + 1) * LANES];
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
            if (stream && (uintptr_t)to % 64 == 0 && n % LINE == 0)
                for (i = 0; i < whole; i += LANES)
                    store_stream(to + i, group_of(tile, n_classes, i)[j]);
            else
                for (i = 0; i < whole; i += LANES) store(to + i, group_of(tile, n_classes, i)[j]);
        }
    } else if (is_gapless(x, n_classes)) {
        for (; n_classes == 2 && i + LANES <= n; i += LANES)
            columns_to_pairs((elem *)out + i * 2, group_of(tile, 2, i));
        for (; i + LANES <= n; i += LANES)
            columns_to_rows((elem *)out + i * n_classes, n_classes, group_of(tile, n_classes, i));
        if (n - i > 1) {
            elem last[MOST_FEW_CLASSES * LANES];
            columns_to_rows(last, n_classes, group_of(tile, n_classes, i));
            memcpy((elem *)out + i * n_classes, last, (size_t)((n - i) * n_classes) * sizeof(elem));
            i = n;
        }
    }
    for (; i < n; i++)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            put_as(OWN_ELEM, out + i * row_stride + j * class_stride, *cell(tile, n_classes, i, j));
}

/* Gradients of contiguous rows on their way past the caches: rows that are not a whole number of
 * lines wait here for the next ones.  rows[0 .. n) belong at `to`. */
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

INLINE void stream_rest(const row_stream *out)
{
    memcpy(out->to, out->rows, (size_t)out->n * sizeof(elem));
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
            if (n_classes <= 56) /* two tiles fit in L1: 0.96 of the time */
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

#endif
