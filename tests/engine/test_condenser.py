"""Where pixels live, how many classes go together, what a GPU run must not do, what is profiled."""

import contextlib
import copy
import itertools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks.bench_condense import generate_images
from benchmarks.gpu.engine import Case, measure_case
from m3d_fast.common.errors import UserError
from m3d_fast.config import CondenseConfig, ResolvedConfig
from m3d_fast.engine.chunking import equal_chunks, largest_fitting
from m3d_fast.engine.condenser import Condenser
from m3d_fast.engine.embedding import Embedder, even_piece
from m3d_fast.engine.profiling import RANGES
from m3d_fast.loaders import RealImages
from m3d_fast.methods.protocol import Views
from m3d_fast.networks import build_network
from tests.engine.test_loop import digits, settings
from tests.helpers.commands import ROOT, condense_digits, environment, run


@pytest.mark.parametrize("chunk", [1, 3, 5, 10])
def test_pixels_on_the_host_end_with_the_same_bytes(chunk: int) -> None:
    config = settings(class_chunk=chunk, real_batch=4)
    near, far = (
        Condenser(config, digits(config)),
        Condenser(config, digits(config), host_pixels=True),
    )
    for iteration in range(3):
        ours, theirs = far.step(iteration), near.step(iteration)
        assert torch.equal(ours.losses, theirs.losses)
    for name, tensor in near.state().items():
        assert torch.equal(far.state()[name], tensor)


def test_pixels_on_the_host_may_be_loaded_between_steps() -> None:
    """A chunk that was fetched ahead is fetched again."""
    config = settings(class_chunk=5, real_batch=4)
    one, other = (
        Condenser(config, digits(config), host_pixels=True),
        Condenser(config, digits(config)),
    )
    one.step(0)
    other.step(0)
    start = {
        name: tensor.clone() for name, tensor in Condenser(config, digits(config)).state().items()
    }
    for condenser in (one, other):
        condenser.load_state(start)
        condenser.step(0)
    assert torch.equal(one.pixels, other.pixels)


class DrawnAhead:
    """Images whose ``batches`` keeps one batch ready, as back ends that decode ahead do."""

    def __init__(self, real: RealImages) -> None:
        self._real, self._handed = real, real.state_dict()

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def state_dict(self):
        return self._handed

    def load_state_dict(self, state) -> None:
        self._real.load_state_dict(state)
        self._handed = copy.deepcopy(self._real.state_dict())

    @contextlib.contextmanager
    def batches(self, cycle, per_class):
        def ahead():
            drawn = (self._real.batch(classes, per_class).clone() for classes in endless)
            ready, state = next(drawn), copy.deepcopy(self._real.state_dict())
            while True:
                following = next(drawn)
                self._handed = state
                yield ready
                ready, state = following, copy.deepcopy(self._real.state_dict())

        endless = itertools.cycle(cycle)
        yield ahead()
        self._real.load_state_dict(self._handed)


def test_what_was_drawn_ahead_is_not_stepped_after_loading() -> None:
    config = settings(class_chunk=5, real_batch=4)
    ahead = Condenser(config, DrawnAhead(digits(config)))
    plain = Condenser(config, digits(config))
    start = {name: tensor.clone() for name, tensor in plain.state().items()}
    for condenser in (ahead, plain):
        condenser.step(0)
        condenser.load_state(start)
        condenser.step(0)
    assert torch.equal(ahead.pixels, plain.pixels)
    ahead.close()


def test_the_value_is_extra_and_changes_no_pixel() -> None:
    with_value, without = (Condenser(settings(), digits(settings())) for _ in range(2))
    for iteration in range(2):
        assert with_value.step(iteration).losses is not None
        step = without.step(iteration, value=False)
        assert step.losses is None
        assert step.finite.all()
    assert torch.equal(with_value.pixels, without.pixels)


def test_a_gradient_that_is_not_finite_is_noticed_without_the_value() -> None:
    condenser = Condenser(settings(), digits(settings()))
    condenser.pixels[7, 0, 0, 2, 2] = float("nan")
    assert condenser.step(0, value=False).finite.tolist() == [c != 7 for c in range(10)]


def test_a_share_of_the_classes_takes_the_steps_of_all() -> None:
    config = settings(class_chunk=2, real_batch=4)
    whole, share = Condenser(config, digits(config)), Condenser(config, digits(config), range(4, 8))
    for iteration in range(2):
        whole.step(iteration)
        share.step(iteration)
    assert torch.equal(share.pixels, whole.pixels[4:8])


def test_equal_chunks_cover_all_classes_once() -> None:
    rows = equal_chunks(10, 4)
    assert [(r.start, r.stop) for r in rows] == [(0, 3), (3, 6), (6, 10)]
    assert even_piece(128, 64) == 64
    assert even_piece(130, 64) == 64  # none of at most twice as many pieces divides it
    assert even_piece(96, 64) == 48
    assert even_piece(127, 64) == 64


