"""The training step is torch's SGD; its batches are the images and labels of the data set."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m3d_fast.common.seeds import generator
from m3d_fast.config import ResolvedConfig
from m3d_fast.engine.sources import training as module
from m3d_fast.engine.sources.training import (
    LabelledRows,
    NetworkTraining,
    Recipe,
    leave_out_cutout,
)
from m3d_fast.engine.sources.weights import Weights
from m3d_fast.networks import build_network, initialise
from tests.helpers.condensers import digits_settings, open_digits

PLAIN = Recipe(6, "none", lr=0.05)


def make(config: ResolvedConfig, recipe: Recipe = PLAIN, **more) -> NetworkTraining:
    made = NetworkTraining(config, open_digits(config), recipe, **({"compile": False} | more))
    made.initialise(generator(0, "network", 0))
    return made


def batches(count: int, config: ResolvedConfig) -> list[tuple[Tensor, Tensor]]:
    rows = LabelledRows(open_digits(config))
    drawn = rows.draw(count, 6, seed=3)
    return [(images.clone(), labels) for images, labels in rows.read(lambda: iter(drawn))]


def test_steps_are_those_of_sgd() -> None:
    config = digits_settings()
    ours, plain = make(config), build_network("convnet3", 1, 16, 10)
    initialise(plain, generator(0, "network", 0))
    sgd = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    real, hits = open_digits(config), []
    for number, (images, labels) in enumerate(batches(3, config)):
        rate = 0.2 if number == 2 else 1.0
        ours.take(images, labels, generator(1, "augment", number), rate)
        sgd.param_groups[0]["lr"] = 0.05 * rate
        normalised = (images / 255 - torch.tensor(real.mean)) / torch.tensor(real.std)
        logits = plain(normalised)
        hits.append((logits.argmax(1) == labels).float().mean())
        sgd.zero_grad()
        F.cross_entropy(logits, labels).backward()
        sgd.step()
    for own, expected in zip(ours.network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.accuracy, torch.stack(hits).mean())


class Replayed:
    """A stand-in for the CUDA graph: it runs what reads and writes fixed addresses."""

    def __init__(self, function, updated, device) -> None:
        self.function, self.addresses = function, [tensor.data_ptr() for tensor in updated]

    def __call__(self) -> None:
        self.function()


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_a_step_as_a_graph_is_the_step(monkeypatch: pytest.MonkeyPatch, cutmix: float) -> None:
    monkeypatch.setattr(module, "CudaGraphRunner", Replayed)
    recipe = Recipe(6, "color_crop_rotate", cutmix)
    config = digits_settings()
    graphed, plain = make(replace(config, cuda_graphs=True), recipe), make(config, recipe)
    updated = [*graphed.network.parameters(), *graphed.momentum, graphed.accuracy]
    for number, (images, labels) in enumerate(batches(2, config)):
        for each in (graphed, plain):
            each.take(images, labels, generator(1, "augment", number))
    assert [tensor.data_ptr() for tensor in updated] == graphed._run.addresses
    weights = [Weights(each.network.parameters()).copy() for each in (graphed, plain)]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], Weights(make(config).network.parameters()).copy())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_step_is_the_eager_step_but_for_rounding(monkeypatch, precision: str) -> None:
    compile = torch.compile  # a back end that compiles nothing: whether it can be traced as one
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: compile(function, backend="eager", fullgraph=True)
    )
    recipe, moved = Recipe(6, "flip_color_crop_rotate", 1.0), []
    config = digits_settings(precision=precision)
    (images, labels), *_ = batches(1, config)
    for compiled in (False, True):
        made = make(config, recipe, compile=compiled)
        before = Weights(made.network.parameters()).copy()
        made.take(images, labels, generator(1, "augment", 0))
        moved.append(Weights(made.network.parameters()).copy() - before)
    assert moved[0].any()
    assert torch.cosine_similarity(*moved, dim=0) > (0.9999 if precision == "fp32" else 0.98)


def test_rows_are_the_images_of_their_classes_in_order() -> None:
    real = open_digits(digits_settings())
    rows = LabelledRows(real)
    assert rows.count == sum(real.class_sizes)
    ends = np.cumsum(real.class_sizes)
    chosen = np.array([0, ends[0] - 1, ends[0], ends[3] + 2, rows.count - 1])
    ((images, labels),) = rows.read(lambda: iter([chosen]))
    assert labels.tolist() == [0, 0, 1, 4, 9]
    firsts = [0, *ends[:-1]]
    for image, label, row in zip(images, labels.tolist(), chosen, strict=True):
        assert torch.equal(image, real.take(label, [row - firsts[label]])[0])
    drawn = rows.draw(3, 100, seed=1)
    assert all(len(set(batch)) == 100 for batch in drawn)
    assert not any(np.array_equal(*pair) for pair in itertools.combinations(drawn, 2))


def test_cutout_leaves_room_to_cutmix() -> None:
    assert leave_out_cutout("color_crop_cutout_flip") == "color_crop_flip"
    assert leave_out_cutout("one:color_cutout") == "one:color"
    assert leave_out_cutout("cutout") == "none"
