"""Writing files so that neither a kill nor another process loses what was there."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Write a file under another name beside it, then rename it: whenever the process is killed, the old or the new one is there,
    whole.

    :param path: Where it goes; folders are made
    :param write: Writes to the path that it gets, which has the same ending
    """
    path = Path(os.path.realpath(path))  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}_{threading.get_ident()}_{path.name}")
    try:
        write(partial)
        if path.exists():
            shutil.copymode(path, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """
    Wait until no other process is in such a block: two would undo each other's work. The lock ends with the process.

    :param folder: What is locked
    """
    descriptor = os.open(folder, os.O_RDONLY) if fcntl is not None else -1
    try:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
