"""m3d_fast: dataset condensation by Maximum Mean Discrepancy, and the fused MMD op."""

__version__ = "0.1.0"
