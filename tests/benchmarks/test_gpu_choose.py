"""The table of families is rewritten from a sweep: the same way each time, and only if it pays."""

import ast
import itertools
import json
import math

import pytest

from benchmarks.gpu import choose, fit
from benchmarks.gpu.shapes import SHAPES
from m3d_fast.kernels.triton.families import FAMILIES, Family, Problem

# a table of its own, so that the tests hold for any that is committed
TABLE = (
    Family(name="value", gradients=(0,), reason="no gradient"),
    Family(name="small", max_rows=192, min_classes=32, reason="one launch"),
    Family(name="split", max_rows=512, max_classes=31, min_columns=128, reason="few tiles"),
    Family(name="tile", reason="serves everything"),
)
TIMED = [shape for shape in SHAPES if shape.gradients]


def make_sweep(seconds, path, *, noise: float = 0.0):
    """A file of points: ``seconds(family, classes, rows, columns)``, None where not served."""
    points = [{"family": "value", "gradients": 0, "sizes": [1, 2, 3, 4], "median_seconds": 1.0}]
    for shape in TIMED:
        classes, n, m, d = shape.sizes
        for family in ("small", "split", "tile"):
            for precision in ("highest", "high"):
                for value in (False, True):
                    point = {"family": family, "sizes": shape.sizes, "precision": precision}
                    point |= {"value": value, "gradients": shape.gradients}
                    taken = seconds(family, classes, n + m, d)
                    if taken is not None:
                        point["median_seconds"] = taken * (1 + noise * (len(points) % 2))
                    points.append(point)
    path.write_text(json.dumps({"points": points}))
    return path


def as_today(family: str, classes: int, rows: int, columns: int) -> float | None:
    """The table is right: its choice takes half of the others' time."""
    if family == "small" and rows > 192:
        return None
    return 1.0 if fit.find_server(TABLE, (classes, rows, columns), 1) == family else 2.0


def many_classes_by_split(family: str, classes: int, rows: int, columns: int) -> float | None:
    """Split is best for many classes too, small for few columns nowhere."""
    if family == "split":
        return 1.0 if columns >= 128 and rows <= 300 else 4.0
    return 2.0 if family == "tile" else 3.0


def only_tile(family: str, classes: int, rows: int, columns: int) -> float | None:
    return 1.0 if family == "tile" else 1.01


def fit_to(seconds, tmp_path, **settings) -> fit.Fitted:
    return fit.fit_table(
        TABLE,
        choose.read_costs(json.loads(make_sweep(seconds, tmp_path / "s", **settings).read_text())),
    )


def test_a_table_that_is_right_stays(tmp_path):
    fitted = fit_to(as_today, tmp_path, noise=0.01)
    assert fitted.table == TABLE
    assert fitted.before == fitted.after == pytest.approx(1.0)


def test_a_family_gets_the_shapes_where_it_is_fastest(tmp_path):
    fitted = fit_to(many_classes_by_split, tmp_path)
    assert [row.name for row in fitted.table] == ["value", "split", "tile"], (
        "small is worth nothing"
    )
    for shape in TIMED:
        classes, n, m, d = shape.sizes
        expected = "split" if d >= 128 and n + m <= 300 else "tile"
        assert fit.find_server(fitted.table, (classes, n + m, d), shape.gradients) == expected
    assert fitted.after == pytest.approx(1.0)
    assert fitted.before > 1.3
    split = fitted.table[1]
    assert split.max_classes is None, "no limit without a reason"


def test_families_that_save_less_than_noise_go(tmp_path):
    assert [row.name for row in fit_to(only_tile, tmp_path).table] == ["value", "tile"]


def test_a_family_that_fails_somewhere_is_not_chosen_there(tmp_path):
    def seconds(family, classes, rows, columns):
        if family == "tile" and classes == 1000:
            return None  # it failed
        return {"small": 3.0, "split": 2.0, "tile": 1.0}[family]

    fitted = fit_to(seconds, tmp_path)
    assert fit.find_server(fitted.table, (1000, 154, 512), 1) == "split"
    assert fit.find_server(fitted.table, (100, 154, 512), 1) == "tile"


def test_a_family_without_any_time_keeps_its_row(tmp_path):
    """Its process may have crashed; what is not known is not changed."""

    def seconds(family, classes, rows, columns):
        return None if family == "split" else {"small": 1.0, "tile": 2.0}[family]

    fitted = fit_to(seconds, tmp_path)
    assert TABLE[2] in fitted.table
    assert [row.name for row in fitted.table] == ["value", "small", "split", "tile"]


