# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The boundary to C: every check of an argument is here, then one call into csrc/.

No maths and no defaults (those are in the Python modules).  Arrays come in as ndarrays and are
checked through NumPy's C API: three typed memoryviews would cost 0.4 microseconds.
"""
cimport numpy as cnp
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.ref cimport PyObject
from libc.float cimport DBL_MAX
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from operator import index

import numpy as np

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    object PyArray_Scalar(void *, cnp.dtype, object)

cdef extern from "fastce.h" nogil:
    ctypedef struct fastce_array:
        char *data
        ptrdiff_t class_stride, row_stride
        const ptrdiff_t *outer_strides
    ctypedef struct fastce_row_stats:
        pass
    ctypedef struct fastce_call:
        ptrdiff_t n_rows, n_classes, run_length, n_chunks
        int n_outer
        const ptrdiff_t *outer_shape
        fastce_array logits, grad, hess, targets, probabilities, where
        const unsigned char *keep_row
        const double *sample_weight
        const double *upstream
        const double *class_weight
        void *losses
        fastce_row_stats *row_stats
        int out_elem, target_kind, has_ignore_index
        int64_t ignore_index
        int loss
        double alpha, beta, smoothing, logit_scale, softcap, z_loss, grad_scale
        const fastce_kernels *kernels
    ctypedef struct fastce_binary_call:
        ptrdiff_t n_elements, run_length
        int n_outer
        const ptrdiff_t *outer_shape
        fastce_array logits, losses, grad, targets, where, sample_weight, pos_weight, upstream
        int out_elem, target_kind, is_focal, has_wrong
        double gamma, one_factor, zero_factor, smoothing, grad_scale
        const fastce_kernels *kernels
    ctypedef struct fastce_distillation:
        ptrdiff_t n_rows, n_classes
        const void *student
        const void *teacher
        void *grad
        int student_elem, teacher_elem, grad_elem
        double temperature
        const unsigned char *is_there
        const double *slopes
        double *divergences
        const fastce_kernels *kernels
    ctypedef struct fastce_kernels:
        void (*plan)(fastce_call *) noexcept nogil
        ptrdiff_t (*check_targets)(const fastce_call *, double *) noexcept nogil
        void (*adam_step)(void *, const void *, void *, void *, ptrdiff_t,
                          double, double, double, double, double) noexcept nogil
    ctypedef struct fastce_isa:
        const char *name
        const fastce_kernels *kernels[4]
        int (*runs_here)() noexcept nogil
    const fastce_isa fastce_isas[]
    int fastce_run(fastce_call *, int, double *) noexcept
    int fastce_run_binary(fastce_binary_call *, int, int, double *) noexcept
    int fastce_run_distillation(fastce_distillation *, int) noexcept
    double fastce_stream(const fastce_kernels *, const void *, void *, ptrdiff_t, int) noexcept
    int fastce_use_threading(const char *) noexcept
    const char *fastce_threading() noexcept
    const char *fastce_backend(int) noexcept
    const char *fastce_compiler() noexcept
    enum:
        FASTCE_F32, FASTCE_F64, FASTCE_F16, FASTCE_BF16
        FASTCE_CROSS_ENTROPY, FASTCE_FOCAL, FASTCE_GENERALIZED, FASTCE_SYMMETRIC, FASTCE_POLY1
        FASTCE_NLL, FASTCE_LOG_LOSS
        FASTCE_SOFTMAX, FASTCE_LOG_SOFTMAX, FASTCE_LOGSUMEXP, FASTCE_EVALUATE
        FASTCE_I8, FASTCE_I16, FASTCE_I32, FASTCE_I64
        FASTCE_U8, FASTCE_U16, FASTCE_U32, FASTCE_U64
        FASTCE_FLOAT, FASTCE_DOUBLE

# Telling a second thread costs 1 microsecond when it is awake and 5 when it sleeps; 16384 elements
# take about 5.
cdef enum: ELEMENTS_PER_THREAD = 16384
# Below about 10 microseconds of work, giving up the GIL costs more than others could win.
cdef enum: ELEMENTS_WITH_GIL = 32768
# An element of a binary loss, in double and with a logarithm of its own, or of a student and its
# teacher costs as much as these.
cdef enum: COST_IN_DOUBLE = 8

# An OpenMP runtime that cannot start its threads ends the process.
cdef enum: MOST_THREADS = 256  # as many as parallel.c starts

# A broadcast array may claim more than memory holds. Scratch is at most 8 bytes x (3 rows and 4
# strips of 16) a class and thread: with 2^40 classes and 256 threads below 2^58, as size_t holds.
cdef ptrdiff_t MOST_CLASSES = <ptrdiff_t>1 << 40

CROSS_ENTROPY = FASTCE_CROSS_ENTROPY
FOCAL = FASTCE_FOCAL
GENERALIZED = FASTCE_GENERALIZED
SYMMETRIC = FASTCE_SYMMETRIC
POLY1 = FASTCE_POLY1
NLL = FASTCE_NLL
LOG_LOSS = FASTCE_LOG_LOSS
SOFTMAX = FASTCE_SOFTMAX
LOG_SOFTMAX = FASTCE_LOG_SOFTMAX
LOGSUMEXP = FASTCE_LOGSUMEXP

cdef const fastce_isa *_isa = NULL
cdef int _n_threads = 1


# ---- which kernels, how many threads -----------------------------------------------------------

def isas(bint compiled=False):
    """The ISAs that this CPU can run (or all that were compiled), fastest first."""
    cdef int i = 0
    names = []
    while fastce_isas[i].name != NULL:
        if compiled or fastce_isas[i].runs_here():
            names.append(fastce_isas[i].name.decode())
        i += 1
    return tuple(names)


def use_isa(name):
    """Compute with the kernels of this ISA from now on; returns the name of the former one."""
    global _isa
    cdef int i = 0
    former = None if _isa == NULL else _isa.name.decode()
    while fastce_isas[i].name != NULL:
        if fastce_isas[i].name.decode() == name:
            if not fastce_isas[i].runs_here():
                raise ValueError(f"isa is {name!r}, which this CPU lacks; it has {isas()}")
            _isa = &fastce_isas[i]
            return former
        i += 1
    raise ValueError(f"isa is {name!r}, expected one of {isas()}")


def isa():
    return _isa.name.decode()


def compiler():
    return fastce_compiler().decode()


def threading():
    return fastce_threading().decode()


def threadings():
    """The names of what can run threads in this build."""
    cdef int i = 0
    names = []
    while fastce_backend(i) is not NULL:
        names.append(fastce_backend(i).decode())
        i += 1
    return tuple(names)


def use_threading(name):
    """Run threads this way from now on: "pool", "openmp" or "serial"; returns the former name."""
    former = threading()
    if not isinstance(name, str) or fastce_use_threading(name.encode()):
        raise ValueError(f"threading is {name!r}, expected one of {threadings()}")
    return former


def check_index(value, name):
    """value as an int, or an error that names the argument."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an int, got bool")
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(value).__name__}") from None


def shown(value, text=str):
    """value for an error's one line."""
    try:
        return " ".join(text(value).split())  # of an array, several lines
    except ValueError:  # Python prints no int of more than 4300 digits
        return f"a huge {type(value).__name__}"


