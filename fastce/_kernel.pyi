from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike, NDArray

CROSS_ENTROPY: int
FOCAL: int
GENERALIZED: int
SYMMETRIC: int
POLY1: int
NLL: int
LOG_LOSS: int
SOFTMAX: int
LOG_SOFTMAX: int
LOGSUMEXP: int

def isas(compiled: bool = False) -> tuple[str, ...]: ...
def isa() -> str: ...
def use_isa(name: str) -> str | None: ...
def compiler() -> str: ...
def threading() -> str: ...
def threadings() -> tuple[str, ...]: ...
def use_threading(name: str) -> str: ...
def check_array(values: ArrayLike, name: str, what: str) -> NDArray[Any]: ...
def check_index(value: int, name: str) -> int: ...
def shown(value: object, text: Callable[[object], str] = ...) -> str: ...
def check_threads(n_threads: int, name: str = "n_threads") -> int: ...
def set_num_threads(n_threads: int) -> None: ...
def get_num_threads() -> int: ...
def check_number(value: float, name: str, low: float, low_fits: bool, high: float) -> float: ...
def check_weight_sum(weights: NDArray[Any]) -> None: ...
def check_weights(weights: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[Any]: ...
def softmax_loss(
    loss_kind: int,
    alpha: float,
    beta: float,
    n_outputs: int,
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    class_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int | None,
    where: ArrayLike | None,
    label_smoothing: float,
    logit_scale: float,
    softcap: float | None,
    z_loss: float,
    reduction: str,
    normalizer: float | None,
    on_empty: str,
    out: NDArray[Any] | None,
    upstream: ArrayLike | None,
    n_threads: int | None,
) -> Any: ...
def check_reduction(reduction: str) -> None: ...
def check_logits(values: ArrayLike, name: str) -> NDArray[Any]: ...
def check_class_axis(axis: int, logits: NDArray[Any], name: str) -> int: ...
def check_upstream(
    upstream: ArrayLike | None, each: bool, shape: tuple[int, ...]
) -> NDArray[Any]: ...
def check_rows(
    shape: tuple[int, ...],
    n_classes: int,
    targets: ArrayLike,
    class_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    ignore_index: int | None,
    is_divisor: bool,
) -> tuple[NDArray[Any], NDArray[Any] | None, float]: ...
def softmax(
    kind_of_output: int,
    logits: ArrayLike,
    axis: int,
    out: NDArray[Any] | None,
    n_threads: int | None,
) -> Any: ...
def evaluate(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    ignore_index: int | None,
    n_threads: int | None,
) -> NDArray[Any]: ...
def binary_loss(
    is_focal: bool,
    gamma: float,
    alpha: float | None,
    n_outputs: int,
    logits: ArrayLike,
    targets: ArrayLike,
    pos_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    where: ArrayLike | None,
    label_smoothing: float,
    reduction: str,
    normalizer: float | None,
    on_empty: str,
    out: NDArray[Any] | None,
    upstream: ArrayLike | None,
    n_threads: int | None,
) -> Any: ...
def distill(
    student: NDArray[Any],
    teacher: NDArray[Any],
    temperature: float,
    is_there: NDArray[Any],
    slopes: NDArray[Any],
    grad: NDArray[Any] | None,
    threads: int,
) -> NDArray[Any]: ...
def check_out_for(result: ArrayLike, out: NDArray[Any], logits: ArrayLike) -> None: ...
def adam_step(
    params: NDArray[Any],
    grad: NDArray[Any],
    first_moment: NDArray[Any],
    second_moment: NDArray[Any],
    step: int,
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> None: ...
def stream_copy(src: NDArray[Any], dst: NDArray[Any], n_threads: int) -> None: ...
def stream_read(src: NDArray[Any], n_threads: int) -> float: ...
