"""Rewrite the table of kernel families from what ``make gpu`` measured.

    python -m benchmarks.gpu.choose FOLDER/sweep.json [--write]

Shows which family would serve which shape, how much time that saves, and the change of
kernels/triton/families.py; ``--write`` makes it. The same file always gives the same table. Where
other tiles were tried (``python -m benchmarks.gpu tiles``), the faster ones are named: their tables
are the launchers' own.
"""

import argparse
import ast
import dataclasses
import difflib
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.gpu.fit import Costs, Table, find_server, fit_table
from benchmarks.gpu.job_list import ROOT
from benchmarks.gpu.tiles import find_faster
from m3d_fast.kernels.triton.families import FAMILIES, Family

FILE = ROOT / "kernels" / "triton" / "families.py"
WIDTH = 80  # characters of a piece of a reason


def read_costs(content: dict[str, Any]) -> Costs:
    """Seconds by shape, case and family, of the points with gradients that were timed."""
    costs: Costs = {}
    for point in content.get("points", []):
        if point["gradients"] and "median_seconds" in point:
            classes, n, m, columns = point["sizes"]
            shape = classes, n + m, columns
            case = f"{point['precision']}, {point['value']}, {point['gradients']}"
            cases = costs.setdefault(shape, {})
            cases.setdefault(case, {})[point["family"]] = point["median_seconds"]
    return costs


def render_family(family: Family) -> str:
    """The source of one row: what differs from the defaults, then the reason."""
    lines = [f'name="{family.name}",']
    for item in dataclasses.fields(Family):
        value = getattr(family, item.name)
        if item.name not in ("name", "reason") and value != item.default:
            lines.append(f"{item.name}={value!r},")
    pieces = textwrap.wrap(family.reason, WIDTH, drop_whitespace=False)
    quoted = [json.dumps(piece, ensure_ascii=False) for piece in pieces]
    lines += [f"reason={quoted[0]}", *quoted[1:]]
    return "\n".join(["    Family(", *(f"        {line}" for line in lines)]) + ",\n    ),\n"


def rewrite_table(source: str, table: Table) -> str:
    """The source of families.py with another table.

    Raises:
        ValueError: there is no assignment to FAMILIES.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FAMILIES":
            lines = source.splitlines(keepends=True)
            rows = "".join(map(render_family, table))
            new = f"FAMILIES: {ast.unparse(node.annotation)} = (\n{rows})\n"
            return "".join([*lines[: node.lineno - 1], new, *lines[node.end_lineno :]])
    raise ValueError("expected an annotated assignment to FAMILIES in families.py")


def describe_choices(costs: Costs, before: Table, after: Table) -> list[str]:
    """A line for each shape: its families, and the geometric mean of the time saved."""
    lines = []
    for shape, cases in sorted(costs.items()):
        for gradients in sorted({int(case.rsplit(", ", 1)[1]) for case in cases}):
            old, new = (find_server(table, shape, gradients) for table in (before, after))
            best = sorted(
                {
                    min(times, key=lambda name, times=times: (times[name], name))
                    for case, times in cases.items()
                    if case.endswith(f", {gradients}")
                }
            )
            change = old if old == new else f"{old} -> {new}"
            lines.append(
                f"C {shape[0]}, N + M {shape[1]}, D {shape[2]}: {change}"
                f" (fastest: {' or '.join(best)})"
            )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Show, and write if asked; 2 if the file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.choose")
    parser.add_argument("file", type=Path, help="sweep.json of `make gpu`")
    parser.add_argument("--write", action="store_true", help="rewrite kernels/triton/families.py")
    options = parser.parse_args(arguments)
    try:
        content = json.loads(options.file.read_text())
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    costs, faster = read_costs(content), find_faster(content.get("tiles", []))
    print("\n".join(faster))
    if not costs:
        if not faster:
            print(f"{options.file}: expected points, as `make gpu` writes sweep.json, found none")
        return 0 if faster else 2
    timed = {name for cases in costs.values() for times in cases.values() for name in times}
    for row in FAMILIES:
        if any(row.gradients) and row.name not in timed:
            print(f"{row.name} has no time in this sweep: its row stays, its shapes may move.")
    fitted = fit_table(FAMILIES, costs)
    print("\n".join(describe_choices(costs, FAMILIES, fitted.table)))
    print(f"slower than the fastest family, mean: {fitted.before:.3f}x, then {fitted.after:.3f}x")
    if fitted.table == FAMILIES:
        print("The table stays as it is.")
        return 0
    return show_change(fitted.table, write=options.write)


def show_change(table: Table, *, write: bool) -> int:
    """Print the change of families.py, and make it if asked."""
    source = FILE.read_text()
    text = rewrite_table(source, table)
    names = f"{FILE.name}, today", f"{FILE.name}, rewritten"
    print("".join(difflib.unified_diff(source.splitlines(True), text.splitlines(True), *names)))
    for name in sorted({row.name for row in FAMILIES} - {row.name for row in table}):
        print(f"{name} saves too little at any shape: its files can go.")
    if write:
        FILE.write_text(text)
        print(f"wrote {FILE}; revise the reasons of the rows that changed, and their tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
