"""Shared by all tests: seeds, and where temporary compiled code goes."""

import os

# set before any kernel is imported; set later it has no effect
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
