"""Only correct results are timed; every failure is recorded."""

import pytest
import torch

from benchmarks.gpu import suites
from benchmarks.gpu.timing import Candidate, find_quartiles, measure
from m3d_fast.kernels import KID


def test_quartiles():
    assert find_quartiles([3.0]) == (3.0, 3.0, 3.0)
    assert find_quartiles([4.0, 1.0, 2.0, 3.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("error", [0.2, torch.nan])
def test_a_wrong_result_is_not_timed(error):
    def never() -> list[float]:
        raise AssertionError("timed")

    content = measure("case", {"bad": Candidate(never, lambda: error, 0.1)})["extra_info"]
    assert content["median_seconds"] == {}
    assert "expected less than 1.0e-01" in content["error"]["bad"]
    good = Candidate(lambda: [2.0, 1.0, 3.0], lambda: 0.05, 0.1)
    content = measure("case", {"good": good})["extra_info"]
    assert content["median_seconds"] == {"good": 2.0}
    assert content["quartiles"] == {"good": [1.5, 2.5]}
    assert "error" not in content


def test_any_error_of_a_candidate_is_recorded_and_the_others_are_measured():
    class OutOfResources(Exception):
        """As Triton's: of no class that errors have in common."""

    def fail() -> float:
        raise OutOfResources("shared memory")

    good = Candidate(lambda: [2.0], lambda: 0.05, 0.1)
    candidates = {"bad": Candidate(lambda: [1.0], fail, 0.1), "good": good}
    content = measure("case", candidates)["extra_info"]
    assert content["median_seconds"] == {"good": 2.0}
    assert "OutOfResources: shared memory" in content["error"]["bad"]
    assert "in fail" in content["error"]["bad"], "the traceback says where"


# of torchmetrics, which keeps all features
@pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save:UserWarning")
@pytest.mark.parametrize("wrong", [False, True])
def test_kid_is_checked_before_it_is_timed(wrong, monkeypatch):
    monkeypatch.setattr(suites, "DEVICE", "cpu")
    monkeypatch.setattr(suites, "KID_SHAPE", (3, 20, 8))
    monkeypatch.setattr(suites, "time_eagerly", lambda calls, rounds: [1.0])
    if wrong:
        right = KID.compute
        monkeypatch.setattr(KID, "compute", lambda self: right(self)._replace(mean=torch.ones(())))
    ours = suites._measure_kid_of_libraries()["extra_info"]
    assert ("m3d_fast" in ours["median_seconds"]) is not wrong
    assert ("error" in ours) is wrong
