"""Bad calls: one line names the argument, what was expected and what came; nothing is written."""

import re

import numpy as np
import pytest

import fastce

X = np.arange(40, dtype=np.float32).reshape(4, 10)
Y = np.array([1, 2, 3, 4])


def refused(error, message, logits=X, targets=Y, **options):
    """The call raises `error` with `message` in its one line; out and logits stay as they are."""
    before = np.array(logits) if isinstance(logits, np.ndarray) else None
    out = options.get("out")
    out_before = np.array(out) if isinstance(out, np.ndarray) else None
    with pytest.raises(error) as info:
        fastce.cross_entropy_with_grad(logits, targets, **options)
    assert re.search(message, str(info.value)), str(info.value)
    assert "\n" not in str(info.value)
    if before is not None:
        np.testing.assert_array_equal(logits, before)
    if out_before is not None:
        np.testing.assert_array_equal(out, out_before)
    if out is None:
        with pytest.raises(error, match=message):  # the loss alone refuses the same
            fastce.cross_entropy(logits, targets, **options)


# ---------- labels


@pytest.mark.parametrize("dtype", ["i4", "i8", "u8"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("at", [0, 3, 510, 511, 512, 513, 599])
def test_a_wrong_label_is_found_wherever_it_stands(dtype, stride, at):
    """Labels are looked at by parts, and closely only where one of a part is no class."""
    x = np.zeros((600, 5), np.float32)
    y = np.repeat(np.arange(600).astype(dtype) % 5, stride)[::stride]
    y[[at, 599]] = 6
    for ignore_index in (None, 5, 2):
        refused(ValueError, rf"targets\[{at}\] is 6", x, y, ignore_index=ignore_index)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u8"])
def test_a_label_out_of_range_is_named_with_its_position(dtype):
    out = np.full_like(X, 7)
    for target in (10, 12, np.iinfo(dtype).max):
        y = np.array([1, 2, 3, target]).astype(dtype) if target < 2**63 else None
        if y is None:
            y = Y.astype(dtype)
            y[3] = target
        refused(ValueError, rf"targets\[3\] is {target}, outside \[0, 10\)", targets=y, out=out)
        refused(ValueError, rf"targets\[3\] is {target}, outside \[0, 10\)", targets=y)
    low = np.iinfo(dtype).min
    if low < 0:
        y = Y.astype(dtype)
        y[0] = low
        refused(ValueError, rf"targets\[0\] is {low}, outside \[0, 10\)", targets=y, out=out)
        y[0] = -1
        refused(ValueError, r"targets\[0\] is -1, outside \[0, 10\)", targets=y, out=out)


def test_the_first_bad_label_is_the_one_named():
    refused(ValueError, r"targets\[1\] is 11, outside \[0, 10\)", targets=[1, 11, -5, 12])


def test_the_position_has_as_many_indices_as_the_targets():
    x, y = np.zeros((3, 5, 10), np.float32), np.ones((3, 5), int)
    y[2, 3] = 12
    refused(ValueError, r"targets\[2, 3\] is 12, outside \[0, 10\)", x, y)
    refused(ValueError, r"targets is 12, outside \[0, 10\)", x[0, 0], 12)


def test_the_position_counts_in_the_callers_strides():
    y = np.array([1, 1, 1, 12, 1, 1, 1, 1])
    refused(ValueError, r"targets\[0\] is 12, outside \[0, 10\)", targets=y[3::-1])
    refused(ValueError, r"targets\[1\] is 12, outside", X[:2], y[1:4:2])


@pytest.mark.parametrize("n_rows", [1, 17, 1000, 100_000])
def test_a_bad_label_is_found_wherever_it_is(n_rows, isa):
    """In any thread's part, and before a single gradient is written."""
    x, out = np.zeros((n_rows, 2), np.float32), np.full((n_rows, 2), 7, np.float32)
    y = np.zeros(n_rows, np.int32)
    y[-1] = 2
    with pytest.raises(ValueError, match=rf"targets\[{n_rows - 1}\] is 2, outside \[0, 2\)"):
        fastce.cross_entropy_with_grad(x, y, out=out, n_threads=3)
    assert (out == 7).all()


def test_none_ignores_no_label():
    refused(
        ValueError, r"targets\[1\] is -100, outside", targets=[1, -100, 3, 4], ignore_index=None
    )
    refused(ValueError, r"targets\[1\] is -100, outside", targets=[1, -100, 3, 4], ignore_index=2)


def test_bool_targets_need_two_classes():
    refused(ValueError, r"targets\[1\] is (1|True), outside \[0, 1\)", X[:2, :1], [False, True])


# ---------- shapes


@pytest.mark.parametrize(
    "targets", [Y[:3], [1, 2, 3, 4, 5], Y[None], Y[:, None], 3, [], [[1, 2, 3, 4]] * 4]
)
def test_targets_have_the_shape_of_the_rows(targets):
    refused(ValueError, r"targets.*\(4,\)", targets=np.array(targets, int))


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (0,), (2, 3, 0)])
def test_no_classes(shape):
    refused(ValueError, "logits", np.zeros(shape, np.float32), np.zeros(shape[:-1], int))


