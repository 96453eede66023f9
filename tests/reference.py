"""The oracle: every loss of fastce in NumPy's longdouble, written to be read, one formula a line.

It imports nothing from fastce and checks nothing: arguments are those of the public functions, and
valid.  On x86 a longdouble has 11 bits more than a double; `wide` says whether it has here.
"""

from types import SimpleNamespace

import numpy as np

# The numerics contract, in units in the last place of the rounded oracle.
LOSS_ULP = {np.float32: 2, np.float64: 4}
GRAD_ULP = {np.float32: 4, np.float64: 8}

wide = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


def longdouble(a):
    return np.asarray(a, np.float64).astype(np.longdouble)  # integers become float64, as in fastce


def times(a, b):
    """a * b, where zero times infinity is zero: a class nobody wants may have probability zero."""
    return np.where(a == 0, 0, a * b)


def softmax_of_rows(x, scale=1.0, softcap=None):
    """Of z(x): p, q = 1 - p, nll = -log p, lse; and slope = dz/dx, bend = d2z/dx2.

    A row's largest term is 1 and is kept out of the sum, so that nothing cancels: q of the top
    class is the sum of the others, nll = gap + log1p(the others), and gap is formed from x.
    """
    top = np.argmax(x, 1)[:, None]  # the first NaN, if there is one
    x_top = np.take_along_axis(x, top, 1)
    poison = np.where(np.isfinite(x_top), 0, np.nan)  # by NaN, by +inf, or by nothing but -inf
    if softcap is None:
        gap, z_top, slope, bend = scale * (x_top - x), scale * x_top, scale, longdouble(0)
    else:
        tanh, tanh_top = np.tanh(scale * x / softcap), np.tanh(scale * x_top / softcap)
        gap, z_top = softcap * (tanh_top - tanh), softcap * tanh_top
        slope = scale / np.cosh(scale * x / softcap) ** 2
        bend = -2 * scale / softcap * tanh * slope
    gap = np.where(x == -np.inf, np.inf, gap)

    e = np.exp(-gap)
    np.put_along_axis(e, top, 0, 1)
    rest = e.sum(1, keepdims=True) + poison
    q = (1 + rest - e) / (1 + rest)
    np.put_along_axis(e, top, 1, 1)
    np.put_along_axis(q, top, rest / (1 + rest), 1)
    lse, nll = z_top + np.log1p(rest), gap + np.log1p(rest)
    return SimpleNamespace(p=e / (1 + rest), q=q, nll=nll, lse=lse, slope=slope, bend=bend)


class Rows:
    """The arguments with the classes last and the rows flat: (n_rows, n_classes) or (n_rows, 1).

    mass[i, j] is how much the loss of row i counts -log p of class j: the target, smoothed and
    weighted.  share is the row's part of the mean's divisor.  A row not `there` counts for nothing.
    """

    def __init__(self, logits, targets, *, axis=-1, class_weight=None, sample_weight=None,
                 ignore_index=-100, where=None, label_smoothing=0.0, logit_scale=1.0, softcap=None,
                 reduction="mean", normalizer=None, on_empty="nan", upstream=1.0):  # fmt: skip
        x = np.moveaxis(longdouble(logits), axis, -1)
        self.shape, self.axis, n_classes = x.shape, axis, x.shape[-1]
        self.reduction, self.normalizer, self.on_empty = reduction, normalizer, on_empty

        self.weight = self.column(1.0 if sample_weight is None else sample_weight)
        self.upstream = self.column(upstream)
        self.there = self.weight != 0
        kept = np.ones((len(self.weight), n_classes), bool)
        if where is not None and np.ndim(where) == x.ndim:  # classes
            kept = np.moveaxis(where, axis, -1).reshape(-1, n_classes)
            self.there = self.there & kept.any(1, keepdims=True)
        elif where is not None:  # rows
            self.there = self.there & (self.column(where) != 0)
        self.x = np.where(kept, x.reshape(-1, n_classes), -np.inf)
        kept = self.x != -np.inf
        uniform = kept / longdouble(np.maximum(kept.sum(1, keepdims=True), 1))

        w = longdouble(np.ones(n_classes) if class_weight is None else class_weight)
        e = longdouble(label_smoothing)
        if np.asarray(targets).dtype.kind in "iub":
            y = np.asarray(targets).reshape(-1, 1)
            self.there = self.there & (True if ignore_index is None else y != ignore_index)
            self.label = y == np.arange(n_classes)
            self.w_label = (self.label * w).sum(1, keepdims=True)
            self.share = self.weight * self.w_label
        else:
            self.label = np.moveaxis(longdouble(targets), axis, -1).reshape(-1, n_classes)
            self.share = self.weight
        self.mass = ((1 - e) * self.label + e * uniform) * w

        softcap = None if softcap is None else longdouble(softcap)
        self.__dict__.update(vars(softmax_of_rows(self.x, longdouble(logit_scale), softcap)))

    def column(self, a):
        return np.broadcast_to(longdouble(a), self.shape[:-1]).reshape(-1, 1)

    def reduced(self, loss, *derivatives):
        loss, factor = np.where(self.there, self.weight * loss, 0), self.weight * self.upstream
        loss = loss.reshape(self.shape[:-1]) if self.reduction == "none" else loss.sum()
        if self.reduction == "mean":
            divisor = np.where(self.there, self.share, 0).sum()
            if self.normalizer is not None:
                divisor = longdouble(self.normalizer)
            if divisor == 0 and self.on_empty == "raise":
                raise ValueError("no weight is left")
            empty = longdouble(np.nan if self.on_empty == "nan" else 0)
            loss = loss / divisor if divisor else empty
            factor = factor / divisor if divisor else factor * empty
        derivatives = (np.where(self.there, times(factor, d), 0) for d in derivatives)
        return loss, *(np.moveaxis(d.reshape(self.shape), -1, self.axis) for d in derivatives)


