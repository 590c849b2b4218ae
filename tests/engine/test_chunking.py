"""Classes are split evenly, as memory allows; chunks change nothing but rounding and memory."""

import subprocess
import sys

import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.engine.chunking import (
    count_saturating_classes,
    find_largest_chunk,
    split_evenly,
)
from m3d_fast.networks import build_network
from tests.helpers.commands import ROOT, environment
from tests.helpers.condensers import digits_settings, run_steps


def test_even_chunks_cover_all_classes_once() -> None:
    rows = split_evenly(10, 4)
    assert [(r.start, r.stop) for r in rows] == [(0, 3), (3, 6), (6, 10)]


@pytest.mark.parametrize(
    ("per_class", "fixed", "expected"),
    [(100, 0, 8), (10, 0, 100), (5000, 0, None), (900, 0, 1), (100, 300, 6)],
)
def test_the_largest_chunk_is_measured_and_verified(per_class, fixed, expected) -> None:
    """1000 bytes are free; from 4 classes on, a step takes ``fixed`` bytes more."""

    def peak(classes: int) -> int:
        taken = per_class * classes + (fixed if classes > 3 else 0)
        if taken > 1000:
            raise torch.OutOfMemoryError
        return taken

    if expected is None:
        with pytest.raises(UserError, match="one class does not fit"):
            find_largest_chunk(peak, 100, 1000)
        return
    chunk = find_largest_chunk(peak, 100, 1000)
    assert chunk <= expected
    assert peak(chunk) <= 1000
    assert chunk >= 0.5 * min(expected, 850 // per_class or 1)


@pytest.mark.parametrize(
    ("network", "shape", "images", "classes"),
    [
        ("resnetap10", (3, 224, 224), 90, 7),
        ("resnetap10", (3, 224, 224), 700, 1),
        ("convnet3", (3, 32, 32), 128, 128),
    ],
)
def test_a_gpu_steps_no_more_classes_than_saturate_it(network, shape, images, classes) -> None:
    with torch.device("meta"):
        built = build_network(network, shape[0], shape[1], 10)
    assert count_saturating_classes(built, shape, images) == classes


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_chunks_change_nothing_but_rounding(chunk: int) -> None:
    whole, losses = run_steps(digits_settings(class_chunk=10), 3)
    parts, chunked = run_steps(digits_settings(class_chunk=chunk), 3)
    assert [len(c) for c in whole.chunks] == [10]
    assert max(len(c) for c in parts.chunks) <= chunk
    torch.testing.assert_close(torch.stack(chunked), torch.stack(losses), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(parts.pixels, whole.pixels, atol=2e-4, rtol=0)


PEAK = """
import sys
from pathlib import Path
from benchmarks.bench_condense import generate_images, make_config
from m3d_fast.engine.condenser import Condenser
classes = int(sys.argv[1])
sizes = {"real_batch": 8, "class_chunk": 4}
config = make_config("fp32", False, dataset="digits", network="convnet3", **sizes)
with Condenser(config, generate_images(classes, 8, 1, 16)) as condenser:
    def kilobytes(name):
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    for iteration in range(2):
        condenser.step(iteration)
    print(kilobytes("VmHWM") - before)
"""


def test_memory_of_a_step_does_not_grow_with_the_classes() -> None:
    def peak(classes: int) -> int:
        command = [sys.executable, "-c", PEAK, str(classes)]
        done = subprocess.run(
            command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    few, many = peak(8), peak(160)
    assert few > 1000, "kB: a step takes memory"
    assert many < 1.25 * few + 4000
