"""`python -m calotype.benchmarks` is `calotype bench`."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
