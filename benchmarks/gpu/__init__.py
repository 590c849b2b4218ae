"""The benchmarks of a CUDA machine: ``python -m benchmarks.gpu [NAME ...]``."""
