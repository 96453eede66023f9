"""The bound of exp_log.h on exp itself: relative error below 2^-23.4, and 2^-52.4 in double;
from the tables of AVX-512 2^-23.55 and 2^-52.5, from AVX2's 2^-23.8.

All over its range; what becomes of it in losses and gradients is in test_numerics.py.

A gradient is a term times 1 / (the sum of the terms).  Where the largest term is 2^k after rounding
and all others together are less than half of its last bit, that factor is a power of two and the
gradient has the very bits of exp.  With a table, where terms have a factor KAPPA besides, it is
rounded twice more.
"""

import os

import numpy as np
import pytest
import reference

import fastce

# Every tenth float32 that matters, and every thousandth where there are 1e9 of one kind;
# FASTCE_TEST_STEP=1 runs them all, in minutes.
STEP = int(os.environ.get("FASTCE_TEST_STEP", "10"))
BIG_STEP = 100 * STEP if STEP > 1 else 1
PIECE = 999 * 512  # values at a time

LN2 = np.log(np.longdouble(2))

# Where there is a table: what all terms are multiplied by (exp_log.h, KAPPA), and the bound.
TABLES = {
    ("avx2", np.float32): (np.longdouble(float.fromhex("0x1.07692cp+0")), 2.0**-23.8),
    ("avx512", np.float32): (np.longdouble(float.fromhex("0x1.067aa2p+0")), 2.0**-23.55),
    ("avx512", np.float64): (np.longdouble(float.fromhex("0x1.063bf50da8076p+0")), 2.0**-52.5),
}
BOUND = {np.float32: 2.0**-23.4, np.float64: 2.0**-52.4}

# name: k, the row's maximum (next to k ln 2), the others from and to, every which float of those.
# A gap of 25 leaves 999 others less than 2^-26 of the maximum; of 46, less than 2^-56.
RANGES = {
    np.float32: {
        "from zero": (0, 0.0, -104.0, -25.0, STEP),
        "negative": (43, None, -74.0, -1e-38, BIG_STEP),  # 1.1e9 floats
        "positive": (43, None, 1e-38, 4.5, BIG_STEP),
        # Of all multiples of ln 2 below 512 the nearest to a float.
        "large": (235, None, 58.0, 137.0, STEP),
        # From 512 on, x - max is formed first, which is exact.
        "beyond the shift": (0, 600.0, 496.0, 575.0, STEP),
        "far beyond": (0, -6e4, -60104.0, -60025.0, 1),
    },
    np.float64: {
        "from zero": (0, 0.0, -746.0, -46.0, 1),
        "negative": (122, None, -660.0, -1e-300, 1),
        "positive": (122, None, 1e-300, 38.0, 1),
        "large": (2043, None, 672.0, 1370.0, 1),
        "beyond the shift": (0, 1e4, 9255.0, 9954.0, 1),
    },
}
CASES = [(dtype, name) for dtype in RANGES for name in RANGES[dtype]]


def pieces(low, high, step, dtype):
    """The floats from low to high, every step-th, in the order of their bits; some at a time."""
    bits = np.int32 if dtype is np.float32 else np.int64
    first, last = sorted(int(np.array(a, dtype).view(bits)) for a in (low, high))
    if dtype is np.float64:  # a sample; an odd step, for low bits of every kind
        step = (last - first) // 60_000 | 1
    for at in range(first, last + 1, step * PIECE):
        yield np.arange(at, min(at + step * PIECE, last + 1), step, bits).view(dtype)


@pytest.mark.parametrize("layout", ["two classes", "long rows"])
@pytest.mark.parametrize(("dtype", "name"), CASES)
def test_exp_is_within_its_bound(dtype, name, layout, isa):
    if dtype is np.float64 and not reference.wide:
        pytest.skip("longdouble is a double here")
    power, top, low, high, step = RANGES[dtype][name]
    shift, top = (0, dtype(power * LN2)) if top is None else (top, dtype(top))
    wide = np.float64 if dtype is np.float32 else np.longdouble
    # exp's own bound; the factor's and the product's rounding unless it is 1; the oracle's argument
    has_table = (isa, dtype) in TABLES
    kappa, bound = TABLES.get((isa, dtype), (1, BOUND[dtype]))
    of_top = np.exp(np.longdouble(top) - shift - power * LN2) * kappa
    factor = dtype(1 / np.float64(of_top))
    bound += 0 if factor == 1 else float(np.finfo(dtype).eps) / 2
    bound += 373 * float(np.finfo(wide).eps)
    width = 1 if layout == "two classes" else 999
    if has_table and width > 1:  # the others may be what rounds the factor the other way
        bound += float(np.finfo(dtype).eps)
    for x in pieces(low, high, step, dtype):
        x = np.resize(x, (-(-x.size // width), width))
        rows = np.concatenate([np.full((len(x), 1), top), x], 1)
        _, grad = fastce.cross_entropy_with_grad(rows, np.zeros(len(x), int), reduction="none")
        expected = np.exp(x.astype(wide) - wide(top)) * wide(of_top * factor)
        # A subnormal is rounded to its last bit once more.
        allowed = bound * expected + wide(np.finfo(dtype).smallest_subnormal) / 2
        error = abs(grad[:, 1:] - expected)
        assert (error <= allowed).all(), f"at {x.flat[(error - allowed).argmax()]!r}"
