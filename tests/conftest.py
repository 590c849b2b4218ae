"""Shared by all tests: seeds, and where temporary compiled code goes."""

import os

# set before any kernel is imported; set later it has no effect
os.environ.setdefault("TRITON_INTERPRET", "1")
# triton 3.9 warns that this default changes with 3.10; our launches say which they want
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
