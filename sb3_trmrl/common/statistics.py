"""
Statistics over few runs: interquartile mean, bootstrap, probability of improvement, performance profile
(Agarwal et al., NeurIPS 2021, arXiv 2108.13264; definitions as in their library rliable, but for the bootstrap).

Shapes: scores are ``(..., n_runs, n_tasks)``. A *run* is one training seed, or, of a single agent, one task.

The bootstrap draws **whole runs**. Agarwal et al. draw the runs of each task by themselves, as in their benchmarks every task
has trainings of its own. Here one training plays all tasks and is good or bad on all of them. Drawn by task, a 95 % interval
of three seeds on 20 tasks holds the truth in about 60 % of the cases, drawn whole in about 85 % (tests/test_statistics.py).
"""

from collections.abc import Callable, Iterator

import numpy as np

from sb3_trmrl.common.arguments import check_integers

MAX_DRAWN = 2_000_000
"""Numbers drawn at once: thousands of resamples of hundreds of tasks would take gigabytes."""


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """
    Mean of the middle half of all runs and tasks together: ``floor(n / 4)`` of the ``n`` sorted scores are left out at either
    end, as by ``scipy.stats.trim_mean(scores, 0.25)`` (arXiv 2108.13264, section 4.3).

    :param scores: Shape (..., n_runs, n_tasks)
    :return: Shape (...)
    """
    scores = _finite(scores)
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    mean: np.ndarray = flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)
    return mean


def resample(scores: np.ndarray, n_resamples: int, generator: np.random.Generator, resample_tasks: bool) -> np.ndarray:
    """
    Bootstrap samples of a score matrix: whole runs (rows) are drawn.

    :param scores: Shape (n_runs, n_tasks)
    :param n_resamples: Number of samples
    :param generator: Where randomness comes from
    :param resample_tasks: Draw the tasks too: the interval is then about tasks like these, and not about these tasks
    :return: Shape (n_resamples, n_runs, n_tasks)
    """
    n_runs, n_tasks = scores.shape
    rows = generator.integers(0, n_runs, size=(n_resamples, n_runs, 1))
    columns = np.arange(n_tasks)[None, None]
    if resample_tasks:
        columns = generator.integers(0, n_tasks, size=(n_resamples, 1, n_tasks))
    return scores[rows, columns]


