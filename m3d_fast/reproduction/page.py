"""The page of a results file: HTML in one file, without scripts or other files."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..loaders import dataset_info
from .measures import read_losses
from .pictures import AFTER, BEFORE, draw_bars, draw_curves, draw_losses, embed_png

STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 68rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
tr:hover td { background: var(--soft); }
.sets { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 1rem 0; } figcaption, .small { font-size: .85rem; opacity: .75; }
img { max-width: 100%; } .strip { image-rendering: pixelated; width: 24rem; }
code { background: var(--soft); overflow-wrap: anywhere; padding: .1rem .3rem; }
"""
MOMENTS = ("moment1", "moment2", "moment3")


def render(content: Mapping[str, Any]) -> str:
    """The page of a results file, whose run folders are read where they are there.

    Args:
        content: of ``TABLE.json``; accuracies are fractions of 1.

    Returns:
        HTML. It is readable on light and dark screens.
    """
    title = f"{content['table']}: {content['title']}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(content['paper'])}. Accuracies are in %, mean &plusmn; standard deviation "
        "over networks; differences, ours less the published, in points.</p>",
        _list(content["notes"]),
        *(
            f"<p><b>{escape(lack['dataset'])} is not at hand</b>: {escape(lack['reason'])}</p>"
            for lack in content["missing"]
        ),
        *(_render_part(part) for part in content["parts"]),
        _render_environment(content["environment"]),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _render_part(part: Mapping[str, Any]) -> str:
    images = "1 image" if part["ipc"] == 1 else f"{part['ipc']} images"
    name = dataset_info(part["dataset"]).title
    rows = part["rows"]
    pieces = [
        f"<section>\n<h2>{escape(name)}: {images} per class</h2>",
        f"<p>{_describe_progress(part)} {escape(_describe_settings(part))}</p>",
        _render_table(part),
    ]
    if any("moments" in row for row in rows):
        pieces.append(_render_moments(rows))
    if any(row["ours"] or row["published"]["accuracy"] is not None for row in rows):
        pieces.append(_image(draw_bars([_bar(row) for row in rows]), "Accuracies as bars"))
    curves = [(_label(row), _points(row)) for row in rows if row.get("curve")]
    if curves:
        pieces.append(_image(draw_curves(curves), "Accuracy over iterations"))
    pieces.append(_render_sets(rows))
    pieces.append(_render_sources(part))
    return "\n".join([*pieces, "</section>"])


def _describe_progress(part: Mapping[str, Any]) -> str:
    done = sum(row["ours"] is not None for row in part["rows"])
    if part["complete"]:
        return ""
    return f"<b>Not finished: {done} of {len(part['rows'])} rows so far.</b>"


def _describe_settings(part: Mapping[str, Any]) -> str:
    """One sentence or two on budgets and training, as text."""
    settings, protocol = part["settings"], part["protocol"]
    sentences = []
    if part["quick"]:
        sentences.append("Quick: shorter than published, so accuracies are lower.")
    limits = [
        f"{settings[key]:g} {unit}"
        for key, unit in (
            ("budget", "seconds of iterations per method"),
            ("iterations", "iterations"),
            ("real_batch", "real images per class and step"),
        )
        if key in settings
    ]
    sentences.append(f"Runs: {', '.join(limits) if limits else 'as the methods have them'}.")
    if protocol is not None:
        sentences.append(
            f"Networks train on {protocol['labels']} labels by protocol {protocol['name']}, "
            f"{protocol['epochs']} epochs (batch {protocol['batch_size']}, "
            f"learning rate {protocol['lr']:g}, {protocol['precision']}) and are tested on "
            f"{part['split']} images."
        )
    if part["whole"] is not None:
        sentences.append(f"Published for the whole training set: {100 * part['whole']:.1f} %.")
    return " ".join(sentences)


def _render_table(part: Mapping[str, Any]) -> str:
    rows = part["rows"]
    networks = len({row["network"] for row in rows}) > 1
    hours = any(row["published"]["seconds"] is not None for row in rows)
    titles = ["method", "network"] if networks else ["method"]
    titles += ["published", "ours", "difference", "networks", "condensed in"]
    titles += ["published in"] if hours else []
    titles += ["steps", "learning rate", "stored / decoded"]
    left = 2 if networks else 1
    lines = [_cells("th", titles, left)]
    for row in rows:
        cells = [row["method"], row["network"]] if networks else [row["method"]]
        lines.append(_cells("td", [*cells, *_describe_row(row, hours=hours)], left))
    return _table(lines)


def _render_moments(rows: Sequence[Mapping[str, Any]]) -> str:
    """Distances of moments, those of the paper beside ours."""
    titles = [f"{n} moment, {who}" for n in ("1st", "2nd", "3rd") for who in ("published", "ours")]
    lines = [_cells("th", ["method", *titles], 1)]
    lines += [_cells("td", [row["method"], *_describe_moments(row)], 1) for row in rows]
    return "<p>Distances of moments of features to the real set:</p>\n" + _table(lines)


