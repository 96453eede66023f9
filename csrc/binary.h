/* Binary cross-entropy and its focal variant: every element is a row of its own, with the logits x
 * and 0.  There is no loop over classes, and arithmetic is in double for floats too (they are
 * within one ulp then), part by part: an element's arrays, of any strides, are brought together in
 * L1, computed, and written.
 *
 * With a = |x| and u = e^-a, the smaller of sigmoid(x) and sigmoid(-x) is u / (1 + u), the larger
 * 1 / (1 + u); the class that x favours loses log1p(u), the other a + log1p(u).  Nothing cancels
 * but a soft target against its probability. */
#ifndef FASTCE_BINARY_H
#define FASTCE_BINARY_H

#include "targets.h"

enum {
    PART = 256, /* elements; part_arrays is 11 KB, of doubles 14: the smallest L1 has 32 */
    CHUNK_OF_PARTS = 2048, /* elements that leave one sum: 2 microseconds of work */
};

/* Soft targets may miss [0, 1] by this: averages of labels do, by a rounding of float16. */
#define TARGET_SLACK 0x1p-10

typedef struct {
    _Alignas(64) real x[PART], grad[PART], loss[PART];
    _Alignas(64) double target[PART], weight[PART], pos_weight[PART], upstream[PART];
} part_arrays;

/* An element's place: its index along each outer axis and along the run. */
typedef struct {
    ptrdiff_t outer[64], inner;
} place;

INLINE place place_of(const fastce_binary_call *call, ptrdiff_t element)
{
    place at;
    ptrdiff_t run = element / call->run_length;
    at.inner = element % call->run_length;
    for (int d = call->n_outer - 1; d >= 0; d--) {
        at.outer[d] = run % call->outer_shape[d];
        run /= call->outer_shape[d];
    }
    return at;
}

INLINE char *address(const fastce_binary_call *call, const fastce_array *array, const place *at)
{
    char *data = array->data + at->inner * array->row_stride;
    for (int d = 0; d < call->n_outer; d++) data += at->outer[d] * array->outer_strides[d];
    return data;
}

/* How many of the next n elements lie in one run. */
INLINE ptrdiff_t in_one_run(const fastce_binary_call *call, const place *at, ptrdiff_t n)
{
    const ptrdiff_t left = call->run_length - at->inner;
    return n < left ? n : left;
}

INLINE void advance(const fastce_binary_call *call, place *at, ptrdiff_t n)
{
    at->inner += n;
    if (at->inner < call->run_length) return;
    at->inner = 0;
    for (int d = call->n_outer - 1; d >= 0 && ++at->outer[d] == call->outer_shape[d]; d--)
        at->outer[d] = 0;
}

#define FOR_STRIDE(type, statement)                                                                \
    if (stride == sizeof(type))                                                                    \
        for (ptrdiff_t k = 0; k < n; k++) {                                                        \
            const type value = ((const type *)from)[k];                                            \
            statement;                                                                             \
        }                                                                                          \
    else                                                                                           \
        for (ptrdiff_t k = 0; k < n; k++) {                                                        \
            const type value = *(const type *)(from + k * stride);                                 \
            statement;                                                                             \
        }

static void read_doubles(const char *from, ptrdiff_t stride, ptrdiff_t n, double *to)
{
    FOR_STRIDE(double, to[k] = value)
}

/* Labels become 0, 1 or, if they are anything else, 2. */
static void read_binary_targets(int kind, const char *from, ptrdiff_t stride, ptrdiff_t n,
                                double *to)
{
#define LABELS(type)                                                                               \
    FOR_STRIDE(type, to[k] = value == 0 ? 0.0 : value == 1 ? 1.0 : 2.0)                            \
    break
    switch (kind) {
    case FASTCE_I8:
    case FASTCE_U8: LABELS(uint8_t);
    case FASTCE_I16:
    case FASTCE_U16: LABELS(uint16_t);
    case FASTCE_I32:
    case FASTCE_U32: LABELS(uint32_t);
    case FASTCE_I64:
    case FASTCE_U64: LABELS(uint64_t);
    case FASTCE_FLOAT: FOR_STRIDE(float, to[k] = value) break;
    default: read_doubles(from, stride, n, to);
    }
#undef LABELS
}

