/* Reads class labels of any integer kind where they are, and checks them.  What a label does to a
 * loss is in epilogue.h. */
#ifndef FASTCE_TARGETS_H
#define FASTCE_TARGETS_H

#include "epilogue.h"

/* Labels of rows first .. first + n as int64.  A uint64 that has no int64 becomes INT64_MAX, which
 * is no class and no ignore_index a caller can ask for. */
static void read_targets(const fastce_call *call, ptrdiff_t first, ptrdiff_t n, int64_t *targets)
{
    const ptrdiff_t stride = call->targets.row_stride;
    const char *source = call->targets.data + first * stride;
#define READ_AS(type)                                                                              \
    if (stride == sizeof(type))                                                                    \
        for (ptrdiff_t i = 0; i < n; i++) targets[i] = ((const type *)source)[i];                  \
    else                                                                                           \
        for (ptrdiff_t i = 0; i < n; i++) targets[i] = *(const type *)(source + i * stride);       \
    break
    switch (call->target_kind) {
    case FASTCE_I8: READ_AS(int8_t);
    case FASTCE_I16: READ_AS(int16_t);
    case FASTCE_I32: READ_AS(int32_t);
    case FASTCE_I64: READ_AS(int64_t);
    case FASTCE_U8: READ_AS(uint8_t);
    case FASTCE_U16: READ_AS(uint16_t);
    case FASTCE_U32: READ_AS(uint32_t);
    default:
        for (ptrdiff_t i = 0; i < n; i++) {
            const uint64_t target = *(const uint64_t *)(source + i * stride);
            targets[i] = target < INT64_MAX ? (int64_t)target : INT64_MAX;
        }
    }
#undef READ_AS
}

/* Targets and weights of rows first .. first + n; target -1 and weight 0 for a row that is not
 * there: ignored, or with a sample weight of 0.  Returns whether all are there. */
static int read_rows(const fastce_call *call, ptrdiff_t first, ptrdiff_t n, int64_t *targets,
                      double *weight)
{
    int64_t all = 0; /* negative: some target is */
    read_targets(call, first, n, targets);
    for (ptrdiff_t i = 0; i < n; i++) {
        const int64_t ignored = call->has_ignore_index & (targets[i] == call->ignore_index);
        targets[i] |= -ignored;
        all |= targets[i];
        weight[i] = targets[i] < 0 ? 0.0 : 1.0;
    }
    if (call->class_weight)
        for (ptrdiff_t i = 0; i < n; i++)
            if (targets[i] >= 0) weight[i] = call->class_weight[targets[i]];
    if (call->sample_weight.data)
        for (ptrdiff_t i = 0; i < n; i++) {
            const char *source
                = call->sample_weight.data + (first + i) * call->sample_weight.row_stride;
            const double sample_weight = *(const double *)source;
            weight[i] *= sample_weight;
            if (sample_weight == 0) targets[i] = -1, weight[i] = 0, all = -1;
        }
    return all >= 0;
}

static ptrdiff_t check_targets(const fastce_call *call, ptrdiff_t *n_valid, double *weight_sum)
{
    const int weighted = call->class_weight || call->sample_weight.data;
    const int has_ignore = call->has_ignore_index;
    int64_t targets[TILE];
    double weight[TILE];
    ptrdiff_t valid = 0;
    exact_sum total = {0, 0};
    for (ptrdiff_t first = 0; first < call->n_rows; first += TILE) {
        const ptrdiff_t n = call->n_rows - first < TILE ? call->n_rows - first : TILE;
        int64_t wrong = 0, kept = 0;
        read_targets(call, first, n, targets);
        for (ptrdiff_t i = 0; i < n; i++) {
            const int64_t ignored = has_ignore & (targets[i] == call->ignore_index);
            kept += !ignored;
            wrong |= !ignored & ((uint64_t)targets[i] >= (uint64_t)call->n_classes);
        }
        if (wrong)
            for (ptrdiff_t i = 0; i < n; i++)
                if ((uint64_t)targets[i] >= (uint64_t)call->n_classes
                    && !(has_ignore && targets[i] == call->ignore_index))
                    return first + i;
        valid += kept;
        if (weighted) {
            read_rows(call, first, n, targets, weight);
            for (ptrdiff_t i = 0; i < n; i++) add(&total, weight[i]);
        }
    }
    *n_valid = valid;
    *weight_sum = weighted ? result(total.sum, total.lost) : (double)valid;
    return -1;
}

#endif