def check_threads(n_threads, name="n_threads"):
    n_threads = check_index(n_threads, name)
    if not 1 <= n_threads <= 65536:
        raise ValueError(f"{name} must be 1 or more (65536 at most), got {shown(n_threads)}")
    return min(n_threads, MOST_THREADS)


def set_num_threads(n_threads):
    global _n_threads
    _n_threads = check_threads(n_threads)


def get_num_threads():
    return _n_threads


# ---- checks ------------------------------------------------------------------------------------

cdef inline bint _is_plain(cnp.ndarray array) noexcept:
    """Native byte order, aligned."""
    return cnp.PyArray_ISBEHAVED_RO(array)


cdef object _kind_name(object array):
    return f"an array of {array.dtype}"


cdef int _bfloat16_kind = -1


cdef int _elem_of(cnp.ndarray array) except -2:
    """Which of csrc/fastce.h's dtypes array has; -1: none. bfloat16 is ml_dtypes', whose number
    NumPy gives out at run time, so it is known by its name: asked for once, for that takes 2 us."""
    global _bfloat16_kind
    cdef int kind = cnp.PyArray_TYPE(array)  # user-defined dtypes start at 256
    if kind == cnp.NPY_FLOAT32:
        return FASTCE_F32
    if kind == cnp.NPY_FLOAT64:
        return FASTCE_F64
    if kind == cnp.NPY_FLOAT16:
        return FASTCE_F16
    if kind >= 256 and kind != _bfloat16_kind and (<object>array).dtype.name == "bfloat16":
        _bfloat16_kind = kind
    return FASTCE_BF16 if kind >= 256 and kind == _bfloat16_kind else -1


cdef object _as_array(object values, str name, str what="an array of numbers"):
    """values as an array, whatever it holds."""
    if not cnp.PyArray_CheckExact(values) and isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name} must be {what}, got a masked array, whose mask would be lost")
    try:
        return np.asarray(values)
    except MemoryError:
        raise
    except Exception as error:  # also of another library's __array__
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{name} must be {what}: {' '.join(str(error).split())}") from None


def check_array(values, name, what):
    return _as_array(values, name, what)


cdef object _as_reals(object values, str name, str what="an array of numbers"):
    """The same, with bfloat16 as float32."""
    array = _as_array(values, name, what)
    return array.astype(np.float32) if _elem_of(array) == FASTCE_BF16 else array


cdef cnp.ndarray _as_logits(object logits, str name="logits"):
    """logits as an aligned native array of a dtype that the kernels know; itself if it is one."""
    cdef cnp.ndarray array
    if cnp.PyArray_CheckExact(logits):
        array = <cnp.ndarray>logits
        if _elem_of(array) >= 0 and _is_plain(array):
            return array
    array = _as_array(logits, name)
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    native = array.dtype.newbyteorder("=")
    array = array.astype(native, copy=not _is_plain(array))
    if _elem_of(array) < 0:
        raise TypeError(f"{name} must be float16, bfloat16, float32, float64 or integers, got "
                        + _kind_name(array))
    return array


cdef cnp.ndarray _as_targets(object targets):
    """targets as an aligned native array of integers (bools as uint8) or floats, or as it is."""
    cdef cnp.ndarray array
    if cnp.PyArray_CheckExact(targets):
        array = <cnp.ndarray>targets
        if cnp.PyArray_ISINTEGER(array) and _is_plain(array):
            return array
    try:
        array = _as_reals(targets, "targets", "an array")
    except OverflowError:
        raise ValueError("targets holds a number that no integer dtype can hold") from None
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    if array.size == 0 and not cnp.PyArray_Check(targets):
        return array.astype(np.int64)
    if array.dtype.kind in "iuf" and cnp.PyArray_TYPE(array) < 256:  # none of ml_dtypes'
        return np.require(array, array.dtype.newbyteorder("="), "A")
    raise TypeError(f"targets must be integers or floats, got {_kind_name(array)}")


cdef int _target_kind(cnp.ndarray targets) noexcept:
    cdef bint signed = cnp.PyArray_ISSIGNED(targets)
    cdef int size = cnp.PyArray_ITEMSIZE(targets)
    if size == 8:
        return FASTCE_I64 if signed else FASTCE_U64
    if size == 4:
        return FASTCE_I32 if signed else FASTCE_U32
    if size == 2:
        return FASTCE_I16 if signed else FASTCE_U16
    return FASTCE_I8 if signed else FASTCE_U8


cdef cnp.ndarray _as_weights(object weights, str name, tuple shape):
    """Weights as a contiguous float64 array of this shape (None: of any), none negative or NaN."""
    cdef cnp.ndarray array
    cdef const double *values
    cdef ptrdiff_t size
    cdef bint all_fit
    array = _as_reals(weights, name)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be real numbers, got {_kind_name(array)}")
    if shape is None:
        shape = (<object>array).shape
    if (<object>array).shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {(<object>array).shape}")
    if not (cnp.PyArray_TYPE(array) == cnp.NPY_FLOAT64 and cnp.PyArray_ISCARRAY_RO(array)):
        with np.errstate(over="ignore"):  # a wider number may be inf
            array = np.require(array, np.float64, "CA").reshape(shape)
    values = <const double *>cnp.PyArray_DATA(array)
    size = cnp.PyArray_SIZE(array)
    if size < ELEMENTS_WITH_GIL:
        all_fit = _all_fit(values, size)
    else:
        with nogil:
            all_fit = _all_fit(values, size)
    if not all_fit:
        wrong = ~((<object>array >= 0) & np.isfinite(array))
        at = np.unravel_index(np.argmax(wrong), shape)
        raise ValueError(f"{name}{_place(at)} is {array[at]}, expected a finite number, 0 or more")
    return array


cdef bint _all_fit(const double *values, ptrdiff_t size) noexcept nogil:
    """Whether all are finite, and 0 or more.  By NumPy it would take 4 microseconds."""
    cdef const int64_t *bits = <const int64_t *>values
    cdef int64_t odd = 0, most = 0x7fefffffffffffff  # DBL_MAX
    cdef bint all_fit = True
    cdef ptrdiff_t i
    for i in range(size):  # by vectors; negative where one does not fit, and for -0.0
        odd |= bits[i] | (most - bits[i])
    if odd < 0:
        for i in range(size):
            all_fit &= (values[i] >= 0) & (values[i] <= DBL_MAX)
    return all_fit


def check_weight_sum(weights):
    with np.errstate(over="ignore"):
        _sum_as_divisor(weights.sum(), None)


cdef double _sum_as_divisor(double weight_sum, object class_weight) except? -1:
    if weight_sum - weight_sum != 0 or 0 < weight_sum < 1e-300:  # whose inverse may be inf
        name = "sample_weight"
        if class_weight is not None:
            name = "class_weight of the labels, times sample_weight if given,"
        raise ValueError(f"{name} must have a finite sum, 0 or 1e-300 and more, "
                         f"for a mean, got {weight_sum}")
    return weight_sum


cdef cnp.ndarray _broadcast(object array, str name, cnp.ndarray logits):
    """array as a view of the logits' shape."""
    try:
        return np.broadcast_to(array, (<object>logits).shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to the shape of logits {(<object>logits).shape}, "
                         f"got {array.shape}") from None


def check_weights(weights, name, shape):
    return _as_weights(weights, name, shape)


