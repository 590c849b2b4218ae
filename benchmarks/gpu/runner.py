"""What ``make gpu`` runs on a CUDA machine: everything of value, within nine minutes.

    python -m benchmarks.gpu [NAME ...] [--out FOLDER] [--seconds S]

Needs a bare checkout, torch, triton and pytest, no network and no git. First the kernels are
compiled by all cores; then come each family at its main shape, the engine on small images, the
tests family by family, every family at every shape, and other implementations. Each is a process
with a limit of its own, so that a crash or a hang takes nothing else along, and appends to
FOLDER/records.jsonl as it measures. FOLDER/results.json has the layout of pytest-benchmark,
FOLDER/sweep.json is for ``python -m benchmarks.gpu.choose``, FOLDER/summary.md for people; all are
written anew after every process. What is named runs alone, may use all of the time and has a folder
of its own; the engine's benchmark and other tiles run only when named.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu import records
from benchmarks.gpu.job_list import ONLY_NAMED, ROOT, Job, is_installed, list_jobs
from benchmarks.gpu.summary import write_summaries

BUDGET = 540.0  # seconds for everything: less than the ten minutes of a visit
LEAST = 5.0  # seconds in which a process can start and measure anything
GRACE = 5.0  # seconds to wait for a killed process; one that the driver holds does not end


def check_requirements() -> str | None:
    """The one sentence that says why nothing can run, or None."""
    if not is_installed("torch"):
        return f"make gpu needs torch, which {sys.executable} lacks: pass PYTHON=..."
    import torch

    if not torch.cuda.is_available():
        return f"make gpu needs a CUDA device, and torch {torch.__version__} sees none."
    absent = [name for name in ("triton", "pytest") if not is_installed(name)]
    if absent:
        return f"make gpu needs {' and '.join(absent)} beside torch: not installed."
    return None


@dataclass
class Process:
    """A job that has been started."""

    job: Job
    seconds: float
    attempt: int
    popen: "subprocess.Popen[bytes]"
    output: IO[bytes]
    started: float = field(default_factory=time.monotonic)

    def finish(self) -> dict[str, Any]:
        """Wait for its end or its limit; the record, whose status is None if it was stopped."""
        left = self.started + self.seconds - time.monotonic()
        status: int | None
        try:
            status = self.popen.wait(timeout=max(0.0, left))
        except subprocess.TimeoutExpired:
            status = None
            self.kill()
        self.output.seek(0)
        said = self.output.read().decode(errors="replace")
        self.output.close()
        record = {"kind": "job", "job": self.job.name, "attempt": self.attempt, "status": status}
        record |= {"ended": status in self.job.ended, "limit": round(self.seconds, 1)}
        record |= {"seconds": round(time.monotonic() - self.started, 1)}
        return record | {"output": said[-records.TAIL :]}

    def kill(self) -> None:
        """End it with its children: a survivor would keep the GPU busy."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        try:
            self.popen.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            print(f"{self.job.name}: not even SIGKILL ends it", flush=True)