@pytest.mark.parametrize(
    ("per_class", "fixed", "expected"),
    [(100, 0, 8), (10, 0, 100), (5000, 0, None), (900, 0, 1), (100, 300, 6)],
)
def test_the_largest_chunk_is_measured_and_verified(per_class, fixed, expected) -> None:
    """1000 bytes are free; a step takes ``fixed`` more than its classes say, from 4 on."""

    def peak(classes: int) -> int:
        taken = per_class * classes + (fixed if classes > 3 else 0)
        if taken > 1000:
            raise torch.OutOfMemoryError
        return taken

    if expected is None:
        with pytest.raises(UserError, match="one class does not fit"):
            largest_fitting(peak, 100, 1000)
        return
    chunk = largest_fitting(peak, 100, 1000)
    assert chunk <= expected
    assert peak(chunk) <= 1000
    assert chunk >= 0.5 * min(expected, 850 // per_class or 1)


def test_an_embedding_in_pieces_is_that_of_the_whole() -> None:
    torch.manual_seed(3)
    embedder = Embedder(
        build_network("convnet3", 1, 16, 10),
        torch.device("cpu"),
        "fp32",
        False,
        mean=(0.3,),
        std=(0.2,),
        operations=("color", "crop", "cutout"),
    )
    views = Views(torch.randint(0, 256, (4, 12, 1, 16, 16), dtype=torch.uint8), torch.rand(4, 12))
    whole = embedder.real(views)
    for piece in (1, 5, 12, 24):
        embedder._piece = piece
        torch.testing.assert_close(embedder.real(views), whole, atol=1e-5, rtol=1e-5)


def test_what_a_cpu_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="tf32 is a GPU's"):
        settings(precision="tf32")
    with pytest.raises(UserError, match="cuda_graphs: expected a CUDA device"):
        settings(cuda_graphs=True)
    with pytest.raises(UserError, match="class_chunk: expected a number above 0"):
        settings(class_chunk=0)


def test_profile_writes_a_table_of_all_ranges_and_a_trace(tmp_path) -> None:
    out = tmp_path / "run"
    done = run("condense", *condense_digits(out, "--profile", "--class-chunk", "auto"))
    assert done.returncode == 0, done.stderr
    table = (out / "profile.txt").read_text()
    rows = {line[:18].strip(): line[18:].split() for line in table.split("\n\n")[0].splitlines()}
    assert set(RANGES) <= set(rows)
    assert float(rows["network real"][1]) > 0
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {"backward", "MMD"} <= {event.get("name") for event in events}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(0 <= line["loader_wait"] < 1 and line["images_per_second"] > 0 for line in lines)


PEAK = """
import sys
from pathlib import Path
from benchmarks.bench_condense import generate_images, make_config
from m3d_fast.engine.condenser import Condenser
classes = int(sys.argv[1])
config = make_config(
    "fp32", False, dataset="digits", network="convnet3", real_batch=8, class_chunk=4
)
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


def gpu_settings(**given) -> ResolvedConfig:
    given = {"dataset": "digits", "device": "cuda", "real_batch": 12} | given
    return CondenseConfig(**given).resolved()


@pytest.mark.gpu
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_an_iteration_does_not_wait_for_the_device(compile: bool, graphs: bool) -> None:
    config = gpu_settings(compile=compile, cuda_graphs=graphs, class_chunk=4, ipm=1)
    images = generate_images(10, 20, 1, 16, device="cuda")
    with Condenser(config, images) as condenser:
        for value in (True, False):
            condenser.step(0, value=value)  # compiles and captures
        torch.cuda.set_sync_debug_mode("error")
        try:
            for iteration in range(1, 4):
                condenser.step(iteration, value=iteration == 2)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
@pytest.mark.parametrize("host", [False, True])
def test_graphs_compiler_and_host_pixels_change_nothing_but_rounding(precision, host) -> None:
    ends = []
    for compile, graphs in ((False, False), (False, True), (True, True)):
        config = gpu_settings(
            precision=precision, compile=compile, cuda_graphs=graphs, class_chunk=3
        )
        condenser = Condenser(
            config, generate_images(10, 20, 1, 16, device="cuda"), host_pixels=host
        )
        condenser.step(0)
        ends.append(condenser.state()["momentum"].cpu().flatten(1))
    bound = 0.999 if precision == "fp32" else 0.97
    for end in ends[1:]:
        assert torch.cosine_similarity(end, ends[0], dim=1).min() > bound


def test_the_gpu_benchmark_of_the_engine_runs() -> None:
    """On a CPU, tiny: its figures mean nothing, its arithmetic does."""
    case = Case("try", "cifar10", 3, 1, loop=True, iterations=10, real_batch=2)
    compiled = torch.compile
    torch.compile = lambda function, **_: function  # the compiler is not what is tried
    try:
        info = measure_case(case, "cpu", rounds=1)["extra_info"]
    finally:
        torch.compile = compiled
    taken, loop = info["median_seconds"].values()
    assert info["times_faster_than_loop"] == pytest.approx(loop / taken)
    assert info["projected_hours"] == pytest.approx(10 * taken / 3600)
    # 3 classes of 2 real forward, and 4 synthetic forward and backward
    images = 3 * (2 + 2 * 4)
    macs = 128 * (32**2 * 27 + 16**2 * 1152 + 8**2 * 1152)
    assert info["network_flop_per_second"] * taken == pytest.approx(2 * macs * images)
    assert info["images_per_second"] == pytest.approx(18 / taken)