cdef cnp.ndarray _check_buffer(object out, cnp.ndarray like, str name):
    """out as a buffer for results: of the shape of like, writable, all elements apart."""
    if not cnp.PyArray_Check(out):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    cdef cnp.ndarray array = <cnp.ndarray>out
    if _elem_of(array) < 0:
        raise TypeError("out must be float16, bfloat16, float32 or float64, got "
                        + _kind_name(out))
    if not cnp.PyArray_CheckExact(out) and isinstance(out, np.ma.MaskedArray):
        raise TypeError("out must be a plain array, got a masked one")
    if not cnp.PyArray_SAMESHAPE(array, like):
        raise ValueError(f"out must have the shape of {name} {(<object>like).shape}, "
                         f"got {out.shape}")
    if not cnp.PyArray_ISWRITEABLE(array):
        raise ValueError("out must be writable, got a read-only array")
    if not cnp.PyArray_ISBEHAVED(array):
        raise ValueError("out must be aligned and of native byte order, got "
                         + (f"byte order {out.dtype.byteorder!r}"
                            if cnp.PyArray_ISALIGNED(array) else "an unaligned array"))
    if _overlaps_itself(array):
        raise ValueError(f"out must not repeat its elements, got strides {out.strides}")
    return array


cdef cnp.ndarray _check_out(object out, cnp.ndarray logits, object given, str name="logits"):
    """out as the buffer for grad, sharing no memory with the logits unless it is the logits
    themselves. given: what they were made of."""
    cdef cnp.ndarray array = _check_buffer(out, logits, name)
    cdef int i
    cdef bint same = (_elem_of(array) == _elem_of(logits)
                      and cnp.PyArray_DATA(array) == cnp.PyArray_DATA(logits))
    for i in range(cnp.PyArray_NDIM(array)):
        same = same and cnp.PyArray_STRIDE(array, i) == cnp.PyArray_STRIDE(logits, i)
    if not same and _share_memory(array, _given_array(given, logits)):
        raise ValueError(f"out must be {name} itself or share no memory with it")
    return array


cdef cnp.ndarray _given_array(object given, cnp.ndarray array):
    """What the caller gave, if that is an array, or the array that is read instead. Where that is a
    copy, given would be overwritten all the same."""
    return <cnp.ndarray>given if cnp.PyArray_Check(given) else array


cdef int _refuse_overlap(cnp.ndarray out, str name, object given, cnp.ndarray array) except -1:
    cdef cnp.ndarray other = _given_array(given, array)
    if other is not None and _share_memory(out, other):
        raise ValueError(f"out must share no memory with {name}")
    return 0


cdef bint _overlaps_itself(cnp.ndarray array) noexcept:
    """Whether an axis steps less far than the axes of smaller strides reach. Slices, transpositions
    and diagonals of an array that does not overlap itself never do."""
    cdef ptrdiff_t step, other, reach
    cdef int d, k
    if cnp.PyArray_ISCONTIGUOUS(array) or not cnp.PyArray_SIZE(array):
        return False
    for d in range(cnp.PyArray_NDIM(array)):
        if cnp.PyArray_DIM(array, d) == 1:
            continue
        step = abs(cnp.PyArray_STRIDE(array, d))
        reach = cnp.PyArray_ITEMSIZE(array)
        for k in range(cnp.PyArray_NDIM(array)):
            other = abs(cnp.PyArray_STRIDE(array, k))
            if k != d and other <= step:
                reach += (cnp.PyArray_DIM(array, k) - 1) * other
        if reach > step:
            return True
    return False


cdef bint _share_memory(cnp.ndarray a, cnp.ndarray b):
    """Whether any byte belongs to both; when that is hard to tell, yes."""
    cdef size_t a_low, a_high, b_low, b_high
    _bounds(a, &a_low, &a_high)
    _bounds(b, &b_low, &b_high)
    if a_high <= b_low or b_high <= a_low:
        return False
    try:
        return np.shares_memory(a, b, max_work=1000)
    except np.exceptions.TooHardError:
        return True


cdef void _bounds(cnp.ndarray array, size_t *low, size_t *high) noexcept:
    cdef int i
    cdef ptrdiff_t reach
    low[0] = <size_t>cnp.PyArray_DATA(array)
    high[0] = low[0]
    if cnp.PyArray_SIZE(array):
        high[0] += cnp.PyArray_ITEMSIZE(array)
    for i in range(cnp.PyArray_NDIM(array)):
        reach = (cnp.PyArray_DIM(array, i) - 1) * cnp.PyArray_STRIDE(array, i)
        if reach > 0:
            high[0] += reach
        else:
            low[0] += reach


cdef str _place(tuple at):
    return "[" + ", ".join(str(i) for i in at) + "]" if at else ""


cdef object _wrong_target(object targets, ptrdiff_t row, ptrdiff_t n_classes):
    at = np.unravel_index(row, targets.shape)
    return ValueError(f"targets{_place(at)} is {targets[at]}, outside [0, {n_classes})")


cdef double _as_number(object value, str name, double low, bint low_fits, double high) except? -1:
    """value as a float within its range, or an error that names the argument."""
    cdef double number
    if type(value) is float:  # the defaults: the checks below take 0.1 microseconds each
        number = value
    else:
        if isinstance(value, (bool, str, bytes)) or (isinstance(value, (np.generic, np.ndarray))
                                                     and value.dtype.kind not in "iufV"):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        try:
            number = value
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}") from None
        except OverflowError:  # an int
            number = float("inf")
    if not (low <= number <= high and number - number == 0) or (number == low and not low_fits):
        bounds = f"{'[' if low_fits else '('}{low:g}, {high:g}]"
        raise ValueError(f"{name} must be a finite number in {bounds}, got {shown(value)}")
    return number


def check_number(value, name, low, low_fits, high):
    return _as_number(value, name, low, low_fits, high)


# ---- the rows of a call ------------------------------------------------------------------------

cdef enum:
    MOST_DIMS = 64
    LOGITS = 0, GRAD = 1, HESS = 2, PROBABILITIES = 3, WHERE = 4, TARGETS = 5, N_ARRAYS = 6

# The row axes of a call, as few as the strides allow, outermost first.
cdef struct _rows:
    ptrdiff_t shape[MOST_DIMS]
    ptrdiff_t strides[N_ARRAYS][MOST_DIMS]


