"""Benchmarks of fastce beside other libraries: `fastce bench`, and what the scripts in bench/ use.

Nothing here is imported by the rest of the package, and each peer only when it is asked for.
"""

from fastce.benchmark.command import main

__all__ = ["main"]