def test_logits_without_an_axis():
    refused(ValueError, "logits", np.float32(3), 0)
    refused(ValueError, "logits", 3.0, 0)


@pytest.mark.parametrize("weight", [1.0, [1.0] * 9, [1.0] * 11, np.ones((1, 10)), np.ones((4, 10))])
def test_class_weight_has_one_number_a_class(weight):
    refused(ValueError, r"class_weight.*\(10,\)", class_weight=weight, out=np.full_like(X, 7))


@pytest.mark.parametrize("weight", [1.0, [1.0] * 3, [1.0] * 5, np.ones((4, 1)), np.ones((4, 10))])
def test_sample_weight_has_one_number_a_row(weight):
    refused(ValueError, r"sample_weight.*\(4,\)", sample_weight=weight, out=np.full_like(X, 7))


@pytest.mark.parametrize("name", ["class_weight", "sample_weight"])
@pytest.mark.parametrize("bad", [-1.0, np.nan, -np.inf])
def test_a_weight_is_neither_negative_nor_nan(name, bad):
    weight = np.ones(10 if name == "class_weight" else 4)
    weight[2] = bad
    refused(ValueError, name, out=np.full_like(X, 7), **{name: weight})


@pytest.mark.parametrize("bad", [-1.0, -5e-324, np.nan, np.inf, -np.inf])
def test_a_wrong_weight_is_found_wherever_it_stands(bad):
    for n in range(1, 10):
        for at in range(n):
            weight = np.where(np.arange(n) == at, bad, -0.0)  # a 0 may have a sign
            x, y = np.zeros((n, 3), np.float32), np.zeros(n, int)
            refused(ValueError, rf"sample_weight\[{at}\]", x, y, sample_weight=weight)
    weight = [1.0, -0.0, 2.0, 0.0]
    expected = fastce.cross_entropy(X, Y, sample_weight=np.abs(weight))
    assert fastce.cross_entropy(X, Y, sample_weight=weight) == expected


# ---------- kinds

NOT_NUMBERS = [
    np.ones((4, 10), np.complex64),
    np.ones((4, 10), np.longdouble),
    np.full((4, 10), "1"),
    np.full((4, 10), b"1"),
    np.full((4, 10), None),
    np.ones((4, 10), object),
    np.ones((4, 10), "datetime64[s]"),
    np.ones((4, 10), [("a", "f4")]),
    "logits",
    None,
    [["1"] * 10] * 4,
    {1: 2},
    object(),
]


@pytest.mark.parametrize("logits", NOT_NUMBERS, ids=repr)
def test_logits_that_are_not_numbers(logits):
    refused(TypeError, "logits", logits)


@pytest.mark.parametrize(
    "targets",
    [
        "1234",
        None,
        [None] * 4,
        ["1"] * 4,
        [1j] * 4,
        {1, 2, 3, 4},
        np.ones(4, object),
        np.ones(4, "datetime64[s]"),
    ],
    ids=repr,
)
def test_targets_that_are_not_labels(targets):
    refused(TypeError, "targets", targets=targets)


def test_float_targets_of_the_shape_of_labels():
    """Not cast to integers: float targets are probabilities, which have the logits' shape."""
    refused((TypeError, ValueError), "targets", targets=[1.0, 2.0, 3.0, 4.0])
    refused((TypeError, ValueError), "targets", targets=np.float32([1.0, np.nan, 3.0, 4.0]))


@pytest.mark.parametrize("name", ["class_weight", "sample_weight"])
@pytest.mark.parametrize("weight", ["abc", ["1"] * 4, [1j] * 4, [None] * 4, object()], ids=repr)
def test_weights_that_are_not_numbers(name, weight):
    refused((TypeError, ValueError), name, **{name: weight})