cdef void _set_rows(fastce_call *call, _rows *rows, PyObject **arrays, int axis) noexcept:
    """Tells call where the rows of its arrays are: neighbouring axes that all arrays step through
    as through one are one; the innermost is the run. arrays[TARGETS] has no class axis."""
    cdef fastce_array *to[N_ARRAYS]
    cdef cnp.ndarray logits = <cnp.ndarray>arrays[LOGITS], array
    cdef int n_dims = cnp.PyArray_NDIM(logits), n = 0, d, k, from_dim, last
    cdef ptrdiff_t length
    cdef bint joined
    to[:] = [&call.logits, &call.grad, &call.hess, &call.probabilities, &call.where, &call.targets]
    call.n_rows = 1
    for k in range(N_ARRAYS):
        if arrays[k] != NULL:
            array = <cnp.ndarray>arrays[k]
            to[k].data = cnp.PyArray_BYTES(array)
            if k != TARGETS:
                to[k].class_stride = cnp.PyArray_STRIDE(array, axis)
    for d in range(n_dims):
        if d == axis:
            continue
        length = cnp.PyArray_DIM(logits, d)
        call.n_rows *= length
        if length == 1:
            continue
        joined = n > 0
        for k in range(N_ARRAYS):
            if arrays[k] == NULL:
                continue
            from_dim = d - 1 if k == TARGETS and d > axis else d
            rows.strides[k][n] = cnp.PyArray_STRIDE(<cnp.ndarray>arrays[k], from_dim)
            if n > 0 and rows.strides[k][n - 1] != rows.strides[k][n] * length:
                joined = False
        if joined:
            for k in range(N_ARRAYS):
                rows.strides[k][n - 1] = rows.strides[k][n]
            rows.shape[n - 1] *= length
        else:
            rows.shape[n] = length
            n += 1
    call.n_outer = n - 1 if n > 0 else 0
    call.outer_shape = rows.shape
    call.run_length = rows.shape[n - 1] if n > 0 and call.n_rows else 1
    last = n - 1 if n > 0 else 0
    for k in range(N_ARRAYS):
        if n == 0:  # a row alone lies as if others followed it, for whole vectors to read it
            rows.strides[k][0] = to[k].class_stride * cnp.PyArray_DIM(logits, axis)
        to[k].outer_strides = rows.strides[k]
        to[k].row_stride = rows.strides[k][last] if arrays[k] != NULL else 0


# ---- the losses --------------------------------------------------------------------------------

cdef inline object _scalar(double value, int elem):
    """value as the loss of logits of this dtype: np.float32 or np.float64."""
    cdef float narrow = <float>value
    if elem == FASTCE_F64:
        return PyArray_Scalar(&value, cnp.PyArray_DescrFromType(cnp.NPY_FLOAT64), None)
    return PyArray_Scalar(&narrow, cnp.PyArray_DescrFromType(cnp.NPY_FLOAT32), None)


cdef cnp.ndarray _empty_like(cnp.ndarray array):
    if cnp.PyArray_IS_C_CONTIGUOUS(array):
        return cnp.PyArray_EMPTY(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array),
                                 cnp.PyArray_TYPE(array), 0)
    return np.empty_like(array, subok=False)


cdef int _read_reduction(object reduction, object on_empty, object normalizer, bint *mean,
                         bint *each, double *divisor) except -1:
    mean[0] = each[0] = False
    if not isinstance(reduction, str):
        raise TypeError(f"reduction must be a str, got {type(reduction).__name__}")
    if reduction == "mean":
        mean[0] = True
    elif reduction == "none":
        each[0] = True
    elif reduction != "sum":
        raise ValueError(f"reduction must be 'none', 'sum' or 'mean', got {reduction!r}")
    if not isinstance(on_empty, str):
        raise TypeError(f"on_empty must be a str, got {type(on_empty).__name__}")
    if on_empty != "nan" and on_empty != "zero" and on_empty != "raise":
        raise ValueError(f"on_empty must be 'nan', 'zero' or 'raise', got {on_empty!r}")
    if normalizer is not None:
        divisor[0] = _as_number(normalizer, "normalizer", 1e-300, True, 1e300)
        if not mean[0]:
            raise ValueError(f"normalizer replaces the mean's divisor; reduction is {reduction!r}")
    return 0


def check_reduction(reduction):
    cdef bint mean, each
    cdef double divisor
    _read_reduction(reduction, "nan", None, &mean, &each, &divisor)


def softmax_loss(int loss_kind, double alpha, double beta, int n_outputs, logits, targets, axis,
                 class_weight, sample_weight, ignore_index, where, label_smoothing, logit_scale,
                 softcap, z_loss, reduction, normalizer, on_empty, out, upstream, n_threads):
    """A loss of csrc/epilogue.h over logits: the loss, (loss, grad) or (loss, grad, hess_diag) as
    n_outputs says. See fastce.cross_entropy for what the other arguments mean."""
    cdef fastce_call call
    cdef _rows rows
    cdef PyObject *arrays[N_ARRAYS]
    cdef str name_of_x = "logits"
    if loss_kind == FASTCE_NLL or loss_kind == FASTCE_LOG_LOSS:
        name_of_x = "log_probs" if loss_kind == FASTCE_NLL else "probabilities"
    cdef cnp.ndarray x = _as_logits(logits, name_of_x)
    cdef cnp.ndarray y = _as_targets(targets)
    cdef cnp.ndarray grad = None, hess = None, losses = None
    cdef int elem = _elem_of(x), threads, class_axis
    cdef bint mean, each, empty = False
    cdef ptrdiff_t wrong
    cdef double weight_sum = 0, loss_sum = 0, divisor = 1, factor = 1
    cdef tuple kept

    # -- arguments
    _read_reduction(reduction, on_empty, normalizer, &mean, &each, &divisor)
    threads = _n_threads if n_threads is None else check_threads(n_threads)
    memset(&call, 0, sizeof(call))
    memset(arrays, 0, sizeof(arrays))
    call.loss = loss_kind
    call.alpha = alpha
    call.beta = beta
    _read_numbers(&call, label_smoothing, logit_scale, softcap, z_loss)
    class_axis = _class_axis(axis, x, name_of_x)
    call.n_classes = cnp.PyArray_DIM(x, class_axis)
    arrays[LOGITS] = <PyObject *>x
    y = _read_targets(&call, arrays, x, y, class_axis, name_of_x, ignore_index)
    kept = _read_weights(&call, arrays, x, class_axis, each, class_weight, sample_weight, where,
                         upstream, &factor)
    if out is not None:
        grad = _check_out(out, x, logits, name_of_x)
        _refuse_overlap(grad, "targets", targets, y)
        for name, given, array in kept:
            _refuse_overlap(grad, name, given, array)

    # -- rows, labels, divisor
    call.kernels = _isa.kernels[elem]
    call.out_elem = elem
    if n_outputs > 1:
        if grad is None:
            grad = _empty_like(x)
        else:
            call.out_elem = _elem_of(grad)
        arrays[GRAD] = <PyObject *>grad
    if n_outputs > 2:
        hess = _empty_like(grad)
        arrays[HESS] = <PyObject *>hess
    _set_rows(&call, &rows, arrays, class_axis)
    wrong = _check_targets(&call, &weight_sum)
    if wrong >= 0:
        raise _wrong_target(np.asarray(targets), wrong, call.n_classes)
    call.grad_scale = 1.0
    if mean:
        if normalizer is None:
            divisor = _sum_as_divisor(weight_sum, class_weight)
        empty = weight_sum == 0 and normalizer is None
        if empty and on_empty == "raise":
            raise ValueError("on_empty is 'raise', and the mean is over no row: all are ignored, "
                             "masked or of weight 0")
        # No weight left: the loss is 0 / 0; rows that are there have a NaN gradient, as in PyTorch.
        call.grad_scale = 1.0 / divisor if divisor > 0 else float("inf")
    call.grad_scale *= factor
    if each:
        losses = np.empty(_row_shape(x, class_axis), "f8" if elem == FASTCE_F64 else "f4")
        call.losses = cnp.PyArray_DATA(losses)

    # -- the work
    if empty and on_empty == "zero":
        if n_outputs > 1:
            (<object>grad)[...] = 0
        if n_outputs > 2:
            (<object>hess)[...] = 0
        loss = _scalar(0, elem)
    else:
        loss_sum = _run(&call, threads)
        if each:
            loss = losses if cnp.PyArray_NDIM(losses) else (<object>losses)[()]
        elif mean:
            loss = _scalar(loss_sum / divisor if divisor > 0 else float("nan"), elem)
        else:
            loss = _scalar(loss_sum, elem)
    if n_outputs == 1:
        return loss
    return (loss, grad) if n_outputs == 2 else (loss, grad, hess)


