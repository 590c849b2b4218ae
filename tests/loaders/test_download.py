import hashlib
import http.client
import urllib.request
from pathlib import Path

import pytest

from m3d_fast.loaders.download import fetch

CONTENT = b"some bytes"
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def address(tmp_path: Path) -> str:
    path = tmp_path / "served"
    path.write_bytes(CONTENT)
    return path.as_uri()


def test_the_first_address_that_answers_is_used(
    address: str, tmp_path: Path, tried_addresses: list[str]
) -> None:
    target = tmp_path / "new" / "folder" / "file"
    addresses = ["https://one.invalid/file", address, "https://two.invalid/file"]
    fetch(addresses, target, MD5)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert tried_addresses == addresses[:2]


def test_no_folder_is_made_when_nothing_answers(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"https://one.invalid/file: .*no network in tests"):
        fetch(["https://one.invalid/file"], tmp_path / "new" / "file", MD5)
    assert not (tmp_path / "new").exists()


def test_an_existing_file_survives_a_wrong_download(address: str, tmp_path: Path) -> None:
    target = tmp_path / "kept" / "file"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(OSError, match=f"checksum is {MD5}, expected 0000"):
        fetch([address], target, "0000")
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [
        ("file", b"old")
    ]


def test_a_broken_connection_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __enter__(self) -> "Broken":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, _: int) -> bytes:
            raise http.client.IncompleteRead(b"some")

    monkeypatch.setattr(urllib.request, "urlopen", lambda _, timeout: Broken())
    with pytest.raises(OSError, match="IncompleteRead"):
        fetch(["https://one.invalid/file"], tmp_path / "file", MD5)
    assert list(tmp_path.iterdir()) == []
