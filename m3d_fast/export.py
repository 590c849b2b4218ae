"""``python -m m3d_fast.export``: write a condensed set in a form that others read."""

import argparse
import logging
import sys
from pathlib import Path

from .command_line import CallableModule
from .common.checks import check_name
from .common.commands import Parser, run_command
from .common.errors import UserError
from .formats.card import training_lines
from .formats.parquet import import_hub, push
from .formats.registry import FORMATS, check_target
from .run.folder import RunFolder
from .synthetic import SyntheticSet

sys.modules[__name__].__class__ = CallableModule

log = logging.getLogger("m3d_fast")

DESCRIPTION = """\
Write a run's condensed set, or any set that evaluate takes, in a form that others read.

  python -m m3d_fast.export runs/RUN --to imagefolder --out FOLDER
  python -m m3d_fast.export runs/RUN --to hf --out FOLDER --push USER/NAME
  python -m m3d_fast.export FILE.safetensors --to npz --out FILE.npz

imagefolder  FOLDER/<label>_<class>/*.png, 8 bits: torchvision's ImageFolder
npz          NumPy's images (n, C, H, W) float32 in [0, 1] and labels int64
beton        FFCV's image (RGB, 8 bits) and label
hf           Hugging Face's datasets: parquet of image (PNG) and label, and a data card
dd-ranking   images.pt, normalised, and labels.pt, as DD-Ranking's scores take them

Prints Python that trains on the result without this package. python -m m3d_fast.evaluate --set
reads all of them again. Defaults stand in brackets."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.export",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("source", metavar="RUN_OR_SET", help="run folder, or the file or folder of a set")
    add("--to", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    add("--out", required=True, metavar="PATH", help="file or folder to write, not there yet")
    add("--dataset", metavar="NAME", help="of a set that names none, for its classes and mean")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--decoded", action="store_true", help="one image per tile, to train on as it is [this]"
    )
    which.add_argument(
        "--stored", action="store_true", help="images as stored, factor^2 tiles in each"
    )
    add("--push", metavar="REPOSITORY", help="with --to hf: upload to Hugging Face's hub as well")
    return parser


def export(
    source: str | Path,
    to: str,
    out: str | Path,
    *,
    dataset: str | None = None,
    decoded: bool = True,
    push_to: str | None = None,
) -> str:
    """Write a condensed set in a form that others read.

    Args:
        source: a run folder, or a set that :meth:`SyntheticSet.load` reads.
        to: "imagefolder", "npz", "beton", "hf" or "dd-ranking".
        out: a file or folder that does not exist.
        dataset: of a set that names none.
        decoded: one image per tile; else images as stored.
        push_to: with "hf", a repository of Hugging Face's hub to upload to.

    Returns:
        Python that trains on the result without this package; of stored tiles, that they have to
        be cut first.

    Raises:
        UserError: for invalid settings or sets; nothing is written then.
    """
    path = Path(out)
    check_name("to", to, FORMATS)
    check_target(to, path)
    if push_to is not None:
        if to != "hf":
            raise UserError(f"push: expected --to hf beside it, got {to}")
        import_hub()
    run = RunFolder(source)
    file = run.synthetic_file if run.config_file.exists() else Path(source)
    synthetic = SyntheticSet.load(file, dataset)
    synthetic.check(str(file))
    content = synthetic.export(path, to, decoded=decoded)
    log.info("%d images: %s", len(content.images), path)
    if push_to is not None:
        log.info("uploaded: %s", push(path, push_to))
    if content.metadata["factor"] > 1:
        tiles = content.metadata["factor"]
        return f"# every image holds {tiles} x {tiles} tiles: cut and enlarge them before training"
    return training_lines(content, to, path)


def command(arguments: argparse.Namespace) -> None:
    """Export, and print the lines that train on it."""
    lines = export(
        arguments.source,
        arguments.to,
        arguments.out,
        dataset=arguments.dataset,
        decoded=not arguments.stored,
        push_to=arguments.push,
    )
    sys.stdout.write(lines + "\n")


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    sys.exit(main())
