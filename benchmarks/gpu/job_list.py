"""What ``make gpu`` runs: processes, the most valuable first, each with a limit of its own."""

import importlib.util
import os
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# compiles ahead of time for other chips, for minutes, and needs no GPU
COMPILER_TESTS = "tests/kernels/triton/test_compiled.py"
PEERS = {
    "gradient": 80.0,
    "cmmd": 30.0,
    "kid": 30.0,
    "two_sample": 30.0,
    "libraries": 45.0,  # KeOps compiles, without a limit of its own
}
PYTEST_ENDED = (0, 1, 5)  # passed, failed, none selected


ONLY_NAMED = ("tiles", "engine")  # groups for visits of their own


@dataclass(frozen=True, kw_only=True)
class Job:
    """A process.

    Attributes:
        group: its name on the command line; several jobs may share it.
        seconds: after which it is stopped.
        ended: its exit statuses if it came to its end; another makes ``restarts`` worthwhile.
        restarts: at most; it leaves out what it had begun before.
        background: the next jobs start before it ends.
        awaits: the name of a job in the background that must have ended.
    """

    name: str
    group: str
    command: tuple[str, ...]
    seconds: float
    environment: dict[str, str] = field(default_factory=dict)
    ended: tuple[int, ...] = (0,)
    restarts: int = 0
    background: bool = False
    awaits: str = ""


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def is_installed(name: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(name) is not None


@cache
def find_hypothesis_tests() -> tuple[str, ...]:
    """Test files of the kernels to ignore: those with hypothesis, where it is not installed."""
    if is_installed("hypothesis"):
        return ()
    files = sorted((ROOT / "tests" / "kernels").rglob("test_*.py"))
    ignored = [str(path.relative_to(ROOT)) for path in files if "hypothesis" in path.read_text()]
    print(f"hypothesis is not installed: {', '.join(ignored)} left out.", flush=True)
    return tuple(ignored)


def _ignore(*paths: str) -> list[str]:
    return [f"--ignore={path}" for path in (*paths, *find_hypothesis_tests())]


def select_triton_tests() -> list[str]:
    """Pytest's arguments: the tests that launch kernels."""
    return ["tests/kernels/triton", *_ignore(COMPILER_TESTS)]


def find_gpu_tests() -> list[str]:
    """Test files, apart from the kernels', with tests that are skipped without a CUDA device."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]


def list_tests(families: tuple[str, ...]) -> dict[str, list[str]]:
    """Pytest's arguments by job: each family by itself, the rest, the op, other rooms."""
    # tile and value are tested together, and their names are words of other tests
    alone = [name for name in (*families, "permute") if name not in ("tile", "value")]
    triton = select_triton_tests()
    tests = {f"tests of {name}": [*triton, "-k", name] for name in alone}
    tests["tests of tile and value"] = [*triton, "-k", f"not ({' or '.join(alone)})"]
    # what runs on the CPU is tested elsewhere
    tests["tests of the op"] = ["tests/kernels", *_ignore("tests/kernels/triton"), "-k", "not cpu"]
    if is_installed("safetensors"):
        tests["gpu_tests"] = ["-m", "gpu", *find_gpu_tests()]
    else:
        print("safetensors is not installed: the engine's tests and benchmark are left out.")
    return tests


def _test_jobs(families: tuple[str, ...]) -> list[Job]:
    # warnings of the installed versions are printed, and fail nothing
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]
    command += ["-p", "benchmarks.gpu.test_log", "--tb=short"]
    if is_installed("xdist"):
        command += ["-n", str(min(8, count_cores()))]
    return [
        Job(
            name=name,
            group="gpu_tests" if name == "gpu_tests" else "tests",
            command=(*command, *arguments),
            seconds=45.0,
            environment={"TRITON_INTERPRET": "0"},
            ended=PYTEST_ENDED,
            restarts=3,
            awaits="compile the rest",
        )
        for name, arguments in list_tests(families).items()
    ]


def _make_compile_job(architecture: int, name: str, seconds: float, *parts: str) -> Job:
    command = ("benchmarks.gpu.compilation", str(architecture), str(seconds - 10), *parts)
    return Job(
        name=name,
        group="compile",
        command=(sys.executable, "-m", *command),
        seconds=seconds,
        environment={"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""},
    )


def _compile_jobs(architecture: int) -> list[Job]:
    rest = _make_compile_job(architecture, "compile the rest", 180.0, "tests", "sweep")
    return [
        _make_compile_job(architecture, "compile main shapes", 70.0, "main"),
        replace(rest, background=True),
    ]


def _sweep_jobs(families: tuple[str, ...], group: str, seconds: float) -> list[Job]:
    return [
        Job(
            name=f"{group} {family}",
            group=group,
            command=(
                *(sys.executable, "-m", "benchmarks.gpu.sweep", family),
                *(["main"] if group == "main" else []),
            ),
            seconds=seconds,
            restarts=3,
            awaits="" if group == "main" else "compile the rest",
        )
        for family in families
    ]


def _tile_jobs(architecture: int, families: tuple[str, ...]) -> list[Job]:
    """Other tiles, compiled ahead; for a visit of their own."""
    compile_all = replace(
        _make_compile_job(architecture, "compile tiles", 200.0, "tiles"), group="tiles"
    )
    return [compile_all] + [
        Job(
            name=f"tiles {family}",
            group="tiles",
            command=(sys.executable, "-m", "benchmarks.gpu.tiles", family),
            seconds=60.0,
            restarts=3,
        )
        for family in families
    ]


def _suite_job(suite: str, seconds: float, group: str = "", *numbers: str) -> Job:
    command = (sys.executable, "-m", "benchmarks.gpu.measure", suite, *numbers)
    name = " ".join((suite, *numbers))
    return Job(name=name, group=group or suite, command=command, seconds=seconds)


def _engine_jobs(folder: Path) -> list[Job]:
    """A condensation of some seconds with graphs, one that is compiled, an evaluation."""
    if not (is_installed("safetensors") and is_installed("sklearn")):
        print("safetensors or scikit-learn is not installed: the engine is left out.")
        return []
    digits = ["--dataset", "digits", "--iterations", "12", "--real-batch", "8", "--device", "cuda"]
    runs = {
        "engine, graphs": ("condense", *digits, "--no-compile", "--out", str(folder / "graphs")),
        "engine, evaluation": (
            *("evaluate", str(folder / "graphs"), "--epochs", "10", "--repeats", "2"),
            *("--device", "cuda"),
        ),
        "engine, compiled": ("condense", *digits, "--compile", "--out", str(folder / "compiled")),
    }
    return [
        Job(
            name=name,
            group="engine_smoke",
            command=(sys.executable, "-m", f"m3d_fast.{module}", *arguments),
            seconds=80.0,
        )
        for name, (module, *arguments) in runs.items()
    ]


def list_jobs(architecture: int, families: tuple[str, ...], folder: Path) -> list[Job]:
    """All jobs in order; ``folder`` is for files that need not be kept."""
    jobs = [
        *_compile_jobs(architecture),
        *_sweep_jobs(families, "main", 30.0),
        _suite_job("permutations", 30.0, "main"),
        *_engine_jobs(folder),
        *_test_jobs(families),
        *_sweep_jobs(families, "sweep", 60.0),
        *(_suite_job(suite, seconds) for suite, seconds in PEERS.items()),
    ]
    jobs += _tile_jobs(architecture, families)
    if is_installed("safetensors"):
        # three minutes each on two minutes of compilation: a guess, to be measured
        jobs += [_suite_job("engine", 180.0, "engine", str(number)) for number in range(4)]
    return jobs
