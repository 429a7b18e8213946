"""What all pictures share: lines that differ in grey too, and figures without global state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")


class LineStyle(NamedTuple):
    """How a line looks."""

    color: str
    linestyle: Any
    marker: str


#: Of the agents. From Okabe and Ito's palette (distinct for the colour-blind), dark and light in turn
AGENT_STYLES = (
    LineStyle("#0072B2", "-", "o"),
    LineStyle("#D55E00", "--", "s"),
    LineStyle("#009E73", "-.", "^"),
    LineStyle("#CC79A7", (0, (5, 1, 1, 1, 1, 1)), "D"),
    LineStyle("#56B4E9", (0, (3, 1)), "v"),
    LineStyle("#E69F00", (0, (1, 1)), "P"),
    LineStyle("#000000", (0, (8, 2)), "X"),
)
#: Of the references, which are grey
REFERENCE_STYLES = {
    "oracle": LineStyle("0.15", (0, (6, 2)), ""),
    "reactive": LineStyle("0.35", (0, (4, 1.5, 1, 1.5)), ""),
    "blind": LineStyle("0.45", (0, (1.5, 1.5)), ""),
    "random": LineStyle("0.65", (0, (1, 3)), ""),
}


def agent_style(index: int) -> LineStyle:
    """
    :param index: Which agent, from 0.
    :return: Its style; they repeat after the last.
    """
    return AGENT_STYLES[index % len(AGENT_STYLES)]


def reference_style(name: str, index: int = 0) -> LineStyle:
    """
    :param name: ``"oracle"``, ``"reactive"``, ``"blind"``, ``"random"``, or another name.
    :param index: Chooses the style of another name.
    :return: Style of the reference.
    """
    return REFERENCE_STYLES.get(name) or list(REFERENCE_STYLES.values())[index % len(REFERENCE_STYLES)]


def legend_label(name: str) -> str:
    """
    :param name: Name of an agent.
    :return: What shows it: matplotlib leaves out what begins with ``_`` and takes what stands between ``$`` for mathematics.
    """
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def new_figure(width: float = 6.4, height: float = 4.0) -> "Figure":
    """
    :param width: Inches.
    :param height: Inches.
    :return: An empty figure.
    """
    # The object-oriented interface: no global state, no window, whatever backend the user has
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: str | Path) -> None:
    """
    :param figure: The figure.
    :param path: Where the picture goes; its ending chooses the format.
    :raises ValueError: On an ending that is none of png, svg and pdf.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"a picture's path must end in one of {', '.join(FORMATS)}, got {str(path)!r}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def finish(axes: "Axes", xlabel: str, ylabel: str, title: str = "", legend: bool = True) -> None:
    """
    Labels, grid, legend.

    :param axes: The axes.
    :param xlabel: Label.
    :param ylabel: Label.
    :param title: Title of the picture.
    :param legend: Whether to draw a legend.
    """
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(framealpha=0.9, fontsize=8, handlelength=3.2)
