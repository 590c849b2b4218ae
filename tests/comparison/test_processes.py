"""The command: every run in a process of its own, which is stopped and resumed with it."""

import json
import signal
from pathlib import Path

from m3d_fast import CondenseConfig, condense
from tests.helpers.commands import PATIENCE, one_thread, start, wait_for

SETTINGS = {"dataset": "digits", "iterations": 40, "real_batch": 4, "device": "cpu"}
SETTINGS |= {"precision": "fp32", "checkpoint_every": 2}


def flags(out: Path) -> list[str]:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    return [*given, "--methods=m3d", "--epochs=1", "--repeats=1", f"--out={out}"]


def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    stopped = start("compare", *flags(out))
    wait_for(out / "m3d" / "checkpoint.safetensors")
    stopped.send_signal(signal.SIGTERM)
    printed, messages = stopped.communicate(timeout=PATIENCE)
    assert (stopped.returncode, printed) == (130, "")
    assert "interrupted; the same command goes on from here" in messages
    assert not (out / "m3d" / "synthetic.safetensors").exists()

    resumed = start("compare", *flags(out))
    printed, messages = resumed.communicate(timeout=PATIENCE)
    assert resumed.returncode == 0, messages
    assert "resumed after iteration" in messages
    assert printed.startswith("method  network")
    (row,) = json.loads((out / "compare.json").read_text())["results"]
    assert row["iterations"] == 40
    with one_thread():
        straight = condense(CondenseConfig(**SETTINGS, out=str(tmp_path / "straight")))
    assert straight.images.numpy().tobytes() in (out / "m3d" / "synthetic.safetensors").read_bytes()


def test_a_run_that_fails_ends_the_comparison(tmp_path: Path) -> None:
    out = tmp_path / "out"
    condense(CondenseConfig(**(SETTINGS | {"iterations": 2}), out=str(out / "m3d")))
    (out / "m3d" / "synthetic.safetensors").unlink()
    (out / "m3d" / "checkpoint.safetensors").write_bytes(b"damaged")
    failed = start("compare", *flags(out), "--iterations=2")
    printed, messages = failed.communicate(timeout=PATIENCE)
    assert (failed.returncode, printed) == (2, ""), messages
    assert "checkpoint.safetensors" in messages
    assert messages.endswith("m3d: its run ended with status 2, its message is above\n")
    assert not (out / "compare.json").exists()
