"""A page says what its results file holds: published, ours, difference, spread, time."""

import re
from dataclasses import asdict
from typing import Any

from m3d_fast.reproduction.page import render
from m3d_fast.reproduction.published import find_published

OURS = {"accuracies": [0.72, 0.74], "mean": 0.73, "std": 0.0141, "seconds": 5400.0}
OURS |= {"lr_img": 1.0, "iterations": 1000, "stored_images": 10, "decoded_images": 90.0}


def row(method: str, ours: dict[str, Any] | None) -> dict[str, Any]:
    published = find_published("imagenet10", 10, "resnetap10", method)
    difference = None if ours is None else ours["mean"] - (published.accuracy or 0)
    found = {"method": method, "network": "resnetap10", "published": asdict(published)}
    return found | {"ours": ours, "difference": difference}


def page_of(rows: list[dict[str, Any]], **more: Any) -> str:
    part = {"dataset": "imagenet10", "ipc": 10, "command": "python <x>", "quick": True}
    part |= {"complete": False, "settings": {"budget": 90.0}, "split": "test", "protocol": None}
    content = {"table": "table3", "title": "ImageNet subsets", "paper": "M3D", "notes": []}
    machine = {"gpu": None, "processor": "Xeon & co", "machine": "x86_64", "cpus": 2}
    content |= {"environment": machine | {"commit": "abc", "python": "3.11", "versions": {}}}
    return render(content | {"missing": [], "parts": [part | {"whole": None, "rows": rows}]} | more)


def read_cells(page: str) -> list[list[str]]:
    return [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line)
        for line in page.splitlines()
        if line.startswith(("<tr>", '<div class="scroll">'))
    ]


def test_a_row_is_published_ours_difference_spread_and_time() -> None:
    page = page_of([row("m3d", OURS), row("idc", None)])
    titles, m3d, idc = filter(None, read_cells(page))
    found = dict(zip(titles, m3d, strict=True))
    assert found["published"] == "73.4"
    assert found["ours"] == "73.00 ± 1.41"
    assert found["difference"] == "-0.4"
    assert (found["networks"], found["steps"]) == ("2", "1000")
    assert (found["condensed in"], found["published in"]) == ("90 min", "66 min")
    assert found["stored / decoded"] == "10 / 90"
    missing = dict(zip(titles, idc, strict=True))
    assert (missing["published"], missing["ours"], missing["difference"]) == ("72.8", "", "")
    assert missing["published in"] == "70.0 h"
    assert "Not finished: 1 of 2 rows" in page
    assert "90 seconds of iterations per method" in page


def test_text_is_text() -> None:
    lack = {"dataset": "cifar10", "reason": "<script>alert(1)</script>"}
    page = page_of([row("m3d", OURS)], missing=[lack])
    assert "<script" not in page
    assert "python &lt;x&gt;" in page
    assert "Xeon &amp; co" in page
