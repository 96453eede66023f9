"""One figure of a regime: what was measured, and what is wanted of it."""

from typing import NamedTuple


class Figure(NamedTuple):
    """A ratio `of` something; `seconds` are ours, where it is one of times."""

    case: str
    ratio: float
    of: str
    seconds: float | None = None
    at_least: float | None = None  # the goal, one of the two or none
    at_most: float | None = None
    shape: tuple[int, int] | None = None  # rows and classes, where they are drawn

    @property
    def goal(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:.2f}"
        return "" if self.at_most is None else f"<= {self.at_most:.2f}"

    @property
    def is_missed(self) -> bool:
        if self.at_least is not None:
            return not self.ratio >= self.at_least
        return self.at_most is not None and not self.ratio <= self.at_most
