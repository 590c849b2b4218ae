"""MMD^2 on a CPU, in tiles of the kernel matrix."""
