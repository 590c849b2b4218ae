"""The protocol: schedule, augmentation, spread over networks; baselines; the file."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch

from m3d_fast import CondenseConfig, EvaluateConfig, condense, evaluate
from m3d_fast.common.errors import UserError
from m3d_fast.coreset import herding, k_center, random_images
from m3d_fast.evaluation.protocols import Protocol
from m3d_fast.evaluation.results import Task, table
from m3d_fast.evaluation.trainer import Trainer
from m3d_fast.loaders import open_dataset
from m3d_fast.networks import build_network


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    condense(
        CondenseConfig(dataset="digits", iterations=8, real_batch=8, out=str(out), device="cpu")
    )
    return out


def quick(**given) -> EvaluateConfig:
    return EvaluateConfig(**({"epochs": 2, "repeats": 2, "device": "cpu"} | given))


def trainer(protocol: Protocol, size: int = 16) -> Trainer:
    network = build_network("convnet3", 1, size, 2)
    return Trainer(
        network,
        protocol,
        (0.5,),
        (0.5,),
        device=torch.device("cpu"),
        precision="fp32",
        compile=False,
    )


def two_kinds(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bright left half or bright right half."""
    labels = torch.arange(count) % 2
    images = torch.rand(count, 1, 16, 16) * 0.2
    images[labels == 0, :, :, :8] += 0.7
    images[labels == 1, :, :, 8:] += 0.7
    return images, labels


def fit(trainer: Trainer, images, labels, seed: int = 0) -> list[float]:
    training = trainer.train(
        images,
        labels,
        initial=torch.Generator().manual_seed(seed),
        stream=torch.Generator().manual_seed(seed),
    )
    return [loss.item() for loss in training]


def protocol(**given) -> Protocol:
    fixed = {"epochs": 12, "repeats": 1, "lr": 0.01, "weight_decay": 5e-4, "batch_size": 16}
    return Protocol(**(fixed | {"augment": "color_crop", "cutmix": 0.5} | given))


def test_training_learns_what_can_be_learned() -> None:
    images, labels = two_kinds(32)
    learner = trainer(protocol(epochs=30))
    losses = fit(learner, images, labels)
    assert len(losses) == 30
    fresh, truth = two_kinds(40)
    learner.network.eval()
    with torch.no_grad():
        predicted = learner.network((fresh - 0.5) / 0.5).argmax(1)
    assert (predicted == truth).float().mean() > 0.9


def test_the_same_seed_trains_the_same_network() -> None:
    images, labels = two_kinds(20)
    learner = trainer(protocol(epochs=3))
    first = fit(learner, images, labels, seed=1)
    assert first == fit(learner, images, labels, seed=1)
    assert first != fit(learner, images, labels, seed=2)


def test_accuracy_counts_every_test_image_once() -> None:
    test = open_dataset("digits", split="test")
    network = build_network("convnet3", 1, 16, 10)
    learner = Trainer(
        network,
        protocol(),
        test.mean,
        test.std,
        device=torch.device("cpu"),
        precision="fp32",
        compile=False,
    )
    right = 0
    network.eval()
    with torch.no_grad():
        for label, size in enumerate(test.class_sizes):
            for i in range(size):
                image = (test.take(label, [i]) / 255 - test.mean[0]) / test.std[0]
                right += int(network(image).argmax() == label)
    assert learner.measure_accuracy(test) == right / 359


def test_random_choice_is_seeded_distinct_and_of_the_right_class() -> None:
    real = open_dataset("digits")
    before = real.state_dict()
    chosen = random_images(real, 5, 3)
    assert all((before[k] == v).all() for k, v in real.state_dict().items())
    assert torch.equal(chosen, random_images(real, 5, 3))
    assert not torch.equal(chosen, random_images(real, 5, 4))
    for label in range(10):
        members = real.take(label, range(real.class_sizes[label])).flatten(1)
        found = [(members == image.flatten()).all(1).nonzero()[0].item() for image in chosen[label]]
        assert len(set(found)) == 5


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).double()


def test_herding_follows_the_class_mean() -> None:
    real = open_dataset("digits")
    chosen = herding(real, 6, pixels)
    everything = pixels(real.take(7, range(real.class_sizes[7])))
    mean, picked = everything.mean(0), pixels(chosen[7])
    for k in range(6):
        candidates = (mean - (picked[:k].sum(0) + everything) / (k + 1)).norm(dim=1)
        ours = (mean - picked[: k + 1].mean(0)).norm()
        # images chosen before are out of the race
        for other in picked[:k]:
            candidates[(everything == other).all(1)] = torch.inf
        assert ours <= candidates.min() + 1e-9


