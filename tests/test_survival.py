"""Kill, interrupt, resume: the bytes are those of a run that never stopped."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.commands import condense_digits, run, start


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped."""
    out = tmp_path_factory.mktemp("straight") / "run"
    done = run("condense", *condense_digits(out))
    assert done.returncode == 0, done.stderr
    return out


def same_result(out: Path, straight: Path) -> None:
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (straight / name).read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    seen = {line["iteration"]: line["loss"] for line in lines}
    assert sorted(seen) == [line["iteration"] for line in lines], "no line twice"
    assert seen == {line["iteration"]: line["loss"] for line in expected}


def resume(out: Path) -> None:
    done = run("condense", "--out", str(out), "--resume")
    assert done.returncode == 0, done.stderr


def wait_for(path: Path, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.002)


def test_the_run_folder_is_complete(straight: Path) -> None:
    names = {path.name for path in straight.iterdir()}
    assert names == {
        ".lock",
        "config.json",
        "synthetic.safetensors",
        "metrics.jsonl",
        "tensorboard",
        "checkpoint.safetensors",
        "grid.png",
        "grid_decoded.png",
    }
    content = json.loads((straight / "config.json").read_text())
    assert content["settings"]["dataset"] == "digits"
    assert content["settings"]["lr_img"] == 1.0, "presets are written out"
    assert content["environment"]["versions"]["torch"]
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert any((straight / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "moment",
    ["config.json", "metrics.jsonl", "checkpoint.safetensors"],
)
def test_killed_and_resumed_ends_with_the_same_bytes(moment: str, straight, tmp_path) -> None:
    out = tmp_path / "run"
    process = start("condense", *condense_digits(out))
    wait_for(out / moment)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    resume(out)
    same_result(out, straight)


def test_killed_while_writing_ends_with_the_same_bytes(straight, tmp_path) -> None:
    """What a kill leaves in the middle of any write: half files beside whole ones."""
    out = tmp_path / "run"
    stopped = start("condense", *condense_digits(out))
    wait_for(out / "checkpoint.safetensors")
    stopped.kill()
    stopped.communicate()
    checkpoint = (out / "checkpoint.safetensors").read_bytes()
    (out / ".checkpoint.safetensors.part").write_bytes(checkpoint[: len(checkpoint) // 2])
    (out / ".synthetic.safetensors.part").write_bytes(b"")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "lo')
    resume(out)
    same_result(out, straight)


# long enough that a signal sent after the second iteration finds it at work
LONGER = ("--iterations", "40", "--checkpoint-every", "1000", "--real-batch", "32")


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("longer") / "run"
    done = run("condense", *condense_digits(out, *LONGER))
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_saves_says_how_to_go_on_and_goes_on(number, longer, tmp_path) -> None:
    out = tmp_path / "run"
    process = start("condense", *condense_digits(out, *LONGER))
    wait_for(out / "metrics.jsonl")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert f"python -m m3d_fast.condense --out {out} --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "synthetic.safetensors").exists()
    resume(out)
    name = "synthetic.safetensors"
    assert (out / name).read_bytes() == (longer / name).read_bytes()


def test_resume_of_nothing_starts_and_of_a_finished_run_changes_nothing(straight, tmp_path) -> None:
    out = tmp_path / "run"
    done = run("condense", *condense_digits(out, "--resume"))
    assert done.returncode == 0, done.stderr
    same_result(out, straight)
    resume(out)
    same_result(out, straight)


def test_a_run_moved_elsewhere_can_be_resumed(straight, tmp_path) -> None:
    out = tmp_path / "moved"
    shutil.copytree(straight, out)
    (out / "synthetic.safetensors").unlink()
    resume(out)
    same_result(out, straight)