cdef int _read_numbers(fastce_call *call, object label_smoothing, object logit_scale,
                       object softcap, object z_loss) except -1:
    call.smoothing = _as_number(label_smoothing, "label_smoothing", 0, True, 1)
    call.z_loss = _as_number(z_loss, "z_loss", 0, True, 1e300)
    call.logit_scale = _as_number(logit_scale, "logit_scale", 1e-30, True, 1e30)
    if softcap is not None:
        call.softcap = _as_number(softcap, "softcap", 1e-30, True, 1e30)
    return 0


cdef cnp.ndarray _read_targets(fastce_call *call, PyObject **arrays, cnp.ndarray x, cnp.ndarray y,
                               int class_axis, str name_of_x, object ignore_index):
    """Tells call what y holds, labels or probabilities; returns the array that is to be kept."""
    cdef int n_dims = cnp.PyArray_NDIM(x), i
    cdef bint fits
    if cnp.PyArray_ISFLOAT(y):
        y = _as_probabilities(y, x, call.loss, ignore_index)
        arrays[PROBABILITIES] = <PyObject *>y
        return y
    fits = cnp.PyArray_NDIM(y) == n_dims - 1
    for i in range(n_dims - 1 if fits else 0):
        fits = fits and cnp.PyArray_DIM(y, i) == cnp.PyArray_DIM(x, i + (i >= class_axis))
    if not fits:
        raise ValueError(f"targets must have shape {_row_shape(x, class_axis)} (the rows of "
                         f"{name_of_x} {(<object>x).shape}), got {(<object>y).shape}")
    arrays[TARGETS] = <PyObject *>y
    call.target_kind = _target_kind(y)
    if ignore_index is not None:
        _set_ignore_index(call, ignore_index)
    return y


cdef tuple _read_weights(fastce_call *call, PyObject **arrays, cnp.ndarray x, int class_axis,
                         bint each, object class_weight, object sample_weight, object where,
                         object upstream, double *factor):
    """Tells call of the options that are arrays. Returns those, which it points into: name, as
    given, as read."""
    cdef tuple kept = ()
    cdef cnp.ndarray weights
    if class_weight is not None:
        weights = _as_weights(class_weight, "class_weight", (call.n_classes,))
        call.class_weight = <const double *>cnp.PyArray_DATA(weights)
        kept += (("class_weight", class_weight, weights),)
    if sample_weight is not None:
        weights = _as_weights(sample_weight, "sample_weight", _row_shape(x, class_axis))
        call.sample_weight = <const double *>cnp.PyArray_DATA(weights)
        kept += (("sample_weight", sample_weight, weights),)
    if upstream is not None:
        weights = _as_upstream(upstream, each, _row_shape(x, class_axis))
        if cnp.PyArray_NDIM(weights):
            call.upstream = <const double *>cnp.PyArray_DATA(weights)
            kept += (("upstream", upstream, weights),)
        else:
            factor[0] = float(weights)
    if where is not None:
        mask = _as_where(where, x, class_axis)
        if mask.ndim == cnp.PyArray_NDIM(x):
            arrays[WHERE] = <PyObject *>mask
        else:
            mask = np.ascontiguousarray(mask)
            call.keep_row = <const unsigned char *>cnp.PyArray_DATA(mask)
        kept += (("where", where, mask),)
    return kept


cdef ptrdiff_t _check_targets(const fastce_call *call, double *weight_sum) noexcept:
    """The row of a target that is no class, or -1; without the GIL where it takes long."""
    cdef ptrdiff_t wrong
    if call.n_rows * (call.n_classes if call.where.data else 1) < ELEMENTS_WITH_GIL:
        return call.kernels.check_targets(call, weight_sum)
    with nogil:
        wrong = call.kernels.check_targets(call, weight_sum)
    return wrong


cdef double _run(fastce_call *call, int threads) except? -1:
    """The sum of the losses, on as many threads as the work is worth."""
    cdef ptrdiff_t elements = call.n_rows * (call.n_classes + 16)  # 16: the row itself
    cdef double loss_sum = 0
    cdef int failed
    call.kernels.plan(call)
    if threads > elements / ELEMENTS_PER_THREAD:
        threads = <int>(elements / ELEMENTS_PER_THREAD)
    if elements < ELEMENTS_WITH_GIL:
        failed = fastce_run(call, 1, &loss_sum)
    else:
        with nogil:
            failed = fastce_run(call, threads, &loss_sum)
    if failed:
        raise MemoryError("no memory for some rows of terms per thread")
    return loss_sum


cdef int _class_axis(object axis, cnp.ndarray logits, str name="logits") except -1:
    cdef int n_dims = cnp.PyArray_NDIM(logits), class_axis = n_dims - 1
    if n_dims == 0:
        raise ValueError(f"{name} must have a class axis, got shape ()")
    if not (type(axis) is int and axis == -1):
        axis = check_index(axis, "axis")
        if not -n_dims <= axis < n_dims:
            raise ValueError(f"axis is {shown(axis)}, out of range for {name} of shape "
                             f"{(<object>logits).shape}")
        class_axis = axis % n_dims
    if cnp.PyArray_DIM(logits, class_axis) == 0:
        raise ValueError(f"{name} must have at least one class, got shape {(<object>logits).shape}")
    if cnp.PyArray_DIM(logits, class_axis) > MOST_CLASSES:
        raise ValueError(f"{name} must have at most 2**40 classes, got shape "
                         f"{(<object>logits).shape}")
    return class_axis


def check_out_for(result, out, logits):
    """out as a buffer for the result that logits have, float32 or float64."""
    if cnp.PyArray_Check(out) and _elem_of(out) not in (FASTCE_F32, FASTCE_F64):
        raise TypeError(f"out must be float32 or float64, got {_kind_name(out)}")
    cdef cnp.ndarray array = _check_buffer(out, np.asarray(result), "the result")
    if cnp.PyArray_Check(logits):
        _refuse_overlap(array, "logits", logits, None)


def softmax(int kind_of_output, logits, axis, out, n_threads):
    """softmax or log_softmax (an array of the logits' shape), or logsumexp (of the rows')."""
    cdef fastce_call call
    cdef _rows rows
    cdef PyObject *arrays[N_ARRAYS]
    cdef cnp.ndarray x = _as_logits(logits), result
    cdef int elem = _elem_of(x), class_axis = _class_axis(axis, x)
    cdef int threads = _n_threads if n_threads is None else check_threads(n_threads)
    memset(&call, 0, sizeof(call))
    memset(arrays, 0, sizeof(arrays))
    arrays[LOGITS] = <PyObject *>x
    call.out_elem = elem
    if kind_of_output == FASTCE_LOGSUMEXP:
        result = np.empty(_row_shape(x, class_axis), "f8" if elem == FASTCE_F64 else "f4")
        call.losses = cnp.PyArray_DATA(result)
    else:
        result = _empty_like(x) if out is None else _check_out(out, x, logits)
        call.out_elem = _elem_of(result)
        arrays[GRAD] = <PyObject *>result
    call.loss = kind_of_output
    call.logit_scale = 1
    call.n_classes = cnp.PyArray_DIM(x, class_axis)
    call.kernels = _isa.kernels[elem]
    _set_rows(&call, &rows, arrays, class_axis)
    _run(&call, threads)
    return result if cnp.PyArray_NDIM(result) else (<object>result)[()]


