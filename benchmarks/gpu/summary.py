"""Summaries of a visit's records: results.json, sweep.json, and summary.md for people."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import records
from benchmarks.report import format_rows, format_seconds

Lines = list[dict[str, Any]]


def write_summaries(folder: Path) -> None:
    """Write the three files anew; each is whole at any time."""
    lines = records.read(folder / "records.jsonl")
    contents = {
        "results.json": json.dumps(collect_results(lines), indent=1) + "\n",
        "sweep.json": json.dumps(collect_sweep(lines), indent=1) + "\n",
        "summary.md": "\n".join(format_summary(lines)) + "\n",
    }
    for name, text in contents.items():
        part = folder / f"{name}.part"
        part.write_text(text)
        part.replace(folder / name)


def find_machine(lines: Lines) -> dict[str, Any]:
    """The machine, versions and commit; empty if that job failed."""
    wanted = ("machine_info", "commit_info", "versions")
    found = next((line for line in lines if line["kind"] == "machine"), {})
    return {name: found[name] for name in wanted if name in found}


def find_points(lines: Lines) -> Lines:
    """One record per family, shape, precision and value: the last."""
    return list({line["name"]: line for line in lines if line["kind"] == "point"}.values())


def collect_sweep(lines: Lines) -> dict[str, Any]:
    """What ``benchmarks.gpu.choose`` reads."""
    tiles = [line for line in lines if line["kind"] == "tiles"]
    return {**find_machine(lines), "points": find_points(lines), "tiles": tiles}


def collect_results(lines: Lines) -> dict[str, Any]:
    """Everything but kernels' resources in pytest-benchmark's layout, as report.py reads it."""
    machine = find_machine(lines)
    benchmarks = [
        *_collect_tests(lines),
        *_collect_shapes(find_points(lines)),
        *({"name": line["name"], "extra_info": line["extra_info"]} for line in lines
          if line["kind"] == "benchmark"),
    ]  # fmt: skip
    for benchmark in benchmarks:
        benchmark["extra_info"]["torch"] = machine.get("versions", {}).get("torch", "unknown")
    jobs = [line for line in lines if line["kind"] == "job"]
    return {**machine, "benchmarks": benchmarks, "jobs": jobs}


def _collect_tests(lines: Lines) -> Iterator[dict[str, Any]]:
    jobs: dict[str, Lines] = defaultdict(list)
    for line in lines:
        if line["kind"] == "test":
            jobs[line["job"]].append(line)
    for job, tests in jobs.items():
        failed = [test for test in tests if test["outcome"] == "failed"]
        info = {
            "case": f"{job}, compiled",
            "outcomes": dict(Counter(test["outcome"] for test in tests)),
            "failed": failed,
            "slowest": sorted(tests, key=lambda test: -test["seconds"])[:10],
            "median_seconds": {"pytest": sum(test["seconds"] for test in tests)},
        }
        yield {"name": job, "extra_info": info}


def _group_points(points: Lines) -> dict[str, Lines]:
    groups: dict[str, Lines] = defaultdict(list)
    for point in points:
        if "median_seconds" in point:
            value = ", with the value" if point["value"] and point["gradients"] else ""
            sizes = " x ".join(map(str, point["sizes"]))
            case = f"{point['shape']}, {sizes}, {point['precision']}{value}"
            groups[case].append(point)
    return groups


def _collect_shapes(points: Lines) -> Iterator[dict[str, Any]]:
    """A benchmark for each shape, precision and value, whose functions are the families."""
    for case, group in _group_points(points).items():
        info = {"case": case}
        for key in ("median_seconds", "quartiles", "errors", "share_of_floor"):
            info[key] = {point["family"]: point[key] for point in group}
        yield {"name": case, "extra_info": info}


def format_summary(lines: Lines) -> Iterator[str]:
    """The whole summary, what failed first."""
    yield "# make gpu"
    yield ""
    for name, content in find_machine(lines).items():
        yield f"{name}: " + ", ".join(f"{key} {value}" for key, value in content.items()) + "  "
    yield from _format_failures(lines)
    yield from _format_tests(lines)
    yield from _format_kernels(lines)
    yield from _format_errors(find_points(lines))
    yield from _format_points(find_points(lines))
    yield from _format_benchmarks(lines)


def _last_line(text: object) -> str:
    said = [line for line in str(text).splitlines() if line.strip()]
    return said[-1].strip()[:300] if said else "no output"


def _format_failures(lines: Lines) -> Iterator[str]:
    yield from ("", "## What failed", "")
    found = [_format_failure(line) for line in lines if records.is_failure(line)]
    unended = records.find_unended(lines)
    found += [f"- {line['job']}: {line['name']}: begun, no outcome" for line in unended]
    yield from found or ["Nothing."]


def _format_failure(line: dict[str, Any]) -> str:
    job = line["job"]
    if line["kind"] == "job":
        why = "stopped at its limit" if line["status"] is None else f"status {line['status']}"
        return f"- {job}: {why}: {_last_line(line.get('output', ''))}"
    if line["kind"] == "test":
        return f"- {job}: {line['name']}: {_last_line(line['traceback'])}"
    if line["kind"] == "compiled":
        return f"- {job}: {line['kernel']} {line['constants']}: {_last_line(line['error'])}"
    if line["kind"] in ("point", "tiles"):
        return f"- {job}: {line['name']}: {_last_line(line['error'])}"
    errors = line["extra_info"]["error"]
    errors = errors if isinstance(errors, dict) else {"": errors}
    return "\n".join(
        f"- {job}: {line['name']}: {who}: {_last_line(error)}" for who, error in errors.items()
    )


def _format_tests(lines: Lines) -> Iterator[str]:
    yield from ("", "## Tests, compiled", "", "| job | outcomes |", "|---|---|")
    for record in _collect_tests(lines):
        outcomes = record["extra_info"]["outcomes"].items()
        yield f"| {record['name']} | {', '.join(f'{count} {name}' for name, count in outcomes)} |"


def _format_kernels(lines: Lines) -> Iterator[str]:
    yield from ("", "## Kernels, the most of all specialisations", "")
    yield "| family | kernel | precision | compiled | registers | spilled | shared | seconds |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    groups: dict[tuple[str, ...], Lines] = defaultdict(list)
    for line in lines:
        if line["kind"] == "compiled" and "error" not in line:
            precision = line["constants"].get("INPUT_PRECISION", "").strip("'")
            groups[line["family"], line["kernel"], precision].append(line)
    for key, group in sorted(groups.items()):
        most = (
            _largest(line[name] for line in group)
            for name in ("registers", "spilled_bytes", "shared_bytes", "seconds")
        )
        yield f"| {' | '.join(key)} | {len(group)} | {' | '.join(most)} |"


def _largest(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):g}" if known else "unknown"


def _format_errors(points: Lines) -> Iterator[str]:
    yield from ("", "## Largest errors against float64", "")
    yield from ("| family | precision | of | error |", "|---|---|---|---:|")
    largest: dict[tuple[str, str, str], float] = defaultdict(float)
    for point in points:
        for name, error in point.get("errors", {}).items():
            key = point["family"], point["precision"], name
            largest[key] = max(largest[key], error)
    for key, error in sorted(largest.items()):
        yield f"| {' | '.join(key)} | {error:.1e} |"


def _format_points(points: Lines) -> Iterator[str]:
    yield from ("", "## Families, fastest first", "")
    yield from ("| shape | family: median (quartiles) | floor | share |", "|---|---|---:|---:|")
    for case, group in _group_points(points).items():
        group.sort(key=lambda point: point["median_seconds"])
        times = "; ".join(
            f"{point['family']}: {format_seconds(point['median_seconds'])}"
            f" ({' to '.join(map(format_seconds, point['quartiles']))})"
            for point in group
        )
        best = group[0]
        floor = format_seconds(best["floor_seconds"])
        yield f"| {case} | {times} | {floor} | {best['share_of_floor']:.0%} |"


def _format_benchmarks(lines: Lines) -> Iterator[str]:
    yield from (
        "",
        "## Other implementations",
        "",
        "| case | who | time | ours is faster by | peak |",
    )
    yield "|---|---|---:|---:|---:|"
    for line in lines:
        if line["kind"] == "benchmark" and line["extra_info"].get("median_seconds"):
            yield from format_rows(line)
