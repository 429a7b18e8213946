"""What checks of arguments have in common."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def is_integer(value: Any, least: int) -> bool:
    """
    :param value: An argument
    :param least: Its smallest value
    :return: Whether it is an integer, Python's or NumPy's, of at least ``least``; True and False are none
    """
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def is_number(value: Any) -> bool:
    """
    :param value: An argument
    :return: Whether it is a number, Python's or NumPy's; True and False are none
    """
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def check_flags(arguments: Mapping[str, Any]) -> None:
    """
    :param arguments: By name
    :raises ValueError: for the first that is neither True nor False: a word like "False" would count as True
    """
    for name, value in arguments.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"{name} must be True or False, got {value!r}.")


def check_integers(arguments: Mapping[str, Any], least: int = 1) -> None:
    """
    :param arguments: By name
    :param least: Their smallest value
    :raises ValueError: for the first that is no integer of at least ``least``
    """
    for name, value in arguments.items():
        if not is_integer(value, least):
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """
    :param name: Of the argument
    :param value: What was given
    :param choices: What may be given
    :raises ValueError: for anything else
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.{did_you_mean(value, choices)}")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """
    :param name: A name that is not known
    :param known: Those that are
    :return: The end of an error, " Did you mean 'trmrl'?", or nothing if no known name is like it
    """
    near = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