def test_what_a_family_leaves_to_tile_costs_what_tile_costs():
    costs = {(10, 100, 64): {"highest, True, 1": {"small": 1.0, "tile": 2.0}}}
    costs |= {(10, 900, 64): {"highest, True, 1": {"tile": 2.0}}}
    losses = fit.compute_losses(costs, "tile")
    assert losses[(10, 900, 64), 1] == {"small": 0.0, "tile": 0.0}
    assert losses[(10, 100, 64), 1] == {"small": 0.0, "tile": pytest.approx(math.log(2))}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 10, 100, 1000], [4, 32, 256]), ([154, 244], [194]), ([7], []), ([4, 4, 5], [5])],
)
def test_limits_tell_neighbours_apart(values, expected):
    limits = fit.find_limits(values)
    assert limits == expected
    for limit, pair in zip(limits, itertools.pairwise(sorted(set(values))), strict=True):
        assert pair[0] < limit <= pair[1]


def test_the_server_is_the_one_that_the_kernels_choose():
    """The same search as ``choose_family``: with rows of y only their sum matters."""
    for shape in TIMED:
        classes, n, m, d = shape.sizes
        problem = Problem(
            classes=classes,
            rows_x=n,
            rows_y=m,
            columns=d,
            precision="high",
            value=False,
            grad_x=shape.gradients == 2,
            grad_y=True,
        )
        chosen = next(row.name for row in FAMILIES if row.matches(problem))
        assert fit.find_server(FAMILIES, (classes, n + m, d), shape.gradients) == chosen


def evaluate(source: str):
    """The table that a source of families.py holds."""
    (node,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "FAMILIES"
    )
    return eval(compile(ast.Expression(node.value), "families", "eval"), {"Family": Family})


@pytest.mark.parametrize("table", [FAMILIES, TABLE], ids=["today's", "another"])
def test_the_source_holds_the_table_and_nothing_else_changes(table):
    source = choose.FILE.read_text()
    text = choose.rewrite_table(source, table)
    assert evaluate(text) == table
    assert choose.rewrite_table(text, FAMILIES) == choose.rewrite_table(source, FAMILIES)
    before, after = (part.split("FAMILIES: tuple") for part in (source, text))
    assert before[0] == after[0]
    assert before[1].split("\n)\n", 1)[1] == after[1].split("\n)\n", 1)[1]


def test_a_long_reason_is_wrapped_and_kept():
    reason = "many words that say why " * 8
    row = choose.render_family(Family(name="x", reason=reason.strip()))
    assert max(map(len, row.splitlines())) <= 100
    assert eval(f"({row})", {"Family": Family})[0].reason == reason.strip()


def test_a_source_without_a_table_is_refused():
    with pytest.raises(ValueError, match="expected an annotated assignment to FAMILIES"):
        choose.rewrite_table("x = 1\n", TABLE)


@pytest.mark.parametrize("write", [False, True])
def test_the_command_shows_and_writes_only_if_asked(write, tmp_path, monkeypatch, capsys):
    sweep = make_sweep(many_classes_by_split, tmp_path / "sweep.json")
    file = tmp_path / "families.py"
    before = choose.rewrite_table(choose.FILE.read_text(), TABLE)
    file.write_text(before)
    monkeypatch.setattr(choose, "FILE", file)
    monkeypatch.setattr(choose, "FAMILIES", TABLE)
    assert choose.main([str(sweep), *(["--write"] if write else [])]) == 0
    shown = capsys.readouterr().out
    assert "C 1000, N + M 154, D 512: small -> split (fastest: split)" in shown
    assert "small saves too little at any shape" in shown
    assert '-        name="small",' in shown
    if not write:
        assert file.read_text() == before
        return
    assert [row.name for row in evaluate(file.read_text())] == ["value", "split", "tile"]
    written = file.read_text()
    choose.main([str(sweep), "--write"])
    assert file.read_text() == written, "the same file gives the same table"


def test_a_file_without_times_is_refused(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text('{"points": []}')
    assert choose.main([str(tmp_path / "sweep.json")]) == 2
    assert "expected points, as `make gpu` writes" in capsys.readouterr().out
    assert choose.main([str(tmp_path / "absent.json")]) == 2


def test_faster_tiles_are_named(tmp_path, capsys):
    tiles = [
        {"kernel": kernel, "precision": "high", "shape": "S", "blocks": {"BLOCK_M": 64},
         "warps": warps, "stages": 3, "today": warps == 8, "median_seconds": seconds}
        for kernel, warps, seconds in (("k", 8, 2.0), ("k", 4, 1.0), ("l", 8, 1.0), ("l", 4, 0.99))
    ]  # fmt: skip
    failed = {key: tiles[0][key] for key in ("kernel", "precision", "shape")} | {"error": "x"}
    (tmp_path / "sweep.json").write_text(json.dumps({"points": [], "tiles": [*tiles, failed]}))
    assert choose.main([str(tmp_path / "sweep.json")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "k, high, S: blocks {'BLOCK_M': 64}, 4 warps, 3 stages: 2.00x as fast as today"
    ]