def evaluate(logits, targets, axis, ignore_index, n_threads):
    """For each row (loss, entropy, confidence, rank) as in csrc/fastce.h, rank -1 where the row is
    not there: a structured array of shape (n_rows,)."""
    cdef fastce_call call
    cdef _rows rows
    cdef PyObject *arrays[N_ARRAYS]
    cdef cnp.ndarray x = _as_logits(logits), y = _as_targets(targets), stats
    cdef int elem = _elem_of(x), class_axis = _class_axis(axis, x)
    cdef int threads = _n_threads if n_threads is None else check_threads(n_threads)
    cdef ptrdiff_t wrong
    cdef double weight_sum = 0
    memset(&call, 0, sizeof(call))
    memset(arrays, 0, sizeof(arrays))
    if not cnp.PyArray_ISINTEGER(y):
        raise TypeError(f"targets must be integers (class indices), got {_kind_name(y)}")
    if (<object>y).shape != _row_shape(x, class_axis):
        raise ValueError(f"targets must have shape {_row_shape(x, class_axis)} (the rows of logits "
                         f"{(<object>x).shape}), got {(<object>y).shape}")
    call.target_kind = _target_kind(y)
    if ignore_index is not None:
        _set_ignore_index(&call, ignore_index)
    arrays[LOGITS] = <PyObject *>x
    arrays[TARGETS] = <PyObject *>y
    call.loss = FASTCE_EVALUATE
    call.logit_scale = 1
    call.n_classes = cnp.PyArray_DIM(x, class_axis)
    call.kernels = _isa.kernels[elem]
    _set_rows(&call, &rows, arrays, class_axis)
    wrong = _check_targets(&call, &weight_sum)
    if wrong >= 0:
        raise _wrong_target(np.asarray(targets), wrong, call.n_classes)
    stats = np.empty(call.n_rows, [("loss", "f8"), ("entropy", "f8"), ("confidence", "f8"),
                                   ("rank", "i8")])
    call.row_stats = <fastce_row_stats *>cnp.PyArray_DATA(stats)
    _run(&call, threads)
    return stats


def check_logits(values, name):
    return _as_logits(values, name)


def check_class_axis(axis, logits, name):
    return _class_axis(axis, logits, name)


def check_upstream(upstream, bint each, shape):
    """As float64: a number, or one a row."""
    return _as_upstream(1.0 if upstream is None else upstream, each, shape)


def check_rows(shape, n_classes, targets, class_weight, sample_weight, ignore_index,
               bint is_divisor):
    """Rows of this shape whose logits are not there yet: labels as an array, sample weights as one
    or None, and the sum of the weights of the rows that are there, which a mean may divide by."""
    cdef fastce_call call
    cdef _rows rows
    cdef PyObject *arrays[N_ARRAYS]
    cdef cnp.ndarray x = np.broadcast_to(np.float32(0), shape + (n_classes,))
    cdef cnp.ndarray y = _as_targets(targets)
    cdef double weight_sum = 0, unused = 0
    cdef ptrdiff_t wrong
    cdef tuple kept
    memset(&call, 0, sizeof(call))
    memset(arrays, 0, sizeof(arrays))
    if not cnp.PyArray_ISINTEGER(y):
        raise TypeError(f"targets must be integers (class indices), got {_kind_name(y)}")
    call.n_classes = n_classes
    call.kernels = _isa.kernels[FASTCE_F32]
    arrays[LOGITS] = <PyObject *>x
    y = _read_targets(&call, arrays, x, y, len(shape), "hidden @ weight.T", ignore_index)
    kept = _read_weights(&call, arrays, x, len(shape), True, class_weight, sample_weight, None,
                         None, &unused)
    _set_rows(&call, &rows, arrays, len(shape))
    wrong = _check_targets(&call, &weight_sum)
    if wrong >= 0:
        raise _wrong_target(np.asarray(targets), wrong, call.n_classes)
    if is_divisor:
        _sum_as_divisor(weight_sum, class_weight)
    weights = kept[len(kept) - 1][2] if sample_weight is not None else None
    return y, weights, weight_sum


cdef tuple _row_shape(cnp.ndarray logits, int class_axis):
    shape = (<object>logits).shape
    return shape[:class_axis] + shape[class_axis + 1:]


cdef cnp.ndarray _as_probabilities(cnp.ndarray targets, cnp.ndarray logits, int loss_kind,
                                   object ignore_index):
    """Floats of the logits' shape, as float64 for float64 logits, else float32."""
    if not cnp.PyArray_SAMESHAPE(targets, logits):
        raise TypeError("targets must be integers (class indices), or probabilities of shape "
                        f"{(<object>logits).shape}, got {_kind_name(targets)} and shape "
                        f"{(<object>targets).shape}")
    if loss_kind in (FASTCE_FOCAL, FASTCE_GENERALIZED, FASTCE_SYMMETRIC):
        raise ValueError("targets must be class indices: this loss is a function of one class's "
                         "probability")
    if ignore_index is not None and check_index(ignore_index, "ignore_index") != -100:
        raise ValueError(f"ignore_index is {shown(ignore_index)}, but targets are probabilities, "
                         "which have no index to ignore; use where or sample_weight")
    real = np.float64 if _elem_of(logits) == FASTCE_F64 else np.float32
    with np.errstate(all="ignore"):  # probabilities that are 0 as floats
        return (<object>targets).astype(real, copy=False)


cdef cnp.ndarray _as_upstream(object upstream, bint each, tuple shape):
    """Factors of the rows' gradients: a number, or for 'none' an array of the rows' shape."""
    array = _as_reals(upstream, "upstream", "a number or an array")
    if array.dtype.kind not in "iuf":
        raise TypeError(f"upstream must be real numbers, got {_kind_name(array)}")
    if array.ndim and not each:
        raise ValueError("upstream must be a number unless reduction is 'none', got an array of "
                         f"shape {array.shape}")
    if array.ndim and array.shape != shape:
        raise ValueError(f"upstream must be a number or of shape {shape}, got {array.shape}")
    with np.errstate(over="ignore", under="ignore"):  # a wider number may be inf or 0
        return np.array(array, dtype=np.float64, order="C")


cdef object _as_bools(object where):
    array = _as_array(where, "where", "an array of bools")
    if array.dtype.kind != "b":
        raise TypeError(f"where must be bools, got {_kind_name(array)}")
    return array


cdef object _as_where(object where, cnp.ndarray logits, int class_axis):
    """where as a mask of rows or of classes."""
    array = _as_bools(where)
    shape = (<object>logits).shape
    row_shape = _row_shape(logits, class_axis)
    if array.shape == shape or array.shape == row_shape:
        return array
    raise ValueError(f"where must have the shape of the rows {row_shape} or of all classes "
                     f"{shape}, got {array.shape}")


