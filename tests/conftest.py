"""Shared by all tests: seeds, and where temporary compiled code goes."""

import os

# set before any kernel is imported; set later it has no effect
os.environ.setdefault("TRITON_INTERPRET", "1")
# on a GPU torch's own products are reproducible with this alone, which the tests insist on
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
