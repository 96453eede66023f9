/* Which rows a thread has, and what is asked of each: labels of any integer kind, read where they
 * are, and weights.  Labels are checked here too.  What they do to a loss is in epilogue.h. */
#ifndef FASTCE_TARGETS_H
#define FASTCE_TARGETS_H

#include "epilogue.h"

INLINE void *row_of(const fastce_array *array, ptrdiff_t i)
{
    return array->data ? array->data + i * array->row_stride : NULL;
}

/* A run of rows along the innermost row axis: the call's arrays with data at the run's first row,
 * which is row number `first` of all. */
typedef struct {
    fastce_array logits, grad, hess, targets, probabilities, where;
    ptrdiff_t first;
} row_run;

INLINE fastce_array array_of_run(const fastce_call *call, const fastce_array *array, ptrdiff_t run)
{
    fastce_array moved = *array;
    for (int d = call->n_outer - 1; d >= 0 && array->data; d--) {
        moved.data += run % call->outer_shape[d] * array->outer_strides[d];
        run /= call->outer_shape[d];
    }
    return moved;
}

INLINE row_run run_at(const fastce_call *call, ptrdiff_t run)
{
    return (row_run){array_of_run(call, &call->logits, run),
                     array_of_run(call, &call->grad, run),
                     array_of_run(call, &call->hess, run),
                     array_of_run(call, &call->targets, run),
                     array_of_run(call, &call->probabilities, run),
                     array_of_run(call, &call->where, run),
                     run * call->run_length};
}

/* Labels of rows i .. i + n of a run as int64: where they are, or copied to `room`.  A uint64 that
 * has no int64 becomes negative, which is no class; so does an ignore_index for uint64. */
static const int64_t *labels_of(const fastce_call *call, const row_run *run, ptrdiff_t i,
                                ptrdiff_t n, int64_t *room)
{
    const ptrdiff_t stride = run->targets.row_stride;
    const char *source = run->targets.data + i * stride;
#define READ_AS(type)                                                                              \
    if (stride == sizeof(type))                                                                    \
        for (ptrdiff_t k = 0; k < n; k++) room[k] = ((const type *)source)[k];                     \
    else                                                                                           \
        for (ptrdiff_t k = 0; k < n; k++) room[k] = *(const type *)(source + k * stride);          \
    break
    switch (call->target_kind) {
    case FASTCE_I8: READ_AS(int8_t);
    case FASTCE_I16: READ_AS(int16_t);
    case FASTCE_I32: READ_AS(int32_t);
    case FASTCE_U8: READ_AS(uint8_t);
    case FASTCE_U16: READ_AS(uint16_t);
    case FASTCE_U32: READ_AS(uint32_t);
    default: /* and uint64 */
        if (stride == sizeof(int64_t)) return (const int64_t *)source;
        READ_AS(int64_t);
    }
#undef READ_AS
    return room;
}

/* Negative if a label is outside of [0, n_classes), and if any is.  By sign bits, which every ISA
 * has vectors for. */
INLINE int64_t outside(int64_t label, ptrdiff_t n_classes)
{
    return label | (n_classes - 1 - label);
}

INLINE int64_t any_outside(const int64_t *labels, ptrdiff_t n, ptrdiff_t n_classes)
{
    int64_t all = 0;
    for (ptrdiff_t k = 0; k < n; k++) all |= outside(labels[k], n_classes);
    return all;
}

/* 1 or 0. */
INLINE int64_t is_ignored(const fastce_call *call, int64_t label)
{
    return call->has_ignore_index & (label == call->ignore_index);
}

/* Whether labels that are classes have to be looked at one by one. */
INLINE int ignores_a_class(const fastce_call *call)
{
    return call->has_ignore_index && outside(call->ignore_index, call->n_classes) >= 0;
}

/* Whether a mask leaves a class of row i.  Eight are looked at together: one by one, their branches
 * are mispredicted. */
