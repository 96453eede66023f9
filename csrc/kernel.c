/* One table of kernels: compiled once per ISA and element type, with -DFASTCE_ISA=avx2 and
 * -DFASTCE_f32, say, and with the flags of that ISA.  It exports that one name, fastce_avx2_f32, and
 * nothing else, or the linker could keep an AVX-512 copy of a shared function for all. */
#include "columns.h"
#include "optimizer.h"
#include "stream.h"

/* A chunk is the unit of work of a thread: 8192 elements take about 2 microseconds, against 0.05 to
 * claim one, and even 4096 x 10 makes enough of them for two threads to share.  Streaming stores pay
 * when logits and grad do not stay in the last-level cache anyway: STREAM_FROM bytes of grad. */
enum { CHUNK_ELEMENTS = 8192, STREAM_FROM = 4 << 20 };

static void plan(fastce_call *call)
{
    const ptrdiff_t n_classes = call->n_classes;
    ptrdiff_t chunk_rows = CHUNK_ELEMENTS / (n_classes ? n_classes : 1) / TILE * TILE;
    if (n_classes > FEW_CLASSES) chunk_rows = CHUNK_ELEMENTS / n_classes;
    else if (chunk_rows < TILE) chunk_rows = TILE;
    call->chunk_rows = chunk_rows ? chunk_rows : 1;
    call->n_chunks = (call->n_rows + call->chunk_rows - 1) / call->chunk_rows;
    call->scratch_size = 0;
    if (n_classes > FEW_CLASSES && call->grad.data)
        call->scratch_size = ((size_t)n_classes + GROUP) / GROUP * GROUP * sizeof(real) + 64;
    call->scratch_size = (call->scratch_size + 63) / 64 * 64;
    call->stream = call->n_rows * n_classes >= STREAM_FROM / (ptrdiff_t)sizeof(elem);
}

static void cross_entropy(fastce_call *call, int thread)
{
    if (call->n_classes > FEW_CLASSES)
        cross_entropy_rows(call, thread);
    else
        cross_entropy_columns(call, thread);
}

#define NAME_OF(isa, elem) fastce_##isa##_##elem
#define NAME(isa, elem) NAME_OF(isa, elem)
#if defined(FASTCE_f32)
#define TABLE NAME(FASTCE_ISA, f32)
#else
#define TABLE NAME(FASTCE_ISA, f64)
#endif

extern const fastce_kernels TABLE;
const fastce_kernels TABLE = {
    .plan = plan,
    .check_targets = check_targets,
    .cross_entropy = cross_entropy,
    .adam_step = adam_step,
    .stream_copy = stream_copy,
    .stream_read = stream_read,
};
