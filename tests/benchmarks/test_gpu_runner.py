"""``make gpu`` loses nothing to a process that crashes, hangs or fails, and keeps to its time."""

import json
import sys
import time

import pytest
import torch

from benchmarks.gpu import job_list, machine, records, runner
from benchmarks.gpu.job_list import Job
from m3d_fast.kernels.triton.families import FAMILIES
from tests.helpers.commands import PATIENCE

SAY = "from benchmarks.gpu import records\n"
POINT = 'records.append({"kind": "point", "name": "%s", "family": "small", "error": "x: y"})\n'
BEGIN = 'records.append({"kind": "start", "name": "%s"})\n'


def job(name: str, code: str, **settings) -> Job:
    settings = {"group": name, "seconds": PATIENCE} | settings
    return Job(name=name, command=(sys.executable, "-c", SAY + code), **settings)


@pytest.fixture
def visit(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 0.0)
    return runner.Visit(tmp_path, PATIENCE)


def read(visit, kind: str) -> list[dict]:
    return [line for line in records.read(visit.file) if line["kind"] == kind]


ENDS = {
    "exits": "import os; os._exit(3)",
    "is killed": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "raises": "raise MemoryError('out of registers')",
    "hangs": "import time; print('began', flush=True); time.sleep(600)",
}


def test_a_process_that_dies_takes_no_record_along(visit):
    """Each writes a record and a line, then ends badly; then comes a good one."""
    bad = [
        job(name, POINT % name + f"print('{name}', flush=True)\n" + end)
        for name, end in ENDS.items()
        if name != "hangs"
    ]
    # starts within its limit on any machine, or writes nothing: both are the runner's business
    hanging = job("hangs", ENDS["hangs"], seconds=1.0)
    visit.run([*bad, hanging, job("good", POINT % "good")])
    assert [line["name"] for line in read(visit, "point")] == [
        "exits",
        "is killed",
        "raises",
        "good",
    ]
    jobs = {line["job"]: line for line in read(visit, "job")}
    assert {name: line["status"] for name, line in jobs.items()} == {
        "exits": 3,
        "is killed": -11,
        "raises": 1,
        "hangs": None,
        "good": 0,
    }
    assert [line["ended"] for line in jobs.values()] == [False] * 4 + [True]
    assert "exits" in jobs["exits"]["output"]
    assert "MemoryError: out of registers" in jobs["raises"]["output"]
    summary = (visit.folder / "summary.md").read_text()
    assert "- exits: status 3: exits" in summary
    assert "- is killed: status -11: is killed" in summary
    assert "- raises: status 1: MemoryError: out of registers" in summary
    assert "- hangs: stopped at its limit" in summary
    assert "- good: status" not in summary


CHILD = """
import subprocess, sys
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
child.wait()
"""


def test_a_stopped_process_is_stopped_with_its_children(visit):
    visit.run([job("parent", CHILD, seconds=2.0)])
    (line,) = read(visit, "job")
    assert line["status"] is None
    if line["output"]:  # it had started its child
        deadline = time.monotonic() + 10
        while is_running(int(line["output"])) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_running(int(line["output"]))


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


RESUMED = """
import os
for name in "abc":
    if name in records.find_begun():
        continue
    records.append({"kind": "start", "name": name})
    if name == "b":
        os._exit(70)
    records.append({"kind": "point", "name": name})
"""


def test_a_process_that_dies_is_started_again_behind_what_it_died_of(visit):
    visit.run([job("family", RESUMED, restarts=3)])
    assert [line["name"] for line in read(visit, "point")] == ["a", "c"]
    assert [line["status"] for line in read(visit, "job")] == [70, 0]
    assert "- family: b: begun, no outcome" in (visit.folder / "summary.md").read_text()


def test_one_that_began_nothing_is_not_started_again(visit):
    visit.run([job("family", "raise SystemExit(9)", restarts=3)])
    assert [line["status"] for line in read(visit, "job")] == [9]


AWAIT = """
import time
from pathlib import Path
while not Path({}).exists():
    time.sleep(0.01)
"""