# ---------- softmax losses: (loss, grad), options are those of Rows


@np.errstate(all="ignore")
def cross_entropy(logits, targets, *, z_loss=0.0, **options):
    """(loss, grad, hess_diag): the loss is the sum of mass * nll, plus z_loss * lse**2."""
    r, lam = Rows(logits, targets, **options), longdouble(z_loss)
    total = r.mass.sum(1, keepdims=True)
    loss = times(r.mass, r.nll).sum(1, keepdims=True) + lam * r.lse**2
    grad = r.p * (total - r.mass) - r.q * r.mass  # total p - mass, but exact for a confident row
    hess = total * r.p * r.q
    grad += 2 * lam * r.lse * r.p
    hess += 2 * lam * (r.p**2 + r.lse * r.p * r.q)
    return r.reduced(loss, times(r.slope, grad), times(r.slope**2, hess) + times(r.bend, grad))


def of_label(r, value, g):
    """A loss V(p) of the label's p has the gradient g (p - onehot) with g = -p dV/dp."""
    grad = times(times(r.w_label, g), np.where(r.label, -r.q, r.p))
    return r.reduced(times(r.w_label, value), times(r.slope, grad))


def label_columns(r):
    return (times(r.label, a).sum(1, keepdims=True) for a in (r.p, r.q, r.nll))


@np.errstate(all="ignore")
def focal_loss(logits, targets, *, gamma=2.0, alpha=1.0, **options):
    """V = alpha q**gamma nll (Lin et al. 2017)."""
    r, k = Rows(logits, targets, **options), longdouble(gamma)
    p, q, nll = label_columns(r)
    nll_over_q = np.where(q == 0, 1, nll / q)
    return of_label(r, alpha * times(q**k, nll), alpha * q**k * (1 + k * times(p, nll_over_q)))


@np.errstate(all="ignore")
def generalized_cross_entropy(logits, targets, *, q=0.7, **options):
    """V = (1 - p**q) / q (Zhang and Sabuncu 2018)."""
    r, k = Rows(logits, targets, **options), longdouble(q)
    _, _, nll = label_columns(r)
    return of_label(r, -np.expm1(-k * nll) / k, np.exp(-k * nll))


@np.errstate(all="ignore")
def symmetric_cross_entropy(logits, targets, *, alpha=0.1, beta=1.0, log_zero=-4.0, **options):
    """V = alpha nll - beta log_zero q (Wang et al. 2019)."""
    r, a, b = Rows(logits, targets, **options), longdouble(alpha), -longdouble(beta) * log_zero
    p, q, nll = label_columns(r)
    return of_label(r, times(a, nll) + b * q, a + b * p)


@np.errstate(all="ignore")
def poly1_loss(logits, targets, *, epsilon=2.0, **options):
    """The sum of mass * (nll + epsilon q) (Leng et al. 2022; soft targets as in optax)."""
    r, eps = Rows(logits, targets, **options), longdouble(epsilon)
    m, mp, total = r.mass, r.mass * r.p, r.mass.sum(1, keepdims=True)
    loss = (times(m, r.nll) + eps * m * r.q).sum(1, keepdims=True)
    grad = r.p * (total - m) - r.q * m
    grad += eps * r.p * (mp.sum(1, keepdims=True) - mp - m * r.q)  # sum of mass p, less mass
    return r.reduced(loss, times(r.slope, grad))


@np.errstate(all="ignore")
def nll_loss(log_probs, targets, **options):
    r = Rows(log_probs, targets, **options)
    return r.reduced(times(r.mass, -r.x).sum(1, keepdims=True), -r.mass)


