"""Evaluations whose features for herding and k-center are trained briefly, of copies of a run."""

from pathlib import Path

import pytest

from tests.helpers.quick_evaluate import EPOCHS, IMAGES, features


@pytest.fixture(autouse=True)
def _brief_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "EPOCHS", EPOCHS)
    monkeypatch.setattr(features, "IMAGES", IMAGES)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The module's finished run without an evaluation."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "synthetic.safetensors", "metrics.jsonl"):
        (copy / name).write_bytes((finished / name).read_bytes())
    return copy
