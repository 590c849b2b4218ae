"""Several networks at once: the same results, in order, whatever ends before its time."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from m3d_fast import EvaluateConfig, evaluate
from m3d_fast.common.errors import DataError, UserError
from m3d_fast.evaluation import scheduler, workers
from m3d_fast.evaluation.protocols import Protocol
from m3d_fast.evaluation.results import Task
from m3d_fast.evaluation.runner import Job, Runner, Setup
from m3d_fast.evaluation.workers import Workers, count_processes
from m3d_fast.loaders import open_dataset
from m3d_fast.synthetic import StoredImages
from tests.helpers.commands import PATIENCE, environment, finish_run

OPEN = partial(open_dataset, "digits", split="test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_run(tmp_path_factory.mktemp("runs") / "run")


def setup_of(lock: Path, **given) -> Setup:
    fixed = {"epochs": 3, "repeats": 1, "lr": 0.01, "weight_decay": 5e-4, "batch_size": 16}
    fixed |= {
        "protocol": Protocol(**fixed, augment="color_crop", cutmix=0.5),
        "image_shape": (1, 16, 16),
        "num_classes": 10,
        "mean": (0.3,),
        "std": (0.3,),
        "device": torch.device("cpu"),
        "precision": "fp32",
        "compiled": frozenset(),
        "seed": 0,
        "lock": lock,
    }
    names = Setup.__dataclass_fields__
    return Setup(**{name: value for name, value in (fixed | given).items() if name in names})


def build(task: Task) -> Job:
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(task.repeat))
    return Job(task, StoredImages(images), torch.arange(20) % 10, 0.0)


TASKS = [Task("m3d", "convnet3", repeat) for repeat in range(3)]


def test_processes_give_the_results_of_this_process_in_order(tmp_path: Path) -> None:
    setup, work = setup_of(tmp_path / "none"), []
    with Workers(2, setup, OPEN) as processes:
        found = list(processes.run(TASKS, build, lambda task, done: work.append((task, done))))
    runner = Runner(setup, OPEN())
    alone = [runner.run([build(task)], lambda work: None)[0] for task in TASKS]
    assert [(o.task, o.accuracy) for o in found] == [(o.task, o.accuracy) for o in alone]
    assert len({o.accuracy for o in found}) > 1, "different networks"
    for task in TASKS:
        done = sum(part for owner, part in work if owner == task)
        assert done == setup.count_work(20, 359), "progress ends at the whole work"


def test_an_error_in_a_process_is_its_one_sentence(tmp_path: Path) -> None:
    missing = partial(open_dataset, "digits", split="validation")
    with (
        pytest.raises(DataError, match=r"^split: 'validation' is not known"),
        Workers(1, setup_of(tmp_path / "none"), missing) as processes,
    ):
        list(processes.run(TASKS, build, lambda task, work: None))


def test_a_process_that_is_killed_is_named_and_the_others_end(tmp_path: Path) -> None:
    with Workers(2, setup_of(tmp_path / "none"), OPEN) as processes:
        started = [worker.process for worker in processes._workers]
        started[0].kill()
        with pytest.raises(UserError, match="ended by signal 9, often for lack of memory"):
            list(processes.run(TASKS, build, lambda task, work: None))
    assert all(process.poll() is not None for process in started)


def test_an_evaluation_by_processes_is_that_of_one(finished: Path, tmp_path, monkeypatch) -> None:
    """Accuracies and their order do not depend on the number of processes."""
    config = EvaluateConfig(epochs=2, repeats=2, baselines="random,herding", device="cpu")
    results = []
    for number in (1, 3):  # two: in the first test
        run = tmp_path / str(number)
        shutil.copytree(finished, run)
        monkeypatch.setattr(scheduler, "count_processes", lambda *_, number=number: number)
        content = evaluate(run, config)
        assert content == json.loads((run / "evaluation.json").read_text())
        results.append([(r["method"], r["network"], r["accuracies"]) for r in content["results"]])
    assert results[0] == results[1]


def test_dropout_of_a_users_network_is_drawn_from_the_seed(tmp_path: Path) -> None:
    name = "tests.test_networks:own"
    runner, weights = Runner(setup_of(tmp_path), OPEN()), []
    runner.get_trainer(name)
    before = torch.get_rng_state()
    for repeat in (0, 0, 1):
        runner.run([build(Task("m3d", name, repeat))], lambda work: None)
        last = list(runner.get_trainer(name).network.parameters())[-1]
        weights.append(last.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def children_of(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for file in tasks for child in file.read_text().split()]


def is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


BY_TWO = """
import sys
from m3d_fast.evaluation import scheduler
scheduler.count_processes = lambda *_: 2
from m3d_fast.evaluate import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_whatever_ends_an_evaluation_ends_its_processes(
    finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run, file = tmp_path / "run", tmp_path / "run" / "evaluation.json"
    shutil.copytree(finished, run)
    flags = ["--epochs", "10", "--repeats", "4", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", BY_TWO, str(run), *flags],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    end = time.monotonic() + PATIENCE
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    children = children_of(process.pid)
    assert len(children) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    assert "Traceback" not in err
    while any(map(is_alive, children)):
        assert time.monotonic() < end
        time.sleep(0.01)
    kept = json.loads(file.read_text())["results"][0]["accuracies"]
    content = evaluate(run, EvaluateConfig(epochs=10, repeats=4, device="cpu"))
    assert content["results"][0]["accuracies"][: len(kept)] == kept
    assert [len(result["accuracies"]) for result in content["results"]] == [4, 4]


def test_the_number_of_processes_is_bounded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers, "usable_cores", lambda: 8)
    setup = setup_of(tmp_path)
    demo = setup_of(
        tmp_path, image_shape=(1, 28, 28), protocol=Protocol(240, 3, 0.01, 5e-4, 64, "none", 0.5)
    )
    monkeypatch.setattr(workers, "free_bytes", lambda device: 64e9)
    assert count_processes(setup, 4, 40, 359) == 1, "starting them takes longer"
    assert count_processes(demo, 9, 40, 10_000) == 8, "by cores"
    assert count_processes(demo, 3, 40, 10_000) == 3, "by networks"
    monkeypatch.setattr(workers, "free_bytes", lambda device: 2.5e9)
    assert count_processes(demo, 9, 40, 10_000) == 2, "by memory"
    monkeypatch.setattr(workers, "free_bytes", lambda device: 1e6)
    assert count_processes(demo, 9, 40, 10_000) == 1
    assert count_processes(setup_of(tmp_path, device=torch.device("cuda")), 9, 900, 10_000) == 1


def test_each_process_computes_in_one_thread(tmp_path: Path) -> None:
    """So does this one, whatever its setting; the setting is kept."""
    runner, threads, seen = Runner(setup_of(tmp_path), OPEN()), torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        runner.run([build(TASKS[0])], lambda work: seen.append(torch.get_num_threads()))
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
