"""How fast are loss and gradient beside other libraries? The table of `fastce bench`."""

import sys

from fastce.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
