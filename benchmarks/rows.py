"""Files of results by row, which are written row by row and go on where they stopped."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from m3d_fast.common.files import read_json, write_json
from m3d_fast.run.environment import describe_environment


def run_missing(
    file: Path,
    about: Mapping[str, Any],
    names: Iterable[str],
    run: Callable[[str], Mapping[str, Any]],
) -> None:
    """Run what is not in the file yet, and write it after every row.

    Args:
        file: ``{**about, "rows": {name: row}}``, which need not exist.
        about: what all rows have in common.
        names: of the rows.
        run: returns the row of a name; where and by which commit it was made is added.
    """
    content: dict[str, Any] = read_json(file) if file.exists() else {"rows": {}}
    content |= about
    for name in names:
        if name not in content["rows"]:
            content["rows"][name] = {**run(name), "environment": describe_environment()}
            write_json(file, content)
