"""python -m fastce: the same as the command fastce."""

import sys

from .cli import main

sys.exit(main())
