"""One job per run folder: a lock that the kernel frees when its holder ends, however it ends.

A job locks the folder exclusively, then its ranks hold the lock together (shared); other jobs
request it exclusively and are refused while one of the ranks lives.
"""

import os
import platform
import time
from pathlib import Path

from ..common.errors import UserError
from ..common.files import lock_file

LOCK_FILE = ".lock"


class FolderLock:
    """The lock of a run folder.

    Args:
        folder: the run folder; it need not exist before :meth:`acquire`.
        name: of the file.
    """

    def __init__(self, folder: Path, name: str = LOCK_FILE) -> None:
        self._folder, self._file = folder, folder / name
        self._descriptor: int | None = None

    def check_free(self) -> None:
        """Refuse a folder that another job holds, without changing anything.

        Raises:
            UserError: naming the holder.
        """
        if self._file.exists():
            self._open(os.O_RDWR)
            self.release()

    def acquire(self) -> None:
        """Lock an existing folder for this job alone.

        Raises:
            UserError: if another job holds it, naming the holder, or it cannot be locked.
        """
        descriptor = self._open(os.O_RDWR | os.O_CREAT)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = f"process {os.getpid()} on {platform.node()} since {since}"
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)

    def share(self) -> None:
        """Hold the folder together with the other ranks of the job; errors as :meth:`acquire`."""
        if self._descriptor is None:
            self._open(os.O_RDWR, shared=True)
        else:
            self._lock(self._descriptor, shared=True)

    def release(self) -> None:
        """Release the lock, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _open(self, flags: int, *, shared: bool = False) -> int:
        """Open the file and lock it; returns its descriptor."""
        try:
            descriptor = os.open(self._file, flags, 0o644)
        except OSError as error:
            raise UserError(f"{self._file}: cannot be opened ({error.strerror})") from error
        try:
            self._lock(descriptor, shared=shared)
        except UserError:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return descriptor

    def _lock(self, descriptor: int, *, shared: bool) -> None:
        try:
            locked = lock_file(descriptor, shared=shared)
        except OSError as error:
            raise UserError(
                f"run folder {self._folder} cannot be locked ({error.strerror}); "
                f"give an --out on a file system with locks"
            ) from error
        if not locked:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            raise UserError(
                f"run folder {self._folder} is in use by {holder}; wait for it or end it first"
            )
