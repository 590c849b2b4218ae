"""MMD^2 on a CPU, in tiles."""
