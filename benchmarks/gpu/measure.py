"""Run one suite of benchmarks, a record for each: ``python -m benchmarks.gpu.measure SUITE``.

Of the engine's, a case each: ``python -m benchmarks.gpu.measure engine NUMBER``.
"""

import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu import records


def measure(suite: str, *numbers: str) -> Iterator[dict[str, Any]]:
    """The records of a suite; the engine's dependencies are imported for the engine alone."""
    if suite == "engine":
        from benchmarks.gpu.engine import measure_number

        yield from (measure_number(int(number)) for number in numbers)
    else:
        from benchmarks.gpu.suites import SUITES

        yield from SUITES[suite]()


def main(arguments: list[str]) -> int:
    """Append the records of a suite as they are complete."""
    for record in measure(*arguments):
        records.append({"kind": "benchmark", **record})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
