"""One job per run folder: a lock that the kernel takes back when its holder ends, however it does.

A job takes the folder for itself (exclusive), then its ranks hold it together (shared); whoever
comes later asks for it exclusively and is refused while one of them lives.
"""

import fcntl
import os
import platform
import time
from pathlib import Path

from ..common.errors import UserError

LOCK_FILE = ".lock"


class FolderLock:
    """The lock of a run folder.

    Args:
        folder: the run folder; it need not exist before :meth:`acquire`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / LOCK_FILE
        self._descriptor: int | None = None

    def probe(self) -> None:
        """Refuse a folder that is held, changing nothing.

        Raises:
            UserError: naming the holder.
        """
        if not self._file.exists():
            return
        self._take(os.O_RDWR, fcntl.LOCK_EX)
        self.release()

    def acquire(self) -> None:
        """Take an existing folder for this job alone.

        Raises:
            UserError: if it is held, naming the holder, or cannot be locked.
        """
        descriptor = self._take(os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {platform.node()} since {since}"
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)

    def share(self) -> None:
        """Hold the folder together with the other ranks of the job; errors as :meth:`acquire`."""
        if self._descriptor is None:
            self._take(os.O_RDWR, fcntl.LOCK_SH)
        else:
            self._lock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Let go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _take(self, flags: int, kind: int) -> int:
        try:
            descriptor = os.open(self._file, flags, 0o644)
        except OSError as error:
            raise UserError(f"{self._file}: cannot be opened ({error.strerror})") from error
        try:
            self._lock(descriptor, kind)
        except UserError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return descriptor

    def _lock(self, descriptor: int, kind: int) -> None:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            raise UserError(
                f"run folder {self._folder} is in use by {holder}; wait for it or end it first"
            ) from error
        except OSError as error:
            raise UserError(
                f"run folder {self._folder} cannot be locked ({error.strerror}); "
                f"give an --out on a file system with locks"
            ) from error
