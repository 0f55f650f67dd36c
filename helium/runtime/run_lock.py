"""Which process works on a run: a lock of the operating system, which ends with the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from io import TextIOWrapper
from pathlib import Path

_TRIES = 5
_PAUSE_S = 0.005
"""Who asks whether a lock is held has it for a moment: that must not look like an owner."""


class RunLock:
    """Says that a process works on a run; ends with it. A context manager."""

    def __init__(self, path: Path, file: TextIOWrapper) -> None:
        self._path = path
        self._file = file

    @classmethod
    def take(cls, path: Path) -> RunLock | None:
        """Returns the lock, or ``None`` if another one has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tries = _TRIES
        while True:
            file = open(path, "a")  # noqa: SIM115, the lock keeps it open
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                tries -= 1
                if not tries:
                    return None
                time.sleep(_PAUSE_S)
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == _inode(file):
                    return cls(path, file)
            file.close()  # its last owner has just deleted it

    @classmethod
    def is_held(cls, path: Path) -> bool:
        """Whether some process has the lock."""
        try:
            with open(path) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            pass
        return False

    def release(self) -> None:
        """Gives the lock back; again is harmless."""
        if not self._file.closed:
            self._path.unlink(missing_ok=True)
            self._file.close()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _inode(file: TextIOWrapper) -> int:
    return os.fstat(file.fileno()).st_ino
