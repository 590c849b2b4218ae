"""Scores beside accuracy: of DD-Ranking (arXiv 2505.13300), and the share of the full set's.

As its paper has them, of accuracies as fractions of 1; its package 0.2.0 takes percents, whose
exponentials leave the scale. As the package has them, a score is the mean over pairs of networks,
trained on the condensed and on random images, and the accuracy of the full set is one number.
"""

import math
import statistics
from pathlib import Path
from typing import Any

from .config import PLAIN, WHOLE
from .protocols import HARD

RANDOM = "random"  # the baseline that scores compare with
WEIGHT = 0.5  # lambda: of both terms of a score
SCORES = {"ratio": "share of the full set", "hlr": "HLR", "ior": "IOR", "lrs": "LRS", "ars": "ARS"}


def score_label_robustness(recovery: float, improvement: float, weight: float = WEIGHT) -> float:
    """LRS: 1 where ``alpha = weight * improvement - (1 - weight) * recovery`` is 1, 0 at -1.

    Args:
        recovery: HLR, accuracy of the full set minus that of the condensed one.
        improvement: IOR, accuracy of the condensed set minus that of random images.
        weight: lambda.
    """
    return _stretch(weight * improvement - (1 - weight) * recovery)


def score_augmentation_robustness(augmented: float, plain: float, weight: float = WEIGHT) -> float:
    """ARS, of the improvements over random images (IOR) with augmentation and without."""
    return _stretch(weight * augmented + (1 - weight) * plain)


def _stretch(exponent: float) -> float:
    low = math.exp(-1)
    return (math.exp(exponent) - low) / (math.e - low)


def find_counterpart(file: Path, *, plain: bool) -> Path:
    """The file of the evaluation with augmentation of one without, or the other way round."""
    if plain:
        return file.with_name(file.name.replace("evaluation_plain.json", "evaluation.json"))
    return file.with_name(file.name.replace("evaluation.json", "evaluation_plain.json"))


def add_scores(content: dict[str, Any], counterpart: dict[str, Any] | None) -> None:
    """Set ``scores`` of every result but the full set's and random images', None where unknown.

    Args:
        content: of an evaluation file.
        counterpart: of the file with the other augmentation, if there is one; used if it is of the
            same set and otherwise the same protocol.
    """
    if counterpart is not None and not _is_counterpart(content, counterpart):
        counterpart = None
    for result in content["results"]:
        if result["method"] not in (WHOLE, RANDOM):
            result["scores"] = _score(content, counterpart, result["method"], result["network"])


def _score(
    content: dict[str, Any], counterpart: dict[str, Any] | None, method: str, network: str
) -> dict[str, float | None]:
    own = _accuracies(content, method, network)
    improvements = _improvements(content, method, network)
    full = _accuracies(content, WHOLE, network)
    ceiling = statistics.fmean(full) if full else None
    other = _improvements(counterpart, method, network) if counterpart else []
    scores: dict[str, float | None] = dict.fromkeys(SCORES)
    hard = content["protocol"]["labels"] == HARD  # HLR is of hard labels alone
    if ceiling is not None:
        scores["hlr"] = ceiling - statistics.fmean(own) if hard else None
        scores["ratio"] = statistics.fmean(own) / ceiling if ceiling else None
    if improvements:
        scores["ior"] = statistics.fmean(improvements)
    if ceiling is not None and improvements and hard:
        scores["lrs"] = statistics.fmean(
            score_label_robustness(ceiling - accuracy, improvement)
            for accuracy, improvement in zip(own, improvements, strict=False)
        )
    if improvements and other:
        scores["ars"] = statistics.fmean(
            map(score_augmentation_robustness, improvements, other)  # the shorter of both
        )
    return scores


def _accuracies(content: dict[str, Any], method: str, network: str) -> list[float]:
    for result in content["results"]:
        if (result["method"], result["network"]) == (method, network):
            return result["accuracies"]
    return []


def _improvements(content: dict[str, Any], method: str, network: str) -> list[float]:
    """Accuracy above that of random images, pair by pair; the spare ones of either are left out."""
    own, chance = (_accuracies(content, name, network) for name in (method, RANDOM))
    return [accuracy - base for accuracy, base in zip(own, chance, strict=False)]


def _is_counterpart(content: dict[str, Any], other: dict[str, Any]) -> bool:
    if content["synthetic_sha256"] != other["synthetic_sha256"]:
        return False
    ignored = {"augment", "cutmix"}
    first, second = (
        {k: v for k, v in each["protocol"].items() if k not in ignored} for each in (content, other)
    )
    return first == second


def name_missing(content: dict[str, Any]) -> str | None:
    """One line that says what to evaluate for the scores that are unknown; None if none is."""
    scores = [result["scores"] for result in content["results"] if "scores" in result]
    missing = [name for name in SCORES if any(each[name] is None for each in scores)]
    wanted = [row for row, score in ((RANDOM, "ior"), (WHOLE, "ratio")) if score in missing]
    advice = [f"--baselines {','.join(wanted)}"] if wanted else []
    if "ars" in missing:
        advice.append(f"the same evaluation with --augment {PLAIN}, or without it")
    if "hlr" in missing and content["protocol"]["labels"] != HARD:
        advice.append("an evaluation with hard labels")
    if not advice:
        return None
    return f"for {', '.join(SCORES[name] for name in missing)} add {' and '.join(advice)}"
