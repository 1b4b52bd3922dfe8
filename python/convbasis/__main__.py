"""``python -m convbasis`` is the command ``convbasis``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