cdef int _set_ignore_index(fastce_call *call, object ignore_index) except -1:
    value = ignore_index
    if type(value) is not int:
        value = check_index(value, "ignore_index")
    cdef int is_outside = 0  # of the labels' dtype, as far as it matters
    call.ignore_index = PyLong_AsLongLongAndOverflow(value, &is_outside)
    if call.target_kind == FASTCE_U64:  # both are compared as the same 64 bits
        if is_outside > 0 and value < 2**64:
            call.ignore_index = <int64_t>(<uint64_t>value)
            is_outside = 0
        elif call.ignore_index < 0:
            is_outside = -1
    call.has_ignore_index = not is_outside
    return 0


# ---- binary losses -----------------------------------------------------------------------------

cdef enum:
    X = 0, X_GRAD = 1, X_LOSSES = 2, X_TARGETS = 3, X_WHERE = 4, X_SAMPLE_WEIGHT = 5
    X_POS_WEIGHT = 6, X_UPSTREAM = 7, N_BINARY_ARRAYS = 8

cdef struct _elements:
    ptrdiff_t shape[MOST_DIMS]
    ptrdiff_t strides[N_BINARY_ARRAYS][MOST_DIMS]


cdef void _set_elements(fastce_binary_call *call, _elements *places, PyObject **arrays) noexcept:
    """As _set_rows, without a class axis, and the axes go in the order of the logits' memory."""
    cdef fastce_array *to[N_BINARY_ARRAYS]
    cdef cnp.ndarray logits = <cnp.ndarray>arrays[X]
    cdef int order[MOST_DIMS]
    cdef int n_dims = cnp.PyArray_NDIM(logits), n = 0, d, i, k
    cdef ptrdiff_t length, stride
    cdef bint joined
    to[:] = [&call.logits, &call.grad, &call.losses, &call.targets, &call.where,
             &call.sample_weight, &call.pos_weight, &call.upstream]
    for d in range(n_dims):
        stride = cnp.PyArray_STRIDE(logits, d)
        i = d
        while i > 0 and abs(cnp.PyArray_STRIDE(logits, order[i - 1])) < abs(stride):
            order[i] = order[i - 1]
            i -= 1
        order[i] = d
    call.n_elements = 1
    for i in range(n_dims):
        length = cnp.PyArray_DIM(logits, order[i])
        call.n_elements *= length
        if length == 1:
            continue
        joined = n > 0
        for k in range(N_BINARY_ARRAYS):
            if arrays[k] != NULL:
                stride = cnp.PyArray_STRIDE(<cnp.ndarray>arrays[k], order[i])
                places.strides[k][n] = stride
                joined = joined and places.strides[k][n - 1] == stride * length
        if joined:
            n -= 1
            for k in range(N_BINARY_ARRAYS):
                places.strides[k][n] = places.strides[k][n + 1]
            length *= places.shape[n]
        places.shape[n] = length
        n += 1
    call.n_outer = n - 1 if n > 0 else 0
    call.outer_shape = places.shape
    call.run_length = places.shape[n - 1] if n > 0 and call.n_elements else 1
    for k in range(N_BINARY_ARRAYS):
        if arrays[k] != NULL:
            to[k].data = cnp.PyArray_BYTES(<cnp.ndarray>arrays[k])
            to[k].row_stride = places.strides[k][n - 1] if n > 0 else 0
            to[k].outer_strides = places.strides[k]


def binary_loss(bint is_focal, gamma, alpha, int n_outputs, logits, targets, pos_weight,
                sample_weight, where, label_smoothing, reduction, normalizer, on_empty, out,
                upstream, n_threads):
    """The loss, or (loss, grad), of csrc/binary.h. See fastce.binary_cross_entropy."""
    cdef fastce_binary_call call
    cdef _elements places
    cdef PyObject *arrays[N_BINARY_ARRAYS]
    cdef cnp.ndarray x = _as_logits(logits), y = _as_targets(targets)
    cdef cnp.ndarray grad = None, losses = None, sample_weights = None, pos_weights = None
    cdef cnp.ndarray upstreams = None, kept = None
    cdef int elem = _elem_of(x), threads, failed
    cdef bint mean, each, empty = False, soft
    cdef double weight_sum = 0, loss_sum = 0, divisor = 1, factor = 1
    cdef ptrdiff_t elements

    # -- words and numbers
    _read_reduction(reduction, on_empty, normalizer, &mean, &each, &divisor)
    threads = _n_threads if n_threads is None else check_threads(n_threads)
    memset(&call, 0, sizeof(call))
    memset(arrays, 0, sizeof(arrays))
    call.is_focal = is_focal
    call.gamma = _as_number(gamma, "gamma", 0, True, 1e6)
    call.one_factor = call.zero_factor = 1
    if alpha is not None:
        call.one_factor = _as_number(alpha, "alpha", 0, True, 1)
        call.zero_factor = 1 - call.one_factor
    call.smoothing = _as_number(label_smoothing, "label_smoothing", 0, True, 1)

    # -- arrays
    arrays[X] = <PyObject *>x
    if not cnp.PyArray_SAMESHAPE(x, y):
        raise ValueError(f"targets must have the shape of logits {(<object>x).shape}, "
                         f"got {(<object>y).shape}")
    soft = cnp.PyArray_ISFLOAT(y)
    if soft:
        real = np.float32 if cnp.PyArray_ITEMSIZE(y) <= 4 else np.float64
        y = np.require(y, real, "A")
        call.target_kind = FASTCE_DOUBLE if cnp.PyArray_ITEMSIZE(y) == 8 else FASTCE_FLOAT
    else:
        call.target_kind = _target_kind(y)
    arrays[X_TARGETS] = <PyObject *>y
    if sample_weight is not None:
        sample_weights = _broadcast(_as_weights(sample_weight, "sample_weight", None),
                                    "sample_weight", x)
        arrays[X_SAMPLE_WEIGHT] = <PyObject *>sample_weights
    if pos_weight is not None:
        pos_weights = _broadcast(_as_weights(pos_weight, "pos_weight", None), "pos_weight", x)
        arrays[X_POS_WEIGHT] = <PyObject *>pos_weights
    if where is not None:
        kept = _broadcast(_as_bools(where), "where", x)
        arrays[X_WHERE] = <PyObject *>kept
    if upstream is not None:
        upstreams = _as_upstream(upstream, each, (<object>x).shape)
        if cnp.PyArray_NDIM(upstreams):
            arrays[X_UPSTREAM] = <PyObject *>upstreams
        else:
            factor = float(upstreams)
    call.out_elem = elem
    if n_outputs > 1:
        grad = _empty_like(x) if out is None else _check_out(out, x, logits)
        call.out_elem = _elem_of(grad)
        arrays[X_GRAD] = <PyObject *>grad
    if out is not None:
        _refuse_overlap(grad, "targets", targets, y)
        _refuse_overlap(grad, "sample_weight", sample_weight, sample_weights)
        _refuse_overlap(grad, "pos_weight", pos_weight, pos_weights)
        _refuse_overlap(grad, "where", where, kept)
        _refuse_overlap(grad, "upstream", upstream, upstreams)
    if each:
        losses = np.empty((<object>x).shape, "f8" if elem == FASTCE_F64 else "f4")
        arrays[X_LOSSES] = <PyObject *>losses

    # -- targets and divisor
    call.kernels = _isa.kernels[elem]
    _set_elements(&call, &places, arrays)
    elements = call.n_elements * COST_IN_DOUBLE
    if threads > elements / ELEMENTS_PER_THREAD:
        threads = <int>(elements / ELEMENTS_PER_THREAD)
    if elements < ELEMENTS_WITH_GIL:
        failed = fastce_run_binary(&call, 1, 1, &weight_sum)
    else:
        with nogil:
            failed = fastce_run_binary(&call, 1, threads, &weight_sum)
    if failed:
        raise MemoryError("no memory for the sums of the losses")
    if call.has_wrong:
        raise _wrong_binary_target(np.asarray(targets), soft and not is_focal, kept, sample_weights)
    if kept is None and sample_weights is None:
        weight_sum = call.n_elements
    call.grad_scale = factor
    if mean:
        if normalizer is None:
            divisor = _sum_as_divisor(weight_sum, None)
        empty = divisor == 0
        if empty and on_empty == "raise":
            raise ValueError("on_empty is 'raise', and the mean is over no element: all are masked "
                             "or of weight 0")
        if not empty:
            call.grad_scale /= divisor

    # -- the work
    if elements < ELEMENTS_WITH_GIL:
        failed = fastce_run_binary(&call, 0, 1, &loss_sum)
    else:
        with nogil:
            failed = fastce_run_binary(&call, 0, threads, &loss_sum)
    if failed:
        raise MemoryError("no memory for the sums of the losses")
    if each:
        loss = losses if cnp.PyArray_NDIM(losses) else (<object>losses)[()]
    elif empty:
        loss = _scalar(float("nan") if on_empty == "nan" else 0, elem)
    else:
        loss = _scalar(loss_sum / divisor if mean else loss_sum, elem)
    return loss if n_outputs == 1 else (loss, grad)