INLINE int has_weights(const fastce_binary_call *call)
{
    return call->sample_weight.data || call->where.data;
}

/* Targets and weights of n elements of a run; weight 0 for those that are not there. */
INLINE void read_run(const fastce_binary_call *call, const place *at, ptrdiff_t n,
                     part_arrays *part, ptrdiff_t first)
{
    read_binary_targets(call->target_kind, address(call, &call->targets, at),
                        call->targets.row_stride, n, part->target + first);
    if (!has_weights(call)) return;
    double *weight = part->weight + first;
    if (call->sample_weight.data)
        read_doubles(address(call, &call->sample_weight, at), call->sample_weight.row_stride, n,
                     weight);
    else
        for (ptrdiff_t k = 0; k < n; k++) weight[k] = 1;
    if (call->where.data) {
        const char *from = address(call, &call->where, at);
        const ptrdiff_t stride = call->where.row_stride;
        FOR_STRIDE(uint8_t, weight[k] = value ? weight[k] : 0)
    }
}

/* The logits, pos_weight and upstream of the same elements. */
INLINE void read_logits(const fastce_binary_call *call, const place *at, ptrdiff_t n,
                        part_arrays *part, ptrdiff_t first)
{
    const char *from = address(call, &call->logits, at);
    const ptrdiff_t stride = call->logits.row_stride;
    real *x = part->x + first;
    FOR_STRIDE(elem, x[k] = get(&value))
    if (call->pos_weight.data)
        read_doubles(address(call, &call->pos_weight, at), call->pos_weight.row_stride, n,
                     part->pos_weight + first);
    if (call->upstream.data)
        read_doubles(address(call, &call->upstream, at), call->upstream.row_stride, n,
                     part->upstream + first);
}

/* Whole vectors past the caches; what lies outside of aligned ones in the usual way. */
INLINE void stream_out(elem *to, ptrdiff_t n, const real *from)
{
    ptrdiff_t k = 0;
    for (; k < n && (uintptr_t)(to + k) % STREAM_BYTES; k++)
        put_as(OWN_ELEM, (char *)(to + k), from[k]);
    for (; k + LANES <= n; k += LANES) store_stream(to + k, plain_nan(load_real(from + k)));
    for (; k < n; k++) put_as(OWN_ELEM, (char *)(to + k), from[k]);
}

INLINE void write_run(const fastce_binary_call *call, const place *at, ptrdiff_t n,
                      const part_arrays *part, ptrdiff_t first)
{
    if (call->losses.data) {
        char *to = address(call, &call->losses, at);
        for (ptrdiff_t k = 0; k < n; k++)
            *(real *)(to + k * call->losses.row_stride) = part->loss[first + k];
    }
    if (!call->grad.data) return;
    char *to = address(call, &call->grad, at);
    const ptrdiff_t stride = call->grad.row_stride;
    const real *grad = part->grad + first;
    if (call->out_elem != OWN_ELEM)
        for (ptrdiff_t k = 0; k < n; k++) put_as(call->out_elem, to + k * stride, grad[k]);
    else if (stride != sizeof(elem) || !(ELEM_IS_REAL || call->stream))
        for (ptrdiff_t k = 0; k < n; k++) put_as(OWN_ELEM, to + k * stride, grad[k]);
    else if (call->stream)
        stream_out((elem *)to, n, grad);
    else
        memcpy(to, grad, (size_t)n * sizeof(elem));
}

/* e^-a for a >= 0, divided by down: 2^-128 where it would be subnormal or nearly so, else 1.  (Of
 * floats always 1: their losses are 0 long before.) */
INLINE vdouble exp_minus(vdouble a, vdouble *down)
{
#if !defined(FASTCE_f64)
    *down = splat_double(1);
    return exp_nonpositive(-a);
#else
    const vlong far = a > 600;
    *down = select_double(far, splat_double(0x1p-128), splat_double(1));
    const vlong gone = a > 760; /* the smallest double is e^-744.4 */
    vlong biased;
    const vdouble r = reduce_double(not_below(-760, -a), &biased);
    const vdouble e = (expm1_reduced_double(r) + 1.0) * (vdouble)((biased + (far & 128)) << 52);
    return (vdouble)((vlong)e & ~gone);
#endif
}