def test_a_job_in_the_background_runs_beside_the_next_and_is_awaited(visit, tmp_path):
    file = repr(str(tmp_path / "go"))
    jobs = [
        job("behind", AWAIT.format(file), background=True),
        job("next", f"open({file}, 'w').close()"),
        job("later", "", awaits="behind"),
    ]
    visit.run(jobs)
    assert [line["job"] for line in read(visit, "job")] == ["next", "behind", "later"]
    assert all(line["ended"] for line in read(visit, "job"))


def test_a_job_in_the_background_is_awaited_at_the_end(visit):
    visit.run([job("behind", "print('done')", background=True)])
    assert [line["output"] for line in read(visit, "job")] == ["done\n"]


def test_an_interruption_ends_what_runs(visit, monkeypatch):
    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "write_summaries", interrupt)
    with pytest.raises(KeyboardInterrupt):
        visit.run([job("behind", "import time; time.sleep(600)", background=True)])
    (process,) = visit.running
    assert process.popen.wait(timeout=PATIENCE) == -9


def test_what_no_time_is_left_for_is_recorded(tmp_path):
    visit = runner.Visit(tmp_path, 0.0)
    visit.run([job("late", POINT % "late")])
    assert read(visit, "point") == []
    (line,) = read(visit, "job")
    assert line["status"] == "left out: the time was up"
    assert "- late: status left out: the time was up" in (tmp_path / "summary.md").read_text()


def test_half_a_line_hides_no_other(tmp_path):
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'{"kind": "st\n' + records.encode({"kind": "start"}) + b'{"kind')
    assert records.read(file) == [{"kind": "start"}]
    assert records.read(tmp_path / "absent") == []


FAMILY_NAMES = tuple(family.name for family in FAMILIES)


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    """No GPU, but jobs that were started in vain, by name; the folder of the results."""
    run = []
    monkeypatch.setattr(runner, "check_requirements", lambda: None)
    monkeypatch.setattr(runner, "read_architecture", lambda: 90)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Chip")

    def start(visit, job):
        run.append(job)
        visit._append({"kind": "job", "job": job.name, "ended": True, "attempt": 0})

    monkeypatch.setattr(runner.Visit, "_run_job", start)
    return run, tmp_path / "benchmarks/results/a-chip"


def main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", *arguments])
    return runner.main()


def test_the_most_valuable_comes_first(on_a_gpu, monkeypatch):
    jobs, folder = on_a_gpu
    assert main(monkeypatch) == 0
    groups = list(dict.fromkeys(job.group for job in jobs))
    assert groups[:5] == ["machine", "compile", "main", "engine_smoke", "tests"]
    assert groups[6:] == ["sweep", *job_list.PEERS]
    assert not set(job_list.ONLY_NAMED) & set(groups)
    assert {job.name for job in jobs if job.group == "main"} >= {f"main {n}" for n in FAMILY_NAMES}
    assert {path.name for path in folder.iterdir()} == {
        "records.jsonl",
        "results.json",
        "summary.md",
        "sweep.json",
    }


def test_each_family_has_processes_of_its_own_and_can_use_half_its_time(on_a_gpu, monkeypatch):
    jobs, _ = on_a_gpu
    main(monkeypatch)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for job in jobs:
        if job.group in ("tests", "gpu_tests", "sweep"):
            assert job.restarts
    assert runner.BUDGET < 570, "a visit has ten minutes, and the last process is given a grace"
    # until the tests begin, nothing hangs so long that they are not reached
    before = [job for job in jobs if job.group in ("machine", "compile", "main")]
    assert sum(job.seconds for job in before if not job.background) < runner.BUDGET


def test_named_suites_share_all_the_time(on_a_gpu, monkeypatch, tmp_path):
    jobs, _ = on_a_gpu
    out = tmp_path / "elsewhere"
    assert main(monkeypatch, "engine", "kid", "--out", str(out)) == 0
    assert [job.name for job in jobs] == ["machine", "kid", *(f"engine {n}" for n in range(4))]
    assert all(job.seconds >= runner.BUDGET / 5 for job in jobs[1:])
    assert (out / "summary.md").exists()


def test_what_is_named_does_not_overwrite_a_whole_visit(on_a_gpu, monkeypatch):
    _, folder = on_a_gpu
    assert main(monkeypatch) == main(monkeypatch, "tiles", "kid") == 0
    assert (folder / "summary.md").exists()
    assert (folder / "tiles-kid" / "summary.md").exists()


