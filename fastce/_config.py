"""What this build is and what it runs on: the choice of kernels at import, and show_config."""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from fastce import _kernel, _threads


def _force(variable: str, use: Callable[[str], object]) -> bool:
    """Use what the environment asks for by name, or fail: never another in silence."""
    name = os.environ.get(variable, "")
    if name:
        try:
            use(name)
        except ValueError as error:
            raise ImportError(f"{variable}: {error}") from None
    return bool(name)


if not _force("FASTCE_ISA", _kernel.use_isa):
    _kernel.use_isa(_kernel.isas()[0])
_force("FASTCE_THREADING", _kernel.use_threading)


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how fastce was built and what it uses on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print it, or return it as a dict.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: ``version``, ``compiler``, ``isa`` (``compiled``, ``found`` on this
        CPU, ``used``) and ``threading`` (``compiled``, ``backend``, ``n_threads``,
        ``source``).

    Raises
    ------
    ValueError, TypeError
        If `mode` is neither.

    Examples
    --------
    >>> import fastce
    >>> sorted(fastce.show_config(mode="dicts"))
    ['compiler', 'isa', 'threading', 'version']
    """
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a str, got {type(mode).__name__}")
    if mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {mode!r}")
    config: dict[str, Any] = {
        "version": version("fastce"),
        "compiler": _kernel.compiler(),
        "isa": {
            "compiled": list(_kernel.isas(compiled=True)),
            "found": list(_kernel.isas()),
            "used": _kernel.isa(),
        },
        "threading": {
            "compiled": list(_kernel.threadings()),
            "backend": _kernel.threading(),
            "n_threads": _threads.get_num_threads(),
            "source": _threads.thread_source(),
        },
    }
    if mode == "dicts":
        return config
    for name, value in config.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, part in value.items():
                print(f"  {key}: {', '.join(part) if isinstance(part, list) else part}")
        else:
            print(f"{name}: {value}")
    return None
