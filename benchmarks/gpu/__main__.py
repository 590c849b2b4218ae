"""Run ``python -m benchmarks.gpu [NAME ...]``."""

import sys

from benchmarks.gpu.runner import main

if __name__ == "__main__":
    sys.exit(main())
