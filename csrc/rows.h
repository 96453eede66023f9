/* Many classes, one row after the other, lanes = classes.  Few classes are in columns.h.
 *
 * A row is read from memory once and written once, and one exponential is computed per element: its
 * terms (see exp_log.h) go to `terms`, a row that stays in L2.  What they are relative to is
 * guessed to be what the row before had, so that the maximum is taken on the way; where the guess
 * is wrong, and for caps, dense targets and large logits, a block is copied to L1 first.  Only when
 * the row ends is its sum known; then the gradient is one multiplication per term.  That is done
 * while the next row is being read, so that memory is read and written at an even pace under the
 * arithmetic.
 *
 * The row's largest element is taken out of the sum (in the loss its term is `top`, in double), and
 * where that would cancel, for others / top must be exact also where it is tiny, they are added up
 * without it.
 *
 * Rows go by batches, each with terms of its own, so that the epilogue, whose latency is that of
 * 400 elements, serves several rows at once. */
#ifndef FASTCE_ROWS_H
#define FASTCE_ROWS_H

#include "row_options.h"

enum { BATCH_BYTES = 64 << 10 }; /* terms of a batch stay in L2, 256 KB at least */

/* Others that are so small a part of a block's largest term are added up without it.  One rounding
 * of floats in double is 2^-53 of it, a block has at most 512 in a lane (AVX2 256, AVX-512 128) and
 * 4 of the lanes: with 2^-19 they stay below 2^-25 (2^-26, 2^-26.9) of the others, half (a quarter,
 * an eighth) of their last bit.  Of doubles an addition loses up to 2^-51 of it, which is added up
 * plainly: 1024 such roundings are 2^-86 at most, a quarter of the others' last bit. */
#if !defined(FASTCE_f64)
#define CROWDED_OUT 0x1p-19
#else
#define CROWDED_OUT 0x1p-32
#endif

/* The term of x in double, times 2^lift. */
INLINE double exact_term(double x, double lift, const reference *ref)
{
    return exact_terms(splat_double(x - (double)ref->shift), splat_double(ref->power - lift))[0];
}

/* The sum of a block's terms without the largest, which would take the others' last bits with it.
 * It is found only now: to find every row's maximum and hide it before the terms are computed takes
 * a misprediction and a load that waits for a store, 17 ns a row. */
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

