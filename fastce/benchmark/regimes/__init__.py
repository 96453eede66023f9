"""What limits fastce, regime by regime: figures beside their limit, each a row of the table.

A module measures one regime; which there are is REGIMES. Nothing is printed here.
"""

from collections.abc import Callable, Iterator

from fastce.benchmark.regimes import (
    calls,
    few_classes,
    isa,
    long_rows,
    memory,
    scaling,
    threads,
)
from fastce.benchmark.regimes.figure import Figure

# The seconds are the most that is spent for each implementation and size, as in take_turns(); first
# calls after idleness, and what runs in processes of its own, take what they take.  A str tells
# what was left out, and why.
REGIMES: dict[str, Callable[[float], Iterator[Figure | str]]] = {
    "long-rows": long_rows.figures,
    "few-classes": few_classes.figures,
    "calls": calls.figures,
    "threads": threads.figures,
    "scaling": scaling.figures,
    "memory": memory.figures,
    "isa": isa.figures,
}

__all__ = ["REGIMES", "Figure"]
