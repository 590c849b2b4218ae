"""What a study of one difference at a time consists of."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

from m3d_fast.evaluation import evaluator
from m3d_fast.evaluation.protocols import Protocol, protocol_for

STAGES = ("condensation", "evaluation")


@dataclass(frozen=True)
class Difference:
    """One row.

    Attributes:
        settings: of condense.
        protocol: of the evaluation.
        code: changes the code while it is open.
        stages: those in which ``code`` is open.
        of: row whose condensed set is evaluated; None for one of its own.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    code: Callable[[], AbstractContextManager[None]] = nullcontext
    stages: tuple[str, ...] = STAGES
    of: str | None = None

    def during(self, stage: str) -> AbstractContextManager[None]:
        """The change of the code, if it is of this stage."""
        return self.code() if stage in self.stages else nullcontext()


@dataclass(frozen=True)
class Study:
    """Rows and what they differ from.

    Attributes:
        base: settings of condense, without difference.
        epochs, repeats: of the evaluation.
        rows: by name; "base" has no difference.
    """

    base: Mapping[str, Any]
    epochs: int
    repeats: int
    rows: Mapping[str, Difference]


def of_settings(**settings: Any) -> Difference:
    """A row with other settings of condense."""
    return Difference(settings=settings)


def of_protocol(**changes: Any) -> Difference:
    """A row that evaluates the base's set in another way."""
    return Difference(protocol=changes, of="base")


@contextmanager
def train_by(changes: Mapping[str, Any]) -> Iterator[None]:
    """Another protocol of evaluation."""

    def change(*arguments: Any) -> Protocol:
        return replace(protocol_for(*arguments), **changes)

    with patch.object(evaluator, "protocol_for", change):
        yield
