"""Softmax cross-entropy and its gradient on CPUs.

Public names only; each is defined in the module that it is imported from.
"""

from importlib.metadata import version as _version
from importlib.util import find_spec as _find_spec

if _find_spec("fastce._kernel") is None:
    raise ImportError(
        "fastce is not compiled in this folder: start Python elsewhere or `pip install -e .`"
    )

from fastce._binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_grad,
    binary_focal_loss,
    binary_focal_loss_with_grad,
)
from fastce._config import show_config
from fastce._cross_entropy import (
    cross_entropy,
    cross_entropy_with_grad,
    cross_entropy_with_grad_hess,
)
from fastce._distillation import distillation_loss, distillation_loss_with_grad
from fastce._evaluate import Evaluation, evaluate
from fastce._linear import (
    InfoNCEGradients,
    LinearGradients,
    info_nce,
    info_nce_with_grad,
    linear_cross_entropy,
    linear_cross_entropy_with_grad,
)
from fastce._multi_task import (
    UncertaintyGradients,
    uncertainty_weighted,
    uncertainty_weighted_with_grad,
)
from fastce._primitives import log_softmax, logsumexp, softmax
from fastce._probabilities import log_loss, log_loss_with_grad, nll_loss, nll_loss_with_grad
from fastce._robust import (
    focal_loss,
    focal_loss_with_grad,
    generalized_cross_entropy,
    generalized_cross_entropy_with_grad,
    poly1_loss,
    poly1_loss_with_grad,
    symmetric_cross_entropy,
    symmetric_cross_entropy_with_grad,
)
from fastce._threads import get_num_threads, set_num_threads, threads

__version__ = _version("fastce")

__all__ = [
    "Evaluation",
    "InfoNCEGradients",
    "LinearGradients",
    "UncertaintyGradients",
    "binary_cross_entropy",
    "binary_cross_entropy_with_grad",
    "binary_focal_loss",
    "binary_focal_loss_with_grad",
    "cross_entropy",
    "cross_entropy_with_grad",
    "cross_entropy_with_grad_hess",
    "distillation_loss",
    "distillation_loss_with_grad",
    "evaluate",
    "focal_loss",
    "focal_loss_with_grad",
    "generalized_cross_entropy",
    "generalized_cross_entropy_with_grad",
    "get_num_threads",
    "info_nce",
    "info_nce_with_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_loss",
    "log_loss_with_grad",
    "log_softmax",
    "logsumexp",
    "nll_loss",
    "nll_loss_with_grad",
    "poly1_loss",
    "poly1_loss_with_grad",
    "set_num_threads",
    "show_config",
    "softmax",
    "symmetric_cross_entropy",
    "symmetric_cross_entropy_with_grad",
    "threads",
    "uncertainty_weighted",
    "uncertainty_weighted_with_grad",
]
