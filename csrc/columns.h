/* Few classes, lanes = rows: TILE rows at a time lie as one column each in `tile`, where every step
 * of the arithmetic serves a whole vector of rows.  Many classes are in rows.h.
 *
 * The order in which a row's terms are added depends on n_classes alone, so that every memory
 * layout gives the same bits. */
#ifndef FASTCE_COLUMNS_H
#define FASTCE_COLUMNS_H

#include "rows.h"

/* Up to here this file is used: TILE * FEW_CLASSES floats are 16 KB, half of the smallest L1. */
enum { FEW_CLASSES = 64 };

/* LANES rows of contiguous classes to columns.  Reads up to LANES elements beyond a row, so what
 * follows the last row must be readable. */
INLINE void rows_to_columns(const elem *x, ptrdiff_t n_classes, real (*tile)[TILE])
{
    for (ptrdiff_t j = 0; j < n_classes; j += LANES) {
        vreal v[LANES];
        for (int l = 0; l < LANES; l++) v[l] = load(x + l * n_classes + j);
        transpose(v);
        for (int l = 0; l < LANES; l++) *(vreal *)tile[j + l] = v[l];
    }
}

/* The way back.  A row's last vector runs over into the next row, whose first classes are written
 * after it; where there is no next row it is written one by one. */
INLINE void columns_to_rows(elem *x, ptrdiff_t n_classes, real (*tile)[TILE])
{
    for (ptrdiff_t j = (n_classes - 1) / LANES * LANES; j >= 0; j -= LANES) {
        vreal v[LANES];
        const ptrdiff_t width = n_classes - j < LANES ? n_classes - j : LANES;
        for (int l = 0; l < LANES; l++) v[l] = *(const vreal *)tile[j + l];
        transpose(v);
        for (int l = 0; l < LANES; l++) {
            elem *to = x + l * n_classes + j;
            if (width == LANES || l * n_classes + j + LANES <= LANES * n_classes) {
                store(to, v[l]);
            } else {
                for (ptrdiff_t k = 0; k < width; k++) to[k] = v[l][k];
            }
        }
    }
}

/* Rows first .. first + n of x to the tile, zeros in the lanes beyond n. */
static void load_tile(const fastce_call *call, ptrdiff_t first, ptrdiff_t n, real (*tile)[TILE])
{
    const ptrdiff_t n_classes = call->n_classes, row_stride = call->logits.row_stride;
    const ptrdiff_t class_stride = call->logits.class_stride;
    const char *source = call->logits.data + first * row_stride;
    ptrdiff_t i = 0;
    if (row_stride == sizeof(elem)) {
        for (; i + LANES <= n; i += LANES)
            for (ptrdiff_t j = 0; j < n_classes; j++)
                *(vreal *)(tile[j] + i) = load((const elem *)(source + j * class_stride) + i);
    } else if (class_stride == sizeof(elem) && row_stride == n_classes * (ptrdiff_t)sizeof(elem)) {
        for (; i + LANES <= n; i += LANES) {
            const elem *from = (const elem *)source + i * n_classes;
            elem last[(FEW_CLASSES + 1) * LANES];
            if (first + i + LANES == call->n_rows) /* nothing to read beyond */
                from = memcpy(last, from, (size_t)(LANES * n_classes) * sizeof(elem));
            rows_to_columns(from, n_classes, (real(*)[TILE])(tile[0] + i));
        }
    }
    for (; i < n; i++)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            tile[j][i] = *(const elem *)(source + i * row_stride + j * class_stride);
    for (; i % LANES; i++)
        for (ptrdiff_t j = 0; j < n_classes; j++) tile[j][i] = 0;
}

static void store_tile(const fastce_call *call, ptrdiff_t first, ptrdiff_t n, real (*tile)[TILE])
{
    const ptrdiff_t n_classes = call->n_classes, row_stride = call->grad.row_stride;
    const ptrdiff_t class_stride = call->grad.class_stride;
    char *out = call->grad.data + first * row_stride;
    ptrdiff_t i = 0;
    if (row_stride == sizeof(elem)) {
        for (; i + LANES <= n; i += LANES)
            for (ptrdiff_t j = 0; j < n_classes; j++)
                store((elem *)(out + j * class_stride) + i, *(const vreal *)(tile[j] + i));
    } else if (class_stride == sizeof(elem) && row_stride == n_classes * (ptrdiff_t)sizeof(elem)) {
        for (; i + LANES <= n; i += LANES)
            columns_to_rows((elem *)out + i * n_classes, n_classes, (real(*)[TILE])(tile[0] + i));
    }
    for (; i < n; i++)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            *(elem *)(out + i * row_stride + j * class_stride) = tile[j][i];
}

