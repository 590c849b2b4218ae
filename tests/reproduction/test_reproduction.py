"""A table runs what is missing, resumes, and is one results file and one page."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from m3d_fast import CondenseConfig, condense
from m3d_fast.analysis.config import MomentsConfig
from m3d_fast.common.errors import UserError
from m3d_fast.comparison import comparison
from m3d_fast.evaluation import scheduler
from m3d_fast.evaluation.results import Task
from m3d_fast.loaders import download
from m3d_fast.reproduction import measures, reproduction
from m3d_fast.reproduction.config import ReproduceConfig
from m3d_fast.reproduction.reproduction import reproduce
from tests.helpers.browser import Browser, start_browser
from tests.helpers.commands import PATIENCE, run, start, wait_for

SMALL = {"real_batch": 4, "device": "cpu", "precision": "fp32", "epochs": 1, "repeats": 1}
DATA = ("digits", "cifar10")  # the second is not at hand


class Made:
    """A table in a folder, and what making it took: runs started, networks trained."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.runs: list[str] = []
        self.networks: list[Task] = []

    def make(self, **given: Any) -> dict[str, Any]:
        self.runs.clear()
        self.networks.clear()
        settings = {"table": "table1", "dataset": ",".join(DATA), "methods": "random,m3d"}
        settings |= {"ipc": (1,), "out": str(self.out), "data_root": str(self.out)}
        compare = SMALL | {"iterations": 2, "snapshot_every": 1} | given.pop("compare", {})
        return reproduce(ReproduceConfig(**(settings | given), compare=compare))

    def read(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.out / "table1.json").read_text())
        return content


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A table of digits; its runs are made in this process, and nothing is downloaded."""
    table = Made(tmp_path_factory.mktemp("reproduce"))
    train = scheduler.Scheduler.train

    def condense_here(label: str, config: CondenseConfig) -> None:
        table.runs.append(label)
        condense(config, resume=True)

    def count(self: Any, tasks: list[Task], *, bar: bool) -> Any:
        table.networks += tasks
        return train(self, tasks, bar=bar)

    def fetch(urls: Any, target: Path, md5: str) -> None:
        raise OSError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "condense_alone", condense_here)
        patch.setattr(scheduler.Scheduler, "train", count)
        patch.setattr(download, "fetch", fetch)
        table.make()
        assert table.runs == ["random", "m3d"]
        # of two methods, and of the initial images and the earlier snapshot of one
        assert len(table.networks) == 4
        yield table


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from start_browser(tmp_path_factory.mktemp("browser"))


def test_the_results_file_has_ours_beside_the_published(made: Made) -> None:
    content = made.read()
    assert content["table"] == "table1"
    assert "last iterates" in content["notes"][0]
    (lack,) = content["missing"]
    assert lack["dataset"] == "cifar10"
    assert "no network in tests" in lack["reason"]
    assert "--data-root" in lack["reason"]
    (part,) = content["parts"]
    assert (part["dataset"], part["ipc"], part["complete"]) == ("digits", 1, True)
    assert part["command"].startswith(
        "python -m m3d_fast.reproduce table1 --dataset=digits,cifar10"
    )
    random, m3d = part["rows"]
    assert random["ours"]["iterations"] == 0
    assert m3d["ours"]["iterations"] == 2
    assert (m3d["published"]["accuracy"], m3d["difference"]) == (None, None)
    assert 0 < m3d["moments"]["moment1"]["mean"] < random["moments"]["moment1"]["mean"] * 10
    assert [point["iteration"] for point in m3d["curve"]] == [0, 1, 2]
    assert m3d["curve"][2]["accuracies"] == m3d["ours"]["accuracies"]
    assert "--method=m3d" in m3d["ours"]["command"]


def test_the_page_is_whole_in_a_browser(made: Made, browser: Browser) -> None:
    page = browser.render(made.out / "table1.html")
    assert page.title.startswith("table1: Moments of features")
    assert (page.messages, page.broken, page.addresses) == ([], [], [])
    # bars, curve, random as chosen, m3d before and after, its loss
    assert page.pictures == 6
    mean = made.read()["parts"][0]["rows"][1]["ours"]["mean"]
    for text in (f"{100 * mean:.2f}", "cifar10 is not at hand", "last iterates", "Machine:"):
        assert text in page.text
    assert page.colours == ("rgb(0, 0, 0)", "rgb(255, 255, 255)")


def test_a_page_that_is_broken_is_seen_to_be(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "broken.html"
    page.write_text(
        '<title>x</title><img alt="cut" src="data:image/png;base64,iVBOR"><img src="other.png">'
        "<script>missing()</script>"
    )
    broken = browser.render(page)
    assert broken.broken == ["cut", ""]
    assert any("missing is not defined" in message for message in broken.messages)
    assert broken.addresses == ["other.png"]


def test_what_is_there_is_neither_run_nor_trained_again(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = made.read()
    monkeypatch.setattr(measures, "compare_runs", None)  # would fail if called
    made.make()
    assert (made.runs, made.networks) == ([], [])
    assert made.read()["parts"] == before["parts"]


def measure_nothing(runs: list[Path], config: MomentsConfig) -> dict[Path, dict[str, Any]]:
    return {run: {"condensed": {}} for run in runs}


def test_other_parts_are_kept(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made.read()["parts"]
    monkeypatch.setattr(reproduction, "measure_moments", measure_nothing)  # it takes seconds
    made.make(dataset="digits", ipc=(2,), methods="random")
    assert made.runs == ["random"]
    kept, new = made.read()["parts"]
    assert [kept] == before
    assert (new["ipc"], len(new["rows"])) == (2, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"table": "tabel2"}, "table: 'tabel2' is not known; did you mean"),
        ({"table": "table3", "dataset": "digits"}, "dataset: table3 is made of imagenet10,"),
        ({"dataset": "digit"}, "dataset: 'digit' is not known; did you mean digits"),
        ({"dataset": "cifar10"}, "table1: no data set is at hand: cifar10 needs"),
        ({"ipc": (0,)}, "ipc: expected a number above 0, got 0"),
        ({"methods": "m3d,hreding"}, "methods: 'hreding' is not known"),
        ({"compare": {"epochs": 0}}, "epochs: expected a number above 0"),
    ],
)
def test_invalid_input_is_refused_before_anything_is_written(
    given: dict[str, Any], message: str, made: Made, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        made.make(**given, out=str(tmp_path / "out"))
    assert message in str(refused.value)
    assert not made.runs
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ['{"format": "m3d_fast re', "{}"], ids=["cut", "foreign"])
def test_a_damaged_results_file_is_refused_and_left(made: Made, tmp_path: Path, text: str) -> None:
    file = tmp_path / "table1.json"
    file.write_text(text)
    with pytest.raises(UserError, match="delete it: the runs and their evaluations are kept"):
        made.make(out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["table1.json"]
    assert file.read_text() == text


def test_a_table_that_was_killed_goes_on(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = {"--dataset": "digits", "--methods": "m3d", "--ipc": "1", "--iterations": "60"}
    flags |= {f"--{name.replace('_', '-')}": str(value) for name, value in SMALL.items()}
    flags |= {"--checkpoint-every": "2", "--out": str(out)}
    words = ["ddm", *(word for pair in flags.items() for word in pair)]
    killed = start("reproduce", *words)
    folder = out / "digits-ipc1" / "m3d"
    wait_for(folder / "checkpoint.safetensors")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=PATIENCE)  # its run, which has its pipes, has ended too
    assert not (folder / "synthetic.safetensors").exists()
    (row,) = json.loads((out / "ddm.json").read_text())["parts"][0]["rows"]
    assert row["ours"] is None
    resumed = run("reproduce", *words)
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout == f"{out / 'ddm.html'}\n"
    assert "resumed after iteration" in resumed.stderr
    (part,) = json.loads((out / "ddm.json").read_text())["parts"]
    assert part["complete"]
    assert part["rows"][0]["ours"]["iterations"] == 60


def test_a_run_has_a_page_too(made: Made, browser: Browser) -> None:
    folder = made.out / "digits-ipc1" / "m3d"
    done = run("reproduce", "page", str(folder))
    assert (done.returncode, done.stdout) == (0, f"{folder / 'report.html'}\n"), done.stderr
    page = browser.render(folder / "report.html")
    assert (page.messages, page.broken, page.pictures) == ([], [], 4)
    assert "m3d on digits" in page.title


def test_a_page_is_of_runs_that_were_evaluated(made: Made, tmp_path: Path) -> None:
    refused = run("reproduce", "page", str(tmp_path))
    assert refused.returncode == 2
    assert "config.json: expected this file, found none" in refused.stderr
    refused = run("reproduce", "page")
    assert "page: expected run folders and nothing else" in refused.stderr
    refused = run("reproduce", "table1", str(tmp_path))
    assert "table1: expected flags after it" in refused.stderr