@pytest.mark.parametrize("ragged", [[[1.0, 2.0], [3.0]], [[1.0], 2.0]])
def test_ragged_lists(ragged):
    refused((TypeError, ValueError), "logits", ragged, [0, 0])
    refused((TypeError, ValueError), "targets", targets=[[1], [2, 3], [4], [5]])


class Unwilling:
    def __init__(self, error):
        self.error = error

    def __array__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize("name", ["logits", "targets", "sample_weight", "where"])
def test_what_does_not_want_to_be_an_array(name):
    """As PyTorch's tensors that require a gradient, or are bfloat16."""
    arguments = {"logits": X, "targets": Y, name: Unwilling(RuntimeError("not\nwith me"))}
    with pytest.raises(TypeError, match=f"^{name} must be .*: not with me$"):
        fastce.cross_entropy(arguments.pop("logits"), **arguments)
    arguments = {"logits": X, "targets": Y, name: Unwilling(MemoryError())}
    with pytest.raises(MemoryError):
        fastce.cross_entropy(arguments.pop("logits"), **arguments)


# ---------- options


@pytest.mark.parametrize("reduction", ["avg", "Mean", "", "mean ", "batchmean"])
def test_a_misspelt_reduction(reduction):
    refused(ValueError, f"reduction.*{reduction!r}", reduction=reduction, out=np.full_like(X, 7))


@pytest.mark.parametrize("reduction", [None, 1, True, b"mean", ["mean"], np.array(["mean"])])
def test_a_reduction_that_is_no_string(reduction):
    refused((TypeError, ValueError), "reduction", reduction=reduction)


@pytest.mark.parametrize("ignore_index", [1.0, "1", [1], 1j, np.float32(2), np.array([1, 2])])
def test_an_ignore_index_that_is_no_integer(ignore_index):
    refused(TypeError, "ignore_index", ignore_index=ignore_index)


@pytest.mark.parametrize("name", ["axis", "n_threads"])
def test_integers_that_python_does_not_print(name):
    refused(ValueError, f"{name}.*a huge int", **{name: 10**5000})
    refused(ValueError, f"{name}.*a huge int", **{name: -(10**5000)})


@pytest.mark.parametrize("n_threads", [0, -1, -(2**40)])
def test_too_few_threads(n_threads):
    refused(ValueError, f"n_threads.*{n_threads}", n_threads=n_threads, out=np.full_like(X, 7))
    with pytest.raises(ValueError, match=f"{n_threads}"):
        fastce.set_num_threads(n_threads)
    with pytest.raises(ValueError, match=f"{n_threads}"), fastce.threads(n_threads):
        pass


@pytest.mark.parametrize("n_threads", [1.0, "2", [1], np.float64(2), 1j], ids=repr)
def test_threads_that_are_no_int(n_threads):
    refused(TypeError, "n_threads", n_threads=n_threads)
    before = fastce.get_num_threads()
    with pytest.raises(TypeError):
        fastce.set_num_threads(n_threads)
    with pytest.raises(TypeError), fastce.threads(n_threads):
        pass
    assert fastce.get_num_threads() == before


def test_an_unknown_option():
    for call in (fastce.cross_entropy, fastce.cross_entropy_with_grad):
        with pytest.raises(TypeError, match="weights"):
            call(X, Y, weights=None)
        with pytest.raises(TypeError):
            call(X, Y, "mean")  # options go by name
        with pytest.raises(TypeError):
            call(X)
    with pytest.raises(TypeError, match="out"):
        fastce.cross_entropy(X, Y, out=np.empty_like(X))  # there is no gradient to put there


# ---------- out


@pytest.mark.parametrize("shape", [(4, 9), (4, 11), (3, 10), (40,), (10, 4), (1, 4, 10), ()])
def test_out_has_the_shape_of_the_logits(shape):
    refused(ValueError, r"out.*\(4, 10\)", out=np.full(shape, 7, np.float32))


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, bool, object, np.longdouble, ">f4"])
def test_out_of_another_dtype(dtype):
    refused((TypeError, ValueError), "out", out=np.ones((4, 10), dtype))


@pytest.mark.parametrize("out", [[[0.0] * 10] * 4, "out", 3, np.float32(1)], ids=repr)
def test_out_that_is_no_array(out):
    refused((TypeError, ValueError), "out", out=out)


def test_a_read_only_out():
    out = np.full((4, 10), 7, np.float32)
    out.flags.writeable = False
    refused(ValueError, "out.*read-only", out=out)


