"""``python -m m3d_fast.hub_kernel``: the op as a folder that the ``kernels`` package loads."""

import argparse
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from .common.commands import Parser, run_command
from .common.errors import UserError

log = logging.getLogger("m3d_fast")

DESCRIPTION = """\
Write the op as a noarch kernel of Hugging Face's Kernel Hub: build.toml, card, sources, tuned
configurations as JSON, and a build for each back end. Nothing is uploaded.

  python -m m3d_fast.hub_kernel FOLDER

In Python: kernels.get_local_kernel(Path("FOLDER/build")).mmd2(x, y)."""

NAME, VERSION, LICENSE = "m3d-mmd", 1, "MIT"
PYTHON_NAME = NAME.replace("-", "_")
BACKENDS = ("cpu", "cuda")
SOURCES = Path(__file__).parent / "kernels"

BUILD_TOML = f"""\
[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = {json.dumps(BACKENDS)}

[torch-noarch]
pyext = ["py", "json"]
"""

CARD = f"""\
---
library_name: kernels
license: {LICENSE.lower()}
---

# {NAME}

Squared maximum mean discrepancy of two samples and its gradient in one pass, without the matrix of
all pairs in memory: Triton kernels from compute capability 8.0 and triton 3.6 on, tiles of plain
torch elsewhere. Kernel functions, weights per row, class-conditional and joint MMD, two-sample
tests, CMMD and KID.

```python
import torch
from kernels import get_kernel

mmd = get_kernel("REPOSITORY/{NAME}", version={VERSION})
x, y = torch.randn(2, 500, 64), torch.randn(2, 400, 64, requires_grad=True)
mmd.mmd2(x, y).sum().backward()
```

`configs.json` holds the tuned tiles of every Triton kernel, `README.md` in the package derives the
algebra. torch 2.5 or newer.
"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = Parser(
        prog="python -m m3d_fast.hub_kernel",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", metavar="FOLDER", type=Path, help="new or empty folder to write")
    return parser


def list_sources() -> dict[str, bytes]:
    """The op's files by their paths in the package."""
    files = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".py", ".md"))
    return {path.relative_to(SOURCES).as_posix(): path.read_bytes() for path in files}


def list_configs() -> list[dict[str, Any]]:
    """The tuned tiles of every Triton kernel.

    Raises:
        UserError: without Triton, which the tables name.
    """
    try:
        from .kernels.triton.dispatch import CONFIGS
    except ModuleNotFoundError as error:
        raise UserError(
            f"expected triton, for its configurations ({error}): pip install triton"
        ) from error
    return [
        {
            "kernel": config.name,
            "input_precision": config.input_precision,
            "blocks": dict(config.blocks),
            "warps": config.warps,
            "stages": config.stages,
            "architectures": list(config.architectures),
            "shared_memory": config.shared_memory,
        }
        for config in CONFIGS
    ]


def write(out: Path) -> None:
    """Write the kernel into a new or empty folder.

    Raises:
        UserError: if the folder holds something or cannot be made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"expected a new or empty folder, {out} holds something: give another")
    sources = list_sources()
    sources["configs.json"] = _dump(list_configs())
    digest = hashlib.sha256(b"".join(name.encode() + sources[name] for name in sorted(sources)))
    # several versions may be loaded in one process: each registers its ops under its own name
    identifier = f"_{PYTHON_NAME}_{digest.hexdigest()[:7]}"
    files = {"build.toml": BUILD_TOML.encode(), "CARD.md": CARD.encode()}
    # the builder writes _ops.py itself
    own = {name: text for name, text in sources.items() if name != "_ops.py"}
    files |= {f"torch-ext/{PYTHON_NAME}/{name}": text for name, text in own.items()}
    namespace = f"torch.ops.{identifier}\n".encode()
    sources["_ops.py"] = sources["_ops.py"].replace(b"torch.ops.m3d_fast\n", namespace)
    for backend in BACKENDS:
        files |= {f"build/torch-{backend}/{name}": text for name, text in sources.items()}
        metadata = {
            "id": f"{identifier}_{backend}",
            "name": NAME,
            "version": VERSION,
            "license": LICENSE,
            "python-depends": [],
            "backend": {"type": backend},
        }
        files[f"build/torch-{backend}/metadata.json"] = _dump(metadata)
    try:
        for name, text in files.items():
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({error.strerror or error}): give another"
        ) from error


def _dump(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def command(arguments: argparse.Namespace) -> None:
    """Write the folder and say where it is."""
    write(arguments.out)
    log.info("kernel: %s", arguments.out)


def main() -> int:
    """Run the command line; return its exit status."""
    return run_command(build_parser(), command)


if __name__ == "__main__":
    sys.exit(main())
