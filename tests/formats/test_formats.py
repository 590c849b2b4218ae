"""Sets go out in others' formats and come back; anybody's are read, or refused in a sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m3d_fast import SyntheticSet
from m3d_fast.common.errors import UserError
from m3d_fast.formats.registry import FORMATS
from tests.helpers.commands import run

# tests/loaders/ffcv has the test of beton
QUICK = [name for name in FORMATS if name != "beton"]

# what a user's own script does with the printed lines, where this package does not exist
ALONE = """
import pathlib, sys
sys.modules["m3d_fast"] = None  # importing it raises
for script in sys.argv[1:]:
    names = {}
    exec(compile(pathlib.Path(script).read_text(), script, "exec"), names)
    right = names["network"](names["images"]).argmax(1) == names["labels"]
    print(len(right), float(right.float().mean()))
"""


def a_set(channels: int = 3, factor: int = 2) -> SyntheticSet:
    return SyntheticSet(
        images=torch.rand(6, channels, 16, 16),
        labels=torch.arange(3).repeat_interleave(2),
        class_names=("a", "b/c", "d"),
        factor=factor,
        mean=(0.1, 0.2, 0.3)[:channels],
        std=(0.4, 0.5, 0.6)[:channels],
        info={"dataset": "folder", "iterations": 7, "method": "m3d"},
    )


def target(folder: Path, to: str) -> Path:
    return folder / f"set{FORMATS[to].suffix or ''}"


def assert_comes_back(before: SyntheticSet, path: Path, to: str, *, decoded: bool) -> None:
    if to == "hf":
        pytest.importorskip("pyarrow")
    before.export(path, to, decoded=decoded)
    after = SyntheticSet.load(path)
    images, labels = before.decode() if decoded else (before.images, before.labels)
    rounding = 1e-6 if FORMATS[to].exact else 0.5 / 255 + 1e-6
    torch.testing.assert_close(after.images, images, atol=rounding, rtol=0)
    assert torch.equal(after.labels, labels)
    assert after.factor == (1 if decoded else before.factor)
    assert (after.class_names, after.mean, after.std, after.info) == (
        before.class_names,
        before.mean,
        before.std,
        before.info,
    )


@pytest.mark.parametrize("decoded", [True, False], ids=["decoded", "stored"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("to", QUICK)
def test_an_exported_set_comes_back(to: str, channels: int, decoded: bool, tmp_path: Path) -> None:
    assert_comes_back(a_set(channels), target(tmp_path, to), to, decoded=decoded)


def test_printed_lines_train_without_this_package(tmp_path: Path) -> None:
    a_set().save(tmp_path / "set.safetensors")
    scripts = []
    for to in ("imagefolder", "npz", "dd-ranking"):
        out = target(tmp_path / to, to)
        done = run("export", str(tmp_path / "set.safetensors"), "--to", to, "--out", str(out))
        assert done.returncode == 0, done.stderr
        scripts.append(tmp_path / f"{to}.py")
        scripts[-1].write_text(done.stdout)
    alone = [sys.executable, "-c", ALONE, *map(str, scripts)]
    done = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    learned = [line.split() for line in done.stdout.splitlines()]
    assert [int(count) for count, _ in learned] == [24] * 3
    assert all(float(accuracy) > 0.9 for _, accuracy in learned)


def test_the_card_names_classes_and_origin(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    a_set().export(tmp_path / "set", "hf", decoded=False)
    card = (tmp_path / "set" / "README.md").read_text()
    head = card.split("---\n")[1]
    assert re.findall(r"'(\d)': '(.*)'", head) == [("0", "a"), ("1", "b/c"), ("2", "d")]
    assert "num_examples: 6" in head
    assert "path: data/train-*" in head
    assert "6 synthetic images of 16 x 16 pixels, each of 4 tiles" in card
    assert "- method: m3d" in card


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    for to in QUICK:
        path = target(tmp_path, to)
        if not path.exists():
            path.mkdir()
        with pytest.raises(UserError, match=r"exists already; give another --out"):
            a_set().export(path, to)
        assert list(path.iterdir()) == []


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for what, to in (("torch.save", "dd-ranking"), ("numpy.savez", "npz")):
        monkeypatch.setattr(what, full)
        with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
            a_set().export(target(tmp_path, to), to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "parquet", "--out", "new"], "to: 'parquet' is not known"),
        (["--to", "npz", "--out", "new"], "expected a name that ends in .npz for npz, got new"),
        (["--to", "npz", "--out", "new.npz", "--push", "me/it"], "push: expected --to hf"),
        (["--to", "hf", "--out", "new", "--push", "me/it"], "push: .* huggingface_hub"),
        (["--to", "hf", "--out", "new"], r"pyarrow: pip install 'm3d_fast\[export\]'"),
        (["--to", "imagefolder", "--out", "/dev/null/new"], "cannot be made: /dev/null is not a"),
    ],
)
def test_invalid_exports_are_one_sentence(
    words: list[str], message: str, tmp_path: Path, monkeypatch
) -> None:
    for package in ("huggingface_hub", "pyarrow"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    a_set().save(tmp_path / "set.safetensors")
    done = run("export", "set.safetensors", *words)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set.safetensors"]


def test_a_push_uploads_what_was_written(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("pyarrow")
    calls = []

    class Hub:
        def create_repo(self, name: str, **options: object) -> None:
            calls.append(("create", name, options))

        def upload_folder(self, **options: object) -> None:
            calls.append(("upload", sorted(p.name for p in (tmp_path / "new").iterdir()), options))

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub())
    a_set().save(tmp_path / "set.safetensors")
    words = ["--to", "hf", "--out", str(tmp_path / "new"), "--push", "me/it"]
    done = run("export", str(tmp_path / "set.safetensors"), *words)
    assert "https://huggingface.co/datasets/me/it" in done.stderr
    assert calls == [
        ("create", "me/it", {"repo_type": "dataset", "exist_ok": True}),
        (
            "upload",
            ["README.md", "data"],
            {"folder_path": str(tmp_path / "new"), "repo_id": "me/it", "repo_type": "dataset"},
        ),
    ]


IMAGES, LABELS = torch.rand(20, 1, 16, 16), torch.arange(10).repeat(2)  # not sorted


def write_foreign(folder: Path, form: str) -> Path:
    if form == "dictionary":
        torch.save({"images": IMAGES, "labels": LABELS}, folder / "theirs.pt")
        return folder / "theirs.pt"
    if form == "pair":
        torch.save((IMAGES.double(), LABELS.int()), folder / "theirs.pth")
        return folder / "theirs.pth"
    if form == "bytes":
        pixels = (IMAGES * 255).round().byte().numpy()
        np.savez_compressed(folder / "theirs.npz", images=pixels, labels=LABELS.numpy())
        return folder / "theirs.npz"
    if form == "normalised":
        (folder / "theirs").mkdir()
        torch.save((IMAGES - 0.3050) / 0.3188, folder / "theirs" / "images.pt")  # as of digits
        torch.save(LABELS, folder / "theirs" / "labels.pt")
        return folder / "theirs"
    for row, label in enumerate(LABELS.tolist()):  # class folders of RGB images
        file = folder / "theirs" / f"{label:05d}" / f"{row:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = (IMAGES[row, 0] * 255).round().byte().numpy()
        Image.fromarray(grey).convert("RGB").save(file)
    return folder / "theirs"


@pytest.mark.parametrize("form", ["dictionary", "pair", "bytes", "normalised", "folders"])
def test_sets_of_others_are_sorted_and_take_what_the_data_say(form: str, tmp_path: Path) -> None:
    path = write_foreign(tmp_path, form)
    after = SyntheticSet.load(path, "digits")
    order = LABELS.argsort(stable=True)
    rounding = 0.5 / 255 + 1e-6 if form in ("bytes", "folders") else 1e-6
    torch.testing.assert_close(after.images, IMAGES[order], atol=rounding, rtol=0)
    assert after.labels.tolist() == sorted(LABELS.tolist())
    assert (after.factor, after.mean, after.std) == (1, (0.3050,), (0.3188,))
    assert not after.named
    names = tuple("zyxwvutsrq")
    assert after.with_classes(names, "it").class_names == names
    with pytest.raises(UserError, match=r"(dataset: .* names none|name their data set)"):
        SyntheticSet.load(path)


def test_classes_are_put_in_the_order_of_the_data() -> None:
    ours = a_set()
    theirs = ours.with_classes(("d", "a", "b_c"), "it")
    assert theirs.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(theirs.images, ours.images[[4, 5, 0, 1, 2, 3]])
    with pytest.raises(UserError, match=r"it has 3 classes \(a, b/c, d, ..\); the data 3 \(a, b"):
        ours.with_classes(("a", "b", "d"), "it")


def broken(**changes: object) -> dict[str, object]:
    return {"images": IMAGES, "labels": LABELS} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (broken(images=IMAGES * 4 - 2), r"pixels in \[0, 1\], got pixels from -.* undo a normal"),
        (broken(images=IMAGES.where(IMAGES > 0.01, torch.nan)), r"got pixels that are NaN"),
        (broken(images=IMAGES.where(IMAGES < 0.99, torch.inf)), r"got pixels from .* to inf"),
        (broken(labels=LABELS + 1), "labels from 0 to 9, got 1 to 10"),
        (broken(labels=LABELS - 1), "labels from 0 to 9, got -1 to 8"),
        (broken(labels=LABELS.clamp(max=8)), "images of all 10 classes, got none of class 9"),
        (broken(labels=LABELS % 10 * (torch.arange(20) > 1)), "equally many images of every class"),
        (broken(labels=LABELS.float()), "whole numbers as labels, got torch.float32"),
        (broken(labels=LABELS[:-1]), r"got \(20, 1, 16, 16\) and \(19,\)"),
        (broken(images=IMAGES[:, 0]), r"got \(20, 16, 16\) and \(20,\)"),
        (broken(images=IMAGES.repeat(1, 2, 1, 1)), "images of 1 channels, got 2"),
        (broken(images=torch.rand(20, 3, 16, 16)), "images of 1 channels, got 3"),
        (broken(images=[1, 2]), "as tensors or arrays, got list and Tensor"),
        ({"data": IMAGES, "targets": LABELS}, "expected images and labels, found data, targets"),
        (IMAGES, "expected images and labels, found Tensor"),
        (Path("x"), "expected a file of tensors by torch.save"),  # would run code when unpickled
    ],
)
def test_bad_sets_are_one_sentence(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "theirs.pt")
    with pytest.raises(UserError, match=message) as raised:
        SyntheticSet.load(tmp_path / "theirs.pt", "digits")
    assert "\n" not in str(raised.value)
    assert str(tmp_path / "theirs.pt") in str(raised.value)


def test_bad_files_and_folders_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"cut\.npz: expected a \.npz file of arrays"):
        SyntheticSet.load(tmp_path / "cut.npz", "digits")
    np.savez(tmp_path / "objects.npz", images=np.array([{}], dtype=object), labels=np.zeros(1))
    with pytest.raises(UserError, match=r"objects\.npz: expected a \.npz file"):
        SyntheticSet.load(tmp_path / "objects.npz", "digits")
    folder = write_foreign(tmp_path, "folders")
    (folder / "00003" / "bad.png").write_bytes(b"\x89PNG cut")
    with pytest.raises(UserError, match=r"bad\.png: expected an image, found a damaged file"):
        SyntheticSet.load(folder, "digits")
    Image.new("L", (17, 16)).save(folder / "00003" / "bad.png")
    with pytest.raises(UserError, match="images of one size, got 16 x 16 and 17 x 16 pixels"):
        SyntheticSet.load(folder, "digits")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a folder of class folders"):
        SyntheticSet.load(tmp_path / "empty", "digits")
    a_set().export(tmp_path / "ours", "imagefolder")
    (tmp_path / "ours" / "set.json").write_text(json.dumps({"classes": 3}))
    with pytest.raises(UserError, match="expected a list as classes, got 3"):
        SyntheticSet.load(tmp_path / "ours", "digits")
