"""MMD^2 on a CUDA device, by Triton kernels; imported on first use."""
