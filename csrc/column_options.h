/* Options of few classes, a tile at a time.  The formulas are in row_options.h, with those of many
 * classes. */
#ifndef FASTCE_COLUMN_OPTIONS_H
#define FASTCE_COLUMN_OPTIONS_H

#include "row_options.h"
#include "tiles.h"

/* What a tile of rows has besides its logits, where a call has options. */
typedef struct {
    _Alignas(64) real dense[TILE_REALS], chain[TILE_REALS], hess[TILE_REALS];
    _Alignas(64) real logits[TILE_REALS]; /* what the softmax sees */
} option_tiles;

/* -inf where a mask hides classes of rows first .. first + n. */
static void mask_tile(const fastce_array *where, ptrdiff_t first, ptrdiff_t n, ptrdiff_t n_classes,
                      real *tile)
{
    const char *from = where->data + first * where->row_stride;
    for (ptrdiff_t i = 0; i < n; i++, from += where->row_stride)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            *cell(tile, n_classes, i, j)
                = from[j * where->class_stride] ? *cell(tile, n_classes, i, j) : HIDDEN;
}

/* The probabilities of rows first .. first + n, which are reals, to a tile; zeros in the lanes
 * beyond n. */
static void load_probability_tile(const fastce_array *q, ptrdiff_t first, ptrdiff_t n,
                                  ptrdiff_t n_ahead, ptrdiff_t n_classes, real *tile)
{
    if (ELEM_IS_REAL) {
        load_tile(q, first, n, n_ahead, n_classes, tile);
        return;
    }
    const char *from = q->data + first * q->row_stride;
    for (ptrdiff_t i = 0; i < (n + LANES - 1) / LANES * LANES; i++, from += q->row_stride)
        for (ptrdiff_t j = 0; j < n_classes; j++)
            *cell(tile, n_classes, i, j) = i < n ? *(const real *)(from + j * q->class_stride) : 0;
}

/* Logits of rows first .. first + n through scale and cap; where more is asked for, dense gets
 * q. */
static void prepare_tile(const fastce_call *call, const row_run *run, ptrdiff_t first, ptrdiff_t n,
                         ptrdiff_t n_ahead, real *tile, option_tiles *more)
{
    const ptrdiff_t n_classes = call->n_classes;
    const real scale = (real)call->logit_scale;
    const vreal softcap = splat((real)call->softcap);
    const int has_cap = call->softcap != 0;
    if (run->probabilities.data)
        load_probability_tile(&run->probabilities, first, n, n_ahead, n_classes, more->dense);
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        vreal *group = group_of(tile, n_classes, i);
        if (!more) {
            for (ptrdiff_t j = 0; j < n_classes; j++)
                group[j] = change_logits(SCALED, group[j], NULL, scale);
            continue;
        }
        vreal *logits = group_of(more->logits, n_classes, i);
        vreal *dense = group_of(more->dense, n_classes, i), seen = splat(0);
        vreal *chain = group_of(more->chain, n_classes, i);
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            const vreal x = group[j];
            group[j] = has_cap ? begin_cap(x, scale, softcap, chain + j) : x * scale;
        }
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            if (has_cap) group[j] = end_cap(group[j], chain[j], softcap, chain + j);
            logits[j] = group[j];
            seen -= as_reals(logits[j] > splat(HIDDEN));
        }
        _Alignas(64) double spread[LANES];
        for (int w = 0; w < WIDE; w++)
            *(vdouble *)(spread + w * DOUBLES) = call->smoothing / widen(seen, w);
        for (ptrdiff_t j = 0; is_dense(call) && j < n_classes; j++) {
            const vreal probability = run->probabilities.data ? dense[j] : splat(0);
            const double class_weight = call->class_weight ? call->class_weight[j] : 1;
            dense[j] = dense_part(call, logits[j], probability, narrow(spread),
                                  splat((real)class_weight));
        }
    }
}

/* mass, gap and, for poly-1, missed of LANES rows whose top and others are known. */
INLINE void column_dense(const fastce_call *call, real *tile, option_tiles *more, ptrdiff_t i,
                         row_tile *rows)
{
    const vreal *terms = group_of(tile, call->n_classes, i);
    const vreal *dense = group_of(more->dense, call->n_classes, i);
    const vreal *logits = group_of(more->logits, call->n_classes, i);
    for (int w = 0; w < WIDE; w++) {
        const ptrdiff_t lane = i + w * DOUBLES;
        wide_exact_sum mass = {splat_double(0), splat_double(0)}, gap = mass, missed = mass;
        const vdouble max = doubles_at(rows->max, lane), others = doubles_at(rows->others, lane);
        const vdouble all = doubles_at(rows->top, lane) + others;
        for (ptrdiff_t j = 0; j < call->n_classes; j++)
            add_gap(dense[j], logits[j], max, w, &mass, &gap);
        for (ptrdiff_t j = 0; call->loss == FASTCE_POLY1 && j < call->n_classes; j++)
            add_wide(&missed, widen(dense[j], w)
                                  * select_double(widen(logits[j], w) == max, others,
                                                  all - widen(terms[j], w)));
        *(vdouble *)(rows->mass + lane) = results_of(&mass);
        *(vdouble *)(rows->gap + lane) = results_of(&gap);
        *(vdouble *)(rows->missed + lane) = results_of(&missed);
    }
}

/* The gradient and the Hessian's diagonal of LANES rows with options, over their terms: the
 * formulas are in row_options.h, write_row. */
