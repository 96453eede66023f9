"""Where PyTorch, optax, scikit-learn and SciPy define a result, it is ours; and the oracle itself
against mpmath.  Each part is skipped where its peer is missing."""

from itertools import product

import numpy as np
import pytest
import reference

import fastce
from fastce.mlp import MLPClassifier

RTOL = {np.float32: 1e-6, np.float64: 1e-13}  # the peers' own errors: they sum in the logits' dtype

dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def by_torch(x, targets, **options):
    torch = pytest.importorskip("torch")
    cross_entropy = torch.nn.functional.cross_entropy
    x = torch.tensor(np.float64(x), requires_grad=True)
    if options.get("weight") is not None:
        options["weight"] = torch.tensor(options["weight"])
    loss = cross_entropy(x, torch.tensor(targets), **options)
    loss.sum().backward()
    return loss.detach().numpy(), x.grad.numpy()


def agree(ours, theirs, dtype):
    for a, e in zip(ours, theirs, strict=True):
        scale = abs(np.nan_to_num(e)).max(initial=0)
        np.testing.assert_allclose(a, e, rtol=RTOL[dtype], atol=RTOL[dtype] * scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("n_classes", [10, 130])
def test_masks_where_pytorch_has_subnormals_flushed(n_classes, dtype, isa, rng):
    """A thread's flags are its own affair, but a mask is no subnormal."""
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = rng.normal(size=(9, n_classes)).astype(getattr(ml_dtypes, dtype, dtype))
    y, where = rng.integers(0, n_classes, 9), rng.uniform(size=x.shape) < 0.7
    where[range(9), y] = True
    expected = fastce.cross_entropy(x, y, where=where, n_threads=1)
    assert torch.set_flush_denormal(True)
    try:
        loss = fastce.cross_entropy(x, y, where=where, n_threads=1)
    finally:
        torch.set_flush_denormal(False)
    np.testing.assert_array_equal(loss, expected)


@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(9, 4), (65, 10), (7, 100), (7, 120)], ids=str)
def test_hard_targets_as_pytorch(shape, reduction, dtype, rng):
    x = rng.normal(size=shape).astype(dtype) * 5
    y = rng.integers(0, shape[1], shape[0])
    y[2] = -100
    for weight, ignore_index in product((None, rng.uniform(0.1, 2, shape[1])), (-100, int(y[0]))):
        labels = np.maximum(y, 0) if ignore_index >= 0 else y
        ours = fastce.cross_entropy_with_grad(
            x, labels, class_weight=weight, ignore_index=ignore_index, reduction=reduction
        )
        theirs = by_torch(x, labels, weight=weight, ignore_index=ignore_index, reduction=reduction)
        agree(ours, theirs, dtype)


@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("shape", [(9, 4), (2, 4, 3), (2, 3, 4, 5), (2, 17, 5, 7)], ids=str)
def test_all_that_pytorch_has(shape, soft, reduction, dtype, rng):
    x = rng.normal(size=shape).astype(dtype) * 3
    rows = shape[:1] + shape[2:]
    targets = rng.uniform(size=shape) if soft else rng.integers(0, shape[1], rows)
    if not soft:
        targets.flat[2] = -100
    for weight, smoothing in product((None, rng.uniform(0.1, 2, shape[1])), (0.0, 0.1, 0.7, 1.0)):
        ours = fastce.cross_entropy_with_grad(
            x, targets, axis=1, class_weight=weight, label_smoothing=smoothing, reduction=reduction
        )
        theirs = by_torch(x, targets, weight=weight, label_smoothing=smoothing, reduction=reduction)
        agree(ours, theirs, dtype)


def test_empty_means_as_pytorch():
    x, y = np.ones((3, 4)), np.full(3, -100)
    np.testing.assert_equal(fastce.cross_entropy_with_grad(x, y), by_torch(x, y))
    w = np.array([1.0, 0, 1, 1])
    ours = fastce.cross_entropy_with_grad(x, [1, 1, 1], class_weight=w)
    np.testing.assert_equal(ours, by_torch(x, np.ones(3, int), weight=w))


def test_pytorch_loses_what_we_keep():
    """The reason for the contract: float32 rows with a lead of 20 cost 2e-9, not 0."""
    torch = pytest.importorskip("torch")
    x = np.array([[0, 20]], np.float32)
    assert torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor([1])) == 0
    loss, grad = fastce.cross_entropy_with_grad(x, [1])
    np.testing.assert_allclose(loss, np.exp(-20), rtol=1e-6)
    np.testing.assert_allclose(grad, [[np.exp(-20), -np.exp(-20)]], rtol=1e-6)


@pytest.mark.parametrize("kind", ["rows", "classes"])
def test_where_as_optax(kind, rng):
    optax = pytest.importorskip("optax")
    jax = pytest.importorskip("jax")
    x = rng.normal(size=(12, 7)).astype(np.float32)
    y = rng.integers(0, 7, 12)
    where = rng.uniform(size=(12,) if kind == "rows" else x.shape) < 0.6
    if kind == "classes":
        where[np.arange(12), y] = True
        where[3] = False

    def theirs(x):
        return optax.softmax_cross_entropy_with_integer_labels(x, y, where=where)

    ours = fastce.cross_entropy_with_grad(x, y, where=where, reduction="none")
    np.testing.assert_allclose(ours[0], theirs(x), rtol=2e-6)
    np.testing.assert_allclose(ours[1], jax.grad(lambda x: theirs(x).sum())(x), atol=2e-6)


