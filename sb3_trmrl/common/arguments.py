"""What checks of arguments have in common."""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np


def is_integer(value: Any, least: int) -> bool:
    """
    :param value: An argument
    :param least: Its smallest value
    :return: Whether it is an integer, Python's or NumPy's, of at least ``least``; True and False are none
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """
    :param name: A name that is not known
    :param known: Those that are
    :return: The end of an error, " Did you mean 'trmrl'?", or nothing if no known name is like it
    """
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