def test_read_only_logits_as_out():
    x = X.copy()
    x.flags.writeable = False
    refused(ValueError, "out.*read-only", x, out=x)


def test_out_that_partly_overlaps_the_logits():
    buffer = np.arange(60, dtype=np.float32)
    x = buffer[:40].reshape(4, 10)
    for start in (1, 9, 10, 20):
        refused(ValueError, "out.*share", x, out=buffer[start : start + 40].reshape(4, 10))
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    refused(ValueError, "out.*share", square, [0] * 4, out=square.T)
    refused(ValueError, "out.*share", square, [0] * 4, out=square[::-1])


def test_out_of_another_dtype_in_the_memory_of_the_logits():
    buffer = np.zeros(80, np.float32)
    x = buffer[:40].reshape(4, 10)
    refused(ValueError, "out.*share", x, out=buffer.view(np.float64).reshape(4, 10))


def test_out_that_overlaps_another_input():
    buffer = np.zeros(60, np.float64)
    x, out = np.zeros((4, 10)), buffer[:40].reshape(4, 10)
    refused(ValueError, "out.*share", x, out=out, sample_weight=buffer[36:40])
    refused(ValueError, "out.*share", x, out=out, class_weight=buffer[30:40])
    refused(ValueError, "out.*share", x, buffer.view(np.int64)[:4], out=out)


def test_out_that_overlaps_an_input_which_is_copied_first():
    """The result would be right, and the input overwritten."""
    for dtype in (">f4", np.int32):
        x = X.astype(dtype)
        refused(ValueError, "out.*share", x, out=x.view("<f4"))
    out, x = np.ones((4, 10)), X.astype(np.float64)
    each = {"reduction": "none", "out": out}
    refused(ValueError, "out.*sample_weight", x, out=out, sample_weight=out[:, 3])
    refused(ValueError, "out.*class_weight", x, out=out, class_weight=out.view(np.float32)[0, ::2])
    refused(ValueError, "out.*targets", x, out.view(">i8")[:, 0], out=out)
    refused(ValueError, "out.*targets", X, out, out=out)
    keep_row = out.view(bool)[:, 8]
    refused(ValueError, "out.*where", x, out=out, where=keep_row)
    with pytest.raises(ValueError, match=r"out.*upstream"):
        fastce.cross_entropy_with_grad(x, Y, upstream=out[:, 2], **each)
    with pytest.raises(ValueError, match=r"out.*upstream"):
        fastce.binary_cross_entropy_with_grad(x, x > 3, upstream=out, **each)
    with pytest.raises(ValueError, match=r"out.*pos_weight"):
        fastce.binary_cross_entropy_with_grad(x, x > 3, pos_weight=out.view("f4")[0, ::2], **each)
    assert (out == 1).all()


def test_out_whose_elements_overlap_each_other():
    """Views that have one element for two: the gradient does not fit in them."""
    row = np.zeros(60, np.float32)
    for strides in ((0, 4), (4, 4), (12, 4), (36, 4), (4, 12), (-36, 4), (40, 0)):
        lowest = row[36:] if strides[0] < 0 else row
        out = np.lib.stride_tricks.as_strided(lowest, (4, 10), strides)
        refused(ValueError, r"out.*repeat.*strides", out=out)


def test_out_whose_elements_lie_apart_in_any_order():
    room = np.zeros((6, 8, 10, 20), np.float32)
    expected = fastce.cross_entropy_with_grad(X, Y)[1]
    diagonal = np.einsum("iijk->ijk", room[:, :6])
    for out in (
        room[0, :4, :, 3],
        room[0, 4:0:-1, ::-1, 0],
        room[1, 1, :, 2:6].T,
        room[2:, 2, 0, ::-2],
        diagonal[:4, :, 5],
    ):
        fastce.cross_entropy_with_grad(X, Y, out=out)
        np.testing.assert_array_equal(out, expected)


def test_out_says_what_is_wrong_with_its_bytes():
    refused(ValueError, "out.*byte order.*'>'", out=np.full((4, 10), 7, ">f4"))
    unaligned = np.frombuffer(bytearray(164), np.uint8)[1:161].view(np.float32).reshape(4, 10)
    refused(ValueError, "out.*unaligned", out=unaligned)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.uint8, np.int8])
