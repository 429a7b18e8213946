"""``sb3-trmrl plot``."""

import argparse
from collections.abc import Callable, Sequence

from sb3_trmrl.cli.commands import check_outputs
from sb3_trmrl.cli.sources import parse_sources
from sb3_trmrl.common.evaluation import AdaptationResult
from sb3_trmrl.common.references import load_references
from sb3_trmrl.inspection import Inspection
from sb3_trmrl.plots import (
    plot_adaptation_curve,
    plot_attention,
    plot_embeddings,
    plot_learning_curve,
    plot_performance_profile,
    plot_task_returns,
)
from sb3_trmrl.plots.ood import reference_lines, training_range
from sb3_trmrl.plots.style import FORMATS
from sb3_trmrl.runs import learning_curves


def plot(arguments: argparse.Namespace) -> None:
    """
    ``sb3-trmrl plot``.

    :param arguments: The command line.
    """
    check_outputs([arguments.output], FORMATS)
    draw: Callable[[argparse.Namespace], None] = {
        "adaptation": _plot_adaptation,
        "tasks": _plot_tasks,
        "profile": _plot_profile,
        "learning": _plot_learning,
        "attention": _plot_attention,
        "embeddings": _plot_attention,
    }[arguments.kind]
    draw(arguments)
    print(f"Written: {arguments.output}")


def _named(sources: Sequence[str]) -> dict[str, str]:
    """:return: ``NAME=PATH`` or ``PATH`` by name."""
    return {name: ",".join(paths) for name, paths in parse_sources(sources).items()}


def _plot_adaptation(arguments: argparse.Namespace) -> None:
    results = {name: AdaptationResult.load(path) for name, path in _named(arguments.input).items()}
    first = next(iter(results.values()))
    same = all(result.tasks == first.tasks for result in results.values())
    # As many episodes as the longest curve has
    references = load_references(max(results.values(), key=lambda result: result.n_episodes)) if same else None
    known = {} if references is None else references.drawn_curves()
    plot_adaptation_curve(results, arguments.output, known, arguments.title or first.settings.get("env_id") or "")


def _plot_tasks(arguments: argparse.Namespace) -> None:
    results = {name: AdaptationResult.load(path) for name, path in _named(arguments.input).items()}
    first = next(iter(results.values()))
    lines = reference_lines([(result, load_references(result)) for result in results.values()], arguments.parameter)
    plot_task_returns(
        results,
        arguments.output,
        lines,
        arguments.parameter,
        training_range(first, arguments.parameter),
        arguments.title or first.settings.get("env_id") or "",
    )


def _plot_profile(arguments: argparse.Namespace) -> None:
    results = {name: AdaptationResult.load(path) for name, path in _named(arguments.input).items()}
    scores = {name: result.returns[None, :, -1] for name, result in results.items()}
    plot_performance_profile(scores, arguments.output, arguments.title, "return of the last episode")


def _plot_learning(arguments: argparse.Namespace) -> None:
    curves = {}
    named = _named(arguments.input)
    for name, path in named.items():
        for kind, curve in learning_curves(path).items():
            curves[kind if len(named) == 1 else f"{name}: {kind}"] = curve
    plot_learning_curve(curves, arguments.output, arguments.title)


def _plot_attention(arguments: argparse.Namespace) -> None:
    if len(arguments.input) != 1:
        raise ValueError(f"plot {arguments.kind} draws one file of `sb3-trmrl inspect`, got {len(arguments.input)}.")
    inspection = Inspection.load(arguments.input[0])
    if arguments.kind == "attention":
        plot_attention(inspection, arguments.output, arguments.task, arguments.title)
    else:
        plot_embeddings(inspection, arguments.output, arguments.parameter, arguments.title)
