"""What suits a machine and a run."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m3d_fast.common import hardware
from m3d_fast.common.errors import UserError
from m3d_fast.common.hardware import (
    check_precision,
    compile_pays,
    default_precision,
    has_compiler,
    peak_bytes,
    usable_cores,
)
from tests.helpers.commands import environment


def test_compiling_is_for_long_runs() -> None:
    assert not compile_pays(28, embedded=1_000)
    assert not compile_pays(16, embedded=100_000)
    assert compile_pays(28, embedded=100_000) == has_compiler()
    assert not compile_pays(28, embedded=40_000)
    assert compile_pays(28, trained=40_000) == has_compiler()
    assert not compile_pays(16, trained=40_000)
    assert not compile_pays(28, embedded=40_000, trained=12_000)
    assert compile_pays(28, embedded=40_000, trained=20_000) == has_compiler()


@pytest.mark.parametrize(("processes", "cores"), [(1, 6), (2, 3), (4, 1), (8, 1)])
def test_cores_are_shared_by_the_processes_of_a_machine(
    processes: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert usable_cores() == cores


def test_bf16_is_for_cpus_that_multiply_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {}
    for flags in ("avx2", "avx2 avx512_bf16", "avx2 amx_bf16 amx_tile"):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        monkeypatch.setattr(hardware, "Path", lambda _: tmp_path / "cpuinfo")
        for supported in (False, True):
            monkeypatch.setattr(hardware, "onednn_takes_bf16", lambda answer=supported: answer)
            expected[flags, supported] = default_precision("cpu")
    assert [key for key, value in expected.items() if value == "bf16"] == [
        ("avx2 avx512_bf16", True),
        ("avx2 amx_bf16 amx_tile", True),
    ]
    assert default_precision("cuda") == "bf16"


def test_an_arithmetic_is_checked_against_the_device() -> None:
    check_precision("tf32", "cuda:1")
    with pytest.raises(UserError, match="tf32 is a GPU's arithmetic; expected bf16 or fp32"):
        check_precision("tf32", "cpu")
    with pytest.raises(UserError, match="precision: 'fp16' is not known"):
        check_precision("fp16", "cuda")


def test_the_peak_of_this_process_does_not_fall() -> None:
    block = torch.ones(100_000_000)  # 400 MB, each page written
    during = peak_bytes(torch.device("cpu"))
    del block
    assert during >= 4e8
    assert peak_bytes(torch.device("cpu")) >= 0.99 * during  # the kernel's count is some pages off


TOUCH = """
import resource, torch
from m3d_fast.common.hardware import keep_freed_memory
keep_freed_memory()
def fault():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(9 * 2**20)  # 36 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(fault(), fault())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another C library")
def test_freed_memory_is_used_again() -> None:
    """Mapped anew, each of 20 blocks would cost 9,216 faults, or 18 of huge pages."""
    ran = subprocess.run(
        [sys.executable, "-c", TOUCH], capture_output=True, text=True, check=True, env=environment()
    )
    first, second = map(int, ran.stdout.split())
    assert first > 18
    assert second < 20 * 18 / 4
