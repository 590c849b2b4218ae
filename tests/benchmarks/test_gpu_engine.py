"""The engine's benchmark measures what it says."""

import pytest
import torch

from benchmarks.bench_condense import generate_images
from benchmarks.gpu import engine, measure
from benchmarks.gpu.engine import Case, RepeatedImages, add_kernels, float32_arithmetic


def make_images(stored: int, per_class: int) -> RepeatedImages:
    return RepeatedImages(generate_images(3, stored, 3, 8), per_class)


def test_few_stored_images_are_sampled_as_many():
    images = make_images(4, 10)
    stored = generate_images(3, 4, 3, 8)
    assert images.class_sizes == (10, 10, 10)
    for c in range(3):
        torch.testing.assert_close(images.take(c, [0, 3, 4, 9]), stored.take(c, [0, 3, 0, 1]))
    batch = images.batch([2, 0], 10)
    assert batch.shape == (2, 10, 3, 8, 8)
    # every class gives its own images, each of the stored at least twice in a visit of ten
    for row, c in zip(batch, (2, 0), strict=True):
        own = stored.take(c, range(4)).flatten(1)
        counts = (row.flatten(1)[:, None] == own[None]).all(-1).sum(0)
        assert counts.tolist() == [3, 3, 2, 2]


@pytest.mark.parametrize("size", [32, 224])
def test_a_class_is_permuted_once_in_many_iterations(size, monkeypatch):
    monkeypatch.setattr(engine, "STORED_PER_CLASS", 2)
    case = Case("try", "cifar10", 2, 1)
    assert min(engine._generate_images(case, size, "cpu").class_sizes) >= 1000


def span(start: float, length: float, kind: str = "kernel") -> dict:
    return {"cat": kind, "ts": start, "dur": length}


def test_only_kernels_are_busy_and_overlaps_count_once():
    events = [
        {"name": "no category"},
        span(50.0, 4.0, "gpu_memcpy"),
        span(0.0, 100.0, "gpu_user_annotation"),
        span(0.0, 100.0, "cpu_op"),
        span(10.0, 5.0),
        span(0.0, 4.0),
        span(12.0, 6.0),
        span(13.0, 1.0),
    ]
    assert add_kernels(events) == pytest.approx((4 + 8) / 1e6)
    assert add_kernels([]) == 0


@pytest.mark.parametrize("tf32", [False, True])
def test_the_loops_arithmetic_is_what_its_name_says(tf32):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with float32_arithmetic(tf32=tf32):
        assert (torch.get_float32_matmul_precision() == "highest") is not tf32
        assert torch.backends.cudnn.allow_tf32 is tf32
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_the_published_loop_is_timed_in_both_arithmetics(monkeypatch):
    seen = []
    monkeypatch.setattr(engine, "_build_condenser", lambda *a, **k: _Condenser())
    monkeypatch.setattr(engine, "_generate_images", lambda *a: None)
    monkeypatch.setattr(engine, "build_published_loop", lambda *a: lambda iteration: None)

    def time(function, device, rounds):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return float(len(seen))

    monkeypatch.setattr(engine, "time_calls", time)
    medians = engine._time_loops(engine.CASES[0], "cuda", 1)
    assert medians == {"published loop, float32": 1.0, "published loop, TF32": 2.0}
    assert seen == [("highest", False), ("high", True)]


class _Condenser:
    """As much of a condenser as the loop needs to be built."""

    class config:
        size = 32


def test_a_case_that_fails_is_recorded(monkeypatch):
    def fail(case):
        raise MemoryError("no memory on the GPU")

    monkeypatch.setattr(engine, "measure_case", fail)
    (record,) = measure.measure("engine", "2")
    assert record["name"] == engine.CASES[2].name
    assert "MemoryError: no memory on the GPU" in record["extra_info"]["error"]
