"""How the command line names agents and their files."""

import os
from collections.abc import Sequence
from pathlib import Path

FILE_ENDINGS = (".npz", ".json", ".zip")


def parse_sources(sources: Sequence[str]) -> dict[str, list[str]]:
    """
    :param sources: ``[NAME=]PATH[,PATH...]`` each. Signs that part them may be in the name of what exists: ``lr=0.1/a.npz``.
    :return: Paths by name, that of the first file or folder where none is given.
    :raises ValueError: If a name comes twice or a path is empty.
    """
    named: dict[str, list[str]] = {}
    for source in sources:
        name, paths = "", _paths(source)
        if not all(map(os.path.exists, paths)) and "=" in source:
            name, _, text = source.partition("=")
            paths = _paths(text)
        if not all(paths):
            raise ValueError(f"{source!r} names no file: [NAME=]PATH[,PATH...].")
        first = Path(paths[0])
        name = name or (first.stem if first.suffix.lower() in FILE_ENDINGS else first.name)
        if name in named:
            raise ValueError(f"two agents are called {name!r}: give names, for example first={source}.")
        named[name] = paths
    return named


def _paths(text: str) -> list[str]:
    return [text] if os.path.exists(text) else text.split(",")