/* Replaces the logits of LANES rows by their terms and fills the rows' max, top and others. */
INLINE void column_terms(real (*tile)[TILE], ptrdiff_t n_classes, ptrdiff_t i, row_tile *rows)
{
    vreal max = *(const vreal *)(tile[0] + i);
    for (ptrdiff_t j = 1; j < n_classes; j++) max = maximum(*(const vreal *)(tile[j] + i), max);

    const vreal sign_bit = splat(-(real)0);
    const vreal size = (vreal)((vinteger)max & ~(vinteger)sign_bit);
    const vreal shift = (vreal)((vinteger)max & (size > splat((real)SHIFT_FROM)));
    const vreal from_shift = max - shift;
    const vreal power = (from_shift * (real)LOG2_E + (real)ROUND_MAGIC) - (real)ROUND_MAGIC;
    const vreference ref = spread(shift, power);

    wide_exact_sum total = {splat_double(0), splat_double(0)};
    vinteger ties = (vinteger)splat(0);
    for (ptrdiff_t j = 0; j < n_classes; j++) {
        const vreal x = *(const vreal *)(tile[j] + i);
        const vreal e = exp_terms(x, &ref);
        const vinteger is_max = x == max;
        ties -= is_max;
        *(vreal *)(tile[j] + i) = e;
        add_vector(&total, (vreal)((vinteger)e & ~is_max));
    }
    const vreal more_ties = __builtin_convertvector(ties, vreal) - (real)1;
    for (int w = 0; w < WIDE; w++) {
        const vdouble wide_max = widen(max, w), wide_power = widen(power, w);
        const vdouble reduced = ((wide_max - widen(shift, w)) - wide_power * LN2_DOUBLE_HIGH)
                                - wide_power * LN2_DOUBLE_LOW;
        const vdouble top = exp_double(reduced) * TWO_TO_BIAS;
        double *to = rows->others + i + w * DOUBLES;
        const vdouble others = WIDE == 1 ? total.sum + total.lost : w ? total.lost : total.sum;
        *(vdouble *)to = others + widen(more_ties, w) * top;
        *(vdouble *)(rows->max + i + w * DOUBLES) = wide_max;
        *(vdouble *)(rows->top + i + w * DOUBLES) = top;
    }
}

/* Each row's entry of the tile at its target; of class 0 where it has none. */
INLINE void gather_targets(real (*tile)[TILE], const int64_t *targets, ptrdiff_t n, double *entry)
{
    for (ptrdiff_t i = 0; i < n; i++)
        entry[i] = tile[targets[i] & ~(targets[i] >> 63)][i];
}

static void cross_entropy_columns(fastce_call *call, int thread)
{
    (void)thread;
    const ptrdiff_t n_classes = call->n_classes;
    _Alignas(64) real tile[FEW_CLASSES][TILE];
    int64_t targets[TILE];
    row_tile rows;

    for (cursor at; claim_chunk(call, &at);) {
        wide_exact_sum chunk_sum = {splat_double(0), splat_double(0)};
        for (ptrdiff_t first = at.row; first < at.end; first += TILE) {
            const ptrdiff_t n = at.end - first < TILE ? at.end - first : TILE;
            const ptrdiff_t padded = (n + LANES - 1) / LANES * LANES;
            const int all_there = read_rows(call, first, n, targets, rows.weight);
            load_tile(call, first, n, tile);
            if (!all_there)
                for (ptrdiff_t i = 0; i < n; i++)
                    if (targets[i] < 0) /* whatever the row holds, it is not seen */
                        for (ptrdiff_t j = 0; j < n_classes; j++) tile[j][i] = 0;
            for (ptrdiff_t i = n; i < padded; i++) targets[i] = -1, rows.weight[i] = 0;
            gather_targets(tile, targets, padded, rows.target_logit);
            for (ptrdiff_t i = 0; i < padded; i += LANES)
                column_terms(tile, n_classes, i, &rows);
            gather_targets(tile, targets, padded, rows.target_term);
            epilogue(call, &rows, padded);
            if (!all_there)
                for (ptrdiff_t i = 0; i < n; i++)
                    if (targets[i] < 0) rows.factor[i] = 0; /* also where the mean divides by 0 */
            for (ptrdiff_t i = 0; i < padded; i += DOUBLES) add_wide(&chunk_sum, doubles_at(rows.loss, i));
            if (call->losses)
                for (ptrdiff_t i = 0; i < n; i++)
                    ((real *)call->losses)[first + i] = (real)rows.loss[i];
            if (call->grad.data) {
                for (ptrdiff_t i = 0; i < padded; i += LANES) {
                    const vreal factor = narrow(rows.factor + i);
                    for (ptrdiff_t j = 0; j < n_classes; j++) *(vreal *)(tile[j] + i) *= factor;
                }
                for (ptrdiff_t i = 0; i < n; i++)
                    if (targets[i] >= 0) tile[targets[i]][i] = (real)rows.target_grad[i];
                store_tile(call, first, n, tile);
            }
        }
        call->chunk_sums[at.chunk] = total_of(&chunk_sum);
    }
}

#endif
