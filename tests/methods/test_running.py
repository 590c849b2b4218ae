"""Every method takes steps in the engine; terms are added; a user's own method runs."""

import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m3d_fast import CondenseConfig, condense
from m3d_fast.common.errors import UserError
from m3d_fast.common.seeds import generator
from m3d_fast.condense import build_parser
from m3d_fast.engine.embedding import Embedder
from m3d_fast.methods import METHODS, Method, Views, add_terms, build_method
from m3d_fast.networks import build_network, convnet, initialise
from tests.helpers.commands import PATIENCE, environment
from tests.helpers.condensers import digits_condenser, digits_settings

CHEAP = {"real_batch": 4, "compile": False, "iterations": 2}


@pytest.mark.parametrize("name", ["datadam", "cafe", "idm", "dc", "idc"])
def test_a_step_changes_every_class(name: str) -> None:
    settings = digits_settings(method=name, networks_from="random", **CHEAP)
    condenser = digits_condenser(settings)
    before = condenser.pixels.clone()
    result = condenser.step(0)
    assert result.finite.all()
    assert result.losses.shape == (10, len(condenser.method.terms))
    assert (condenser.pixels - before).flatten(1).abs().amax(1).min() > 0


def test_an_iterations_frequencies_are_those_of_seed_and_iteration() -> None:
    """A resumed run and another rank see the same ones."""
    settings = digits_settings(
        method="ncfm", pool=1, pool_epochs=0.01, options={"frequencies": 3}, **CHEAP
    )
    settings = dataclasses.replace(settings, networks_from="random")
    condensers = [
        digits_condenser(settings),
        digits_condenser(settings, classes=range(2, 4)),
    ]
    seen = []
    for condenser in condensers:
        initialise(condenser.embedder.expert, generator(3, "network"))
        for iteration in (0, 1):
            assert condenser.step(iteration).finite.all()
            seen.append(condenser.embedder.noise.clone())
    assert seen[0].shape == (3, 512)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("name", ["datadam", "idc", "idm", "ncfm"])
def test_a_share_of_the_classes_takes_the_steps_of_all(name: str) -> None:
    settings = digits_settings(method=name, class_chunk=2, ipc=2, **CHEAP)
    settings = dataclasses.replace(settings, networks_from="random")
    ends = []
    for classes in (range(10), range(4, 8)):
        condenser = digits_condenser(settings, classes=classes)
        if condenser.embedder.expert is not None:
            initialise(condenser.embedder.expert, generator(3, "network"))
        condenser.embedder.accuracy.fill_(0.5)
        condenser.step(0)
        ends.append(condenser.pixels[4 - classes.start : 8 - classes.start])
    assert torch.equal(*ends)


def test_the_networks_accuracy_weights_idms_cross_entropy() -> None:
    settings = digits_settings(method="idm", networks_from="random", **CHEAP)
    terms = []
    for accuracy in (0.0, 0.5, 1.0):
        condenser = digits_condenser(settings)
        condenser.embedder.accuracy.fill_(accuracy)
        terms.append(condenser.step(0).losses)
    assert (terms[0][:, 1] == 0).all()
    torch.testing.assert_close(terms[1][:, 1] * 2, terms[2][:, 1])
    assert torch.equal(terms[0][:, 0], terms[2][:, 0])


def test_an_added_term_is_a_column_and_takes_networks_from_a_pool() -> None:
    settings = digits_settings(add={"calibration": 0.1}, **CHEAP)
    assert settings.networks_from == "pool"
    method = settings.build_method()
    assert method.terms == ("mmd2", "calibration")
    assert method.experts
    assert settings.options == digits_settings(**CHEAP).options
    with pytest.raises(UserError, match="did you mean calibration"):
        digits_settings(add={"calibraton": 0.1})
    with pytest.raises(UserError, match="weight of calibration: expected a number above 0, got -1"):
        digits_settings(add={"calibration": -1.0})
    with pytest.raises(UserError, match="has the term calibration already"):
        digits_settings(method="dance", add={"calibration": 1.0})
    with pytest.raises(UserError, match=r"networks_from: .* expected pool"):
        digits_settings(add={"calibration": 1.0}, networks_from="random")


def test_terms_are_added_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    assert parser.parse_args(["--add", "calibration:0.1"]).add == {"calibration": 0.1}
    assert parser.parse_args(["--add", "a:1,b:2e-3"]).add == {"a": 1.0, "b": 0.002}
    for text in ("calibration", "calibration:", "calibration:much"):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(["--add", text])
        assert caught.value.code == 2
        assert f"argument --add: invalid weights value: '{text}'" in capsys.readouterr().err


