"""Reading numpy's archives of arrays, which may be broken or somebody else's."""

import zipfile
import zlib
from pathlib import Path

import numpy as np


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """
    :param path: A file that ``np.savez`` has written
    :return: Its arrays by name; objects, which could run code, are refused
    :raises ValueError: if it is broken or something else
    :raises FileNotFoundError: if there is none
    """
    try:
        # numpy leaves a broken file open that it has opened itself
        with path.open("rb") as opened:
            if not zipfile.is_zipfile(opened):  # numpy would take it for a pickle, and say how to load that
                raise zipfile.BadZipFile("File is not a zip file")
            opened.seek(0)
            with np.load(opened, allow_pickle=False) as file:
                return dict(file)
    except FileNotFoundError:
        raise
    # A damaged header names unknown compressions (NotImplementedError, a RuntimeError), encrypted files (RuntimeError) or
    # sizes without end (MemoryError, OverflowError)
    except (OSError, EOFError, RuntimeError, TypeError, MemoryError, OverflowError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"no readable archive of arrays ({error})") from error
