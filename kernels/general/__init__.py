"""MMD^2 with weights per row and with any kernel function, in tiles of plain torch."""
