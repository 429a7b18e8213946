"""What the memory looks at, and where it puts tasks."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sb3_trmrl.inspection import Inspection, project
from sb3_trmrl.plots.ood import task_parameter
from sb3_trmrl.plots.style import finish, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def attention_figure(inspection: Inspection, task: int = 0, title: str = "") -> "Figure":
    """
    A heat map for each layer and head: row ``t`` is what the action at step ``t`` was based on. Episodes are divided by lines.
    Weights are shown as multiples of ``1 / t``, what each would be if all steps so far were looked at alike; else a long trial
    would be white.

    :param inspection: Of a memory with attention
    :param task: Which of the inspected tasks
    :param title: Title of the picture
    :return: The figure
    :raises ValueError: for a memory without attention, or a task whose attention was not recorded
    """
    n_layers, n_inspected, n_heads = inspection.attention.shape[:3]
    if n_layers == 0:
        raise ValueError("this memory has no attention (GRU and LSTM have none): look at its embeddings.")
    if n_inspected == 0:
        raise ValueError("no attention was recorded: inspect with n_attention of at least 1 (--n-attention).")
    if not 0 <= task < n_inspected:
        raise ValueError(f"task must be in [0, {n_inspected - 1}], whose attention was recorded, got {task}.")
    figure = new_figure(2.2 * n_heads + 1.2, 2.2 * n_layers + 0.6)
    grid = figure.subplots(n_layers, n_heads, sharex=True, sharey=True, squeeze=False)
    n_steps = int(inspection.result.lengths[task].sum())
    starts = inspection.episode_starts[task]
    weights = inspection.attention[:, task, :, :n_steps, :n_steps]
    hidden = np.triu(np.ones((n_steps, n_steps), dtype=bool), k=1)
    # Row t has t + 1 visible steps
    multiples = weights * np.arange(1, n_steps + 1)[:, None]
    # Few outliers must not decide about the scale
    highest = max(2.0, float(np.percentile(multiples[:, :, ~hidden], 99.0)))
    image = None
    for layer in range(n_layers):
        for head in range(n_heads):
            axes = grid[layer, head]
            image = axes.imshow(
                np.ma.masked_where(hidden, multiples[layer, head]),
                vmin=0.0,
                vmax=highest,
                cmap="Greys",
                interpolation="nearest",
                extent=(0.5, n_steps + 0.5, n_steps + 0.5, 0.5),
                rasterized=True,
            )
            for start in starts[1:]:
                axes.axhline(start + 0.5, color="#0072B2", linewidth=0.8, linestyle="--")
                axes.axvline(start + 0.5, color="#0072B2", linewidth=0.8, linestyle="--")
            axes.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.label_outer()
    figure.supxlabel("step that is looked at", fontsize=9)
    figure.supylabel("step of acting", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    assert image is not None
    bar = figure.colorbar(image, ax=grid, shrink=0.8, extend="max")
    bar.set_label("attention weight / even weight", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def plot_attention(inspection: Inspection, path: str | Path, task: int = 0, title: str = "") -> None:
    """
    Draw the attention of one trial, see :func:`attention_figure`.

    :param inspection: Of a memory with attention
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param task: Which of the inspected tasks
    :param title: Title of the picture
    :raises ValueError: for another ending, or if there is no attention to draw
    """
    save_figure(attention_figure(inspection, task, title), path)


def embeddings_figure(inspection: Inspection, parameter: str | None = None, title: str = "") -> "Figure":
    """
    The embeddings of each episode in the plane in which all of them differ most, coloured by task: tasks that the memory tells
    apart lie apart.

    :param inspection: Of any memory
    :param parameter: Task parameter that chooses the colour, see :func:`~sb3_trmrl.plots.ood.task_parameter`
    :param title: Title of the picture
    :return: The figure
    """
    name, values = task_parameter(inspection.result, parameter)
    coordinates, shares = project(inspection.embeddings)
    n_episodes = min(inspection.result.n_episodes, 3)
    figure = new_figure(3.0 * n_episodes + 0.9, 3.2)
    grid = figure.subplots(1, n_episodes, sharex=True, sharey=True, squeeze=False)[0]
    n_steps = coordinates.shape[1]
    ends = np.cumsum(inspection.result.lengths, axis=1)
    shown = None
    for episode, axes in enumerate(grid):
        first = ends[:, episode] - inspection.result.lengths[:, episode]
        within = (np.arange(n_steps) >= first[:, None]) & (np.arange(n_steps) < ends[:, episode][:, None])
        task, step = np.nonzero(within)
        # Light to dark in grey too; few points on top of each other
        shown = axes.scatter(
            coordinates[task, step, 0],
            coordinates[task, step, 1],
            c=values[task],
            cmap="viridis",
            vmin=values.min(),
            vmax=values.max(),
            s=7,
            alpha=0.7,
            linewidth=0,
            rasterized=True,
        )
        finish(axes, f"component 1 ({shares[0]:.0%})", f"component 2 ({shares[1]:.0%})" if episode == 0 else "", legend=False)
        axes.set_title(f"episode {episode + 1}", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    assert shown is not None
    bar = figure.colorbar(shown, ax=grid.tolist())
    bar.solids.set_alpha(1.0)  # type: ignore[union-attr]
    bar.set_label(f"task: {name}")
    return figure


def plot_embeddings(inspection: Inspection, path: str | Path, parameter: str | None = None, title: str = "") -> None:
    """
    Draw memory embeddings, see :func:`embeddings_figure`.

    :param inspection: Of any memory
    :param path: Where to write the picture (the ending chooses the format: png, svg, pdf)
    :param parameter: Task parameter that chooses the colour
    :param title: Title of the picture
    :raises ValueError: for another ending, or a parameter that the tasks do not have
    """
    save_figure(embeddings_figure(inspection, parameter, title), path)
