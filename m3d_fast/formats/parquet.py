"""Sets as Hugging Face's ``datasets`` keeps them: parquet files and a data card."""

import json
from pathlib import Path
from types import ModuleType

import torch

from ..common.errors import UserError
from .card import write_card
from .content import Content, check_metadata, check_tensors
from .image_folder import stack_pictures, to_png

KEY = b"m3d_fast"  # of the metadata in a parquet file; `datasets` keeps its own under "huggingface"
_SHARD_IMAGES = 50_000  # per file


def write_hugging_face(content: Content, folder: Path) -> None:
    """Write ``data/train-*.parquet`` of ``image`` (PNG, 8 bits) and ``label``, and ``README.md``.

    Raises:
        UserError: if pyarrow is not installed.
    """
    arrow, parquet = import_pyarrow()
    names = content.metadata["classes"]
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": names},
    }
    metadata = {
        b"huggingface": json.dumps({"info": {"features": features}}).encode(),
        KEY: json.dumps(content.metadata).encode(),
    }
    schema = arrow.schema(
        [
            ("image", arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])),
            ("label", arrow.int64()),
        ],
        metadata=metadata,
    )
    (folder / "data").mkdir()
    shards = -(-len(content.images) // _SHARD_IMAGES)
    for shard in range(shards):
        rows = range(shard * _SHARD_IMAGES, min((shard + 1) * _SHARD_IMAGES, len(content.images)))
        table = arrow.table(
            {
                "image": [
                    {"bytes": to_png(content.images[row]), "path": f"{row:06d}.png"} for row in rows
                ],
                "label": content.labels[rows.start : rows.stop].tolist(),
            },
            schema=schema,
        )
        file = folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
        parquet.write_table(table, file)
    write_card(content, folder)


def find_parquet_files(path: Path) -> list[Path]:
    """The training files of such a folder, in order, or the file itself."""
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.parquet")) + sorted((path / "data").glob("*.parquet"))
    train = [file for file in files if file.name.startswith("train")]
    return train or files


def read_hugging_face(path: Path) -> Content:
    """Read ``image`` and ``label`` of parquet files as ``datasets`` writes them.

    Raises:
        UserError: if pyarrow is not installed, or a file is damaged or of other columns.
    """
    arrow, parquet = import_pyarrow()
    try:
        tables = [parquet.read_table(file) for file in find_parquet_files(path)]
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{path}: expected parquet files, found others ({error})") from error
    missing = [name for name in ("image", "label") if name not in tables[0].column_names]
    if missing:
        raise UserError(
            f"{path}: expected the columns image and label, found "
            f"{', '.join(tables[0].column_names)}"
        )
    table = arrow.concat_tables([table.select(["image", "label"]) for table in tables])
    stored = tables[0].schema.metadata or {}
    metadata = check_metadata(json.loads(stored.get(KEY, b"{}")), str(path))
    hub = json.loads(stored.get(b"huggingface", b"{}"))
    names = hub.get("info", {}).get("features", {}).get("label", {}).get("names")
    if names and "classes" not in metadata:
        metadata["classes"] = names
    pictures = table["image"].to_pylist()
    if not all(isinstance(picture, dict) and picture.get("bytes") for picture in pictures):
        raise UserError(f"{path}: expected images within the file, found paths to others")
    files = ((f"{path}, image {row}", p["bytes"]) for row, p in enumerate(pictures))
    labels = torch.tensor(table["label"].to_pylist())
    images = stack_pictures(files, str(path))
    check_tensors(images, labels, str(path))
    return Content(images, labels, metadata)


def import_pyarrow() -> tuple[ModuleType, ModuleType]:
    """pyarrow and its parquet.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise UserError(
            "the format hf needs the Python package pyarrow: pip install 'm3d_fast[export]'"
        ) from error
    return pyarrow, parquet


def push(folder: Path, repository: str) -> str:
    """Upload such a folder to Hugging Face's hub; returns its address.

    Raises:
        UserError: if the upload fails.
    """
    hub = import_hub()
    try:
        hub.create_repo(repository, repo_type="dataset", exist_ok=True)
        hub.upload_folder(folder_path=str(folder), repo_id=repository, repo_type="dataset")
    # the hub's client raises errors of several HTTP libraries
    except Exception as error:
        raise UserError(
            f"push: {repository} cannot be written ({error}); the files are in {folder}"
        ) from error
    return f"https://huggingface.co/datasets/{repository}"


def import_hub() -> ModuleType:
    """huggingface_hub.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(
            "push: expected the Python package huggingface_hub, which is not installed: "
            "pip install huggingface_hub"
        ) from error
    return huggingface_hub