def test_any_label_of_a_dtype_can_be_ignored(dtype):
    for ignored in (np.iinfo(dtype).max, np.iinfo(dtype).min):
        y = np.array([1, ignored, 2, 3], dtype)
        ignored = int(ignored)
        grad = fastce.cross_entropy_with_grad(X, y, ignore_index=ignored)[1]
        np.testing.assert_array_equal(grad.any(1), y != ignored)
        assert fastce.evaluate(X, y, ignore_index=ignored).n_valid == 3


def test_a_negative_ignore_index_is_no_uint64():
    y = np.array([1, 2**64 - 100, 2, 3], np.uint64)
    refused(ValueError, r"targets\[1\] is 18446744073709551516", targets=y)
    refused(ValueError, r"targets\[1\] is 18446744073709551516", targets=y, ignore_index=2**64)


@pytest.mark.parametrize("name", ["logits", "targets", "sample_weight", "class_weight", "where"])
def test_masked_arrays_are_refused(name):
    value = np.ma.masked_array(X if name == "logits" else Y, mask=False)
    refused(TypeError, f"{name} must be.*masked array", **{name: value})


def test_dtypes_of_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("float8_e5m2", "float8_e4m3fn"):
        odd = getattr(ml_dtypes, name)
        refused(TypeError, f"logits must be.*{name}", X.astype(odd))
        refused(TypeError, f"targets must be.*{name}", targets=Y.astype(odd))
        with pytest.raises(TypeError, match="targets must be"):
            fastce.binary_cross_entropy(np.zeros(4), np.zeros(4, odd))
    half = ml_dtypes.bfloat16
    q = np.full(X.shape, 0.125, np.float32)
    for options in ({}, {"sample_weight": np.array([1, 2, 0.5, 3], np.float32)}):
        expected = fastce.cross_entropy(X, q, **options)
        options = {key: value.astype(half) for key, value in options.items()}
        assert fastce.cross_entropy(X, q.astype(half), **options) == expected


def test_numbers_that_are_none():
    for value in (np.complex64(0.1), np.array("0.1"), np.array(True), np.bool_(True)):
        refused(TypeError, "label_smoothing must be a number", label_smoothing=value)


def test_targets_too_small_for_floats_are_zeros():
    q = np.where(np.eye(10)[Y] > 0, 1.0, 1e-300)
    with np.errstate(all="raise"):
        assert fastce.cross_entropy(X, q) == fastce.cross_entropy(X, np.eye(10)[Y])


def test_words_that_are_arrays():
    words = np.array([["mean", "nan"], ["sum", "zero"]])
    refused(TypeError, "reduction must be a str, got ndarray", reduction=words)
    refused(TypeError, "on_empty must be a str, got ndarray", on_empty=words)
    with pytest.raises(TypeError, match="mode must be a str, got ndarray"):
        fastce.show_config(words)
    with pytest.raises(TypeError, match="keepdims must be a bool, got ndarray"):
        fastce.logsumexp(X, keepdims=words)


def test_weights_whose_inverse_is_no_number():
    refused(
        ValueError, "^sample_weight must.*1e-300 and more.*1e-310", sample_weight=[1e-310, 0, 0, 0]
    )
    refused(ValueError, "^class_weight of the labels, .*must.*inf", class_weight=[1e308] * 10)
    refused(ValueError, "normalizer.*1e-300", normalizer=1e-310)


def test_a_weight_alone_is_named_without_a_place():
    with pytest.raises(ValueError, match=r"^pos_weight is -1\.0"):
        fastce.binary_cross_entropy(np.zeros(3), np.zeros(3), pos_weight=-1)


def test_out_is_no_masked_array():
    refused(TypeError, "out must be a plain array", out=np.ma.masked_array(np.ones_like(X), X > 3))


def test_more_classes_than_any_memory_holds():
    logits = np.broadcast_to(np.float16(0), (57, 2**56))
    with pytest.raises(ValueError, match=r"logits must have at most 2\*\*40 classes"):
        fastce.cross_entropy(logits, np.zeros(57, int))


def test_a_huge_index_to_ignore_beside_probabilities():
    refused(ValueError, "ignore_index is a huge int", targets=X, ignore_index=10**5000)


@pytest.mark.skipif(
    np.finfo(np.longdouble).max <= np.finfo(float).max, reason="longdouble is double here"
)
def test_a_weight_that_no_double_holds():
    weights = np.full(4, np.longdouble("1e400"))
    refused(ValueError, r"sample_weight\[0\]", sample_weight=weights)
    grad = fastce.cross_entropy_with_grad(X, Y, reduction="none", upstream=weights)[1]
    assert not np.isfinite(grad).any()
