"""Teachers and soft labels: files of weights, what is stored, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from m3d_fast import CondenseConfig, EvaluateConfig, condense, evaluate
from m3d_fast.common.errors import UserError
from m3d_fast.common.tensors import read_tensors
from m3d_fast.distributed import Ranks
from m3d_fast.evaluation import teacher_training
from m3d_fast.evaluation.evaluator import Evaluation
from m3d_fast.evaluation.results import table
from m3d_fast.evaluation.runner import Runner
from m3d_fast.evaluation.soft_labels import FORMAT, Look, label
from m3d_fast.evaluation.teacher import TeacherFile, split_teacher
from m3d_fast.networks import build_network, initialise
from m3d_fast.normalisation import Normalisation
from m3d_fast.run.folder import RunFolder
from m3d_fast.synthetic import StoredImages, SyntheticSet

CPU = torch.device("cpu")


def save_teacher(path: Path, classes: int = 10, channels: int = 1) -> nn.Module:
    """A ConvNet-3 for 16 px, with weights that tell images apart."""
    network = build_network("convnet3", channels, 16, classes)
    initialise(network, torch.Generator().manual_seed(5))
    with torch.no_grad():
        network.head.weight.mul_(20)
    torch.save(network.state_dict(), path)
    return network.eval()


def load(architecture: str, path: Path, channels: int = 1, classes: int = 10) -> nn.Module:
    return TeacherFile.find(architecture, path).load(channels, 16, classes, CPU)


def test_files_of_networks_of_ours_and_of_torchvision_are_read(tmp_path: Path) -> None:
    """Also where a training loop wrapped the network, and its state dict."""
    images = torch.rand(3, 3, 16, 16)
    for number, network in enumerate(
        (build_network("resnet10", 3, 16, 10), models.mobilenet_v3_small(num_classes=10))
    ):
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        state = network.state_dict()
        wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
        torch.save((state, wrapped)[number], tmp_path / "weights.pt")
        name = ("resnet10", "mobilenet_v3_small")[number]
        teacher = load(name, tmp_path / "weights.pt", channels=3)
        assert not any(p.requires_grad for p in teacher.parameters())
        assert torch.equal(teacher(images), network.eval()(images))


def test_the_stem_decides_which_network_of_a_name_it_is(tmp_path: Path) -> None:
    """At 16 px ours has a 3x3 stem; a file of torchvision's, 7x7, gives torchvision's."""
    network = models.resnet18(num_classes=3)
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    teacher = load("resnet18", tmp_path / "weights.pt", channels=3, classes=3)
    assert teacher.conv1.kernel_size == (7, 7)


def test_what_is_no_teacher_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    with pytest.raises(UserError, match=r"weights.pt is not a file; expected weights of convnet3"):
        load("convnet3", file)
    save_teacher(file, classes=7)
    with pytest.raises(UserError, match="of the data set's 10 classes, got one of 7"):
        load("convnet3", file)
    save_teacher(file, channels=3)
    with pytest.raises(UserError, match=r"blocks.0.weight of \(128, 1, 3, 3\), got \(128, 3, 3"):
        load("convnet3", file)
    with pytest.raises(UserError, match="expected the tensors of resnet10 for these images"):
        load("resnet10", file)
    with pytest.raises(UserError, match="teacher: 'convnet7' is not known; did you mean convnet"):
        load("convnet7", file)
    torch.save({"epoch": 3}, file)
    with pytest.raises(UserError, match="expected a state dict, tensors by name"):
        load("convnet3", file)
    torch.save({"weight": Runs()}, file)
    with pytest.raises(UserError, match="which needs no code to be read, found something else"):
        load("convnet3", file)
    file.write_text("no weights")
    with pytest.raises(UserError, match="expected a state dict"):
        load("convnet3", file)


class Runs:
    """An object whose file would run code when it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return print, ("this code was run",)


