"""``python -m benchmarks.gpu``."""

import sys

from benchmarks.gpu.runner import main

sys.exit(main())
