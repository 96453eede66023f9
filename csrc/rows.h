/* Many classes, one row after the other, lanes = classes.  Few classes are in columns.h.
 *
 * A row is read from memory once and written once, and one exponential is computed per element.
 * It goes block by block: a block is copied to L1 while its maximum is taken, then its terms (see
 * exp_log.h) go to `terms`, a row that stays in L2.  Only when the row ends is its sum known; then
 * the gradient is one multiplication per term.  That is done while the next row is being read, group
 * by group, so that memory is read and written at an even pace under the arithmetic.
 *
 * The row's largest element is left out of the sum (its term is `top`, in double), for others / top
 * must be exact also where it is tiny: sum - top would cancel. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "prepare.h"

enum {
    GROUP = 4 * LANES,                      /* elements of one step: four chains of arithmetic */
    BLOCK = 4096 / (ptrdiff_t)sizeof(real), /* a page: the block, its terms and the previous row
                                                   share the smallest L1, 32 KB */
    LINE = 64 / (ptrdiff_t)sizeof(elem),    /* elements of a cache line */
    STREAM_BYTES = LANES * sizeof(elem),    /* what a streaming store is aligned to */
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

INLINE double sum_of_lanes(vdouble v)
{
    double lanes[DOUBLES];
    memcpy(lanes, &v, sizeof v);
    for (int width = DOUBLES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
    return lanes[0];
}

/* exp(x - shift) * 2^(lift + BIAS - power) in double. */
INLINE double exact_term(double x, double lift, const reference *ref)
{
    const double d = x - ref->shift;
    if (d < -10000) return 0; /* below any double, whatever the powers are */
    const double n = __builtin_rint(d * LOG2_E);
    const vdouble e = exp_double(splat_double((d - n * LN2_DOUBLE_HIGH) - n * LN2_DOUBLE_LOW));
    const double exponent = 1023 + BIAS + n + lift - ref->power;
    if (exponent < 1) return 0;
    const int64_t bits = (int64_t)exponent << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return e[0] * scale;
}

/* Element j of a row of grad. */
INLINE void put(char *row, int as_real, ptrdiff_t j, real x)
{
    if (as_real || ELEM_IS_REAL)
        ((real *)row)[j] = x;
    else
        put_as(OWN_ELEM, row + j * (ptrdiff_t)sizeof(elem), x);
}

/* The last row whose terms are known: its gradient is written while the next row is read. */
typedef struct {
    char *grad;     /* NULL: nothing is pending */
    int as_real;    /* grad holds reals where the logits are halves */
    ptrdiff_t head; /* elements before the first aligned one; 0 if not streaming */
    int stream;
    real factor;
} pending_row;

INLINE void write_scalar(const pending_row *row, const real *terms, ptrdiff_t from, ptrdiff_t to)
{
    for (ptrdiff_t j = from; j < to; j++) put(row->grad, row->as_real, j, row->factor * terms[j]);
}

/* Elements head + [from, from + GROUP) of the pending gradient, as far as the row goes.  Reads terms
 * up to head beyond the group, which the next row overwrites only afterwards. */
INLINE void write_group(const pending_row *row, const real *terms, ptrdiff_t from,
                        ptrdiff_t n_classes)
{
    const ptrdiff_t first = row->head + from;
    if (from == 0) write_scalar(row, terms, 0, row->head < n_classes ? row->head : n_classes);
    if (first + GROUP > n_classes) {
        ptrdiff_t j = first;
        if (row->stream) /* a line that is written in the usual way is read first */
            for (; j + LANES <= n_classes; j += LANES)
                store_stream((elem *)row->grad + j, load_real(terms + j) * row->factor);
        write_scalar(row, terms, j, n_classes);
        return;
    }
    const vreal factor = splat(row->factor);
    elem *grad = (elem *)row->grad + first;
    terms += first;
    if (row->stream)
        for (int i = 0; i < GROUP; i += LANES)
            store_stream(grad + i, load_real(terms + i) * factor);
    else if (ELEM_IS_REAL || !row->as_real)
        for (int i = 0; i < GROUP; i += LANES) store(grad + i, load_real(terms + i) * factor);
    else
        for (int i = 0; i < GROUP; i += LANES)
            store_real((real *)row->grad + first + i, load_real(terms + i) * factor);
}

INLINE void write_pending(pending_row *row, const real *terms, ptrdiff_t n_classes)
{
    if (row->grad)
        for (ptrdiff_t j = 0; j < n_classes; j += GROUP) write_group(row, terms, j, n_classes);
    row->grad = NULL;
}

/* Copies n elements to block, filled up with -inf to a whole group; returns their maximum, NaN
 * passed over. */
INLINE real load_block(const elem *x, ptrdiff_t n, real *block)
{
    vreal max[4] = {splat(HIDDEN), splat(HIDDEN), splat(HIDDEN), splat(HIDDEN)};
    const ptrdiff_t whole = n / GROUP * GROUP, end = (n + GROUP - 1) / GROUP * GROUP;
    for (ptrdiff_t j = 0; j < whole; j += GROUP)
        for (int i = 0; i < 4; i++) {
            const vreal v = load(x + j + i * LANES);
            max[i] = maximum(v, max[i]);
            *(vreal *)(block + j + i * LANES) = v;
        }
    for (ptrdiff_t j = whole; j < n; j++) block[j] = get(x + j);
    for (ptrdiff_t j = n; j < end; j++) block[j] = HIDDEN;
    for (ptrdiff_t j = whole; j < end; j += LANES)
        max[0] = maximum(*(const vreal *)(block + j), max[0]);
    const vreal all = maximum(maximum(max[0], max[1]), maximum(max[2], max[3]));
    return largest_lane(all);
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

/* Whether a row's terms are read again after its sum is known. */
INLINE int needs_terms(const fastce_call *call)
{
    return (call->grad.data && call->loss != FASTCE_LOG_SOFTMAX) || call->loss == FASTCE_EVALUATE
           || (call->loss == FASTCE_POLY1 && is_dense(call));
}

/* Bytes of one row of scratch. */
INLINE size_t row_scratch_size(ptrdiff_t n_classes)
{
    return ((size_t)n_classes / GROUP + 1) * GROUP * sizeof(real);
}

/* Rows of scratch, [n_classes] up to a whole GROUP each. */
typedef struct {
    real *terms;
    real *dense; /* q */
    real *chain; /* d z / d x */
} row_scratch;

/* One row, contiguous, on its way through the loops below. */
typedef struct {
    const elem *x, *next_x;
    const real *probabilities;
    const char *where; /* and its stride */
    ptrdiff_t where_stride;
    int64_t target;
    double spread; /* smoothing per class that is left */
    ptrdiff_t top_at;
} row_input;

/* The options' share of loading a block: changes it in place, fills dense and chain; returns the new
 * maximum. */
static real prepare_block(const fastce_call *call, const row_input *row, ptrdiff_t start,
                          ptrdiff_t n, real *block, const row_scratch *scratch)
{
    const ptrdiff_t end = (n + LANES - 1) / LANES * LANES;
    real largest = HIDDEN;
    if (row->where)
        for (ptrdiff_t j = 0; j < n; j++)
            if (!row->where[(start + j) * row->where_stride]) block[j] = HIDDEN;
    for (ptrdiff_t j = 0; j < end; j += LANES) {
        vreal chain, z = prepare_logits(call, *(const vreal *)(block + j), &chain);
        *(vreal *)(block + j) = z;
        if (call->softcap != 0) *(vreal *)(scratch->chain + start + j) = chain;
        if (is_dense(call)) {
            vreal probability = splat(0), class_weight = splat(1);
            for (ptrdiff_t l = 0; l < LANES && j + l < n; l++) {
                if (row->probabilities) probability[l] = row->probabilities[start + j + l];
                if (call->class_weight) class_weight[l] = (real)call->class_weight[start + j + l];
            }
            *(vreal *)(scratch->dense + start + j)
                = dense_part(call, z, probability, splat((real)row->spread), class_weight);
        }
    }
    for (ptrdiff_t j = 0; j < n; j++) largest = block[j] > largest ? block[j] : largest;
    return largest;
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

/* The statistics of a row, its terms, and on the way the gradient of the pending row. */
static void row_terms(const fastce_call *call, row_input *input, const row_scratch *scratch,
                      const pending_row *pending, row_tile *row)
{
    const ptrdiff_t n_classes = call->n_classes;
    const int64_t target = input->target;
    const int keep_terms = scratch->terms != NULL;
    const int transformed = is_transformed(call), dense = is_dense(call);
    real *terms = scratch->terms;
    wide_exact_sum mass = {splat_double(0), splat_double(0)}, gap = mass;
    _Alignas(64) real block[BLOCK];
    reference ref = {0, 0};
    vreference vref = spread(splat(0), splat(0));
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    double max = -__builtin_inf(), top = 0, target_logit = 0;
    double extra = 0; /* terms of former maxima */

    for (ptrdiff_t start = 0; start < n_classes; start += BLOCK) {
        const ptrdiff_t n = n_classes - start < BLOCK ? n_classes - start : BLOCK;
        const elem *ahead = start + BLOCK < n_classes ? input->x + start + BLOCK : input->next_x;
        real block_max = load_block(input->x + start, n, block);
        if (transformed || dense) block_max = prepare_block(call, input, start, n, block, scratch);
        if (target >= start && target < start + n) target_logit = block[target - start];

        ptrdiff_t top_at = -1;
        if (block_max > max) {
            const double power = __builtin_rint(((double)block_max - (double)ref.shift) * LOG2_E);
            if (start == 0 || max == -__builtin_inf() || power - (double)ref.power > HEADROOM) {
                /* the terms so far are too small for the new maximum: a new reference */
                const double old_top = top;
                const real old_shift = ref.shift, old_power = ref.power;
                ref.shift = __builtin_fabs((double)block_max) > SHIFT_FROM ? block_max : 0;
                ref.power = (real)__builtin_rint(((double)block_max - (double)ref.shift) * LOG2_E);
                vref = spread(splat(ref.shift), splat(ref.power));
                if (old_top > 0) {
                    /* exact when the shift stays 0: a power of two */
                    const double change = exact_term(old_shift, (double)old_power - BIAS, &ref);
                    total.sum *= change;
                    total.lost *= change;
                    extra *= change;
                    top *= change;
                    if (keep_terms)
                        for (ptrdiff_t j = 0; j < start; j += LANES)
                            *(vreal *)(terms + j) *= (real)change;
                }
            }
            if (dense && max > -__builtin_inf())
                add_wide(&gap, (mass.sum + mass.lost) * (block_max - max));
            extra += top;
            max = block_max;
            top = exact_term(max, 0, &ref);
            top_at = find(block, block_max);
            input->top_at = start + top_at;
        }
        if (dense)
            for (ptrdiff_t j = 0; j < n; j += LANES)
                for (int w = 0; w < WIDE; w++)
                    add_gap(*(const vreal *)(scratch->dense + start + j),
                            *(const vreal *)(block + j), splat_double(max), w, &mass, &gap);
        if (top_at >= 0) block[top_at] = HIDDEN;

        for (ptrdiff_t j = 0; j < n; j += GROUP) {
            if (pending->grad) write_group(pending, terms, start + j, n_classes);
            if (ahead)
                for (ptrdiff_t i = 0; i < GROUP; i += LINE) prefetch(ahead + j + i);
            vreal e[4];
            for (int i = 0; i < 4; i++)
                e[i] = exp_terms(*(const vreal *)(block + j + i * LANES), &vref);
            if (keep_terms)
                for (int i = 0; i < 4; i++) *(vreal *)(terms + start + j + i * LANES) = e[i];
            for (int i = 0; i < 4; i++) add_vector(&total, e[i]);
        }
        if (keep_terms && top_at >= 0) terms[start + top_at] = (real)top;
    }
    row->max[0] = max;
    row->target_logit[0] = target_logit;
    row->top[0] = top;
    row->others[0] = sum_of_lanes(total.sum + total.lost) + extra;
    row->target_term[0] = 0;
    if (keep_terms)
        row->target_term[0] = terms[target];
    else if (call->loss != FASTCE_CROSS_ENTROPY)
        row->target_term[0] = exact_term(target_logit, 0, &ref);
    if (dense) {
        row->mass[0] = total_of(&mass);
        row->gap[0] = total_of(&gap);
    }
}

/* The gradient and the Hessian's diagonal of a row with options, at once: the next row's options
 * need the scratch.  With p_j = term_j / total the second derivative is
 * factor * term_j * (1 - p_j) + 2 z_loss scale p_j^2 in z, then the chain rule. */
static void write_row(const fastce_call *call, const row_input *input, const row_scratch *scratch,
                      const row_tile *row, int as_real, char *grad, char *hess)
{
    const ptrdiff_t n_classes = call->n_classes;
    const double inverse = 1 / (row->top[0] + row->others[0]);
    const double scale = row->scale[0], logit_scale = call->logit_scale, softcap = call->softcap;
    const vreal factor = splat((real)row->factor[0]), wide_scale = splat((real)scale);
    const vreal cross = splat((real)row->cross[0]), to_p = splat((real)inverse);
    const vreal square = splat((real)(2 * call->z_loss * scale));
    const real *dense = is_dense(call) ? scratch->dense : NULL;
    const real *chain = softcap != 0 ? scratch->chain : NULL;

    /* the two elements that the formulas below would cancel in: [0] the target or, of dense
     * targets, the top; [1] the top */
    double exact_grad = row->target_grad[0];
    ptrdiff_t exact_at = input->target;
    if (call->probabilities.data) {
        const int sure = row->top[0] > row->others[0];
        exact_at = sure && call->loss != FASTCE_POLY1 ? input->top_at : -1;
        if (exact_at >= 0)
            exact_grad = scale
                         * ((row->mass[0] - dense[exact_at]) + (row->pull[0] - row->mass[0])
                            - row->pull[0] * (row->others[0] * inverse));
    } else if (dense) {
        exact_grad -= scale * dense[exact_at];
    }

    for (ptrdiff_t j = 0; j < n_classes; j += LANES) {
        const vreal term = *(const vreal *)(scratch->terms + j);
        const vreal p = term * to_p;
        _Alignas(64) real g[LANES], h[LANES];
        vreal grad_z = term * factor, rest = (real)1 - p;
        if (dense) {
            const vreal q = *(const vreal *)(dense + j);
            grad_z -= q * wide_scale;
            if (call->loss == FASTCE_POLY1) grad_z -= term * q * cross;
        }
        if (exact_at >= j && exact_at < j + LANES) grad_z[exact_at - j] = (real)exact_grad;
        if (input->top_at >= j && input->top_at < j + LANES)
            rest[input->top_at - j] = (real)(row->others[0] * inverse);
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
        *(vreal *)g = grad_z * (real)logit_scale;
        *(vreal *)h = hess_z * (real)logit_scale * (real)logit_scale;
        for (ptrdiff_t l = 0; l < LANES && j + l < n_classes; l++) {
            put(grad, as_real, j + l, g[l]);
            if (hess) put(hess, as_real, j + l, h[l]);
        }
    }
}

/* (x - max) - log_sum in double, rounded once: at the top class the loss itself. */
static void write_log_softmax(const elem *x, ptrdiff_t n_classes, const row_tile *row, int as_real,
                              char *out)
{
    const double max = row->max[0], log_sum = row->scale[0];
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
                         const row_tile *row, fastce_row_stats *stats)
{
    const real at_target = get(input->x + input->target);
    const double total = row->top[0] + row->others[0];
    ptrdiff_t before = 0;
    double spread = 0;
    for (ptrdiff_t j = 0; j < call->n_classes; j++) {
        const real x = get(input->x + j);
        before += (x > at_target) | ((x == at_target) & (j < input->target));
        spread += terms[j] > 0 ? (double)terms[j] * (row->max[0] - (double)x) : 0;
    }
    if (!(total > 0)) before = call->n_classes; /* a row that is NaN is right for nobody */
    const vdouble log_sum = log1p_double(splat_double(row->others[0] / row->top[0]),
                                         splat_double(row->top[0] / total));
    *stats = (fastce_row_stats){row->loss[0], log_sum[0] + spread / total, row->top[0] / total,
                                before};
}

/* A thread's work on rows of many classes. */
typedef struct {
    row_scratch scratch;
    pending_row pending;
    row_tile tile;
    exact_sum sum;
} row_worker;

static void start_worker(const fastce_call *call, int thread, row_worker *worker)
{
    char *scratch = call->scratch + (size_t)thread * call->scratch_size;
    const size_t row_size = row_scratch_size(call->n_classes);
    memset(worker, 0, sizeof *worker);
    worker->pending.as_real = call->out_elem != OWN_ELEM;
    worker->pending.stream = call->stream && is_plain(call) && !worker->pending.as_real;
    if (needs_terms(call)) worker->scratch.terms = (real *)scratch;
    if (is_dense(call)) worker->scratch.dense = (real *)(scratch + row_size);
    if (call->softcap != 0) worker->scratch.chain = (real *)(scratch + 2 * row_size);
}

/* Row i of a run, whose classes are contiguous here; next_x is what will be read after it. */
static void one_row(const fastce_call *call, row_worker *worker, const row_run *run, ptrdiff_t i,
                    const elem *x, const elem *next_x, const real *probabilities, char *grad,
                    char *hess)
{
    row_tile *tile = &worker->tile;
    row_input input = {.x = x, .next_x = next_x, .probabilities = probabilities, .top_at = -1};
    const int as_real = worker->pending.as_real;
    const size_t row_bytes = (size_t)call->n_classes * (as_real ? sizeof(real) : sizeof(elem));
    const int there = read_rows(call, run, i, 1, &input.target, tile);
    fastce_row_stats *stats = call->row_stats ? call->row_stats + run->first + i : NULL;
    if (!there) {
        if (stats) *stats = (fastce_row_stats){.rank = -1};
        if (grad) memset(grad, 0, row_bytes);
        if (hess) memset(hess, 0, row_bytes);
        tile->loss[0] = 0;
    } else {
        if (run->where.data) {
            input.where = run->where.data + i * run->where.row_stride;
            input.where_stride = run->where.class_stride;
        }
        if (call->smoothing != 0) {
            input.spread = call->smoothing / (double)count_seen(call, &input);
            tile->weight[0] *= 1 - call->smoothing;
        }
        row_terms(call, &input, &worker->scratch, &worker->pending, tile);
        if (!call->targets.data) tile->target_logit[0] = tile->max[0]; /* there is none */
        if (call->loss == FASTCE_POLY1 && is_dense(call)) {
            wide_exact_sum overlap = {splat_double(0), splat_double(0)};
            for (ptrdiff_t j = 0; j < call->n_classes; j += LANES)
                add_vector(&overlap, *(const vreal *)(worker->scratch.dense + j)
                                         * *(const vreal *)(worker->scratch.terms + j));
            tile->overlap[0] = sum_of_lanes(overlap.sum + overlap.lost);
        }
        epilogue(call, tile, 1);
        if (grad && call->loss < FASTCE_SOFTMAX && is_tiny(tile->factor[0])) {
            for (ptrdiff_t j = 0; j < call->n_classes; j += LANES)
                *(vreal *)(worker->scratch.terms + j) *= (real)(1 / TWO_TO_BIAS);
            tile->factor[0] *= TWO_TO_BIAS;
            tile->cross[0] *= TWO_TO_BIAS;
            tile->top[0] /= TWO_TO_BIAS;
            tile->others[0] /= TWO_TO_BIAS;
        }
        if (call->loss == FASTCE_LOGSUMEXP && tile->max[0] - tile->max[0] != 0)
            tile->loss[0] = infinite_logsumexp(tile->max[0], x, call->n_classes);
        if (call->loss == FASTCE_LOG_SOFTMAX) {
            write_log_softmax(x, call->n_classes, tile, as_real, grad);
        } else if (stats) {
            evaluate_row(call, &input, worker->scratch.terms, tile, stats);
        } else if (!is_plain(call)) {
            if (grad) write_row(call, &input, &worker->scratch, tile, as_real, grad, hess);
        } else if (grad) {
            const double factor = tile->factor[0];
            if (call->loss != FASTCE_SOFTMAX)
                worker->scratch.terms[input.target]
                    = factor == 0 ? 0 : (real)(tile->target_grad[0] / factor);
            worker->pending.factor = (real)factor;
            worker->pending.grad = grad;
            if (worker->pending.stream)
                worker->pending.head = (ptrdiff_t)(-(uintptr_t)grad % STREAM_BYTES / sizeof(elem));
        }
    }
    if (call->losses) ((real *)call->losses)[run->first + i] = (real)tile->loss[0];
    add(&worker->sum, tile->loss[0]);
    if ((i + 1) % call->sum_rows == 0 || i + 1 == call->run_length) {
        const ptrdiff_t n = run->first / call->run_length * call->sums_per_run + i / call->sum_rows;
        leave(call->sums, n, worker->sum);
        worker->sum = (exact_sum){0, 0};
    }
}

INLINE void *row_of(const fastce_array *array, ptrdiff_t i)
{
    return array->data ? array->data + i * array->row_stride : NULL;
}

/* The row after this one is known in time to be prefetched, for which the next chunk is claimed one
 * row early. */
INLINE int next_row(fastce_call *call, cursor *at)
{
    return ++at->row < at->end || claim_chunk(call, at);
}

/* Rows whose classes are contiguous in every array. */
static void cross_entropy_rows(fastce_call *call, int thread)
{
    row_worker worker;
    cursor next;
    start_worker(call, thread, &worker);
    for (int more = claim_chunk(call, &next); more;) {
        const cursor at = next;
        more = next_row(call, &next);
        one_row(call, &worker, &at.run, at.row, row_of(&at.run.logits, at.row),
                more ? row_of(&next.run.logits, next.row) : NULL,
                row_of(&at.run.probabilities, at.row), row_of(&at.run.grad, at.row),
                row_of(&at.run.hess, at.row));
    }
    write_pending(&worker.pending, worker.scratch.terms, call->n_classes);
    store_fence();
}

#endif