INLINE int has_class(const fastce_array *where, ptrdiff_t i, ptrdiff_t n_classes)
{
    const char *row = where->data + i * where->row_stride;
    ptrdiff_t j = 0;
    for (uint64_t eight; where->class_stride == 1 && j + 8 <= n_classes; j += 8) {
        memcpy(&eight, row + j, sizeof eight);
        if (eight) return 1;
    }
    while (j < n_classes && !row[j * where->class_stride]) j++;
    return j < n_classes;
}

/* Whether the first eight classes tell that a mask leaves one of each of n rows, as they nearly
 * always do: without a branch for each row. */
INLINE int all_have_class(const fastce_array *where, ptrdiff_t i, ptrdiff_t n, ptrdiff_t n_classes)
{
    const char *row = where->data + i * where->row_stride;
    int none = where->class_stride != 1 || n_classes < 8;
    for (ptrdiff_t k = 0; !none && k < n; k++, row += where->row_stride) {
        uint64_t eight;
        memcpy(&eight, row, sizeof eight);
        none = eight == 0;
    }
    return !none;
}

/* Weights that a call may not have, of all lanes; read_rows() leaves them then. */
INLINE void start_rows(row_tile *rows)
{
    for (ptrdiff_t k = 0; k < TILE; k++) rows->sample_weight[k] = rows->upstream[k] = 1;
}

/* Targets and weights of rows i .. i + n of a run into the first n lanes; target -1, and any
 * weight, for a row that is not there: ignored, not kept, without a class, or of sample weight 0.
 * Rows with probabilities have target 0 and weight 0.  Returns whether all are there. */
static int read_rows(const fastce_call *call, const row_run *run, ptrdiff_t i, ptrdiff_t n,
                     int64_t *targets, row_tile *rows)
{
    const ptrdiff_t first = run->first + i;
    int64_t all = 0; /* negative: some target is */
    if (call->targets.data) {
        const int64_t *labels = labels_of(call, run, i, n, targets);
        for (ptrdiff_t k = 0; k < n; k++) targets[k] = labels[k], rows->weight[k] = 1;
        all = any_outside(targets, n, call->n_classes);
        if (all < 0 || ignores_a_class(call)) {
            /* Labels were checked, but another thread may have changed one since. */
            for (ptrdiff_t k = 0; k < n; k++) {
                const int64_t no_class = outside(targets[k], call->n_classes) >> 63;
                targets[k] |= -is_ignored(call, targets[k]) | no_class;
                all |= targets[k];
            }
        }
        const double *class_weight = call->class_weight;
        if (class_weight) /* without branches, which would be mispredicted */
            for (ptrdiff_t k = 0; k < n; k++)
                rows->weight[k] = class_weight[targets[k] > 0 ? targets[k] : 0];
    } else {
        for (ptrdiff_t k = 0; k < n; k++) targets[k] = 0, rows->weight[k] = 0;
    }
    if (call->sample_weight)
        for (ptrdiff_t k = 0; k < n; k++) {
            rows->sample_weight[k] = call->sample_weight[first + k];
            all |= targets[k] |= -(int64_t)(rows->sample_weight[k] == 0);
        }
    if (call->keep_row)
        for (ptrdiff_t k = 0; k < n; k++) all |= targets[k] |= -(int64_t)!call->keep_row[first + k];
    if (run->where.data && !all_have_class(&run->where, i, n, call->n_classes))
        for (ptrdiff_t k = 0; k < n; k++)
            if (!has_class(&run->where, i + k, call->n_classes)) all = targets[k] = -1;
    if (call->upstream)
        for (ptrdiff_t k = 0; k < n; k++) rows->upstream[k] = call->upstream[first + k];
    return all >= 0;
}

/* The number of the first label that is neither a class nor ignored, -1 if none; counts the
 * ignored. */
