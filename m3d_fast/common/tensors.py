"""Files of tensors with metadata: safetensors, written piece by piece."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import UserError
from .files import replace_atomically

PIECE = 1 << 24  # numbers copied to the host at a time
DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}  # what our files hold


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | Sequence[Tensor]], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and ``metadata`` to one ``.safetensors`` file, atomically, piece by piece.

    A sequence of tensors becomes one, joined along the first dimension; nothing is copied as a
    whole. Every entry of ``metadata`` is an entry of the file's own metadata: strings as they are,
    anything else as JSON. The same content always gives the same bytes.

    Raises:
        UserError: if the folder or disk refuses.
    """
    # safetensors' own writer copies all tensors first, and orders the metadata differently in
    # every process
    parts = {k: [v] if isinstance(v, Tensor) else list(v) for k, v in tensors.items()}
    names = sorted(parts, key=lambda name: (-parts[name][0].element_size(), name))  # aligned
    header = _header({name: parts[name] for name in names}, metadata)
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            for part in parts[name]:
                for piece in part.detach().reshape(-1).split(PIECE):
                    file.write(memoryview(piece.cpu().numpy()))


def _header(parts: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, Any]) -> bytes:
    # a string that would be read back as JSON is written as JSON too
    plain = {k: isinstance(v, str) and _parsed(v) is v for k, v in metadata.items()}
    text = {k: v if plain[k] else json.dumps(v) for k, v in metadata.items()}
    header: dict[str, Any] = {"__metadata__": text}
    end = 0
    for name, joined in parts.items():
        start, end = end, end + sum(part.numel() * part.element_size() for part in joined)
        shape = list(joined[0].shape)
        if len(joined) > 1:
            shape[0] = sum(len(part) for part in joined)
        dtype = DTYPES[joined[0].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    data = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return data.ljust(-(-len(data) // 8) * 8)


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU and metadata of a file written by :func:`write_tensors`.

    The tensors are views of the mapped file: they take no memory of their own until written to.

    Raises:
        UserError: if the file is missing, damaged, or its metadata names another format.
    """
    metadata = read_metadata(path, expected_format)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_metadata(path: Path, expected_format: str) -> dict[str, Any]:
    """Metadata of a file written by :func:`write_tensors`; errors as :func:`read_tensors`."""
    if not path.is_file():
        raise UserError(f"{path}: expected a {expected_format}, found no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {k: _parsed(v) for k, v in (file.metadata() or {}).items()}
    except SafetensorError as error:
        raise UserError(
            f"{path}: expected a {expected_format}, found a damaged or foreign file ({error})"
        ) from error
    if metadata.get("format") != expected_format:
        found = metadata.get("format", "no format given")
        raise UserError(f"{path}: expected a {expected_format}, found another kind ({found})")
    return metadata
