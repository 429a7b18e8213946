"""How command lines read the texts of some arguments."""

import argparse
import re
import textwrap
from typing import Any

import torch as th
import yaml


class KeyValues(argparse.Action):
    """
    Reads ``name:value``, as RL Zoo's ``--env-kwargs``; the value is YAML: ``horizon:100``, ``split:ood``; but ``1e-3``, for
    YAML 1.1 a word, is the number that it is for the zoo.
    """

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """See :class:`argparse.Action`."""
        pairs: dict[str, Any] = {}
        for text in values:
            try:
                name, value = key_value(text)
            except ValueError as error:
                parser.error(f"argument {option_string}: {error}")
            pairs[name] = value
        setattr(namespace, self.dest, pairs)


def key_value(text: str) -> tuple[str, Any]:
    """
    :param text: ``name:value``, see :class:`KeyValues`.
    :return: Both.
    :raises ValueError: If it is something else.
    """
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f"expected name:value, got {text!r}")
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return name, float(value)
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{value!r} is no value") from None


def device(name: str) -> str:
    """
    :param name: What ``--device`` got.
    :return: It, if there is such a device.
    :raises argparse.ArgumentTypeError: If there is none.
    """
    try:
        if name != "auto":
            th.empty(1, device=name).item()  # SB3 would take the CPU instead of a GPU that is not there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = textwrap.shorten(str(error), 90, placeholder=" ...")
        raise argparse.ArgumentTypeError(f"{name!r} is none here ({reason}): cpu, cuda, cuda:1 or auto") from error
    return name