/* Loss and gradient (not yet scaled) of elements with mass `one` on target 1 and `zero` on 0. */
INLINE vdouble binary_loss(vdouble x, vdouble one, vdouble zero, vdouble *grad)
{
    const vlong sign = (vlong)splat_double(-0.0), positive = x > 0;
    const vdouble a = (vdouble)((vlong)x & ~sign);
    const vdouble likely = select_double(positive, one, zero);
    const vdouble unlikely = select_double(positive, zero, one);
    vdouble down, inverse;
    const vdouble u = exp_minus(a, &down), log_sum = log1p_of_term(u, &inverse);
    const vdouble pull = unlikely * inverse - likely * (u * inverse) * down;
    *grad = (vdouble)((vlong)pull ^ (sign & ~positive));
    /* 0 * inf = 0 */
    return (likely + unlikely) * log_sum * down
           + (vdouble)((vlong)(a * unlikely) & (unlikely != 0));
}

/* Lin et al. 2017, eq. 5, as robust_loss in epilogue.h; one or zero is 0. */
INLINE vdouble binary_focal_loss(double gamma, vdouble x, vdouble one, vdouble zero, vlong is_one,
                                 vdouble *grad)
{
    const vlong sign = (vlong)splat_double(-0.0), right = ~(is_one ^ (x > 0));
    const vdouble a = (vdouble)((vlong)x & ~sign);
    vdouble down, inverse;
    const vdouble u = exp_minus(a, &down), near = log1p_of_term(u, &inverse) * down;
    const vdouble small = u * inverse * down, far = a + near;
    const vdouble rest = select_double(right, small, inverse);
    const vdouble p = select_double(right, inverse, small);
    const vdouble ce = select_double(right, near, far);
    const vdouble log_rest = -select_double(right, far, near);
    vdouble power = splat_double(1);
    if (gamma == 1)
        power = rest;
    else if (gamma == 2)
        power = rest * rest;
    else if (gamma != 0)
        power = exp_nonpositive(log_rest * gamma);
    const vdouble ratio = select_double(rest > 0, ce / rest, splat_double(1));
    vdouble slope = power * (p * ratio * gamma + 1.0);
    slope = select_double(ce == __builtin_inf(), power, slope); /* p ratio is 0 * inf */
    const vdouble mass = one + zero, loss = mass * (power * ce);
    *grad = (vdouble)((vlong)(mass * slope * rest) ^ (sign & is_one));
    return (vdouble)((vlong)loss & ~((mass == 0) & (ce == __builtin_inf())));
}

static void compute_part(const fastce_binary_call *call, ptrdiff_t n, part_arrays *part,
                         wide_exact_sum *sum)
{
    const double smoothing = call->smoothing;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        _Alignas(64) double loss[LANES], grad[LANES];
        for (int w = 0; w < WIDE; w++) {
            const ptrdiff_t k = i + w * DOUBLES;
            const vdouble x = widen(load_real(part->x + i), w);
            const vdouble target = doubles_at(part->target, k);
            vdouble one = target, zero = 1.0 - target, g, value;
            vdouble small = splat_double(1), scale = splat_double(call->grad_scale);
            if (smoothing != 0) {
                one = one * (1 - smoothing) + smoothing / 2;
                zero = zero * (1 - smoothing) + smoothing / 2;
            }
            if (call->pos_weight.data) one *= doubles_at(part->pos_weight, k);
            if (has_weights(call)) {
                const vdouble large = split_factor(doubles_at(part->weight, k), &small);
                one *= large;
                zero *= large;
                scale *= small;
            }
            if (call->upstream.data) scale *= doubles_at(part->upstream, k);
            if (call->is_focal)
                value = binary_focal_loss(call->gamma, x, one * call->one_factor,
                                          zero * call->zero_factor, target == 1, &g);
            else
                value = binary_loss(x, one, zero, &g);
            value *= small;
            g *= scale;
            if (has_weights(call)) { /* whatever is not there, is not seen */
                const vlong there = small != 0;
                value = (vdouble)((vlong)value & there);
                g = (vdouble)((vlong)g & there);
            }
            *(vdouble *)(loss + w * DOUBLES) = value;
            *(vdouble *)(grad + w * DOUBLES) = g;
            if (k + DOUBLES > n)
                for (int l = 0; l < DOUBLES; l++) value[l] = k + l < n ? value[l] : 0;
            add_wide(sum, value);
        }
        if (call->losses.data) store_real(part->loss + i, narrow(loss));
        if (call->grad.data) store_real(part->grad + i, narrow(grad));
    }
}

