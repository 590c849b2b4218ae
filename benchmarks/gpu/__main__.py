"""Run ``python -m benchmarks.gpu [SUITE ...]``."""

import sys

from benchmarks.gpu.runner import main

sys.exit(main())
