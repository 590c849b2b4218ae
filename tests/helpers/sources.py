"""The modules of the package and their files in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("m3d_fast", "m3d_fast/kernels", "m3d_fast/loaders")  # the last two are links


def module_files() -> dict[str, Path]:
    """The file of every module, by the module's dotted name."""
    files = {path for room in ROOMS for path in (ROOT / room).rglob("*.py")}  # follows no links
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}