def test_a_teacher_is_a_file_or_trained() -> None:
    assert split_teacher("resnet18:a/b.pt", "convnet3") == ("resnet18", Path("a/b.pt"))
    assert split_teacher("trained", "convnet3") == ("convnet3", None)
    assert split_teacher("trained:resnet18", "convnet3") == ("resnet18", None)
    for text in ("resnet18", ":file", "resnet18:", ""):
        with pytest.raises(UserError, match="expected ARCHITECTURE:FILE or trained"):
            split_teacher(text, "convnet3")


def test_stored_labels_are_the_teachers_but_for_what_is_pruned(tmp_path: Path) -> None:
    teacher = save_teacher(tmp_path / "weights.pt")
    images = StoredImages(torch.rand(20, 1, 16, 16), 2)
    look = Look(Normalisation((0.4,), (0.3,)), CPU, "fp32")
    with torch.no_grad():
        exact = torch.softmax(teacher((images.decode() - 0.4) / 0.3) / 20, 1)
    whole, pruned = (label(teacher, images, kept, look) for kept in (10, 3))
    torch.testing.assert_close(whole.soften(20, 10), exact, atol=1e-4, rtol=0)
    found = pruned.soften(20, 10)
    assert ((found > 0).sum(1) == 3).all()
    top = exact.topk(3, 1)
    rest = top.values / top.values.sum(1, keepdim=True)
    torch.testing.assert_close(found.gather(1, top.indices), rest, atol=1e-3, rtol=0)
    stored = [*vars(pruned).values()]
    assert pruned.bytes == sum(t.numel() * t.element_size() for t in stored) == 80 * 3 * 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    condense(CondenseConfig(dataset="digits", method="random", out=str(out), device="cpu"))
    return out


def quick(**given: Any) -> EvaluateConfig:
    return EvaluateConfig(**({"epochs": 1, "repeats": 1, "device": "cpu"} | given))


def test_hard_and_soft_labels_never_share_a_file_or_a_column(run: Path) -> None:
    save_teacher(run / "weights.pt")
    given = {"teacher": f"convnet3:{run}/weights.pt"}
    hard = evaluate(run, quick(protocol="hard"))
    soft = evaluate(run, quick(protocol="soft", **given))
    kd = evaluate(run, quick(protocol="kd", **given))
    for content, labels in ((hard, "hard"), (soft, "soft"), (kd, "soft")):
        assert content["protocol"]["labels"] == labels
        assert [result["labels"] for result in content["results"]] == [labels]
        assert f"{labels} labels, test accuracy (%)" in table(content)
    assert [content["protocol"]["name"] for content in (hard, soft, kd)] == ["hard", "soft", "kd"]
    assert hard["protocol"]["teacher"] is None
    assert soft["protocol"]["teacher"].startswith("convnet3, sha256 ")
    assert soft["label_bytes"] is None
    kept = [json.loads((run / f"evaluation-{n}.json").read_text()) for n in (1, 2)]
    assert [content["results"] for content in kept] == [hard["results"], soft["results"]]
    save_teacher(run / "weights.pt", classes=4)
    with pytest.raises(UserError, match="of the data set's 10 classes, got one of 4"):
        evaluate(run, quick(protocol="soft", **given))