@np.errstate(all="ignore")
def log_loss(probs, targets, **options):
    """Neither clipped nor renormalised."""
    r = Rows(probs, targets, **options)
    return r.reduced(times(r.mass, -np.log(r.x)).sum(1, keepdims=True), times(-r.mass, 1 / r.x))


# ---------- two classes: the logits x and 0


def beside_zero(logits):
    """Rows of two logits, x apart, the larger 0: the first has the probability sigmoid(x)."""
    x = longdouble(logits)
    return np.stack([np.minimum(x, 0), np.minimum(-x, 0)], -1)


def binary_cross_entropy(
    logits, targets, *, pos_weight=None, label_smoothing=0.0, where=True, **options
):
    """(loss, grad, hess_diag) of -pos_weight t log p - (1 - t) log(1 - p), with p = sigmoid(x)."""
    t = longdouble(targets) * (1 - longdouble(label_smoothing)) + longdouble(label_smoothing) / 2
    one = t * longdouble(1.0 if pos_weight is None else pos_weight)
    mass, where = np.stack([one, 1 - t], -1), np.broadcast_to(where, t.shape)
    loss, grad, hess = cross_entropy(beside_zero(logits), mass, where=where, **options)
    return loss, grad[..., 0], hess[..., 0]


def binary_focal_loss(logits, targets, *, alpha=None, where=True, **options):
    """(loss, grad): focal_loss times alpha for the target 1 and 1 - alpha for 0 (torchvision)."""
    t = longdouble(targets)
    a = np.ones_like(t) if alpha is None else np.where(t == 1, alpha, 1 - longdouble(alpha))
    y, a, where = (t == 0).astype(int), a.reshape(-1, 1), np.broadcast_to(where, t.shape)
    loss, grad = focal_loss(beside_zero(logits), y, alpha=a, where=where, **options)
    return loss, grad[..., 0]


# ---------- primitives


@np.errstate(all="ignore")
def softmax(logits, axis=-1):
    x = np.moveaxis(longdouble(logits), axis, -1)
    return np.moveaxis(softmax_of_rows(x.reshape(-1, x.shape[-1])).p.reshape(x.shape), -1, axis)


@np.errstate(all="ignore")
def log_softmax(logits, axis=-1):
    x = np.moveaxis(longdouble(logits), axis, -1)
    return np.moveaxis(-softmax_of_rows(x.reshape(-1, x.shape[-1])).nll.reshape(x.shape), -1, axis)


@np.errstate(all="ignore")
def logsumexp(logits, axis=-1):
    """As scipy.special has it: of nothing but -inf it is -inf, and of +inf it is +inf."""
    x = np.moveaxis(longdouble(logits), axis, -1)
    lse, top = softmax_of_rows(x.reshape(-1, x.shape[-1])).lse.reshape(x.shape[:-1]), x.max(-1)
    return np.where(np.isinf(top), top, lse)


# ---------- errors


def assert_close(actual, expected, dtype):
    """Within twice the contract, of the larger of the element and the largest of all.

    Not of the element alone: p and a soft target cancel, and both are right to a few ulp of
    themselves.  Twice: scale and cap round z, of size 10 here, before it is an exponent.
    """
    ulp = 2 * GRAD_ULP[dtype] * float(np.finfo(dtype).eps)
    finite = abs(np.where(np.isfinite(expected), expected, 0)).astype(np.float64)
    np.testing.assert_allclose(
        np.float64(actual), np.float64(expected), rtol=ulp, atol=ulp * finite.max(initial=0)
    )


@np.errstate(all="ignore")
def ulp_error(actual, expected, dtype):
    """The worst error of `actual`, in units of the last place of `expected` rounded to `dtype`.

    Zero's unit is the smallest subnormal.  The error is inf unless NaN meets NaN and an infinity
    the same infinity.
    """
    info = np.finfo(dtype) if np.dtype(dtype).kind == "f" else __import__("ml_dtypes").finfo(dtype)
    actual, expected = np.broadcast_arrays(longdouble(actual), np.asarray(expected, np.longdouble))
    rounded = longdouble(expected.astype(dtype))
    exponent = np.where(rounded == 0, info.minexp, np.frexp(rounded)[1] - 1)
    exponent = np.maximum(exponent, info.minexp)  # subnormals have the unit of the smallest normal
    error = abs(actual - expected) / np.ldexp(np.longdouble(1), exponent - info.nmant)
    same = (actual == rounded) | (np.isnan(actual) & np.isnan(expected))
    error = np.where(np.isfinite(actual) & np.isfinite(rounded), error, np.where(same, 0, np.inf))
    return float(error.max(initial=0))
