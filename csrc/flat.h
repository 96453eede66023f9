/* Contiguous rows of few classes that share a reference, and whose gradients, if wanted, are
 * linear: terms and gradients are computed as they lie.  Only sums need columns, and maxima where a
 * row's target is not its top.  What is done with the terms is in columns.h. */
#ifndef FASTCE_FLAT_H
#define FASTCE_FLAT_H

#include "prepare.h"
#include "tiles.h"

/* row has, for every element of LANES rows, which of them it is of. */
typedef struct {
    _Alignas(64) real terms[TILE_REALS + LANES];
    _Alignas(64) integer row[(MOST_FEW_CLASSES + 1) * LANES];
} flat_rows;

/* Whether logits and mask lie in the same way. */
INLINE int can_mask_flat(const fastce_call *call)
{
    return ELEM_IS_REAL && is_gapless(&call->logits, call->n_classes)
           && call->where.class_stride == 1 && call->where.row_stride == call->n_classes;
}

INLINE int can_be_flat(const fastce_call *call)
{
    return VECTOR_BYTES > 16 && call->run_length >= LANES && is_linear(call)
           && call->loss < FASTCE_SOFTMAX
           && (call->where.data ? can_mask_flat(call) : is_gapless(&call->logits, call->n_classes))
           && (!call->grad.data
               || (call->out_elem == OWN_ELEM && is_gapless(&call->grad, call->n_classes)));
}

static void number_rows(flat_rows *flat, ptrdiff_t n_classes)
{
    for (integer r = 0; r < LANES; r++) /* each runs over into the next */
        for (ptrdiff_t j = 0; j < n_classes; j += LANES)
            *(vinteger_anywhere *)(flat->row + r * n_classes + j) = lane_index(r);
}

/* The terms of n elements as they lie; x may be flat->terms.  Returns the largest logits, a lane
 * each. */
INLINE vreal flat_terms(const int change, const elem *x, ptrdiff_t n, real scale, real power,
                        flat_rows *flat)
{
    const vreference ref = reference_at(splat(power));
    vreal largest = splat(HIDDEN);
#pragma GCC unroll 2
    for (ptrdiff_t j = 0; j < n; j += LANES) {
        const vreal z = change_logits(change, load(x + j), NULL, scale);
        largest = maximum(z, largest); /* NaN is passed over */
        *(vreal *)(flat->terms + j) = exp_terms(z, &ref);
    }
    return largest;
}

/* n elements of rows, -inf where a mask hides them. */
static void mask_flat(const elem *x, const char *seen, ptrdiff_t n, flat_rows *flat)
{
    ptrdiff_t j = 0;
    for (; j + LANES <= n; j += LANES)
        *(vreal *)(flat->terms + j) = select_seen(seen + j, load(x + j), splat(HIDDEN));
    for (; j < n; j++) flat->terms[j] = seen[j] ? get(x + j) : HIDDEN;
}

/* The gradient of n rows from their flat terms.  A label's is put in its place afterwards: to
 * compare in every vector which element is one took 1.05 (10 classes) to 1.13 (100) of the time on
 * AVX2. */
INLINE void flat_gradient(const int even, const flat_rows *flat, ptrdiff_t n, ptrdiff_t n_classes,
                          const integer *labels, const row_tile *rows, elem *grad)
{
    for (ptrdiff_t i = 0; i < n; i += LANES, grad += LANES * n_classes) {
        const real *terms = flat->terms + i * n_classes;
        const vreal factor = narrow(rows->factor + i);
        const vreal less = even ? narrow(rows->less + i) : splat(0);
#pragma GCC unroll 2
        for (ptrdiff_t j = 0; j < LANES * n_classes; j += LANES) {
            const vinteger row = *(const vinteger *)(flat->row + j);
            vreal g = *(const vreal *)(terms + j) * pick(factor, row);
            if (even) g -= pick(less, row);
            store(grad + j, g);
        }
        elem of_labels[LANES];
        store(of_labels, narrow(rows->target_grad + i));
        for (ptrdiff_t r = 0; r < LANES; r++) grad[r * n_classes + labels[i + r]] = of_labels[r];
    }
}

/* Classes j .. j + PIECE of LANES rows whose terms are flat. */
INLINE void load_flat(const real *flat, ptrdiff_t n_classes, ptrdiff_t j, vreal *e)
{
    for (int l = 0; l < PIECE; l++) e[l] = load_pieces(flat + l * n_classes + j, PIECE * n_classes);
    transpose(e, PIECE);
}

#if !defined(FASTCE_f64)
/* The sums of four rows; with eight lanes those of their halves, four lanes apart, and with two
 * nothing is flat.  Rows are named, for an array of sums would live in memory: 10 classes 0.97 of
 * the time on AVX2. */
INLINE vdouble four_sums(const real *terms, ptrdiff_t n_classes)
{
    const ptrdiff_t left = n_classes % DOUBLES, whole = n_classes - left;
    const vlong is_left
        = (double_numbers() - left) >> 63; /* of < gcc 12 makes no 64 bytes without AVX-512 */
    const real *second = terms + n_classes, *third = second + n_classes, *last = third + n_classes;
    vdouble a = (vdouble)((vlong)widen_from(terms + whole) & is_left);
    vdouble b = (vdouble)((vlong)widen_from(second + whole) & is_left);
    vdouble c = (vdouble)((vlong)widen_from(third + whole) & is_left);
    vdouble d = (vdouble)((vlong)widen_from(last + whole) & is_left);
    for (ptrdiff_t j = 0; j < whole; j += DOUBLES) {
        a += widen_from(terms + j);
        b += widen_from(second + j);
        c += widen_from(third + j);
        d += widen_from(last + j);
    }
    return add_neighbours(2, add_neighbours(1, a, b), add_neighbours(1, c, d));
}
#endif

/* The sums of LANES rows of flat terms.  Of floats as they lie, first what is left of whole
 * vectors: by columns 10 classes took 1.09 of the time, 100 1.18.  Of doubles, whose sums are
 * exact, by columns. */
INLINE void flat_sums(const real *terms, ptrdiff_t n_classes, vdouble *sums)
{
#if defined(FASTCE_f64)
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    for (ptrdiff_t j = 0; j < n_classes; j += PIECE) {
        vreal e[PIECE];
        load_flat(terms, n_classes, j, e);
        for (int l = 0; l < PIECE && j + l < n_classes; l++) add_vector(&total, e[l]);
    }
    sums[0] = total.sum + total.lost;
#else
    for (int w = 0; w < WIDE; w++, terms += DOUBLES * n_classes) {
        sums[w] = four_sums(terms, n_classes);
        if (DOUBLES == 8)
            sums[w]
                = add_neighbours(4, sums[w], four_sums(terms + DOUBLES / 2 * n_classes, n_classes));
    }
#endif
}

#endif