def test_labels_are_stored_once_and_then_need_no_teacher(run: Path) -> None:
    save_teacher(run / "weights.pt")
    given = {"teacher": f"convnet3:{run}/weights.pt"}
    stored = {"protocol": "soft", "stored_labels": 4}
    first = evaluate(run, quick(**stored, **given, baselines="herding"))
    file = run / "evaluation.soft_labels.safetensors"
    tensors, metadata = read_tensors(file, FORMAT)
    assert first["label_bytes"] == metadata["bytes"] == 10 * 4 * 4
    assert tensors["values"].shape == tensors["classes"].shape == (10, 4)
    assert [result["method"] for result in first["results"]] == ["herding", "random"]
    (run / "evaluation.json").unlink()
    before = file.stat().st_mtime_ns
    again = evaluate(run, quick(**stored))
    assert again["protocol"] == first["protocol"]
    assert again["results"][0]["accuracies"] == first["results"][1]["accuracies"]
    assert file.stat().st_mtime_ns == before
    at_work = evaluate(run, quick(protocol="soft", **given))
    assert at_work["protocol"]["stored_labels"] is None
    with pytest.raises(UserError, match="of 5 classes each, found others; remove it"):
        evaluate(run, quick(protocol="soft", stored_labels=5))
    with pytest.raises(UserError, match="expected the teacher for those of k-center too"):
        evaluate(run, quick(**stored, baselines="k-center"))


def test_other_processes_load_the_teacher(run: Path) -> None:
    """What they receive names the file; stored labels come with the training sets instead."""
    weights = save_teacher(run / "weights.pt").state_dict()
    given = {"protocol": "soft", "teacher": f"convnet3:{run}/weights.pt"}
    evaluation = Evaluation(RunFolder(run), quick(**given), Ranks())
    runner = Runner(pickle.loads(pickle.dumps(evaluation.setup)), evaluation.test)
    loaded = runner.get_trainer("convnet3")._teacher.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    stored = Evaluation(RunFolder(run), quick(**given, stored_labels=2), Ranks())
    assert stored.setup.teacher is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"protocol": "soft"}, "protocol soft: expected a teacher, got none; give one"),
        ({"teacher": "trained"}, "teacher: protocol idc trains on hard labels; expected protocol"),
        ({"stored_labels": 3}, "stored_labels: protocol idc trains on hard labels"),
        ({"protocol": "kd", "stored_labels": 3, "teacher": "trained"}, "kd needs all logits"),
        ({"protocol": "soft", "stored_labels": 11}, "expected 1 to 10 classes, got 11"),
        ({"protocol": "soft", "stored_labels": 3}, "there are none in .*; give the teacher"),
        (
            {"protocol": "soft", "stored_labels": 3, "teacher": "trained", "baselines": "whole"},
            "whole has no stored labels; leave it or --stored-labels out",
        ),
        ({"protocol": "soft", "teacher": "trained:convnet9"}, "'convnet9' is not known"),
        ({"protocol": "sogt"}, "protocol: 'sogt' is not known"),
    ],
)
def test_labels_that_do_not_fit_the_protocol_are_refused(run: Path, given, message: str) -> None:
    before = sorted(run.iterdir())
    with pytest.raises(UserError, match=message):
        evaluate(run, quick(**given))
    assert sorted(run.iterdir()) == before, "nothing was written"


def test_a_teacher_is_trained_once_and_knows_the_classes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3D_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(teacher_training, "EPOCHS", 1)
    monkeypatch.setattr(teacher_training, "BATCH", 16)
    trained, own = [], teacher_training.TrainedTeacher._train

    def train(teacher: teacher_training.TrainedTeacher, path: Path) -> None:
        trained.append(path)
        own(teacher, path)

    monkeypatch.setattr(teacher_training.TrainedTeacher, "_train", train)
    first = evaluate(run, quick(protocol="kd", teacher="trained"))
    again = evaluate(run, quick(protocol="soft", teacher="trained", stored_labels=2, seed=4))
    assert len(trained) == 1
    assert first["protocol"]["teacher"] == again["protocol"]["teacher"]
    synthetic = SyntheticSet.load(run / "synthetic.safetensors")
    teacher = TeacherFile.find("convnet3", trained[0]).load(1, 16, 10, CPU)

    def normalise(images: Tensor) -> Tensor:
        return (images - synthetic.mean[0]) / synthetic.std[0]

    # its images are of the training set, of which one epoch has seen every image
    predicted = teacher(normalise(synthetic.images)).argmax(1)
    assert (predicted == synthetic.labels).float().mean() >= 0.5
