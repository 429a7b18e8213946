"""
Tables and pictures of the campaign, from its data.

    python benchmarks/campaign_report.py

In ``docs/results.md`` it writes what stands between ``<!-- FAMILY: TABLE -->``, or ``<!-- speed of learn -->``, and
``<!-- end -->``, and leaves the rest as it is; pictures go to ``images`` beside the page. Other ``--results`` than the
published ones are only printed, unless they have a ``--page`` of their own. Tables have the runs of as many steps as most of
a family's have.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from campaign import CHANGES, EVAL_SEEDS, N_EPISODES, N_TASKS, RESULTS, SPEED_RESULTS, read_results

from sb3_trmrl.common.statistics import adaptation_score, bootstrap_interval, interquartile_mean, score_interval
from sb3_trmrl.plots.style import LineStyle, agent_style, finish, new_figure, reference_style, save_figure

DOCS = Path(__file__).resolve().parent.parent / "docs"

LABELS = {
    "oracle": "PPO, oracle (sees the task)",
    "trmrl": "**TrMRL (`trmrl.yml`)**",
    "rl2": "RL2 (`rl2.yml`)",
    "recurrent_ppo": "RecurrentPPO (sb3-contrib), one LSTM",
    "recurrent_ppo-two-lstms": "RecurrentPPO (sb3-contrib), two LSTMs (its default)",
    "paper": "TrMRL, the paper's preset (`trmrl_paper.yml`)",
    "reactive": "PPO, reactive (token, no memory)",
    "blind": "PPO, blind (observation, no memory)",
}
CHANGE_LABELS = {
    "rl2-lstm": "RL2 with an LSTM instead of the GRU",
    "trmrl-window": "TrMRL with a window of 5, emptied at every episode",
    "trmrl-64-steps-reset-trial": "TrMRL with 64 steps of memory, which lasts over the episodes of a trial",
    "trmrl-whole-trial": "TrMRL with the memory of the whole trial",
    "trmrl-16-steps": "TrMRL with 16 steps of memory",
    "trmrl-64-steps": "TrMRL with 64 steps of memory",
    "trmrl-256-steps": "TrMRL with 256 steps of memory",
    "trmrl-64-steps-1-layer": "TrMRL with 64 steps of memory, 1 layer",
    "trmrl-64-steps-ff-256": "TrMRL with 64 steps of memory, feed-forward networks of 256",
    "trmrl-constant-lr": "TrMRL with a learning rate of 3e-4 to the end",
    "trmrl-batch-800": "TrMRL with minibatches of two trials",
    "trmrl-10-epochs": "TrMRL with 10 epochs",
    "trmrl-std-0.6": "TrMRL with actions that start with a standard deviation of 0.6",
    "trmrl-gamma-0.95": "TrMRL with a discount of 0.95",
    "trmrl-bootstrap-episode-end": "TrMRL for which an episode's real end is an ordinary step",
    "trmrl-batch-1600-5-epochs": "TrMRL with minibatches of four trials and 5 epochs",
    "trmrl-batch-1600-5-epochs-bootstrap-episode-end": "the same, and an episode's real end is an ordinary step",
    "rl2-batch-800-10-epochs": "RL2 with minibatches of two trials and 10 epochs",
    "trmrl-xavier": "TrMRL without T-Fixup (Xavier)",
    "trmrl-4-layers": "TrMRL with 4 layers",
    "trmrl-1-layer": "TrMRL with 1 layer",
    "trmrl-ff-256": "TrMRL with feed-forward networks of 256",
    "paper-xavier": "the paper's preset without T-Fixup (Xavier)",
    "paper-window-1": "the paper's preset with a window of 1",
    "paper-window-10": "the paper's preset with a window of 10",
    "paper-1-layer": "the paper's preset with 1 layer",
}
assert set(CHANGE_LABELS) == set(CHANGES)

Runs = Sequence[Mapping[str, Any]]


def stacked(runs: Runs, split: str, tasks: str = "returns") -> np.ndarray:
    """
    :param runs: Runs of one agent.
    :param split: A split.
    :param tasks: Which of its tasks, a key of ``EVAL_SEEDS``.
    :return: Returns, ``(n_runs, n_tasks, n_episodes)``.
    """
    return np.array([run[tasks][split] for run in runs])


def number(value: float, interval: tuple[float, float], digits: int) -> str:
    """
    :param value: A number.
    :param interval: Its interval.
    :param digits: After the point.
    :return: Number and interval; a dash for what is no number.
    """
    if np.isnan(value):
        return "-"
    low, high = (f"{bound:.{digits}f}" for bound in interval)
    return f"{value:.{digits}f} [{low}, {high}]"


def returned(returns: np.ndarray) -> str:
    """
    :param returns: ``(n_runs, n_tasks)``.
    :return: Interquartile mean over runs and tasks, and its interval over both.
    """
    value = float(interquartile_mean(returns))
    low, high = bootstrap_interval(returns, resample_tasks=True)
    return number(value, (float(low), float(high)), 0 if abs(value) >= 100 else 1)


def table(by_agent: Mapping[str, Runs], labels: Mapping[str, str]) -> str:
    """
    :param by_agent: Runs of one family.
    :param labels: Agents in the order of the rows.
    :return: In Markdown.
    """
    references = {name: stacked(by_agent[name], "test").mean(axis=0) for name in ("blind", "oracle") if name in by_agent}
    has_ood = any("ood" in run["returns"] for runs in by_agent.values() for run in runs)
    head = ["agent", "seeds", "return, episode 1", "episodes 2 to 6", "score, episode 1", "episodes 2 to 6"]
    head += ["IQM of scores by task", *(["OOD return, episodes 2 to 6"] if has_ood else []), "steps", "minutes"]
    rows = []
    for agent, label in labels.items():
        if agent not in by_agent:
            continue
        runs = by_agent[agent]
        returns = stacked(runs, "test")
        cells = [label, str(len(runs)), returned(returns[..., 0]), returned(returns[..., 1:].mean(axis=-1))]
        if len(references) == 2:
            cells += [*_scores(returns, references), _iqm_of_scores(returns, references)]
        else:
            cells += [""] * 3
        if has_ood:
            cells.append(returned(stacked(runs, "ood")[..., 1:].mean(axis=-1)))
        minutes = [run["seconds"] / 60 for run in runs]
        cells += [f"{runs[0]['timesteps'] / 1e6:.2f}M", f"{np.mean(minutes):.0f}"]
        rows.append(cells)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def fresh_table(by_agent: Mapping[str, Runs]) -> str:
    """
    :param by_agent: Runs of one family.
    :return: How agents do on tasks on which nothing was chosen, in Markdown; empty if no reference was played on them.
    """
    name = "fresh_returns"
    played = {agent: [run for run in runs if name in run] for agent, runs in by_agent.items()}
    if not played.get("blind") or not played.get("oracle"):
        return ""
    references = {agent: stacked(played[agent], "test", name).mean(axis=0) for agent in ("blind", "oracle")}
    has_ood = "ood" in played["oracle"][0][name]
    head = [
        "agent, on fresh tasks",
        "seeds",
        "return, episodes 2 to 6",
        "score, episode 1",
        "episodes 2 to 6",
        "IQM of scores by task",
    ]
    rows = [[*head, *(["OOD return, episodes 2 to 6"] if has_ood else [])]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    for agent, label in LABELS.items():
        runs = played.get(agent)
        if runs and agent not in references:
            returns = stacked(runs, "test", name)
            cells = [label, str(len(runs)), returned(returns[..., 1:].mean(axis=-1))]
            cells += [*_scores(returns, references), _iqm_of_scores(returns, references)]
            if has_ood:
                cells.append(returned(stacked(runs, "ood", name)[..., 1:].mean(axis=-1)))
            rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _scores(returns: np.ndarray, references: Mapping[str, np.ndarray]) -> list[str]:
    """:return: Adaptation score of the first episode and of the mean of the later ones, intervals over runs and tasks."""
    cells = []
    for part in (slice(0, 1), slice(1, None)):
        blind, oracle, own = (
            array[..., part].mean(axis=-1, keepdims=True) for array in (references["blind"], references["oracle"], returns)
        )
        value = float(adaptation_score(own.mean(axis=0), blind, oracle)[0])
        low, high = score_interval(own, blind, oracle)
        cells.append(number(value, (float(low[0]), float(high[0])), 2))
    return cells


def _iqm_of_scores(returns: np.ndarray, references: Mapping[str, np.ndarray]) -> str:
    """:return: Interquartile mean of the scores of episodes 2 to 6, one of each run and task, and its interval over both."""
    own, blind, oracle = (array[..., 1:].mean(axis=-1) for array in (returns, references["blind"], references["oracle"]))
    if (oracle <= blind).any():
        return "-"
    scores = (own - blind) / (oracle - blind)
    low, high = bootstrap_interval(scores, resample_tasks=True)
    return number(float(interquartile_mean(scores)), (float(low), float(high)), 2)


def steps_to(runs: Runs, level: float) -> float:
    """
    :param runs: Runs of one agent.
    :param level: A return per episode, in training.
    :return: Steps after which the mean curve of the runs, averaged over the last twentieth of the training, is at that level
        for the first time; infinite if it never is.
    """
    steps, curve = mean_curve(runs)
    width = max(1, len(curve) // 20)
    smooth = np.convolve(curve, np.ones(width) / width, mode="valid")
    reached = np.flatnonzero(smooth >= level)
    return float(steps[reached[0] + width - 1]) if len(reached) else float("inf")


def mean_curve(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """
    :param runs: Runs of one agent.
    :return: Steps, and return per episode in training, mean over runs and the episodes of a trial.
    """
    length = min(len(run["curve"]) for run in runs)
    steps = np.array([point[0] for point in runs[0]["curve"][:length]])
    return steps, np.mean([[np.mean(point[2]) for point in run["curve"][:length]] for run in runs], axis=0)


def speed(by_agent: Mapping[str, Runs]) -> str:
    """
    :param by_agent: Runs of one family.
    :return: Steps to the final return of other agents, in Markdown.
    """
    lines = [
        "Steps of training until the return in training (mean over a twentieth of it) first is another agent's final one:",
        "",
    ]
    lines += ["| agent: its final return | it needs | TrMRL needs | ratio |", "|---|---:|---:|---:|"]
    for other in ("paper", "rl2", "recurrent_ppo", "reactive"):
        if other not in by_agent or "trmrl" not in by_agent:
            continue
        _, curve = mean_curve(by_agent[other])
        level = float(curve[-max(1, len(curve) // 20) :].mean())
        theirs, ours = steps_to(by_agent[other], level), steps_to(by_agent["trmrl"], level)
        ratio = "never" if np.isinf(ours) else f"{theirs / ours:.1f}"
        reached = "" if np.isinf(ours) else f"{ours / 1e6:.2f}M"
        lines.append(f"| {LABELS[other]}: {level:.0f} | {theirs / 1e6:.2f}M | {reached} | {ratio} |")
    return "\n".join(lines) if len(lines) > 4 else ""


def learn_speed(runs: Runs) -> str:
    """
    :param runs: Short runs of one family, a quiet machine's.
    :return: Steps per second of whole trainings, median and range of the runs, the fastest agent first, in Markdown.
    """
    threads = sorted({run["threads"] for run in runs})
    # For each agent and number of threads the runs'
    rates = {
        agent: [
            np.array([run["timesteps"] / run["seconds"] for run in of_agent if run["threads"] == number]) for number in threads
        ]
        for agent, of_agent in grouped(runs).items()
    }
    medians = {agent: np.array([np.median(rate) for rate in of_agent]) for agent, of_agent in rates.items()}
    names = [f"{number} thread{'s' * (number > 1)}" for number in threads]
    head = ["agent", *(f"steps/s, {name}" for name in names), *(f"against RecurrentPPO, {name}" for name in names)]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for agent in sorted(rates, key=lambda agent: -medians[agent][0]):
        cells = [
            f"{median:,.0f} [{rate.min():,.0f}, {rate.max():,.0f}]"
            for median, rate in zip(medians[agent], rates[agent], strict=True)
        ]
        ratios = [f"{ratio:.1f}" for ratio in medians[agent] / medians["recurrent_ppo"]]
        rows.append([{**LABELS, **CHANGE_LABELS}[agent], *cells, *ratios])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def picture(by_agent: Mapping[str, Runs], family: str, path: Path) -> None:
    """
    Learning curves against steps and wall time, and adaptation curves on the test tasks.

    :param by_agent: Runs of the family.
    :param family: Its id.
    :param path: Where the picture goes.
    """
    from matplotlib.ticker import EngFormatter, ScalarFormatter

    figure = new_figure(15.0, 4.2)
    against_steps, against_time, adaptation = figure.subplots(1, 3)
    ours = [name for name in LABELS if name in by_agent]
    styles: dict[str, LineStyle] = {}
    for agent in ours:
        is_reference = agent in ("oracle", "reactive", "blind")
        styles[agent] = reference_style(agent) if is_reference else agent_style(len(styles))
    for agent in ours:
        color, linestyle, marker = styles[agent]
        label = re.sub(r"[*`]", "", LABELS[agent])
        runs = by_agent[agent]
        steps, curve = mean_curve(runs)
        singles = np.array([[np.mean(point[2]) for point in run["curve"][: len(steps)]] for run in runs])
        minutes = np.mean([[point[1] / 60 for point in run["curve"][: len(steps)]] for run in runs], axis=0)
        for axes, x in ((against_steps, steps), (against_time, minutes)):
            axes.plot(x, curve, color=color, linestyle=linestyle, linewidth=1.8, label=label)
            axes.fill_between(x, singles.min(axis=0), singles.max(axis=0), color=color, alpha=0.12, linewidth=0)
        mean = stacked(runs, "test").mean(axis=(0, 1))
        adaptation.plot(range(1, len(mean) + 1), mean, color=color, linestyle=linestyle, marker=marker, label=label)
    against_steps.xaxis.set_major_formatter(EngFormatter(sep=""))
    against_time.set_xscale("log")  # from minutes to hours
    against_time.xaxis.set_major_formatter(ScalarFormatter())
    finish(against_steps, "steps of training", "return per episode, in training", f"{family}: mean and range of the seeds")
    finish(against_time, "minutes of training", "", "the same against wall time", legend=False)
    finish(adaptation, "episode of the trial", "return on unseen tasks", "adaptation after training", legend=False)
    save_figure(figure, path)


def origin(runs: Runs) -> str:
    """
    :param runs: Runs of a table.
    :return: Where they come from.
    """

    def all_of(name: str) -> str:
        return ", ".join(sorted({str(run[name]) for run in runs}))

    versions = runs[-1]["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "stable_baselines3", "gymnasium", "mujoco"))
    return f"Commits {all_of('commit')}; {named}; {all_of('machine')}, threads per run: {all_of('threads')}; {all_of('date')}."


def of_usual_length(runs: Runs) -> Runs:
    """
    :param runs: Runs.
    :return: Those of as many steps of training as most of them, to an iteration; the longer ones of as many.
    """
    lengths = np.array([run["curve"][-1][0] for run in runs])
    alike = abs(lengths[:, None] - lengths) < 0.1 * lengths
    usual = max(range(len(runs)), key=lambda index: (alike[:, index].sum(), lengths[index]), default=None)
    return [] if usual is None else [run for run, is_alike in zip(runs, alike[:, usual], strict=True) if is_alike]


def grouped(runs: Runs) -> dict[str, list[Mapping[str, Any]]]:
    """
    :param runs: Runs.
    :return: They by agent, in their order.
    """
    by_agent: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_agent.setdefault(str(run["agent"]), []).append(run)
    return by_agent


def sections(runs: Runs, page: Path | None) -> dict[str, str]:
    """
    :param runs: All runs.
    :param page: Where it goes. A picture of the agents of a family is drawn where the page has a place for them.
    :return: Generated text by the name of its place.
    """
    text = "" if page is None else page.read_text(encoding="utf-8")
    parts = {}
    for family in sorted({run["family"] for run in runs}):
        of_family = [run for run in runs if run["family"] == family]
        equally_long = of_usual_length([run for run in of_family if run["agent"] in LABELS])
        if equally_long:
            by_agent = grouped(equally_long)
            parts[f"{family}: agents"] = f"{table(by_agent, LABELS)}\n\n{origin(equally_long)}"
            parts[f"{family}: fresh tasks"] = fresh_table(by_agent)
            parts[f"{family}: speed"] = speed(by_agent)
            if page is not None and f"<!-- {family}: agents -->" in text:
                image = f"images/results_{family.removesuffix('-v0').lower()}.png"
                (page.parent / image).parent.mkdir(exist_ok=True)
                picture(by_agent, family, page.parent / image)
                parts[f"{family}: agents"] += f"\n\n![{family}]({image})"
        if any(run["agent"] in CHANGES for run in of_family):
            equally_long = of_usual_length(of_family)
            bases = {agent: LABELS[agent] for agent in ("trmrl", "rl2", "paper")}
            parts[f"{family}: one factor"] = table(grouped(equally_long), {**bases, **CHANGE_LABELS})
            parts[f"{family}: one factor"] += f"\n\n{origin(equally_long)}"
    return parts


def write_sections(page: Path | None, parts: Mapping[str, str]) -> None:
    """
    Print, and replace what stands in a page between ``<!-- NAME -->`` and ``<!-- end -->``.

    :param page: A Markdown file; None only prints.
    :param parts: Text by the name of its place.
    """
    if page is None:
        print("\n\n".join(f"{name}:\n\n{content}" for name, content in parts.items() if content))
        return
    text = page.read_text(encoding="utf-8")
    for name, content in parts.items():
        text, count = re.subn(
            rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda match, content=content: f"{match[1]}\n{content}\n\n{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        if count or content:
            print(f"{name}: {'written' if count else 'no place for it in the page'}\n\n{content}\n")
    page.write_text(text, encoding="utf-8")


def page_of(results: Path, published: Path, page: Path) -> Path | None:
    """
    :param results: A file of results.
    :param published: That of the published ones.
    :param page: Their page.
    :return: The page, if the results are the published ones; others do not replace them.
    """
    return page if results.resolve() == published else None


def main() -> None:
    """Write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="where it goes; the published results: docs/results.md")
    arguments = parser.parse_args()
    page = arguments.page or page_of(arguments.results, RESULTS, DOCS / "results.md")
    print(f"{N_TASKS} tasks, {N_EPISODES} episodes, seeds {EVAL_SEEDS}")
    parts = sections(read_results(arguments.results), page)
    if arguments.results.resolve() == RESULTS:
        speed_runs = read_results(SPEED_RESULTS)
        parts["speed of learn"] = f"{learn_speed(speed_runs)}\n\n{origin(speed_runs)}"
    write_sections(page, parts)


if __name__ == "__main__":
    main()