/* A hidden class takes a row of even smoothing out of these. */
INLINE int is_product_row(const fastce_call *call, const row_input *input)
{
    return is_product(call) && (input->is_even || !is_dense(call));
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

/* Bytes of scratch of a row in a batch; rows in a batch.  A linear loss alone keeps nothing of a
 * row, nor does what has no gradient, but for evaluate. */
INLINE size_t batch_row_size(const fastce_call *call)
{
    const size_t size = row_scratch_size(call->n_classes);
    const int is_one = (is_product(call) && !is_even(call)) || has_no_gradient(call);
    return !is_one ? 3 * size : needs_terms(call) ? size : 0;
}

INLINE ptrdiff_t batch_rows(const fastce_call *call)
{
    /* of even rows only terms are used, unless a class turns out to be hidden; log_softmax reads
     * its logits again, from L2 as well */
    const int is_one = is_even(call) || call->loss == FASTCE_LOG_SOFTMAX;
    const size_t size = is_one ? row_scratch_size(call->n_classes) : batch_row_size(call);
    const ptrdiff_t n = size ? BATCH_BYTES / (ptrdiff_t)size : TILE;
    return n < 1 ? 1 : n > TILE ? TILE : n;
}

/* The target's term, where something is made of it, with the same bits whether it is among terms or
 * not. */
INLINE double term_of_target(const fastce_call *call, const real *terms, double target_logit,
                             int64_t target, const reference *ref)
{
    if (terms) return terms[target];
    if (call->loss == FASTCE_CROSS_ENTROPY && !needs_terms(call)) return 0;
    const vreference vref = reference_at(splat(ref->power));
    return exp_term((real)target_logit - ref->shift, &vref);
}

/* Brings a row's sums and its first n terms, if any are kept, from one reference to another.  The
 * factor is 2^-k, exactly when the shift stays 0.  In three steps: what it multiplies is below
 * 2^660, and may be normal after a k of 1682, which no one double can do. */
static __attribute__((cold, noinline)) void change_reference(const reference *from,
                                                             const reference *to, real *terms,
                                                             ptrdiff_t n, wide_exact_sum *total,
                                                             double *others)
{
    const double first = 0x1p-520, last = 0x1p-320;
    const double change = exact_term(from->shift, (double)from->power - BIAS + 840, to) / KAPPA;
    total->sum = total->sum * first * change * last;
    total->lost = total->lost * first * change * last;
    *others = *others * first * change * last;
    for (ptrdiff_t j = 0; terms && j < n; j++) {
        const real term = (real)((double)terms[j] * first * change * last);
        terms[j] = term < LEAST_NORMAL ? 0 : term; /* a subnormal lacks bits */
    }
}

/* The statistics of a row into lane r, its terms, and on the way the gradient of the pending row. 
 * guess is the reference of the row before. */
static void row_terms(const fastce_call *call, const row_blocks *cut, row_input *input,
                      const row_scratch *scratch, const pending_row *pending, real *block,
                      reference *guess, row_tile *rows, ptrdiff_t r)
{
    const int64_t target = input->target;
    const int keep_terms = scratch->terms != NULL;
    const int dense = is_dense(call) && !input->is_even;
    const int needs_top = !is_product_row(call, input) && !has_no_gradient(call);
    const int has_slopes = call->softcap != 0 && !scratch->chain;
    const pending_row nothing = {.grad = NULL};
    real *terms = scratch->terms;
    wide_exact_sum mass = {splat_double(0), splat_double(0)}, gap = mass;
    reference ref = *guess;
    vreference vref = reference_at(splat(ref.power));
    wide_exact_sum total = {splat_double(0), splat_double(0)};
    wide_exact_sum quarters = {splat_double(0), splat_double(0)};
    double max = -__builtin_inf(), target_logit = 0;
    double others = 0; /* but for those in total */
    real top_term = 0;

    for (ptrdiff_t b = 0; b < cut->n_blocks; b++) {
        const ptrdiff_t start = block_start(cut, b), n = block_start(cut, b + 1) - start;
        const int direct = !needs_top && is_direct(call) && ref.shift == 0;
        int is_done = direct;
        real *to = keep_terms ? terms + start : block;
        real *slopes = scratch->chain ? scratch->chain + start : block + BLOCK + GROUP;
        wide_exact_sum sum = {splat_double(0), splat_double(0)};
        const real block_max
            = direct ? direct_terms(is_transformed(call), call, input, start, n, &vref, to, pending,
                                    &sum)
                     : prepare_block(call, input, start, n, block, slopes, scratch->dense);
        if (input->is_even) add_quarters(input->x + start, n, &quarters);
        if (target >= start && target < start + n)
            target_logit = direct ? logit_at(call, input, target) : block[target - start];

        const int has_top = block_max > max;
        if (has_top) {
            others += top_term; /* the former maximum is one of them */
            const double power = __builtin_rint(((double)block_max - (double)ref.shift) * LOG2_E);
            const reference old = ref;
            if (max == -__builtin_inf() || power - (double)ref.power >= WINDOW)
                ref = reference_of(block_max);
            if (ref.shift != old.shift || ref.power != old.power) {
                vref = reference_at(splat(ref.power));
                if (max > -__builtin_inf())
                    change_reference(&old, &ref, terms, start, &total, &others);
                if (direct) prepare_block(call, input, start, n, block, slopes, scratch->dense);
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
            block_terms(AS_THEY_ARE, call, input, start, n, block, ref.shift, &vref, to,
                        direct ? &nothing : pending, &sum);
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
        if (has_slopes && target >= start && target < start + n)
            input->slope = slopes[target - start];
        for (ptrdiff_t j = 0; has_slopes && keep_terms && j < n; j += LANES)
            *(vreal *)(to + j) *= *(const vreal *)(slopes + j);
    }
    *guess = ref;
    rows->max[r] = max;
    rows->shift[r] = ref.shift;
    rows->power[r] = ref.power;
    rows->target_logit[r] = target_logit;
    rows->others[r] = sum_of_lanes(&total, 0) + others;
    rows->target_term[r]
        = term_of_target(call, has_slopes ? NULL : terms, target_logit, target, &ref);
    if (dense) {
        rows->mass[r] = total_of(&mass);
        rows->gap[r] = total_of(&gap);
    } else if (input->is_even) {
        even_gap(call, input, &quarters, rows, r);
    }
}

/* The same for a row of one block whose gradient is linear: 1000 classes in 0.91 of the time, 128
 * in 0.7.  Returns whether the guess was right; if not, only what was pending is done. */
INLINE int short_row_terms(const int is_changed, const fastce_call *call, row_input *input,
                           real *terms, pending_row *pending, real *block, const reference *guess,
                           row_tile *rows, ptrdiff_t r)
{
    const ptrdiff_t n_classes = call->n_classes;
    const vreference vref = reference_at(splat(guess->power));
    real *to = terms ? terms : block;
    wide_exact_sum sum;
    const real max = direct_terms(is_changed, call, input, 0, n_classes, &vref, to, pending, &sum);
    pending->grad = NULL;
    if (!is_inside(guess, max)) return 0;
    const real top_term = exp_term(max, &vref);
    double others = sum_of_lanes(&sum, top_term);
    if (others < CROWDED_OUT * top_term) others = sum_of_others(to, n_classes, &input->top_at);
    rows->max[r] = max;
    rows->shift[r] = 0;
    rows->power[r] = guess->power;
    rows->others[r] = others;
    rows->target_logit[r] = logit_at(call, input, input->target);
    rows->target_term[r] = term_of_target(call, terms, rows->target_logit[r], input->target, guess);
    if (input->is_even) {
        wide_exact_sum quarters = {splat_double(0), splat_double(0)};
        add_quarters(input->x, n_classes, &quarters);
        even_gap(call, input, &quarters, rows, r);
    }
    return 1;
}

/* A row's arrays in its scratch; NULL: not needed. */
INLINE row_scratch scratch_of(const fastce_call *call, char *scratch)
{
    const size_t size = row_scratch_size(call->n_classes);
    return (row_scratch){
        .terms = needs_terms(call) ? (real *)scratch : NULL,
        .dense = is_dense(call) ? (real *)(scratch + size) : NULL,
        .chain = call->softcap != 0 && !is_product(call) ? (real *)(scratch + 2 * size) : NULL,
    };
}

/* A thread's work on rows of many classes; pending are the rows of the batch before. */
typedef struct {
    ptrdiff_t batch;
    row_blocks cut;
    row_scratch scratch[TILE];
    pending_row pending[TILE];
    row_input inputs[TILE];
    _Alignas(64) real block[2 * (BLOCK + GROUP)]; /* logits, and a cap's slopes */
    reference guess;
    row_tile rows;
    exact_sum sum;
} row_worker;

static void start_worker(const fastce_call *call, int thread, row_worker *worker)
{
    worker->batch = batch_rows(call);
    worker->cut = cut_rows(call->n_classes);
    char *scratch = call->scratch + (size_t)thread * call->scratch_size;
    for (ptrdiff_t r = 0; r < worker->batch; r++, scratch += batch_row_size(call)) {
        worker->pending[r].grad = NULL;
        worker->scratch[r] = scratch_of(call, scratch);
    }
    worker->guess = reference_of(0);
    worker->sum = (exact_sum){0, 0};
    memset(&worker->rows, 0, sizeof worker->rows); /* lanes beyond the last row are computed, too */
    start_rows(&worker->rows);
}

/* What is left to do for row i of a run, lane r of the batch, after its epilogue. */
INLINE void finish_row(const fastce_call *call, row_worker *worker, const row_run *run, ptrdiff_t i,
                       ptrdiff_t r, int as_real, int stream, char *grad, char *hess)
{
    row_tile *rows = &worker->rows;
    const row_input *input = &worker->inputs[r];
    const row_scratch scratch = worker->scratch[r];
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
    if (call->loss < FASTCE_SOFTMAX && is_extreme(rows, r))
        rescale_terms(scratch.terms, 1, n_classes, rescale_row(rows, r));
    if (!is_product_row(call, input)) {
        write_row(call, input, &scratch, rows, r, as_real, grad, hess);
        return;
    }
    if (call->loss == FASTCE_SOFTMAX && rows->others[r] == 0) /* 1, whatever roundings make of it */
        scratch.terms[input->top_at] = (real)(rows->factor[r] = 1);
    const real factor = (real)rows->factor[r];
    const size_t out_size = as_real ? sizeof(real) : sizeof(elem);
    const double target_grad = rows->target_grad[r] * input->slope;
    real at_target = 0;
    if (call->loss != FASTCE_SOFTMAX) {
        /* divided by the number that it will be multiplied by; where that overflowed, so does the
         * gradient */
        const double divisor = factor - factor == 0 ? factor : rows->factor[r];
        at_target = target_grad == 0 ? 0 : (real)(target_grad / divisor);
        scratch.terms[input->target] = at_target;
    }
    const double less = input->is_even ? rows->scale[r] * input->spread : 0;
    const char *end = grad + (size_t)n_classes * out_size;
    /* Lines that it shares with its neighbours are read before they are written, the last one by
     * plain stores: half a line that is streamed goes to memory alone, 600 ns, before the rest may
     * be written. */
    if (stream) {
        prefetch_for_write(grad);
        prefetch_for_write(end - 1);
    }
    worker->pending[r] = (pending_row){
        .grad = grad,
        .terms = scratch.terms,
        .n_classes = n_classes,
        .as_real = as_real,
        .streamed = stream ? n_classes - (ptrdiff_t)((uintptr_t)end % 64 / out_size) : 0,
        .head = stream ? (ptrdiff_t)(-(uintptr_t)grad % (VECTOR_BYTES / sizeof(real) * out_size)
                                     / out_size)
                       : 0,
        .factor = factor,
        .less = (real)less,
    };
    if (at_target - at_target != 0) { /* z-loss can make the factor 0 */
        worker->pending[r].streamed = 0;
        write_pending(&worker->pending[r]);
        put(grad, as_real, input->target, (real)(target_grad - less));
    }
}

/* For poly-1: the sum of q_j (total - term_j), the top's with what is exact, the others. */
static double missed_by(const fastce_call *call, const row_input *input, const row_scratch *scratch,
                        double total, double others)
{
    const ptrdiff_t top_at = input->top_at;
    wide_exact_sum missed = {splat_double(0), splat_double(0)};
    for (ptrdiff_t j = 0; j < call->n_classes; j += LANES) {
        const vreal term = *(const vreal *)(scratch->terms + j);
        vreal q = *(const vreal *)(scratch->dense + j);
        if (top_at >= j && top_at < j + LANES) q[top_at - j] = 0;
        for (int w = 0; w < WIDE; w++) add_wide(&missed, widen(q, w) * (total - widen(term, w)));
    }
    return total_of(&missed) + (top_at < 0 ? 0 : (double)scratch->dense[top_at]) * others;
}

/* n rows of a run from row first on, a batch at most.  Their classes are contiguous in `arrays`,
 * whose row 0 is row `origin` of the run; next_x is what will be read after them. */
static void row_batch(const fastce_call *call, row_worker *worker, const row_run *run,
                      ptrdiff_t first, ptrdiff_t n, const row_run *arrays, ptrdiff_t origin,
                      int as_real, int stream, const elem *next_x)
{
    row_tile *rows = &worker->rows;
    int64_t targets[TILE];
    const int is_changed = is_transformed(call);
    const int is_short = worker->cut.n_blocks == 1 && is_direct(call);
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
            .slope = 1,
            .is_even = is_even(call),
            .top_at = -1,
        };
        const row_scratch scratch = worker->scratch[r];
        if (input->target < 0) { /* whatever the row holds, it is not read */
            write_pending(&worker->pending[r]);
            rows->max[r] = rows->shift[r] = rows->power[r] = rows->others[r] = 0;
            continue;
        }
        if (call->smoothing != 0) {
            input->spread = spread_of(call, input);
            rows->weight[r] *= 1 - call->smoothing;
        }
        int is_done = 0;
        if (is_short && worker->guess.shift == 0)
            is_done = is_changed
                          ? short_row_terms(1, call, input, scratch.terms, &worker->pending[r],
                                            worker->block, &worker->guess, rows, r)
                          : short_row_terms(0, call, input, scratch.terms, &worker->pending[r],
                                            worker->block, &worker->guess, rows, r);
        if (!is_done)
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
        *(vdouble *)(rows->top + r) = normal_terms(
            doubles_at(rows->max, r) - doubles_at(rows->shift, r), doubles_at(rows->power, r));
    for (ptrdiff_t r = 0; call->loss == FASTCE_POLY1 && is_dense(call) && r < n; r++)
        if (targets[r] >= 0)
            rows->missed[r] = missed_by(call, worker->inputs + r, worker->scratch + r,
                                        rows->top[r] + rows->others[r], rows->others[r]);
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
    for (ptrdiff_t r = 0; r < worker->batch; r++) write_pending(&worker->pending[r]);
    if (call->stream) store_fence();
}

/* Rows whose classes are contiguous in every array.  A chunk is claimed one batch early, so that
 * its first row is prefetched. */
static void cross_entropy_rows(fastce_call *call, int thread)
{
    const int as_real = call->out_elem != OWN_ELEM;
    const int stream = call->stream && is_product(call) && !as_real;
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
