"""The shapes that are timed, named by their use, and the arrays for them. Nothing is timed here."""

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Above this a shape is refused. A peer holds up to five arrays of this many elements, and the
# reference one twice as wide: about 4 GB for float32.
MAX_ELEMENTS = 2**27


class Shape(NamedTuple):
    """A matrix of logits and what it stands for."""

    use: str
    n_rows: int
    n_classes: int

    @property
    def size(self) -> str:
        """As the command line takes it: `64x10`."""
        return f"{self.n_rows}x{self.n_classes}"


NAMED = (
    Shape("mnist", 64, 10),
    Shape("mnist", 4096, 10),
    Shape("mnist", 60000, 10),
    Shape("imagenet", 256, 1000),
    Shape("imagenet", 8192, 1000),
    Shape("llm", 1024, 32000),
    Shape("llm", 512, 128256),
)
QUICK = tuple(shape for shape in NAMED if shape.n_rows * shape.n_classes < 2**20)


def parse(names: str) -> list[Shape]:
    """Shapes from `mnist,8192x1000,32x7`: uses or sizes; ValueError names what is neither."""
    shapes: list[Shape] = []
    for name in names.split(","):
        found = [shape for shape in NAMED if name in (shape.use, shape.size)]
        if not found:
            match = re.fullmatch(r"([1-9]\d{0,9})x([1-9]\d{0,9})", name)
            if match is None:
                uses = ", ".join(dict.fromkeys(shape.use for shape in NAMED))
                raise ValueError(f"expected {uses} or ROWSxCLASSES, got {name!r}")
            found = [Shape("custom", int(match[1]), int(match[2]))]
        for shape in found:
            if shape.n_rows * shape.n_classes > MAX_ELEMENTS:
                raise ValueError(f"{shape.size} has more than {MAX_ELEMENTS} elements")
        shapes += [shape for shape in found if shape not in shapes]
    return shapes


def make(
    n_rows: int, n_classes: int, dtype: Any = np.float32, seed: int = 0
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Logits (normal, standard deviation 3: losses from confident to wrong) and int64 labels."""
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n_rows, n_classes), dtype=dtype)
    logits *= 3
    return logits, rng.integers(0, n_classes, n_rows)


def touched(logits: NDArray[Any]) -> NDArray[Any]:
    """A buffer like the logits whose pages exist already, for outputs."""
    return np.full_like(logits, 0)