def test_an_unknown_suite_is_named(on_a_gpu, monkeypatch, capsys):
    assert main(monkeypatch, "kids") == 2
    assert "no suite kids: expected some of compile, main," in capsys.readouterr().err


def test_a_failure_is_the_exit_status(on_a_gpu, monkeypatch):
    failed = {"kind": "test", "name": "t", "outcome": "failed", "traceback": "x", "seconds": 1}
    monkeypatch.setattr(
        runner.Visit,
        "_run_job",
        lambda visit, job: visit.file.write_bytes(records.encode(failed | {"job": "j"})),
    )
    assert main(monkeypatch) == 1


def test_every_test_that_needs_a_gpu_is_run():
    tests = job_list.list_tests(FAMILY_NAMES)
    assert tests["gpu_tests"][2:] == [
        "tests/engine/sources/test_sources.py",
        "tests/engine/test_condenser.py",
        "tests/engine/unrolled/test_condenser.py",
        "tests/kernels/test_permutations.py",
        "tests/loaders/streaming/test_streamed.py",
    ]
    assert (job_list.ROOT / job_list.COMPILER_TESTS).exists(), "the ignored file is of that name"


def test_every_test_of_the_kernels_is_in_one_job():
    """Names that -k selects, and the rest: nothing is left out or run twice."""
    tests = job_list.list_tests(FAMILY_NAMES)
    triton = [arguments for arguments in tests.values() if "tests/kernels/triton" in arguments]
    *names, rest = (arguments[-1] for arguments in triton)
    assert rest == f"not ({' or '.join(names)})"
    assert tests["tests of the op"][:2] == ["tests/kernels", "--ignore=tests/kernels/triton"]


def test_a_machine_without_git_or_driver_tools_is_described():
    assert machine.read_output(["no-such-program", "--version"]) == "unknown"
    assert machine.read_output([sys.executable, "-c", "print(' words ')"]) == "words"
    assert machine.read_output([sys.executable, "-c", "raise SystemExit(3)"]) == "unknown"
    assert set(machine.describe_software()["versions"]) == {"torch", "triton", "cuda", "python"}


def test_results_have_the_layout_of_the_report(tmp_path):
    from benchmarks.gpu.summary import write_summaries
    from benchmarks.report import format_table

    point = {
        "kind": "point",
        "job": "sweep",
        "shape": "S",
        "sizes": [1, 2, 3, 4],
        "gradients": 1,
        "value": False,
        "precision": "highest",
        "quartiles": [1e-6, 3e-6],
        "errors": {"grad_y": 1e-7},
        "floor_seconds": 1e-6,
        "share_of_floor": 0.5,
    }
    compiled = {
        "kind": "compiled",
        "job": "compile",
        "family": "small",
        "kernel": "k",
        "constants": {},
        "registers": 99,
        "spilled_bytes": None,
        "shared_bytes": 1,
        "seconds": 2.5,
    }
    lines = [
        {"kind": "machine", "machine_info": {"gpu": "A Chip"}, "versions": {"torch": "2"}},
        compiled,
        *(
            point | {"name": f, "family": f, "median_seconds": t}
            for f, t in (("small", 3e-6), ("tile", 2e-6))
        ),
        {"kind": "test", "job": "tests", "name": "t", "outcome": "passed", "seconds": 1.0},
        {"kind": "benchmark", "name": "b", "extra_info": {"median_seconds": {"us": 1.0}}},
    ]
    (tmp_path / "records.jsonl").write_bytes(b"".join(map(records.encode, lines)))
    write_summaries(tmp_path)
    table = format_table([tmp_path / "results.json"])
    assert "A Chip, torch 2" in table
    assert "| S, 1 x 2 x 3 x 4, highest | small | 3 us |" in table
    assert "| b | us | 1 s |" in table
    assert len(json.loads((tmp_path / "sweep.json").read_text())["points"]) == 2
    summary = (tmp_path / "summary.md").read_text()
    assert "Nothing." in summary
    assert "| small | k |  | 1 | 99 | unknown | 1 | 2.5 |" in summary
    assert "tile: 2 us (1 us to 3 us); small: 3 us (1 us to 3 us) | 1 us | 50% |" in summary
    assert "| tests | 1 passed |" in summary
    assert "| tile | highest | grad_y | 1.0e-07 |" in summary
