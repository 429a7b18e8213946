"""Return against episode index within the trial."""

from pathlib import Path

import numpy as np

from sb3_trmrl.common.evaluation import AdaptationResult


def plot_adaptation_curve(
    results: dict[str, AdaptationResult],
    path: str | Path,
    references: dict[str, float] | None = None,
    title: str = "",
) -> None:
    """
    Draw adaptation curves with their bootstrap intervals over tasks, and references as horizontal lines.

    :param results: Result of each agent, by its name in the legend
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param references: Return per episode of agents that don't adapt, for example ``{"blind": 5.0, "oracle": 8.3}``
    :param title: Title of the picture
    :raises ImportError: without matplotlib
    """
    try:
        # The object-oriented interface: no global state, no window, whatever backend the user has
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sb3_trmrl[plots]'") from error

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for style, (name, value) in zip(("--", ":", "-."), (references or {}).items(), strict=False):
        axes.axhline(value, color="0.35", linestyle=style, linewidth=1.2, label=f"{name} ({value:.4g})")
    for name, result in results.items():
        episodes = np.arange(1, result.returns.shape[1] + 1)
        lower, upper = result.interval()
        (line,) = axes.plot(episodes, result.curve, marker="o", linewidth=2, label=name)
        axes.fill_between(episodes, lower, upper, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("episode of the trial")
    axes.set_ylabel("return")
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.9)
    figure.savefig(path)
