"""A training run in a folder: checkpoint, metrics, model, curve. Killed at any moment, it resumes.

What an epoch does is classifier.py's business, how it is shown is the command line's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .classifier import DivergedError, MLPClassifier
from .files import (
    APPEND,
    alone,
    load_arrays,
    opened,
    remove_file,
    remove_unfinished,
    replacing,
    save_arrays,
)
from .loss_curve import save_loss_curve
from .mnist import N_CLASSES

CHECKPOINT_FORMAT = "fastce-checkpoint-1"

# A function to call with the rows of each batch, inside a context; or None.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object] | None]]


class Epoch(NamedTuple):
    """A line of metrics.jsonl, but for the epoch's number."""

    loss: float
    test_loss: float
    test_accuracy: float


def _sha256(arrays: tuple[np.ndarray, ...]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _save_checkpoint(
    path: Path, settings: Mapping[str, Any], classifier: MLPClassifier, history: list[Epoch]
) -> None:
    save_arrays(
        path,
        {
            "format": np.array(CHECKPOINT_FORMAT),
            "settings": np.array(json.dumps(settings, sort_keys=True)),
            "params": classifier._params,
            "moments": classifier._moments,
            "history": np.array(history, np.float64).reshape(-1, len(Epoch._fields)),
        },
    )


def _load_checkpoint(
    path: Path, settings: Mapping[str, Any], classifier: MLPClassifier
) -> list[Epoch]:
    """Put the checkpoint's state into the classifier; returns the epochs behind it."""
    arrays = load_arrays(path)
    try:
        if str(arrays["format"]) != CHECKPOINT_FORMAT:
            raise ValueError(f"expected {CHECKPOINT_FORMAT}, got {arrays['format']}")
        old = json.loads(str(arrays["settings"]))
        if old.keys() != settings.keys():
            raise ValueError(f"expected settings {list(settings)}, got {list(old)}")
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a checkpoint of fastce: {error}") from None
    for name, value in settings.items():
        if old[name] != value:
            raise ValueError(
                f"--{name}: the run in {path} was started with {old[name]}, not {value}"
            )
    try:
        history = arrays["history"]
        for name, expected in (
            ("params", classifier._params),
            ("moments", classifier._moments),
            ("history", np.empty((len(history), len(Epoch._fields)))),
        ):
            array = arrays[name]
            if array.dtype != expected.dtype or array.shape != expected.shape:
                raise ValueError(
                    f"{name}: expected {expected.dtype} of shape {expected.shape}, "
                    f"got {array.dtype} of {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{name} is not finite")
        if (arrays["moments"][1:] < 0).any():  # Adam's second ones
            raise ValueError("moments: expected second ones of 0 or more")
    except KeyError as error:
        reason = f"expected an array {error}, got {sorted(arrays)}"
        raise ValueError(f"{path}: not a checkpoint of fastce: {reason}") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a checkpoint of fastce: {error}") from None
    classifier._params[...] = arrays["params"]
    classifier._moments[...] = arrays["moments"]
    return [Epoch(*row) for row in history.tolist()]


def _metrics_line(number: int, epoch: Epoch) -> str:
    return json.dumps({"epoch": number, **epoch._asdict()}) + "\n"


def train(
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    folder: str | os.PathLike[str],
    *,
    hidden: tuple[int, ...],
    epochs: int,
    batch_size: int,
    lr: float,
    optimizer: str,
    seed: int,
    resume: bool,
    say: Callable[[str], object],
    progress: Progress,
) -> Epoch:
    """
    Train on `data`, what load_mnist returns, and leave the results in `folder`.

    After every epoch ``checkpoint.npz`` is replaced, then a line added to ``metrics.jsonl``; after
    the last one ``model.npz`` and ``loss_curve.png`` are written. The checkpoint alone is the
    truth: a resumed run writes all others from it, and ends with the bytes of one that never
    stopped. Without a checkpoint, to resume is to start: the run was killed before it began.

    Raises
    ------
    ValueError
        Naming the flag or the file: settings that are not those of the checkpoint, a damaged
        checkpoint, a learning rate too large, a folder in which another run is at work.
    OSError
        If the folder cannot be written.
    """
    X, y, X_test, y_test = data
    if not os.fspath(folder):  # Path("") is the current folder
        raise ValueError("--out: expected a folder, got ''")
    folder = Path(folder)
    checkpoint, metrics, model, curve = (
        folder / name for name in ("checkpoint.npz", "metrics.jsonl", "model.npz", "loss_curve.png")
    )
    # What decides the bits; the names are those of the flags.
    settings = {
        "hidden": list(hidden),
        "batch-size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "seed": seed,
        "data": f"sha256:{_sha256(data)}",
    }
    classifier = MLPClassifier(
        hidden,
        solver=optimizer,
        learning_rate_init=lr,
        batch_size=batch_size,
        max_iter=epochs,
        random_state=seed,
    )
    try:
        classifier._begin(X.shape[1], np.arange(N_CLASSES))
    except (MemoryError, ValueError) as error:  # NumPy's, for layers beyond any memory
        raise ValueError(f"--hidden: {error}") from None

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"--out {folder}") from None
    with alone(folder, f"--out {folder}"):
        history: list[Epoch] = []
        if resume and checkpoint.exists():
            history = _load_checkpoint(checkpoint, settings, classifier)
            if len(history) > epochs:
                raise ValueError(
                    f"--epochs: {checkpoint} has {len(history)} already, more than {epochs}"
                )
            classifier.n_iter_ = len(history)
            classifier.loss_curve_ = [epoch.loss for epoch in history]
            classifier._n_steps = len(history) * math.ceil(len(X) / batch_size)
            say(f"resumed after epoch {len(history)}")
        elif resume:
            say(f"no {checkpoint}: starting from the beginning")
        for path in (checkpoint, metrics, model, curve):
            remove_unfinished(path)
        # Also before the first epoch: what an older run left here must not be taken for this one's.
        _save_checkpoint(checkpoint, settings, classifier, history)
        if not history:
            remove_file(model)
            remove_file(curve)
        with replacing(metrics) as file:
            for number, epoch in enumerate(history, 1):
                file.write(_metrics_line(number, epoch).encode())

        for number in range(len(history) + 1, epochs + 1):
            title = f"epoch {number}/{epochs}"
            start = time.perf_counter()
            try:
                with progress(title, len(X)) as on_batch:
                    loss = classifier._train_epoch(X, y, on_batch)
                seconds = time.perf_counter() - start
                test = classifier.evaluate(X_test, y_test)
                epoch = Epoch(loss, test.loss, test.accuracy)
                if not math.isfinite(epoch.test_loss):
                    raise DivergedError
            except ValueError:  # diverged; or its test logits overflow
                raise ValueError(
                    f"--lr: {lr} is too large: no finite loss in epoch {number}"
                ) from None
            history.append(epoch)
            _save_checkpoint(checkpoint, settings, classifier, history)
            try:
                with opened(metrics, APPEND) as lines:
                    lines.write(_metrics_line(number, epoch).encode())
            except OSError as error:  # a full disk names no file
                raise OSError(error.errno, error.strerror, str(metrics)) from None
            say(
                f"{title} loss {loss:.4f}, test loss {epoch.test_loss:.4f}, "
                f"test accuracy {epoch.test_accuracy:.4f}, {seconds:.2f} s"
            )

        classifier.save(model)
        if not save_loss_curve(
            curve, [epoch.loss for epoch in history], [epoch.test_loss for epoch in history]
        ):
            say(f"no {curve}: it needs matplotlib, as in pip install 'fastce[train]'")
        return history[-1]
