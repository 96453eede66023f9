/* One table of kernels: compiled once per ISA and element type, with -DFASTCE_ISA=avx2 and
 * -DFASTCE_f32, say, and with the flags of that ISA.  It exports that one name, fastce_avx2_f32,
 * and nothing else, or the linker could keep an AVX-512 copy of a shared function for all. */
#include "binary.h"
#include "columns.h"
#include "distillation.h"
#include "gather.h"
#include "optimizer.h"
#include "stream.h"
#include "strips.h"

/* A chunk is the unit of work of a thread: 8192 elements take about 2 microseconds, against 0.05 to
 * claim one, and even 4096 x 10 makes enough of them for two threads to share; with MANY_ELEMENTS
 * they are 8 times as large, so that few end in a part of a tile.  Streaming stores pay when logits
 * and grad do not stay in the last-level cache anyway: STREAM_FROM bytes of grad.  With 32 MB of
 * cache, grads of 4 to 8 MB take 0.64 to 0.95 of the time unstreamed, 12 MB 0.9, 16 MB 1.3. */
enum { CHUNK_ELEMENTS = 8192, MANY_ELEMENTS = 1 << 20, STREAM_FROM = 8 << 20 };

static void plan(fastce_call *call)
{
    const ptrdiff_t n_classes = call->n_classes;
    const int few = n_classes <= few_classes(call), direct = is_contiguous(call);
    const ptrdiff_t step = few ? tile_rows(n_classes) : 1;
    const ptrdiff_t elements = call->n_rows * n_classes;
    const ptrdiff_t chunk = elements < MANY_ELEMENTS ? CHUNK_ELEMENTS : 8 * CHUNK_ELEMENTS;
    const ptrdiff_t sum_rows = chunk / n_classes / step * step;
    call->sum_rows = sum_rows < step ? step : sum_rows;
    call->chunk_rows = call->sum_rows;
    if (!few && !direct && !is_gathered(call)) /* whole strips */
        call->chunk_rows = (LANES + call->sum_rows - 1) / call->sum_rows * call->sum_rows;
    const ptrdiff_t n_runs = call->n_rows / call->run_length;
    call->sums_per_run = (call->run_length + call->sum_rows - 1) / call->sum_rows;
    call->chunks_per_run = (call->run_length + call->chunk_rows - 1) / call->chunk_rows;
    call->n_sums = n_runs * call->sums_per_run;
    call->n_chunks = n_runs * call->chunks_per_run;
    call->stream = elements >= STREAM_FROM / (ptrdiff_t)sizeof(elem);
    call->scratch_size = 0;
    if (is_gathered(call)) return;
    if (few)
        call->scratch_size = is_linear(call) ? 0 : sizeof(option_tiles);
    else
        call->scratch_size = (size_t)batch_rows(call) * batch_row_size(call);
    if (!few && !direct) call->scratch_size += strips_size(call);
}

static void plan_binary(fastce_binary_call *call)
{
    call->n_chunks = (call->n_elements + CHUNK_OF_PARTS - 1) / CHUNK_OF_PARTS;
    call->stream = call->n_elements >= STREAM_FROM / (ptrdiff_t)sizeof(elem);
}

static void cross_entropy(fastce_call *call, int thread)
{
    if (is_gathered(call))
        gather_rows(call, thread);
    else if (call->n_classes <= few_classes(call))
        cross_entropy_columns(call, thread);
    else if (is_contiguous(call))
        cross_entropy_rows(call, thread);
    else
        cross_entropy_strips(call, thread);
}

#define NAME_OF(isa, elem) fastce_##isa##_##elem
#define NAME(isa, elem) NAME_OF(isa, elem)
#if defined(FASTCE_f32)
#define TABLE NAME(FASTCE_ISA, f32)
#elif defined(FASTCE_f64)
#define TABLE NAME(FASTCE_ISA, f64)
#elif defined(FASTCE_f16)
#define TABLE NAME(FASTCE_ISA, f16)
#else
#define TABLE NAME(FASTCE_ISA, bf16)
#endif

extern const fastce_kernels TABLE;
const fastce_kernels TABLE = {
    .plan = plan,
    .check_targets = check_targets,
    .cross_entropy = cross_entropy,
    .plan_binary = plan_binary,
    .check_binary = check_binary,
    .binary = compute_binary,
#if defined(FASTCE_f64)
    .distill = distill,
#endif
    .adam_step = adam_step,
    .stream_copy = stream_copy,
    .stream_read = stream_read,
};
