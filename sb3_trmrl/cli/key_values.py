"""The command line: keywords of environments."""

import argparse
import re
from typing import Any

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
        for value in values:
            name, colon, text = value.partition(":")
            if not colon:
                parser.error(f"argument {option_string}: expected name:value, got {value!r}")
            try:
                pairs[name] = yaml.safe_load(text)
            except yaml.YAMLError:
                parser.error(f"argument {option_string}: {text!r} is no value")
            if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
                pairs[name] = float(text)
        setattr(namespace, self.dest, pairs)
