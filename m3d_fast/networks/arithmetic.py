"""How networks are run: arithmetic, compilation, and the number of images at a time."""

import contextlib
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

# images per forward (and backward) on a CPU: activations stay in its caches. Per image 1.9x faster
# at 40 than at 640 (2 cores; both ways 1.3x at 45 than at 900, 1 core; ConvNet-3 in bf16)
CPU_PIECE = 64

# of a training step, on a CPU: maps that read up to so many others are computed anew in every loop
# that needs them, where torch's 4 writes them in float32 and reads them twice (ConvNet-3 in bf16:
# 108 instead of 124 ms for 64 images, 1 core; a ResNet's step is the same)
TRAINING_READS = 8

# compilations of one function in a process; torch stops at 8, which a sweep of settings exceeds
MAX_SHAPES = 1024


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Network arithmetic in ``precision`` ("bf16", else float32)."""
    if precision != "bf16":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def convolutions(
    device: torch.device, precision: str, *, deterministic: bool = False
) -> AbstractContextManager[object]:
    """cuDNN's float32 arithmetic, whatever torch's global flags.

    Args:
        device: where the network runs; on a CPU nothing is set.
        precision: of the network.
        deterministic: take algorithms that give the same bits every time, instead of the fastest
            of those that cuDNN compares.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return cast(
        AbstractContextManager[object],
        torch.backends.cudnn.flags(
            enabled=True,
            benchmark=not deterministic,
            deterministic=deterministic,
            allow_tf32=precision == "tf32",
        ),
    )


Result = TypeVar("Result")


def compile_per_shape(
    function: Callable[..., Result], *, fullgraph: bool = False, training_on: str | None = None
) -> Callable[..., Result]:
    """Compile ``function`` once per shape of its arguments, for any number of shapes.

    Args:
        function: of tensors and constants; returns tensors.
        fullgraph: whether what cannot be compiled raises instead of running eagerly.
        training_on: type of the device ("cpu", "cuda") if the gradient in weights is taken.
    """
    options: Any = {"realize_reads_threshold": TRAINING_READS} if training_on == "cpu" else None
    compiled = torch.compile(function, dynamic=False, fullgraph=fullgraph, options=options)
    limits: Any = torch._dynamo.config
    gradients: Any = importlib.import_module("torch._functorch.config")

    def run(*arguments: object) -> Result:
        with (
            limits.patch(recompile_limit=MAX_SHAPES, accumulated_recompile_limit=MAX_SHAPES),
            # a map whose view is needed is kept itself; else the view is, and signs of the map for
            # the ReLU beside it, which makes DDM's forward and backward 4 times slower (CPU)
            gradients.patch(recompute_views=True),
        ):
            return compiled(*arguments)

    return run