def test_k_center_takes_the_farthest_each_time() -> None:
    real = open_dataset("digits")
    picked = pixels(k_center(real, 5, pixels)[2])
    everything = pixels(real.take(2, range(real.class_sizes[2])))
    for k in range(1, 5):
        covered = torch.cdist(everything, picked[:k]).amin(1)
        assert torch.cdist(picked[k : k + 1], picked[:k]).min() >= covered.max() - 1e-6


def test_coreset_larger_than_a_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"500 images per class was requested.*has 139"):
        herding(open_dataset("digits"), 500, pixels)


def test_evaluation_file_has_one_entry_per_method_and_network(run: Path) -> None:
    content = evaluate(run, quick(networks="convnet3,convnet4", baselines="random,k-center"))
    assert content == json.loads((run / "evaluation.json").read_text())
    names = [(r["method"], r["network"]) for r in content["results"]]
    assert sorted(names) == sorted(
        (m, n) for m in ("random", "k-center", "initial", "m3d") for n in ("convnet3", "convnet4")
    )
    for result in content["results"]:
        accuracies = torch.tensor(result["accuracies"], dtype=torch.float64)
        assert len(accuracies) == 2
        assert ((accuracies > 0) & (accuracies <= 1)).all()
        assert result["mean"] == pytest.approx(accuracies.mean().item())
        assert result["std"] == pytest.approx(accuracies.std().item())
        budget = 10 if result["method"] in ("random", "k-center") else 40
        assert result["training_images"] == budget
    assert content["protocol"]["epochs"] == 2
    assert content["selection"].startswith("last iterate")
    assert "k-center" in table(content)


def test_more_repeats_keep_what_is_there(run: Path) -> None:
    first = evaluate(run, quick(repeats=1))
    assert [r["std"] for r in first["results"]] == [None, None]
    second = evaluate(run, quick(repeats=3))
    for before, after in zip(first["results"], second["results"], strict=True):
        assert after["accuracies"][:1] == before["accuracies"]
        assert len(after["accuracies"]) == 3
    (run / "evaluation.json").unlink()
    at_once = evaluate(run, quick(repeats=3))
    assert [r["accuracies"] for r in at_once["results"]] == [
        r["accuracies"] for r in second["results"]
    ]


def test_a_network_that_cannot_take_the_size_is_refused_before_any_is_trained(run: Path) -> None:
    with pytest.raises(UserError, match=r"network convnet5: .*divisible by 32, got 16 px"):
        evaluate(run, quick(networks="convnet3,convnet5"))
    assert not (run / "evaluation.json").exists()


def test_another_protocol_does_not_overwrite_an_evaluation(run: Path) -> None:
    evaluate(run, quick(repeats=1))
    before = (run / "evaluation.json").read_bytes()
    evaluate(run, quick(repeats=1, epochs=3))
    assert (run / "evaluation-1.json").read_bytes() == before
    assert json.loads((run / "evaluation.json").read_text())["protocol"]["epochs"] == 3


def test_the_initialisation_is_the_one_the_run_started_from(run: Path) -> None:
    from m3d_fast.distributed import Ranks
    from m3d_fast.evaluation.evaluator import Evaluation
    from m3d_fast.initial import initial_pixels
    from m3d_fast.run.folder import RunFolder
    from m3d_fast.synthetic import decode

    evaluation = Evaluation(RunFolder(run), quick(), Ranks())
    task = Task("initial", "convnet3", 0)
    job = evaluation._scheduler._build(task)
    images, labels = job.images, job.labels
    config = CondenseConfig(dataset="digits", iterations=8, device="cpu").resolve()
    expected = decode(initial_pixels(open_dataset("digits"), config), 2).flatten(0, 1)
    assert len(images) == 40
    assert torch.equal(images[torch.arange(40)], expected)
    assert labels.tolist() == [c for c in range(10) for _ in range(4)]


def test_a_training_set_is_released_before_the_next_is_built(run: Path, monkeypatch) -> None:
    """Of sets that may take gigabytes, one is in memory."""
    from m3d_fast import synthetic
    from m3d_fast.evaluation import runner

    alive: list[weakref.ref] = []

    class Watched(synthetic.StoredImages):
        def __init__(self, pixels: torch.Tensor, factor: int = 1) -> None:
            gc.collect()
            assert not any(reference() is not None for reference in alive), "two sets at once"
            super().__init__(pixels, factor)
            alive.append(weakref.ref(self))

    monkeypatch.setattr(synthetic, "StoredImages", Watched)
    monkeypatch.setattr(runner.Runner, "count_side_by_side", lambda self, images: 1)
    evaluate(run, quick(epochs=1, repeats=2, baselines="random,k-center"))
    # two choices at random, one of every other method, one for the features of k-center
    assert len(alive) == 6
    gc.collect()
    assert all(reference() is None for reference in alive)