def test_poly1_as_optax(rng):
    optax = pytest.importorskip("optax")
    x = rng.normal(size=(12, 7)).astype(np.float32)
    t = rng.dirichlet(np.ones(7), 12).astype(np.float32)
    theirs = optax.losses.poly_loss_cross_entropy(x, t, epsilon=1.5)
    ours = fastce.poly1_loss(x, t, epsilon=1.5, reduction="none")
    np.testing.assert_allclose(ours, theirs, rtol=2e-6)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_binary_as_pytorch(reduction, rng):
    torch = pytest.importorskip("torch")
    x, t, w = rng.normal(size=(9, 4)) * 5, rng.uniform(size=(9, 4)), rng.uniform(size=4)
    z = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        z, torch.tensor(t), pos_weight=torch.tensor(w), reduction=reduction
    )
    loss.sum().backward()
    ours = fastce.binary_cross_entropy_with_grad(x, t, pos_weight=w, reduction=reduction)
    agree(ours, (loss.detach().numpy(), z.grad.numpy()), np.float64)


def test_binary_focal_as_optax(rng):
    optax = pytest.importorskip("optax")
    x, y = rng.normal(size=(9, 4)).astype(np.float32), rng.integers(0, 2, (9, 4))
    theirs = optax.sigmoid_focal_loss(x, y, alpha=0.3, gamma=1.5)
    ours = fastce.binary_focal_loss(x, y, alpha=0.3, gamma=1.5, reduction="none")
    np.testing.assert_allclose(ours, theirs, rtol=3e-6)


def test_log_loss_as_scikit_learn(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    p = rng.dirichlet(np.ones(5), 50)
    y, w = rng.integers(0, 5, 50), rng.uniform(size=50)
    theirs = metrics.log_loss(y, p, sample_weight=w, labels=range(5))
    np.testing.assert_allclose(fastce.log_loss(p, y, sample_weight=w), theirs, rtol=1e-14)


def test_gradient_as_scikit_learn(rng):
    """Its private loss: gradients of each row, weighted, and not divided."""
    loss = pytest.importorskip("sklearn._loss")
    x, y, w = rng.normal(size=(50, 7)), rng.integers(0, 7, 50), rng.uniform(0.1, 2, 50)
    theirs = loss.HalfMultinomialLoss(n_classes=7).loss_gradient(y.astype(float), x, w)
    ours = fastce.cross_entropy_with_grad(x, y, sample_weight=w, reduction="none")
    agree(ours, theirs, np.float64)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_primitives_as_scipy(name, axis, rng):
    special = pytest.importorskip("scipy.special")
    x = rng.normal(size=(5, 6, 7)) * 10
    theirs = getattr(special, name)(x, axis=axis)
    # atol: SciPy's log_softmax of a confident class is off by the rounding of a sum near 1
    np.testing.assert_allclose(getattr(fastce, name)(x, axis=axis), theirs, rtol=1e-12, atol=1e-15)


# ---------- the oracle itself


@pytest.mark.skipif(not reference.wide, reason="longdouble is a double here")
@pytest.mark.parametrize("gap", [0, 1, 17, 40, 300, 640])
@pytest.mark.parametrize("offset", [0, 1e4, -1e7, 1e15])
def test_the_oracle_is_right_to_a_tenth_of_an_ulp(gap, offset, rng):
    """With 2200 bits: loss, gradient and second derivative of rows whose smallest terms vanish."""
    mp = pytest.importorskip("mpmath")
    x = rng.uniform(-1, 0, 9) + offset
    x[4] += gap
    with mp.workprec(2200):
        e = [mp.exp(mp.mpf(v) - mp.mpf(x[4])) for v in x.tolist()]
        p = [v / sum(e) for v in e]
        for y in (4, 0):
            loss, grad, hess = reference.cross_entropy(x[None], np.array([y]), reduction="sum")
            exact = [
                -mp.log(p[y]),
                *(v - (j == y) for j, v in enumerate(p)),
                *(v - v * v for v in p),
            ]
            for actual, expected in zip([loss, *grad[0], *hess[0]], exact, strict=True):
                high = np.float64(actual)  # a longdouble is two doubles
                error = mp.mpf(float(high)) + mp.mpf(float(actual - high)) - expected
                ulp = mp.mpf(float(np.spacing(abs(high))))
                assert abs(error) <= ulp / 10


def test_the_trainer_goes_through_a_search_of_scikit_learn(rng):
    selection = pytest.importorskip("sklearn.model_selection")
    pipeline = pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X = rng.normal(size=(300, 4))
    y = np.where(X[:, 0] > X[:, 1], "left", "right")
    steps = pipeline.make_pipeline(preprocessing.StandardScaler(), MLPClassifier(8, max_iter=30))
    rates = {"mlpclassifier__learning_rate_init": [1e-7, 0.02]}
    search = selection.GridSearchCV(steps, rates, cv=3).fit(X, y)
    assert search.best_params_ == {"mlpclassifier__learning_rate_init": 0.02}
    assert search.score(X, y) > 0.9
