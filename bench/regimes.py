"""How near does fastce come to what limits it? The rows of `fastce bench --regimes`."""

import sys

from fastce.benchmark import main

if __name__ == "__main__":
    sys.exit(main(["--regimes", "all", *sys.argv[1:]]))