cdef object _wrong_binary_target(object targets, bint soft, object where, object sample_weight):
    wrong = (targets != 0) & (targets != 1)
    if soft:  # TARGET_SLACK in csrc/binary.h
        wrong &= ~((targets >= -2.0**-10) & (targets <= 1 + 2.0**-10))
    if where is not None:
        wrong = wrong & where
    if sample_weight is not None:
        wrong = wrong & (sample_weight != 0)
    at = np.unravel_index(np.argmax(wrong), targets.shape)
    return ValueError(f"targets{_place(at)} is {targets[at]}, "
                      f"{'outside [0, 1]' if soft else 'neither 0 nor 1'}")


# ---- a student and its teacher --------------------------------------------------------------

def distill(cnp.ndarray student not None, cnp.ndarray teacher not None, double temperature,
            cnp.ndarray is_there not None, cnp.ndarray slopes not None, cnp.ndarray grad,
            int threads):
    """The divergences of rows, and in grad, if there is one, slopes * (p - q).

    Contiguous: float32 or float64 of one shape (rows, classes), bools and float64 of (rows,). A
    divergence of -1 is left to the caller, with its row of grad.
    """
    cdef fastce_distillation call
    cdef int failed
    cdef cnp.ndarray divergences = np.empty(cnp.PyArray_DIM(student, 0))
    cdef ptrdiff_t size = cnp.PyArray_SIZE(student) * COST_IN_DOUBLE
    memset(&call, 0, sizeof(call))
    call.kernels = _isa.kernels[FASTCE_F64]
    call.n_rows, call.n_classes = cnp.PyArray_DIM(student, 0), cnp.PyArray_DIM(student, 1)
    call.student, call.teacher = cnp.PyArray_DATA(student), cnp.PyArray_DATA(teacher)
    call.student_elem, call.teacher_elem = _elem_of(student), _elem_of(teacher)
    if grad is not None:
        call.grad, call.grad_elem = cnp.PyArray_DATA(grad), _elem_of(grad)
    call.temperature = temperature
    call.is_there = <const unsigned char *>cnp.PyArray_DATA(is_there)
    call.slopes = <const double *>cnp.PyArray_DATA(slopes)
    call.divergences = <double *>cnp.PyArray_DATA(divergences)
    if threads > size / ELEMENTS_PER_THREAD:
        threads = <int>(size / ELEMENTS_PER_THREAD)
    with nogil:
        failed = fastce_run_distillation(&call, threads)
    if failed:
        raise MemoryError("no memory for three rows of float64 per thread")
    return divergences


# ---- the trainer's step, the benchmarks' yardsticks --------------------------------------------

def adam_step(cnp.ndarray params not None, cnp.ndarray grad not None,
              cnp.ndarray first_moment not None, cnp.ndarray second_moment not None,
              ptrdiff_t step, double learning_rate, double beta_1, double beta_2, double epsilon):
    """One step of Adam in place, on flat contiguous float32 arrays; step counts from 1."""
    cdef ptrdiff_t n = cnp.PyArray_SIZE(params)
    for name, array in (("params", params), ("grad", grad), ("first_moment", first_moment),
                        ("second_moment", second_moment)):
        if (array.dtype != np.float32 or array.size != n or not array.flags.c_contiguous
                or not array.flags.writeable and name != "grad"):
            raise ValueError(f"{name} must be a contiguous writable float32 array of size {n}")
    cdef double step_size = learning_rate / (1 - beta_1 ** step)
    cdef double second_correction = (1 - beta_2 ** step) ** 0.5
    _isa.kernels[FASTCE_F32].adam_step(
        cnp.PyArray_DATA(params), cnp.PyArray_DATA(grad), cnp.PyArray_DATA(first_moment),
        cnp.PyArray_DATA(second_moment), n, step_size, beta_1, beta_2, epsilon, second_correction)


def stream_copy(cnp.ndarray src not None, cnp.ndarray dst not None, int n_threads):
    """Copy src to dst past the caches: the yardstick of the benchmarks.

    Both contiguous, of one size in bytes; an unaligned edge of up to 128 bytes is left out.
    """
    cdef ptrdiff_t n_bytes = cnp.PyArray_NBYTES(src), skip
    if not (cnp.PyArray_ISCARRAY(dst) and cnp.PyArray_ISCARRAY_RO(src)
            and cnp.PyArray_NBYTES(dst) == n_bytes and n_threads >= 1):
        raise ValueError("src and dst must be contiguous arrays of one size, n_threads 1 or more")
    skip = -<ptrdiff_t>(<size_t>cnp.PyArray_DATA(dst)) & 63
    if n_bytes < skip + 64:
        return
    cdef const char *from_bytes = cnp.PyArray_BYTES(src) + skip
    cdef char *to_bytes = cnp.PyArray_BYTES(dst) + skip
    with nogil:
        fastce_stream(_isa.kernels[FASTCE_F32], from_bytes, to_bytes,
                      (n_bytes - skip) // 64 * 64, n_threads)


def stream_read(cnp.ndarray src not None, int n_threads):
    """Read src once, as fast as memory goes; returns the sum of its float32s."""
    if not (cnp.PyArray_ISCARRAY_RO(src) and n_threads >= 1):
        raise ValueError("src must be a contiguous array, n_threads 1 or more")
    cdef const char *from_bytes = cnp.PyArray_BYTES(src)
    cdef ptrdiff_t n_bytes = cnp.PyArray_NBYTES(src)
    cdef double total
    with nogil:
        total = fastce_stream(_isa.kernels[FASTCE_F32], from_bytes, NULL, n_bytes, n_threads)
    return total
