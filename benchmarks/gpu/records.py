"""Records of a visit: lines of JSON in one file, which every process appends to as it measures.

A record has ``kind``: "machine", "job" (a process: how it ended, the end of its output), "compiled"
(a kernel), "start" (of a test or a point), "test", "point" (a family at a shape), "tiles" (a kernel
with other tiles), or "benchmark" (medians of several functions); ``job``; and ``attempt``, because
a job that dies is started again.
"""

import json
import os
import traceback
from pathlib import Path
from typing import Any

FILE_VARIABLE = "M3D_FAST_RECORDS"  # environment variable: the file
JOB_VARIABLE = "M3D_FAST_JOB"  # environment variable: which job writes
ATTEMPT_VARIABLE = "M3D_FAST_ATTEMPT"  # environment variable: 0, or 1 and more if started again
TAIL = 6000  # characters kept of a traceback, and of what a process or a test printed


def append(record: dict[str, Any]) -> None:
    """Append a record: one write, so that lines of several processes do not mix."""
    job = {"job": os.environ[JOB_VARIABLE], "attempt": int(os.environ[ATTEMPT_VARIABLE])}
    with Path(os.environ[FILE_VARIABLE]).open("ab", buffering=0) as file:
        file.write(encode({**record, **job}))


def encode(record: dict[str, Any]) -> bytes:
    """A record as a line."""
    return json.dumps(record).encode() + b"\n"


def is_failure(record: dict[str, Any]) -> bool:
    """Whether a record says that something went wrong."""
    if record["kind"] == "job":
        return not record["ended"]
    if record["kind"] == "test":
        return record["outcome"] == "failed"
    return "error" in record or "error" in record.get("extra_info", {})


def find_unended(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tests and points that were begun and have no outcome: their process died in them."""
    outcomes = [line for line in lines if line["kind"] in ("test", "point", "tiles")]
    ended = {(line["job"], line["name"]) for line in outcomes}
    begun = [line for line in lines if line["kind"] == "start"]
    return [line for line in begun if (line["job"], line["name"]) not in ended]


def find_begun() -> set[str]:
    """Names of what earlier attempts at this job had begun: it ended them, or they ended it."""
    job, attempt = os.environ[JOB_VARIABLE], int(os.environ[ATTEMPT_VARIABLE])
    return {
        line["name"]
        for line in read(Path(os.environ[FILE_VARIABLE]))
        if line["kind"] == "start" and line["job"] == job and line["attempt"] < attempt
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the file; none if there is none. A killed process may leave half."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # half a line
    return records


def format_failure() -> str:
    """The traceback of the exception being handled, its end."""
    return traceback.format_exc()[-TAIL:]
