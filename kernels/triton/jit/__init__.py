"""The Triton kernels alone."""
