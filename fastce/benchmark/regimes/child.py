"""A function of a regime's module, `child`, called in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping

# -P: a file of the present folder that is named as a module is not meant
COMMAND = (sys.executable, "-P", "-c")


def run(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What the module's child() returns, as text; ChildProcessError with what it says last."""
    code = f"import sys; from {module} import child; print(child(*sys.argv[1:]))"
    done = subprocess.run(
        [*COMMAND, code, *arguments],
        env=os.environ | (environment or {}),
        capture_output=True,  # what it says when it is interrupted is of no interest
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ChildProcessError(said[-1])
    return done.stdout
