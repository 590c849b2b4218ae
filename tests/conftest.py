"""Shared by all tests: environment variables, the seed, and which tests need a GPU."""

import gc
import os
import signal
from pathlib import Path

# set before any kernel is imported; set later it has no effect
os.environ.setdefault("TRITON_INTERPRET", "1")
# without it torch's own matrix products are not reproducible on a GPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# instead of compiling four programs that ask whether this machine has what /proc/cpuinfo lists
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")
# torch reuses what it compiled under another capability of the CPU, and crashes in it (2.15)
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    str(
        Path(__file__).resolve().parents[1]
        / f".cache/inductor-{os.environ.get('ATEN_CPU_CAPABILITY', 'default')}"
    ),
)

import numpy as np
import pytest
import torch

# more than 10 s of a core each; they come first, so that no process is alone with one at the end
LONGEST = (
    "kernels/triton/test_families.py",
    "test_distributed.py",
    "kernels/triton/test_compiled.py",
    "evaluation/test_workers.py",
    "test_imagenet.py",
    "run/test_survival.py",
    "engine/test_full_scale.py",
    "test_package.py",
    "comparison/test_processes.py",
    "reproduction/test_reproduction.py",
    "kernels/triton/test_op.py",
    "engine/test_embedding.py",
    "methods/test_running.py",
    "test_command_line.py",
    "loaders/ffcv/test_pack.py",
    "loaders/ffcv/test_images.py",
    "evaluation/test_evaluator.py",
    "engine/test_condenser.py",
    "engine/sources/test_sources.py",
    "test_networks.py",
    "methods/test_ddm.py",
    "benchmarks/test_gpu_compilation.py",
    "test_moments_command.py",
)

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"


def pytest_configure() -> None:
    # a script's background jobs start with it ignored, and so would the processes of tests
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        import triton
    except ModuleNotFoundError:
        return
    old = triton.__version__.startswith("3.6.")
    if INTERPRETED and old and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        raise pytest.UsageError(
            f"the interpreter of triton {triton.__version__} expects numpy < 2.4, and this is numpy"
            f" {np.__version__}: pip install 'numpy<2.4', or a newer triton"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in rank)
    items.sort(key=lambda item: rank.get(item.path, len(rank)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    # modules live as long as the process: searching them took 4 to 8 % of the time
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # Triton's binding reports what is not collected at the end


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Pools of networks are trained into a folder of these tests, not the user's cache."""
    os.environ["M3D_FAST_CACHE"] = str(tmp_path_factory.mktemp("m3d_fast"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
