"""Tests of whether two samples come from one distribution."""

from .aggregated import AggregatedTest, aggregated_test, spread_kernels
from .large import BlockTest, BootstrapTest, block_test, wild_bootstrap_test
from .permutation import PermutationTest, permutation_test
from .power import optimise_bandwidth, power_criterion

__all__ = [
    "AggregatedTest",
    "BlockTest",
    "BootstrapTest",
    "PermutationTest",
    "aggregated_test",
    "block_test",
    "optimise_bandwidth",
    "permutation_test",
    "power_criterion",
    "spread_kernels",
    "wild_bootstrap_test",
]
