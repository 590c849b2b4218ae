"""The page of one run and its evaluation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..common.errors import UserError
from ..common.files import read_json, replace_atomically
from ..run.folder import RunFolder
from ..synthetic import SyntheticSet
from .page import render
from .pictures import save_strips
from .published import find_published


def write_report(path: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run that was evaluated; returns its path.

    Raises:
        UserError: if it is no such run, or data are missing.
    """
    run = RunFolder(path)
    settings = run.load_config()
    if not run.evaluation_file.exists():
        raise UserError(
            f"{run.path} was not evaluated; run python -m m3d_fast.evaluate {run.path} first"
        )
    evaluated = read_json(run.evaluation_file)
    save_strips(run.path)
    rows = [_build_row(run, settings.method, evaluated, row) for row in evaluated["results"]]
    content = {
        "table": run.path.name,
        "title": f"{settings.method} on {settings.dataset}",
        "paper": "One run and its evaluation",
        "notes": [f"Selection: {evaluated['selection']}."],
        "missing": [],
        "environment": evaluated["environment"],
        "parts": [
            {
                "dataset": settings.dataset,
                "ipc": settings.ipc,
                "command": f"python -m m3d_fast.evaluate {run.path}",
                "quick": False,
                "complete": True,
                "settings": {
                    name: value
                    for name in ("budget", "iterations", "real_batch")
                    if (value := getattr(settings, name)) is not None
                },
                "split": evaluated["protocol"]["split"],
                "protocol": evaluated["protocol"],
                "whole": None,
                "rows": rows,
            }
        ],
    }
    page = run.path / "report.html"
    with replace_atomically(page) as temporary:
        temporary.write_text(render(content), encoding="utf-8")
    return page


def _build_row(
    run: RunFolder, method: str, evaluated: dict[str, Any], result: dict[str, Any]
) -> dict[str, Any]:
    """A row of the page, from a result of ``evaluation.json``."""
    name, network = result["method"], result["network"]
    settings = run.load_config()
    published = find_published(
        settings.dataset,
        settings.ipc,
        network,
        name,
        size=settings.size,
        split=evaluated["protocol"]["split"],
        labels=evaluated["protocol"]["labels"],
    )
    ours = {key: result[key] for key in ("accuracies", "mean", "std")}
    synthetic = SyntheticSet.load(run.synthetic_file)
    images = result["training_images"] / synthetic.num_classes
    ours |= {"stored_images": images, "decoded_images": images}
    if name == method:
        ours |= {
            "run": str(run.path),
            "stored_images": settings.ipc,
            "lr_img": settings.lr_img,
            "iterations": synthetic.info["iterations"],
            "seconds": run.pretraining_seconds() + run.condensation_seconds(),
        }
    accuracy = published.accuracy
    return {
        "method": name,
        "network": network,
        "published": asdict(published),
        "ours": ours,
        "difference": None if accuracy is None else result["mean"] - accuracy,
    }
