"""Files of tensors with metadata: safetensors, written in pieces."""

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
DTYPES = {  # their names in a file
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int16: "I16",
    torch.uint8: "U8",
}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | Sequence[Tensor]], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and ``metadata`` to one ``.safetensors`` file, atomically and in pieces.

    The same content always gives the same bytes.

    Args:
        path: the file.
        tensors: by name; a sequence is written as one tensor, concatenated along the first
            dimension, without concatenating it in memory.
        metadata: entries of the file's own metadata: strings unchanged, other values as JSON.

    Raises:
        UserError: if the file cannot be written.
    """
    # the writer of safetensors copies all tensors first, and the order of its metadata differs
    # between processes
    parts = {k: [v] if isinstance(v, Tensor) else list(v) for k, v in tensors.items()}
    names = sorted(parts, key=lambda name: (-parts[name][0].element_size(), name))  # aligned
    header = _encode_header({name: parts[name] for name in names}, metadata)
    with replace_atomically(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            for part in parts[name]:
                for piece in part.detach().reshape(-1).split(PIECE):
                    file.write(memoryview(piece.cpu().numpy()))


def _encode_header(parts: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, Any]) -> bytes:
    # a string that could be parsed as JSON is written as JSON, to be read back as a string
    plain = {k: isinstance(v, str) and _decode_value(v) is v for k, v in metadata.items()}
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


def _decode_value(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def read_tensors(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the metadata of a file written by :func:`write_tensors`.

    Returns:
        Tensors on the CPU, views of the mapped file that take no memory until they are written
        to, and the metadata.

    Raises:
        UserError: if the file is missing, damaged, or has another format in its metadata.
    """
    metadata = read_metadata(path, expected_format)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_metadata(path: Path, expected_format: str) -> dict[str, Any]:
    """Read the metadata of such a file; errors as of :func:`read_tensors`."""
    if not path.is_file():
        raise UserError(f"{path}: expected a {expected_format}, found no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = {k: _decode_value(v) for k, v in (file.metadata() or {}).items()}
    except SafetensorError as error:
        raise UserError(
            f"{path}: expected a {expected_format}, found a damaged or foreign file ({error})"
        ) from error
    if metadata.get("format") != expected_format:
        found = metadata.get("format", "no format given")
        raise UserError(f"{path}: expected a {expected_format}, found another kind ({found})")
    return metadata
