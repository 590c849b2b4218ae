"""Features do not depend on pieces, and compiled or in bf16 only in their rounding."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from m3d_fast.engine.embedding import Embedder, choose_piece_size
from m3d_fast.methods import Network, Reading, Views
from m3d_fast.networks import build_network
from tests.helpers.condensers import digits_settings, run_steps


def test_pieces_are_equal_where_they_need_not_be_small() -> None:
    assert choose_piece_size(128, 64) == 64
    assert choose_piece_size(130, 64) == 64  # none of at most twice as many pieces divides it
    assert choose_piece_size(96, 64) == 48
    assert choose_piece_size(127, 64) == 64


def read_everything(network: Network, images: Tensor, labels: Tensor) -> Reading:
    maps = network.maps(images, at="norm")
    features = network.embed(images)
    return Reading((features, network.classify(features)), (maps[0].mean(1), labels.float()))


def test_an_embedding_in_pieces_is_that_of_the_whole() -> None:
    torch.manual_seed(3)
    embedder = Embedder(
        build_network("convnet3", 1, 16, 10),
        read_everything,
        torch.device("cpu"),
        "fp32",
        False,
        mean=(0.3,),
        std=(0.2,),
        operations=("color", "crop", "cutout"),
    )
    images = torch.randint(0, 256, (4, 12, 1, 16, 16), dtype=torch.uint8)
    views = Views(images, torch.rand(4, 12), torch.tensor([3, 1, 9, 5]))
    whole = embedder.real(views)
    assert [t.shape for t in whole.each] == [(4, 12, 512), (4, 12, 10)]
    assert whole.mean[0].shape == (4, 128, 16, 16)
    assert whole.mean[1].tolist() == [3, 1, 9, 5]
    exact = image_gradient(embedder, views)
    for piece in (1, 5, 12, 24):
        embedder._piece = piece
        torch.testing.assert_close(embedder.real(views), whole, atol=1e-5, rtol=1e-5)
        gradient = image_gradient(embedder, views)
        assert (gradient - exact).abs().max() < 1e-4 * exact.abs().max()


def image_gradient(embedder: Embedder, views: Views) -> Tensor:
    """Of the squares of all that is read, in the images as synthetic ones."""
    images = (views.images / 255).requires_grad_()
    each, mean = embedder.synthetic(views._replace(images=images))
    torch.stack([read.square().sum() for read in (*each, *mean)]).sum().backward()
    assert images.grad is not None
    return images.grad


@pytest.mark.filterwarnings("default")  # dynamo looks at .grad of tensors that have none
def test_a_compiled_step_is_the_eager_step() -> None:
    eager, losses = run_steps(digits_settings(compile=False), 1)
    compiled, same = run_steps(digits_settings(compile=True), 1)
    torch.testing.assert_close(same[0], losses[0], atol=2e-5, rtol=1e-4)
    exact, ours = eager.state()["momentum"], compiled.state()["momentum"]
    assert (ours - exact).abs().max() < 1e-3 * exact.abs().max()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("compile", [False, True])
def test_bf16_features_stay_close_to_float32(compile: bool) -> None:
    # augmentation is computed in float32, and compiled in the test above
    given = {"augment": "none"} if compile else {}
    full, losses = run_steps(digits_settings(compile=False, **given), 1)
    half, rough = run_steps(digits_settings(precision="bf16", compile=compile, **given), 1)
    torch.testing.assert_close(rough[0], losses[0], rtol=0.02, atol=0.01)
    assert half.pixels.dtype == torch.float32
    cosine = torch.cosine_similarity(
        full.state()["momentum"].flatten(1), half.state()["momentum"].flatten(1), dim=1
    )
    assert cosine.min() > 0.98


@pytest.mark.filterwarnings("default")  # as above
def test_any_number_of_shapes_is_compiled_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedders of one process share torch's count of compilations, of which it allows 8."""
    # the count is dynamo's: a back end that compiles nothing comes to it sooner
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    given = {"factor": 1, "iterations": 1, "real_batch": 2, "augment": "none"}
    for images in range(1, 11):
        settings = digits_settings(ipc=images, **given)
        _, losses = run_steps(settings, 1)
        _, compiled = run_steps(replace(settings, compile=True), 1)
        torch.testing.assert_close(compiled, losses)


def test_what_runs_eagerly_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[torch.Tensor] = []

    def compile(function, **options):
        return lambda *arguments: runs.append(arguments[0]) or function(*arguments)

    monkeypatch.setattr(torch, "compile", compile)
    network = build_network("convnet3", 1, 16, 10)
    embedder = Embedder(
        *(network, read_everything, torch.device("cpu"), "fp32", True),
        **{"mean": (0.3,), "std": (0.2,), "operations": ()},
    )
    views = Views(torch.zeros(1, 2, 1, 16, 16), torch.rand(1, 12), torch.zeros(1).long())
    with embedder.run_eagerly():
        eager = embedder.synthetic(views)
    assert not runs
    torch.testing.assert_close(embedder.synthetic(views), eager)
    assert len(runs) == 1