static ptrdiff_t check_labels(const fastce_call *call, ptrdiff_t *n_ignored)
{
    enum { PART = 512 }; /* by TILE, what begins and ends a loop takes half of the time */
    int64_t room[PART];
    for (ptrdiff_t first = 0; first < call->n_rows; first += call->run_length) {
        const row_run run = run_at(call, first / call->run_length);
        for (ptrdiff_t i = 0; i < call->run_length; i += PART) {
            const ptrdiff_t n = call->run_length - i < PART ? call->run_length - i : PART;
            const int64_t *labels = labels_of(call, &run, i, n, room);
            if (any_outside(labels, n, call->n_classes) >= 0 && !ignores_a_class(call)) continue;
            int64_t wrong = 0, ignored = 0;
            for (ptrdiff_t k = 0; k < n; k++) {
                const int64_t is_none = is_ignored(call, labels[k]);
                ignored += is_none;
                wrong |= outside(labels[k], call->n_classes) & (is_none - 1);
            }
            *n_ignored += ignored;
            for (ptrdiff_t k = 0; wrong < 0 && k < n; k++)
                if (outside(labels[k], call->n_classes) < 0 && !is_ignored(call, labels[k]))
                    return first + i + k;
        }
    }
    return -1;
}

static ptrdiff_t check_targets(const fastce_call *call, double *weight_sum)
{
    const int weighted = (call->class_weight && call->targets.data) || call->sample_weight;
    int64_t targets[TILE];
    row_tile rows;
    ptrdiff_t there = 0, n_ignored = 0;
    if (call->targets.data) {
        const ptrdiff_t wrong = check_labels(call, &n_ignored);
        if (wrong >= 0) return wrong;
        if (!weighted && !call->keep_row && !call->where.data) { /* the labels tell all */
            *weight_sum = (double)(call->n_rows - n_ignored);
            return -1;
        }
    }
    if (weighted) start_rows(&rows);
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    for (ptrdiff_t first = 0; first < call->n_rows; first += call->run_length) {
        const row_run run = run_at(call, first / call->run_length);
        for (ptrdiff_t i = 0; i < call->run_length; i += TILE) {
            const ptrdiff_t n = call->run_length - i < TILE ? call->run_length - i : TILE;
            read_rows(call, &run, i, n, targets, &rows);
            for (ptrdiff_t k = 0; !weighted && k < n; k++) there += targets[k] >= 0;
            if (!weighted) continue;
            _Alignas(64) double weights[TILE];
            if (!call->targets.data)
                for (ptrdiff_t k = 0; k < n; k++) rows.weight[k] = 1;
            for (ptrdiff_t k = 0; k < n; k++)
                weights[k] = targets[k] >= 0 ? rows.sample_weight[k] * rows.weight[k] : 0;
            for (ptrdiff_t k = n; k % DOUBLES; k++) weights[k] = 0;
            for (ptrdiff_t k = 0; k < n; k += DOUBLES) add_wide(&total, doubles_at(weights, k));
        }
    }
    *weight_sum = weighted ? total_of(&total) : (double)there;
    return -1;
}

/* Where a thread is: a row of the chunk it has claimed, counted within a run. */
typedef struct {
    ptrdiff_t chunk, row, end;
    row_run run;
} cursor;

/* The number of a chunk that this thread has from now on; -1: none is left. */
INLINE ptrdiff_t claim(fastce_work *work, int thread)
{
    int part = thread % work->n_parts;
    for (int k = 0; k < work->n_parts; k++) {
        const ptrdiff_t chunk
            = atomic_fetch_add_explicit(&work->next[part], 1, memory_order_relaxed);
        if (chunk < work->end[part]) return chunk;
        part = part + 1 < work->n_parts ? part + 1 : 0;
    }
    return -1;
}

INLINE int claim_chunk(fastce_call *call, int thread, cursor *at)
{
    at->chunk = claim(&call->work, thread);
    if (at->chunk < 0) return 0;
    at->run = run_at(call, at->chunk / call->chunks_per_run);
    at->row = at->chunk % call->chunks_per_run * call->chunk_rows;
    at->end = at->row + call->chunk_rows;
    if (at->end > call->run_length) at->end = call->run_length;
    return 1;
}

#endif