def bootstrap_interval(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
    resample_tasks: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Percentile bootstrap interval (Efron 1979) of a statistic, whole runs drawn.

    :param scores: Shape (n_runs, n_tasks)
    :param statistic: From (n_resamples, n_runs, n_tasks) to (n_resamples, ...)
    :param confidence: Probability mass of the interval, in (0, 1)
    :param n_resamples: Number of resamples
    :param seed: Seed of the resampling
    :param resample_tasks: Draw the tasks too; with a single run there is nothing else to draw
    :return: Lower and upper bound, shape (...) each
    :raises ValueError: for scores that are no matrix and for a confidence outside (0, 1)
    """
    scores = _matrix(scores)
    check_integers({"the number of resamples": n_resamples})
    generator = np.random.default_rng(seed)
    statistics = []
    part = max(1, MAX_DRAWN // scores.size)
    for start in range(0, n_resamples, part):
        count = min(part, n_resamples - start)
        statistics.append(statistic(resample(scores, count, generator, resample_tasks)))
    return _percentiles(np.concatenate(statistics), confidence)


def curve_interval(
    returns: np.ndarray, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Percentile bootstrap interval of an adaptation curve, the mean over runs and tasks. Runs and tasks are drawn, each for
    themselves; the episodes of a trial stay together.

    :param returns: Shape (n_runs, n_tasks, n_episodes)
    :param confidence: Probability mass of the interval, in (0, 1)
    :param n_resamples: Number of resamples
    :param seed: Seed of the resampling
    :return: Lower and upper bound, (n_episodes,) each
    """
    returns = _finite(returns)
    curves = [_drawn_mean(returns, *drawn) for drawn in _draws(returns, n_resamples, seed)]
    return _percentiles(np.concatenate(curves), confidence)


def score_interval(
    returns: np.ndarray,
    blind: np.ndarray,
    oracle: np.ndarray,
    paired: bool = True,
    confidence: float = 0.95,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Percentile bootstrap interval of :func:`adaptation_score`, drawn as in :func:`curve_interval`.

    :param returns: Returns of the agent, (n_runs, n_tasks, n_episodes)
    :param blind: Returns of the blind reference, (n_tasks, n_episodes)
    :param oracle: Returns of the oracle, same shape
    :param paired: The references played the same tasks, so that the same are drawn for all; else they stay as they are
    :param confidence: Probability mass of the interval, in (0, 1)
    :param n_resamples: Number of resamples
    :param seed: Seed of the resampling
    :return: Lower and upper bound, (n_episodes,) each. A resample in which the oracle is not above blind says nothing, so it
        counts as minus infinity for the lower and as infinity for the upper bound: where that happens often enough to matter,
        the gap itself is uncertain, and the interval open
    """
    returns, blind, oracle = _finite(returns), _finite(blind), _finite(oracle)
    if paired and not blind.shape == oracle.shape == returns.shape[1:]:
        raise ValueError(
            f"blind and oracle must have played the tasks and episodes of returns, {returns.shape[1:]}, got {blind.shape} and "
            f"{oracle.shape}: pass paired=False for references on other tasks."
        )
    scores = []
    for runs, tasks in _draws(returns, n_resamples, seed):
        mean = _drawn_mean(returns, runs, tasks)
        low, high = (part[tasks].mean(axis=1) if paired else part.mean(axis=0) for part in (blind, oracle))
        gap = np.broadcast_to(high - low, mean.shape)
        scores.append(np.divide(mean - low, gap, out=np.full(mean.shape, np.nan), where=gap > 0.0))
    drawn = np.concatenate(scores)
    lower, _ = _percentiles(np.where(np.isnan(drawn), -np.inf, drawn), confidence)
    _, upper = _percentiles(np.where(np.isnan(drawn), np.inf, drawn), confidence)
    return lower, upper


def _draws(returns: np.ndarray, n_resamples: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """:return: Indices of runs, (part, n_runs), and of tasks, (part, n_tasks), in parts that fit into memory."""
    if returns.ndim != 3 or returns.size == 0:
        raise ValueError(f"returns must have the shape (n_runs, n_tasks, n_episodes), got {returns.shape}.")
    check_integers({"the number of resamples": n_resamples})
    n_runs, n_tasks, _ = returns.shape
    generator = np.random.default_rng(seed)
    part = max(1, MAX_DRAWN // returns.size)
    for start in range(0, n_resamples, part):
        count = min(part, n_resamples - start)
        yield generator.integers(0, n_runs, size=(count, n_runs)), generator.integers(0, n_tasks, size=(count, n_tasks))


def _drawn_mean(returns: np.ndarray, runs: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    # (part, n_runs, n_tasks, n_episodes) -> (part, n_episodes)
    mean: np.ndarray = returns[runs[:, :, None], tasks[:, None, :]].mean(axis=(1, 2))
    return mean


def _percentiles(samples: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}.")
    tail = (1.0 - confidence) / 2.0
    # Between two infinite samples nothing is interpolated: that would be no number
    with np.errstate(invalid="ignore"):
        lower, upper = np.quantile(samples, [tail, 1.0 - tail], axis=0)
    below = np.quantile(samples, tail, axis=0, method="lower")
    above = np.quantile(samples, 1.0 - tail, axis=0, method="higher")
    return np.where(np.isfinite(lower), lower, below), np.where(np.isfinite(upper), upper, above)


def probability_of_improvement(scores_x: np.ndarray, scores_y: np.ndarray) -> np.ndarray:
    """
    How probably a run of X is better than a run of Y on the same task, mean over tasks; a tie counts half. That is the
    Mann-Whitney U statistic divided by the number of pairs (arXiv 2108.13264, section 4.3).

    :param scores_x: Shape (..., n_runs_x, n_tasks)
    :param scores_y: Shape (..., n_runs_y, n_tasks)
    :return: In [0, 1], shape (...)
    :raises ValueError: if the numbers of tasks differ
    """
    x, y = _finite(scores_x), _finite(scores_y)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"scores_x and scores_y must have the same tasks, got {x.shape[-1]} and {y.shape[-1]} of them.")
    # (..., n_runs_x, 1, n_tasks) against (..., 1, n_runs_y, n_tasks)
    x, y = x[..., :, None, :], y[..., None, :, :]
    probability: np.ndarray = ((x > y) + 0.5 * (x == y)).mean(axis=(-3, -2, -1))
    return probability


def probability_of_improvement_interval(
    scores_x: np.ndarray, scores_y: np.ndarray, confidence: float = 0.95, n_resamples: int = 2_000, seed: int = 0
) -> tuple[float, float]:
    """
    Bootstrap interval of :func:`probability_of_improvement`, runs and tasks drawn; the same tasks for both.

    :param scores_x: Shape (n_runs_x, n_tasks)
    :param scores_y: Shape (n_runs_y, n_tasks)
    :param confidence: Probability mass of the interval, in (0, 1)
    :param n_resamples: Number of resamples
    :param seed: Seed of the resampling
    :return: Lower and upper bound
    """
    check_integers({"the number of resamples": n_resamples})
    x, y = _matrix(scores_x), _matrix(scores_y)
    probability_of_improvement(x, y)  # the same tasks?
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(n_resamples):
        columns = generator.integers(0, x.shape[1], size=x.shape[1])
        drawn_x, drawn_y = (resample(scores[:, columns], 1, generator, resample_tasks=False)[0] for scores in (x, y))
        values.append(probability_of_improvement(drawn_x, drawn_y))
    lower, upper = _percentiles(np.array(values), confidence)
    return float(lower), float(upper)


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Which fraction of runs and tasks scores above each threshold: the run-score distribution (arXiv 2108.13264, section 4.2).

    :param scores: Shape (..., n_runs, n_tasks)
    :param thresholds: Shape (n_thresholds,)
    :return: In [0, 1], shape (..., n_thresholds)
    """
    scores = _finite(scores)
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    if flat.ndim == 1:
        fraction: np.ndarray = 1.0 - np.searchsorted(flat, thresholds, side="right") / flat.shape[-1]
        return fraction
    return np.stack(
        [1.0 - np.searchsorted(row, thresholds, side="right") / row.size for row in flat.reshape(-1, flat.shape[-1])]
    ).reshape(*flat.shape[:-1], -1)


def adaptation_score(returns: np.ndarray, blind: np.ndarray, oracle: np.ndarray) -> np.ndarray:
    """
    ``(R - R_blind) / (R_oracle - R_blind)`` for each episode of the trial, of mean returns over tasks: 0 is what can be had
    without knowing the task, 1 what can be had knowing it.

    :param returns: Returns of the agent, (..., n_tasks, n_episodes)
    :param blind: Returns of the blind reference, (..., n_tasks_of_references, n_episodes)
    :param oracle: Returns of the oracle, same shape
    :return: Shape (..., n_episodes); NaN where the oracle is not better than blind, so that nothing can be gained
    """
    mean, low, high = (np.asarray(part, dtype=np.float64).mean(axis=-2) for part in (returns, blind, oracle))
    gap = high - low
    with np.errstate(divide="ignore", invalid="ignore"):
        score: np.ndarray = np.where(gap > 0.0, (mean - low) / gap, np.nan)
    return score


def _matrix(scores: np.ndarray) -> np.ndarray:
    scores = _finite(scores)
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores must have the shape (n_runs, n_tasks) with at least one of each, got {scores.shape}.")
    return scores


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite numbers; leave out the runs that failed, and say so.")
    return scores