INLINE int claim_elements(fastce_binary_call *call, int thread, ptrdiff_t *chunk, ptrdiff_t *n,
                          place *at)
{
    *chunk = claim(&call->work, thread);
    if (*chunk < 0) return 0;
    const ptrdiff_t first = *chunk * CHUNK_OF_PARTS, left = call->n_elements - first;
    *n = left < CHUNK_OF_PARTS ? left : CHUNK_OF_PARTS;
    *at = place_of(call, first);
    return 1;
}

/* Elements that are there have targets 0 and 1, or in between if those may be soft; the sums are of
 * their weights. */
static void check_binary(fastce_binary_call *call, int thread)
{
    const int soft = call->target_kind >= FASTCE_FLOAT && !call->is_focal;
    ptrdiff_t chunk, n;
    place at;
    part_arrays part;
    while (claim_elements(call, thread, &chunk, &n, &at)) {
        wide_exact_sum total = {splat_double(0), splat_double(0)};
        vlong wrong = total.sum != 0;
        for (ptrdiff_t done = 0; done < n;) {
            const ptrdiff_t size = n - done < PART ? n - done : PART;
            for (ptrdiff_t filled = 0, run; filled < size; filled += run) {
                run = in_one_run(call, &at, size - filled);
                read_run(call, &at, run, &part, filled);
                advance(call, &at, run);
            }
            for (ptrdiff_t k = size; k % DOUBLES; k++) part.target[k] = part.weight[k] = 0;
            for (ptrdiff_t k = 0; k < size; k += DOUBLES) {
                const vdouble t = doubles_at(part.target, k);
                vlong good = (t == 0) | (t == 1);
                if (soft) good = (t >= -TARGET_SLACK) & (t <= 1 + TARGET_SLACK);
                if (has_weights(call)) {
                    const vdouble weight = doubles_at(part.weight, k);
                    good |= weight == 0;
                    add_wide(&total, weight);
                }
                wrong |= ~good;
            }
            done += size;
        }
        for (int l = 0; l < DOUBLES; l++)
            if (wrong[l]) atomic_store_explicit(&call->has_wrong, 1, memory_order_relaxed);
        leave(call->sums, chunk, sum_of(&total));
    }
}

static void compute_binary(fastce_binary_call *call, int thread)
{
    ptrdiff_t chunk, n;
    place at;
    part_arrays part;
    memset(&part, 0, sizeof part); /* the lanes after the last element are computed too */
    while (claim_elements(call, thread, &chunk, &n, &at)) {
        wide_exact_sum total = {splat_double(0), splat_double(0)};
        for (ptrdiff_t done = 0; done < n;) {
            const ptrdiff_t size = n - done < PART ? n - done : PART;
            place out = at;
            for (ptrdiff_t filled = 0, run; filled < size; filled += run) {
                run = in_one_run(call, &at, size - filled);
                read_run(call, &at, run, &part, filled);
                read_logits(call, &at, run, &part, filled);
                advance(call, &at, run);
            }
            compute_part(call, size, &part, &total);
            for (ptrdiff_t written = 0, run; written < size; written += run) {
                run = in_one_run(call, &out, size - written);
                write_run(call, &out, run, &part, written);
                advance(call, &out, run);
            }
            done += size;
        }
        leave(call->sums, chunk, sum_of(&total));
    }
    if (call->stream) store_fence();
}

#endif
