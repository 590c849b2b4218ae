"""Files are complete or absent; locks end with their process."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from m3d_fast.common.errors import UserError
from m3d_fast.common.files import lock_file, read_json, replace_atomically, write_json
from m3d_fast.common.tensors import write_tensors
from tests.helpers.commands import environment

# locks the file it is given, says so, and holds it until it is killed
HOLD = """
import sys
from m3d_fast.common.files import lock_file

file = open(sys.argv[1], "rb")
print(lock_file(file.fileno(), shared=sys.argv[2] == "shared"), flush=True)
sys.stdin.read()
"""


@contextmanager
def hold_lock(path: Path, kind: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds a lock of ``kind`` on ``path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def can_lock(path: Path, *, shared: bool) -> bool:
    with path.open("rb") as file:
        return lock_file(file.fileno(), shared=shared)


def test_a_lock_excludes_other_processes_until_its_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with hold_lock(path, "exclusive") as holder:
        assert not can_lock(path, shared=False)
        assert not can_lock(path, shared=True)
        holder.kill()
        holder.wait()
        assert can_lock(path, shared=False)


def test_shared_locks_exclude_exclusive_ones_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with hold_lock(path, "shared"):
        assert can_lock(path, shared=True)
        assert not can_lock(path, shared=False)


def test_a_lock_ends_when_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with path.open("rb") as file:
        assert lock_file(file.fileno())
        assert not can_lock(path, shared=False)
    assert can_lock(path, shared=False)


def test_json_comes_back_or_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(UserError, match=r"file\.json: expected this file, found none"):
        read_json(path)
    write_json(path, {"b": [1, None], "a": "ü"})
    assert read_json(path) == {"b": [1, None], "a": "ü"}
    path.write_text("{")
    with pytest.raises(UserError, match=r"file\.json: expected JSON, found a damaged file"):
        read_json(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_tensors(path, {"images": torch.zeros(3)}, {"format": "test"})
    before = path.read_bytes()

    def fill_the_disk() -> None:
        with replace_atomically(path) as new:
            new.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot be written"):
        fill_the_disk()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