def _table(lines: Iterable[str]) -> str:
    return f'<div class="scroll"><table>\n{"".join(lines)}</table></div>'


def _describe_row(row: Mapping[str, Any], *, hours: bool) -> list[str]:
    """Cells of a row, but for its name; empty for what is not known."""
    ours, published = row["ours"], row["published"]
    given, difference = published["accuracy"], row["difference"]
    took = [_duration(published["seconds"])] if hours else []
    cells = ["" if given is None else f"{100 * given:.1f}"]
    if ours is None:
        return [*cells, "", "", "", "", *took, "", "", ""]
    spread = "" if ours["std"] is None else f" ± {100 * ours['std']:.2f}"
    rate = ours.get("lr_img")
    return [
        *cells,
        f"{100 * ours['mean']:.2f}{spread}",
        "" if difference is None else f"{100 * difference:+.1f}",
        str(len(ours["accuracies"])),
        _duration(ours.get("seconds")),
        *took,
        str(ours.get("iterations") or ""),
        "" if rate is None else f"{rate:.3g}",
        f"{ours['stored_images']:g} / {ours['decoded_images']:g}",
    ]


def _describe_moments(row: Mapping[str, Any]) -> list[str]:
    published = row["published"]["moments"] or (None,) * len(MOMENTS)
    cells = []
    for name, value in zip(MOMENTS, published, strict=True):
        own = row.get("moments", {}).get(name)
        spread = "" if own is None or own["std"] is None else f" ± {own['std']:.2g}"
        cells.append("" if value is None else f"{value:g}")
        cells.append("" if own is None else f"{own['mean']:.3g}{spread}")
    return cells


def _cells(tag: str, cells: Sequence[str], left: int) -> str:
    """A row of a table; its first ``left`` cells are text."""
    kinds = [' class="text"' if place < left else "" for place in range(len(cells))]
    joined = "".join(
        f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
    )
    return f"<tr>{joined}</tr>\n"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['method']}, {row['network']}"


def _bar(row: Mapping[str, Any]) -> tuple[str, float | None, float | None, float | None]:
    ours = row["ours"] or {"mean": None, "std": None}
    return _label(row), ours["mean"], ours["std"], row["published"]["accuracy"]


def _points(row: Mapping[str, Any]) -> list[tuple[float, float, float | None]]:
    return [(point["iteration"], point["mean"], point["std"]) for point in row["curve"]]


def _render_sets(rows: Iterable[Mapping[str, Any]]) -> str:
    """Pictures of every run: before, after, and its loss."""
    runs = {
        row["ours"]["run"]: row["method"] for row in rows if row["ours"] and "run" in row["ours"]
    }
    figures = []
    for run, method in runs.items():
        path, images = Path(run), []
        for file, when in ((BEFORE, "before"), (AFTER, "after")):
            if (path / file).exists():
                source, text = embed_png(path / file), f"{method}, {when}"
                images.append(f'<img class="strip" src="{source}" alt="{escape(text)}">')
        losses = read_losses(path)
        if len(losses) > 1:
            images.append(f'<img src="{draw_losses(losses)}" alt="{escape(method)}, loss">')
        what = "before and after" if len(images) > 1 else "chosen images"
        caption = f"<figcaption>{escape(method)}: {what}</figcaption>"
        figures.append(f"<figure>{caption}{'<br>'.join(images)}</figure>" if images else "")
    return f'<div class="sets">{"".join(figures)}</div>'


def _render_sources(part: Mapping[str, Any]) -> str:
    rows = part["rows"]
    sources = dict.fromkeys(s for row in rows for s in row["published"]["sources"])
    runs = {row["method"]: row["ours"] for row in rows if row["ours"] and "command" in row["ours"]}
    commands = [
        f"{escape(method)}: <code>{escape(ours['command'])}</code>"
        + (f" at commit {escape(ours['commit'])}" if ours.get("commit") else "")
        for method, ours in runs.items()
    ]
    lines = [f"Made by <code>{escape(part['command'])}</code>."]
    if sources:
        lines.append(f"Published: {escape('; '.join(sources))}.")
    details = f"<details><summary>Every run</summary>{_list(commands, escaped=True)}</details>"
    return f'<p class="small">{" ".join(lines)}</p>\n{details if commands else ""}'


def _render_environment(environment: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in environment["versions"].items() if v is not None)
    machine = environment["gpu"] or environment.get("processor") or environment["machine"]
    text = (
        f"Machine: {machine}, {environment['cpus']} cores. Commit: "
        f"{environment['commit'] or 'not known'}. Python {environment['python']}, {versions}."
    )
    return f'<p class="small">{escape(text)}</p>'


def _list(lines: Iterable[str], *, escaped: bool = False) -> str:
    items = "".join(f"<li>{line if escaped else escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>"


def _image(source: str, text: str) -> str:
    return f'<figure><img src="{source}" alt="{escape(text)}"></figure>'
