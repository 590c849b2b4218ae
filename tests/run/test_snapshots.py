"""The condensed set as it was along the run: accuracy over iterations."""

import shutil
from pathlib import Path

import pytest
import torch

from m3d_fast import CondenseConfig, condense
from m3d_fast.common.errors import UserError
from m3d_fast.synthetic import SyntheticSet


def settings(out: Path, **given) -> CondenseConfig:
    fixed = {"dataset": "digits", "real_batch": 4, "device": "cpu", "precision": "fp32"}
    return CondenseConfig(**(fixed | given), out=str(out))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("snapshots") / "run"
    condense(settings(out, iterations=6, snapshot_every=2, average=0.5))
    return out


def test_snapshots_are_the_sets_of_shorter_runs(run: Path, tmp_path: Path) -> None:
    kept = sorted(path.name for path in (run / "snapshots").iterdir())
    assert kept == [f"000000{n}.safetensors" for n in (2, 4, 6)]
    shorter = condense(settings(tmp_path / "shorter", iterations=4, average=0.5))
    snapshot = SyntheticSet.load(run / "snapshots" / kept[1])
    assert torch.equal(snapshot.images, shorter.images)
    assert snapshot.info["iterations"] == 4
    last = (run / "snapshots" / kept[2]).read_bytes()
    assert last == (run / "synthetic.safetensors").read_bytes()


def test_a_snapshot_that_a_kill_prevented_is_written_on_resuming(run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    file = out / "snapshots" / "0000006.safetensors"
    before = file.read_bytes()
    file.unlink()
    condense(CondenseConfig(out=str(out)), resume=True)
    assert file.read_bytes() == before


def test_runs_keep_none_unless_told(tmp_path: Path) -> None:
    condense(settings(tmp_path / "run", iterations=1))
    assert not (tmp_path / "run" / "snapshots").exists()
    with pytest.raises(UserError, match="snapshot_every: expected a number above 0, got 0"):
        settings(tmp_path / "other", snapshot_every=0).resolve()