INLINE void column_options(const fastce_call *call, real *tile, option_tiles *more, ptrdiff_t i,
                           const integer *labels, const row_tile *rows)
{
    const ptrdiff_t n_classes = call->n_classes;
    vreal *terms = group_of(tile, n_classes, i), *hess = group_of(more->hess, n_classes, i);
    const vreal *q = group_of(more->dense, n_classes, i);
    const vreal *chain = group_of(more->chain, n_classes, i);
    const vreal *logits = group_of(more->logits, n_classes, i);
    const int soft = call->probabilities.data != NULL, dense = is_dense(call);
    const vreal max = narrow(rows->max + i);
    vinteger top_at = splat_integer(n_classes - 1), exact_at = *(const vinteger *)(labels + i);
    for (ptrdiff_t j = n_classes - 1; j-- > 0;)
        top_at = (vinteger)select_real(logits[j] == max, (vreal)splat_integer(j), (vreal)top_at);
    _Alignas(64) double inverse[LANES], slope_of_top[LANES], hess_of_top[LANES], square[LANES],
        exact[LANES], lead[LANES];
    for (int w = 0; w < WIDE; w++) {
        const vdouble top = doubles_at(rows->top, i + w * DOUBLES);
        const vdouble others = doubles_at(rows->others, i + w * DOUBLES);
        *(vdouble *)(lead + w * DOUBLES) = top - others;
        const vdouble to_ps = 1 / (top + others);
        *(vdouble *)(inverse + w * DOUBLES) = to_ps;
        const vdouble slope = share_of(doubles_at(rows->whole, i + w * DOUBLES), others, to_ps);
        *(vdouble *)(slope_of_top + w * DOUBLES) = slope;
        *(vdouble *)(hess_of_top + w * DOUBLES) = slope * (top * to_ps);
        *(vdouble *)(square + w * DOUBLES)
            = call->z_loss != 0 ? doubles_at(rows->scale, i + w * DOUBLES) * (2 * call->z_loss)
                                : splat_double(0);
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
            at = scale * ((mass - own) + (pull - mass)) - doubles_at(slope_of_top, w * DOUBLES);
        } else if (dense) {
            at -= scale * own;
        }
        *(vdouble *)(exact + w * DOUBLES) = at;
    }
    const vreal factor = narrow(rows->factor + i), scale = narrow(rows->scale + i);
    const vreal cross = scale * (real)call->alpha, to_p = narrow(inverse), twice = narrow(square);
    const vreal exact_grad = narrow(exact), exact_hess = narrow(hess_of_top);
    const real to_cap = (real)(1 / call->softcap), bend = (real)(-2 / call->softcap);
    for (ptrdiff_t j = 0; j < n_classes; j++) {
        const vinteger number = splat_integer(j);
        const vreal term = terms[j], p = term * to_p, c = chain[j], z = logits[j];
        vreal grad_z = term * factor;
        if (dense) grad_z -= q[j] * scale;
        if (call->loss == FASTCE_POLY1 && dense) grad_z -= q[j] * p * cross;
        grad_z = select_equal(exact_at, number, exact_grad, grad_z);
        if (call->hess.data) {
            const vreal slope
                = select_equal(top_at, number, exact_hess, term * factor * ((real)1 - p));
            vreal hess_z = slope + p * p * twice;
            if (call->softcap != 0) {
                /* where z is -inf, c is 0 and so is everything */
                const vreal curve
                    = (vreal)((vinteger)(z * to_cap * c * bend) & (z > splat(HIDDEN)));
                hess_z = hess_z * c * c + grad_z * curve;
            }
            hess[j] = plain_nan(hess_z * (real)call->logit_scale);
        }
        terms[j] = plain_nan(call->softcap != 0 ? grad_z * c : grad_z);
    }
}

/* As in row_options.h, write_log_softmax: (x - max) - log_sum in double. */
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

/* As in row_options.h, evaluate_row. */
static void evaluate_tile(const fastce_call *call, real *tile, option_tiles *more, ptrdiff_t n,
                          const int64_t *targets, const row_tile *rows, fastce_row_stats *stats)
{
    const ptrdiff_t n_classes = call->n_classes;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        const vreal *logits = group_of(more->logits, n_classes, i);
        const vreal *terms = group_of(tile, n_classes, i);
        vinteger before = splat_integer(0), target = before;
        vreal at_target = splat(0);
        vdouble spread[WIDE] = {splat_double(0)};
        for (ptrdiff_t l = 0; l < LANES && i + l < n; l++) {
            if (targets[i + l] < 0) continue;
            target[l] = (integer)targets[i + l];
            at_target[l] = logits[targets[i + l]][l];
        }
        for (ptrdiff_t j = 0; j < n_classes; j++) {
            const vinteger is_lower = splat_integer(j) < target;
            before -= (logits[j] > at_target) | ((logits[j] == at_target) & is_lower);
            for (int w = 0; w < WIDE; w++)
                spread[w]
                    += spread_part(terms[j], logits[j], doubles_at(rows->max, i + w * DOUBLES), w);
        }
        for (ptrdiff_t l = 0; l < LANES && i + l < n; l++)
            stats[i + l] = targets[i + l] < 0 ? (fastce_row_stats){.rank = -1}
                                              : stats_of(call, rows, i + l, before[l],
                                                         spread[l / DOUBLES][l % DOUBLES]);
    }
}

#endif