def test_idc_shows_at_most_128_synthetic_images() -> None:
    assert digits_settings(method="idc", networks_from="random", ipc=40).synthetic_per_step == 128
    assert digits_settings(ipc=40).synthetic_per_step == 160
    assert digits_settings(ipc=60).synthetic_per_step == 200


def test_classes_that_are_compared_share_their_augmentation() -> None:
    shown = []
    for name in ("cafe", "datadam"):
        settings = digits_settings(
            method=name, networks_from="random", augment="color_crop", **CHEAP
        )
        condenser = digits_condenser(settings)
        condenser.step(0)
        shown.append(condenser._buffers.draws)
    assert (shown[0] == shown[0][:1]).all()
    assert not (shown[1] == shown[1][:1]).any(1).all()


def read_compiled(
    method: Method, monkeypatch: pytest.MonkeyPatch, backend: str
) -> list[tuple[Tensor, Tensor]]:
    """Terms and gradient in the pixels, eager and compiled into one graph."""
    # back ends that compile nothing: what can fail is tracing and differentiation
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(convnet, "WIDTH", 6)
    torch.manual_seed(2)
    network = build_network("convnet3", 1, 16, 10)
    views = Views(torch.rand(2, 3, 1, 16, 16), torch.rand(2, 12), torch.tensor([1, 7]))
    ends = []
    for compile in (False, True):
        embedder = Embedder(
            *(network, method.probe, torch.device("cpu"), "fp32", compile),
            **{"mean": (0.3,), "std": (0.2,), "operations": ("color",)},
            experts=method.experts,
            probe_synthetic=method.probe_synthetic,
            noise_shape=method.noise_shape(24),
        )
        embedder.publish()
        embedder.accuracy.fill_(0.5)
        embedder.noise.copy_(torch.linspace(-1, 1, embedder.noise.numel()).view_as(embedder.noise))
        real = embedder.real(views._replace(images=(views.images.square() * 255).byte()))
        leaf = views.images.clone().requires_grad_()
        reading = embedder.synthetic(views._replace(images=leaf))
        losses, objective = method.losses(real, reading, True)
        ends.append((losses, *torch.autograd.grad(objective, leaf)))
    return ends


CASES = [(name, {}, {}) for name in METHODS if issubclass(METHODS[name], Method)]
CASES += [("ncfm", {"exact": 1}, {}), ("datadam", {}, {"calibration": 0.5})]


@pytest.mark.filterwarnings("default")  # dynamo looks at .grad of tensors that have none
@pytest.mark.parametrize(("name", "options", "add"), CASES)
def test_what_a_method_reads_is_one_graph(
    name: str, options: dict, add: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = add_terms(build_method(name, options), add)
    # the backward pass of a gradient is traced, too, by this one alone
    backend = "aot_eager" if method.float32_only else "eager"
    (losses, gradient), (same, compiled) = read_compiled(method, monkeypatch, backend)
    torch.testing.assert_close(same, losses, rtol=1e-4, atol=1e-4)
    assert (compiled - gradient).abs().max() < 1e-3 * gradient.abs().max()


OWN = """
from dataclasses import dataclass
from typing import ClassVar

from m3d_fast.methods import Method
from m3d_fast.methods.protocol import total


@dataclass(frozen=True)
class Near(Method):
    terms: ClassVar = ("near", "far")
    power: float = 2.0

    def losses(self, real, synthetic, value):
        gap = (real.each[0].mean(1) - synthetic.each[0].mean(1)).abs()
        return total([(gap**self.power).sum(1), gap.amax(1)])
"""


def test_a_method_of_the_users_own_runs(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "near.py").write_text(OWN)
    command = [sys.executable, "-m", "m3d_fast.condense", "--dataset", "digits", "--device", "cpu"]
    command += ["--method", "ours.near:Near", "--set", "power=3", "--iterations", "2"]
    command += ["--real-batch", "4", "--no-compile", "--out", "run", "--log-every", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 2]
    assert lines[0]["loss"] == pytest.approx(lines[0]["loss_near"] + lines[0]["loss_far"])
    settings = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    assert settings["options"] == {"power": 3.0}


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    readme = request.config.rootpath / "m3d_fast/methods/README.md"
    (code,) = re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    settings = digits_settings(method="mine:Spread", options={"weight": "2"}, **CHEAP)
    condenser = digits_condenser(settings)
    before = condenser.pixels.clone()
    assert (condenser.step(0).losses > 0).all()
    assert not torch.equal(condenser.pixels, before)


def test_what_a_network_lacks_is_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = CondenseConfig(
        dataset="digits", method="ddm", options={"layers": "0,7"}, out=str(out), device="cpu"
    )
    with pytest.raises(UserError, match=r"layers: the network has blocks 0 to 2, got 7"):
        condense(config)
    assert not out.exists()
