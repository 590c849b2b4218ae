"""Files that are complete or absent: atomic replacement, tensors with metadata."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it takes the place of ``path``.

    Raises:
        UserError: if the folder or disk refuses.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    with replace_atomically(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: if it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: expected this file, found none") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected JSON, found a damaged file ({error})") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors and ``metadata`` to one ``.safetensors`` file, atomically.

    Every entry of ``metadata`` is an entry of the file's own metadata: strings as they are,
    anything else as JSON. The same content always gives the same bytes.
    """
    # a string that would be read back as JSON is written as JSON too
    plain = {k: isinstance(v, str) and _parsed(v) is v for k, v in metadata.items()}
    text = {k: v if plain[k] else json.dumps(v) for k, v in metadata.items()}
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replace_atomically(path) as temporary:
        save_file(host, temporary, metadata=text)
        _sort_header(temporary)


def _sort_header(path: Path) -> None:
    # safetensors writes the metadata in the order of a hash map, another one in every process
    with path.open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        data = text.encode().ljust(length)
        assert len(data) == length, "sorting must not lengthen the header"
        file.seek(8)
        file.write(data)


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU and metadata of a file written by :func:`write_tensors`.

    Raises:
        UserError: if the file is missing, damaged, or its metadata names another format.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a {expected_format}, found no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {k: _parsed(v) for k, v in (file.metadata() or {}).items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path}: expected a {expected_format}, found a damaged or foreign file ({error})"
        ) from error
    if metadata.get("format") != expected_format:
        found = metadata.get("format", "no format given")
        raise UserError(f"{path}: expected a {expected_format}, found another kind ({found})")
    return tensors, metadata