class Visit:
    """Runs jobs in turn until its time is up."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.file = folder, folder / "records.jsonl"
        self.deadline = time.monotonic() + seconds
        self.running: list[Process] = []

    def run(self, jobs: Iterable[Job]) -> None:
        """Run all jobs; those for which no time is left are recorded as left out."""
        try:
            for job in jobs:
                self._await(job.awaits)
                self._run_job(job)
                write_summaries(self.folder)
            self._await(*(process.job.name for process in self.running))
        finally:  # interrupted
            for process in self.running:
                process.kill()
                process.output.close()
        write_summaries(self.folder)

    def _await(self, *names: str) -> None:
        """Finish jobs in the background."""
        for process in list(self.running):
            if process.job.name in names:
                self._finish(process)

    def _run_job(self, job: Job) -> None:
        for attempt in range(1 + job.restarts):
            left = min(job.seconds, self.deadline - time.monotonic())
            if left < LEAST:
                record = {"kind": "job", "job": job.name, "attempt": attempt, "ended": False}
                self._append(record | {"status": "left out: the time was up"})
                return
            process = self._start(job, left, attempt)
            if job.background:
                return
            status = self._finish(process)
            if status is None or status in job.ended or not self._has_begun(job, attempt):
                return

    def _start(self, job: Job, seconds: float, attempt: int) -> Process:
        settings = {
            records.FILE_VARIABLE: str(self.file),
            records.JOB_VARIABLE: job.name,
            records.ATTEMPT_VARIABLE: str(attempt),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the process has ended
        popen = subprocess.Popen(
            job.command,
            cwd=ROOT,
            env=os.environ | settings | job.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process = Process(job, seconds, attempt, popen, output)
        self.running.append(process)
        return process

    def _finish(self, process: Process) -> int | None:
        record = process.finish()
        self.running.remove(process)
        self._append(record)
        return record["status"]

    def _append(self, record: dict[str, Any]) -> None:
        with self.file.open("ab", buffering=0) as file:
            file.write(records.encode(record))
        ended = "ended" if record["ended"] else f"status {record['status']}"
        print(f"{record['job']}: {ended}, {record.get('seconds', 0)} s", flush=True)
        if not record["ended"] and "output" in record:
            print(record["output"][-1000:], flush=True)

    def _has_begun(self, job: Job, attempt: int) -> bool:
        """Whether an attempt began anything, so that the next one begins elsewhere."""
        return any(
            (line["kind"], line["job"], line["attempt"]) == ("start", job.name, attempt)
            for line in records.read(self.file)
        )


def choose_jobs(jobs: list[Job], named: list[str], seconds: float) -> list[Job]:
    """The jobs of the groups named, which share all the time; else all but those only named."""
    if named:
        chosen = [job for job in jobs if job.group in named]
        share = seconds / max(1, len(chosen))
        return [replace(job, seconds=max(job.seconds, share)) for job in chosen]
    print(f"Run separately: python -m benchmarks.gpu {' or '.join(ONLY_NAMED)}")
    return [job for job in jobs if job.group not in ONLY_NAMED]


def check_names(jobs: list[Job], named: list[str]) -> str | None:
    """The one sentence that lists the groups if a name is none of them, or None."""
    known = list(dict.fromkeys(job.group for job in jobs))
    wrong = [name for name in named if name not in known]
    if not wrong:
        return None
    return f"make gpu has no suite {', '.join(wrong)}: expected some of {', '.join(known)}."


def name_folder(named: list[str]) -> Path:
    """The folder of this chip's results; what is named does not overwrite a whole visit's."""
    import torch

    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return ROOT.joinpath("benchmarks", "results", name, "-".join(named))


def read_architecture() -> int:
    """Compute capability of the device times ten."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def list_families() -> tuple[str, ...]:
    """Kernel families, in the order of the table."""
    from m3d_fast.kernels.triton.families import FAMILIES

    return tuple(family.name for family in FAMILIES)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to run; default: all")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument(
        "--seconds", type=float, default=BUDGET, help="for everything [%(default)s]"
    )
    return parser.parse_args()


def main() -> int:
    """Run everything; 2 if it cannot, 1 if anything failed."""
    options = parse_arguments()
    reason = check_requirements()
    if reason:
        print(reason, file=sys.stderr)
        return 2
    folder = options.out or name_folder(options.names)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = list_jobs(read_architecture(), list_families(), Path(scratch))
        reason = check_names(jobs, options.names)
        if reason:
            print(reason, file=sys.stderr)
            return 2
        folder.mkdir(parents=True, exist_ok=True)
        visit = Visit(folder, options.seconds)
        visit.file.unlink(missing_ok=True)
        visit.run([describe_machine(), *choose_jobs(jobs, options.names, options.seconds)])
    print((folder / "summary.md").read_text())
    print(f"results are in {folder}")
    return int(any(records.is_failure(line) for line in records.read(visit.file)))


def describe_machine() -> Job:
    """The first job."""
    command = (sys.executable, "-m", "benchmarks.gpu.machine")
    return Job(name="machine", group="machine", command=command, seconds=60.0)
