"""What the numbers were measured on: one dictionary for the JSON, one line for people."""

import os
import platform
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastce

DEFAULT_LAST_LEVEL_CACHE = 32 * 2**20  # where the system does not tell: as much as most CPUs have


def describe(modules: Iterable[ModuleType] = ()) -> dict[str, Any]:
    """CPU, cores, cache, fastce's configuration, versions of `modules`, BLAS, load and date."""
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {module.__name__: module.__version__ for module in modules}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "last_level_cache": last_level_cache(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "fastce": fastce.show_config(mode="dicts"),
        "n_threads": fastce.get_num_threads(),
        "versions": versions,
        "blas": _blas(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def last_level_cache() -> int:
    """Bytes of the first core's largest cache."""
    units = {"": 1, "K": 2**10, "M": 2**20}
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    texts = [path.read_text().strip() for path in folder.glob("index*/size")]
    found = [re.fullmatch(r"(\d+)([KM]?)", text) for text in texts]
    sizes = [int(match[1]) * units[match[2]] for match in found if match]
    return max(sizes, default=DEFAULT_LAST_LEVEL_CACHE)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def _blas() -> str | None:
    """Which BLAS NumPy multiplies with, and on how many threads; None without threadpoolctl."""
    if find_spec("threadpoolctl") is None:
        return None
    info = import_module("threadpoolctl").threadpool_info()
    pools = [pool for pool in info if pool["user_api"] == "blas"]
    return (
        ", ".join(f"{p['internal_api']} {p['version']} x{p['num_threads']}" for p in pools) or None
    )
