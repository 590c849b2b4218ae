"""The namespace of the ops; a build for the Kernel Hub has one of its own."""

from typing import Any

import torch

ops: Any = torch.ops.m3d_fast


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the name of an op with its namespace."""
    return f"{ops.name}::{op_name}"
