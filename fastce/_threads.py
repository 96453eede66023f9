"""How many threads a call may use: the default, and the three ways to change it.

How threads are run is in csrc/parallel.c; when a second one pays is decided in _kernel.pyx.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastce import _kernel


def _cgroup_cpus(root: str = "/sys/fs/cgroup") -> float | None:
    """The CPU quota of this container in CPUs, None without one (cgroup v2, then v1)."""
    try:
        quota, period = Path(root, "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = Path(root, "cpu/cpu.cfs_quota_us").read_text()
            period = Path(root, "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        cpus = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max": no quota
    return cpus if cpus > 0 else None


def _default_threads() -> tuple[int, str]:
    """The number of threads at import, and where it comes from."""
    for name in ("FASTCE_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "").strip()
        if not value:
            continue
        try:
            # OMP_NUM_THREADS may be a list, one number for each level of nesting
            first = value.split(",")[0] if name == "OMP_NUM_THREADS" else value
            return _kernel.check_threads(int(first), name), name
        except ValueError:
            warnings.warn(
                f"{name} is {value!r}, expected an integer from 1 to 65536; it is ignored",
                RuntimeWarning,
                stacklevel=2,
            )
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = count or 1
    cpus = _cgroup_cpus()
    if cpus is not None and cpus < count:
        return max(1, int(cpus)), "cgroup quota"
    return count, "affinity"


_default, _source = _default_threads()
_kernel.set_num_threads(_default)


def get_num_threads() -> int:
    """Return how many threads a call may use unless it says ``n_threads=``.

    Returns
    -------
    int
        At import the least of the CPU affinity and the cgroup quota, or what
        ``FASTCE_NUM_THREADS`` or else ``OMP_NUM_THREADS`` says. Small calls use fewer.

    Examples
    --------
    >>> import fastce
    >>> fastce.get_num_threads() >= 1
    True
    """
    return _kernel.get_num_threads()


def set_num_threads(n_threads: int) -> None:
    """Set how many threads a call may use, for the whole process.

    Parameters
    ----------
    n_threads : int
        1 or more. More than there are cores is allowed; more than 256 count as 256.

    Raises
    ------
    ValueError
        If `n_threads` is less than 1.
    TypeError
        If `n_threads` is not an integer.

    Examples
    --------
    >>> import fastce
    >>> before = fastce.get_num_threads()
    >>> fastce.set_num_threads(1)
    >>> fastce.get_num_threads()
    1
    >>> fastce.set_num_threads(before)
    """
    _kernel.set_num_threads(n_threads)


@contextmanager
def threads(n_threads: int) -> Iterator[None]:
    """Set the number of threads for a ``with`` block, and put the former one back after it.

    The number is the process's, as with `set_num_threads`, not the calling thread's alone.

    Parameters
    ----------
    n_threads : int
        1 or more.

    Raises
    ------
    ValueError, TypeError
        As `set_num_threads`.

    Examples
    --------
    >>> import fastce
    >>> with fastce.threads(1):
    ...     fastce.get_num_threads()
    1
    """
    before = get_num_threads()
    set_num_threads(n_threads)
    try:
        yield
    finally:
        set_num_threads(before)


def thread_source() -> str:
    """Where the present number of threads comes from."""
    return _source if get_num_threads() == _default else "set_num_threads"
