"""Downloads: complete and verified, or no file at all."""

import hashlib
import http.client
import logging
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger("m3d_fast")

CACHE = Path("~/.cache/m3d_fast")

_TIMEOUT_SECONDS = 10.0


def fetch(urls: Sequence[str], target: Path, md5: str) -> None:
    """Fetch one file from the first address that has it.

    Folders are created only once an address answers. torchvision's own download has no time
    limit, prints, and leaves partial files behind.

    Args:
        urls: addresses of the same file, tried in order.
        target: path of the file, replaced atomically.
        md5: checksum of the whole file, hexadecimal.

    Raises:
        OSError: if no address gave the file, or it cannot be written; no file is left behind.
    """
    failure = OSError("no address to fetch it from")
    for url in urls:
        try:
            _fetch_one(url, target, md5)
            return
        except http.client.HTTPException as cause:
            failure = OSError(f"{url}: {cause!r}")
        except OSError as cause:
            failure = OSError(f"{url}: {cause}")
    raise failure


def _fetch_one(url: str, target: Path, md5: str) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        log.info("downloading %s to %s", url, target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            partial = Path(folder) / target.name
            with partial.open("wb") as file:
                shutil.copyfileobj(response, file)
            found = file_md5(partial)
            if found != md5:
                raise OSError(f"checksum is {found}, expected {md5}")
            os.replace(partial, target)


def file_md5(path: Path) -> str:
    """Checksum of a file, hexadecimal."""
    with path.open("rb") as file:
        # a checksum against accidents, allowed where MD5 is banned as cryptography
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
