"""Statistics against published definitions: hand-computed cases, exact enumeration, scipy where it is installed."""

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from sb3_trmrl.common.statistics import (
    adaptation_score,
    bootstrap_interval,
    curve_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    probability_of_improvement_interval,
    resample,
    score_interval,
)


@pytest.mark.parametrize(
    "scores, expected",
    [
        (np.arange(1.0, 9.0).reshape(4, 2), 4.5),  # of 1..8 the middle 3, 4, 5, 6
        (np.array([[1.0, 2.0, 3.0]]), 2.0),  # floor(3 / 4) = 0: nothing is cut
        (np.array([[0.0], [1.0], [2.0], [1000.0]]), 1.5),
        (np.array([[-1e9, 1.0, 2.0, 3.0, 1e9]]), 2.0),  # floor(5 / 4) = 1 at either end
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(scores) == expected
    # Runs and tasks count together, whichever is which
    assert interquartile_mean(scores.T) == expected


def test_interquartile_mean_is_scipys_trimmed_mean():
    rng = np.random.default_rng(0)
    for shape in ((1, 1), (2, 3), (5, 7), (4, 8), (10, 26)):
        scores = rng.normal(size=shape) ** 3
        np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=None), rtol=1e-12)


def test_runs_are_drawn_whole():
    # Task j has the scores 10 j and 10 j + 1: no sample may have another decade in its column
    scores = np.array([[0.0, 10.0, 20.0], [1.0, 11.0, 21.0]])
    drawn = resample(scores, 500, np.random.default_rng(0), resample_tasks=False)
    assert drawn.shape == (500, 2, 3)
    np.testing.assert_array_equal(drawn // 10, np.broadcast_to([0, 1, 2], drawn.shape))
    np.testing.assert_array_equal(drawn % 10, np.repeat(drawn[:, :, :1] % 10, 3, axis=2))
    assert {tuple(rows) for rows in drawn[:, :, 0]} == {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)}
    tasks = resample(scores, 500, np.random.default_rng(0), resample_tasks=True)[:, 0] // 10
    assert {tuple(row) for row in tasks.astype(int)} == {(a, b, c) for a in range(3) for b in range(3) for c in range(3)}


def mean_of_all(samples: np.ndarray) -> np.ndarray:
    return samples.mean(axis=(-2, -1))


def test_interval_of_two_runs_by_enumeration():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with the probabilities 1/4, 1/2, 1/4
    # On however many tasks: a good run is good on all of them
    for scores in (np.array([[0.0], [1.0]]), np.repeat([[0.0], [1.0]], 20, axis=1)):
        np.testing.assert_array_equal(bootstrap_interval(scores, mean_of_all, 0.95), (0.0, 1.0))
        np.testing.assert_array_equal(bootstrap_interval(scores, mean_of_all, 0.4), (0.5, 0.5))
    # Both runs of x are drawn the worse one with probability 1/4, so x > y in none, half or all of the pairs
    assert probability_of_improvement_interval(np.repeat([[0.0], [2.0]], 20, axis=1), np.ones((1, 20))) == (0.0, 1.0)


def test_intervals_of_few_seeds_hold_the_truth_as_often_as_they_can():
    # Seeds and tasks differ by 1, the tasks of one seed by 0.5 beside; all about 0
    rng = np.random.default_rng(0)
    held = {3: 0, 10: 0}
    for n_seeds in held:
        for _ in range(300):
            scores = rng.normal(size=(n_seeds, 1)) + rng.normal(size=(1, 20)) + 0.5 * rng.normal(size=(n_seeds, 20))
            lower, upper = bootstrap_interval(scores, n_resamples=500, resample_tasks=True)
            held[n_seeds] += bool(lower <= 0.0 <= upper)
    # Drawn for each task by itself: 63 and 76 %
    assert 0.8 * 300 < held[3] < 0.95 * 300 and 0.9 * 300 < held[10]


def test_interval_of_many_runs_is_the_normal_one():
    scores = np.random.default_rng(1).normal(3.0, 2.0, size=(300, 2))
    lower, upper = bootstrap_interval(scores, mean_of_all)
    half = 1.96 * np.sqrt(scores.mean(axis=1).var() / 300)
    np.testing.assert_allclose([lower, upper], scores.mean() + np.array([-half, half]), atol=0.05 * half)


def test_constants_have_no_width_and_one_seed_gives_the_same_twice():
    np.testing.assert_array_equal(bootstrap_interval(np.full((5, 4), 2.0)), (2.0, 2.0))
    scores = np.random.default_rng(2).normal(size=(50, 4))
    assert bootstrap_interval(scores, seed=3) == bootstrap_interval(scores, seed=3) != bootstrap_interval(scores, seed=4)


def test_as_many_resamples_are_drawn_as_were_asked_for():
    sizes = []

    def count(samples: np.ndarray) -> np.ndarray:
        sizes.append(len(samples))
        return mean_of_all(samples)

    scores = np.arange(6.0).reshape(3, 2)
    bootstrap_interval(scores, count, n_resamples=7)
    assert sum(sizes) == 7
    # A single one has no width
    lower, upper = curve_interval(scores[:, :, None], n_resamples=1)
    assert lower == upper


def test_interval_of_a_curve_draws_trials_whole():
    # Both tasks gain exactly 3 from episode 1 to 2, which drawing trials whole keeps and drawing episodes would not
    returns = np.array([[[0.0, 3.0], [10.0, 13.0]]])
    lower, upper = curve_interval(returns)
    np.testing.assert_array_equal(upper - lower, [10.0, 10.0])
    np.testing.assert_array_equal((lower, upper), [[0.0, 3.0], [10.0, 13.0]])


def test_interval_of_a_curve_has_the_spread_of_seeds_too():
    rng = np.random.default_rng(3)
    tasks_only = np.broadcast_to(rng.normal(size=(1, 50, 1)), (8, 50, 1))
    seeds_too = tasks_only + 5.0 * rng.normal(size=(8, 1, 1))
    width = [np.subtract(*curve_interval(returns)[::-1])[0] for returns in (tasks_only, seeds_too)]
    assert width[1] > 5 * width[0] > 0


def test_probability_of_improvement_by_hand():
    # Pairs (1, 1): a tie; (1, 3), (2, 3): worse; (2, 1): better -> 1.5 of 4
    assert probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[1.0], [3.0]])) == 0.375
    # Mean over tasks; other numbers of runs
    x, y = np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[0.0, 6.0]])
    assert probability_of_improvement(x, y) == 0.5
    assert probability_of_improvement(y, x) == 0.5
    assert probability_of_improvement_interval(x + 10, y) == (1.0, 1.0)
    with pytest.raises(ValueError, match="same tasks, got 2 and 1"):
        probability_of_improvement(x, y[:, :1])


def test_interval_of_the_probability_of_improvement_draws_tasks():
    # Of ten tasks, each won with probability 1/2, fewer than 2 or more than 8 are won in 1 % of the cases each, 2 or 8 in 4 %
    wins = np.repeat([[0.0, 1.0]], 5, axis=1)
    np.testing.assert_allclose(probability_of_improvement_interval(wins, np.full((1, 10), 0.5)), (0.2, 0.8))


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 5, size=(7, 3)).astype(float), rng.integers(0, 6, size=(4, 3)).astype(float)
    u = np.mean([stats.mannwhitneyu(x[:, task], y[:, task]).statistic / 28 for task in range(3)])
    np.testing.assert_allclose(probability_of_improvement(x, y), u)


def test_performance_profile_by_hand():
    scores = np.array([[0.0, 1.0], [2.0, 3.0]])
    thresholds = np.array([-1.0, 0.0, 1.5, 3.0])
    # Above, not at
    np.testing.assert_array_equal(performance_profile(scores, thresholds), [1.0, 0.75, 0.5, 0.0])
    batch = performance_profile(np.stack([scores, scores + 1]), thresholds)
    np.testing.assert_array_equal(batch, [[1.0, 0.75, 0.5, 0.0], [1.0, 1.0, 0.75, 0.25]])


def test_adaptation_score_by_hand():
    blind, oracle = np.array([[0.0, 0.0], [2.0, 2.0]]), np.array([[10.0, 10.0], [12.0, 12.0]])
    # Means: 1 (blind), 11 (oracle); the agent's 1 and 6
    np.testing.assert_allclose(adaptation_score(np.array([[0.0, 5.0], [2.0, 7.0]]), blind, oracle), [0.0, 0.5])
    np.testing.assert_allclose(adaptation_score(oracle, blind, oracle), 1.0)
    # Where the oracle has no advantage there is no score
    assert np.isnan(adaptation_score(oracle, oracle, blind)).all() and np.isnan(adaptation_score(blind, blind, blind)).all()


def test_interval_of_the_score_draws_the_same_tasks_for_all():
    rng = np.random.default_rng(5)
    blind = rng.normal(0.0, 10.0, size=(20, 1))
    oracle = blind + rng.uniform(1.0, 2.0, size=(20, 1))
    half_way = (blind + 0.5 * (oracle - blind))[None]
    np.testing.assert_allclose(score_interval(half_way, blind, oracle), [[0.5], [0.5]])
    lower, upper = score_interval(half_way, blind, oracle, paired=False)
    assert upper[0] - lower[0] > 1.0


def test_interval_of_the_score_is_open_where_the_gap_is_uncertain():
    rng = np.random.default_rng(5)
    blind = rng.normal(0.0, 10.0, size=(20, 1))
    oracle = rng.normal(4.0, 10.0, size=(20, 1))
    for agent in (blind, oracle, (blind + oracle) / 2.0, blind + 5.0):
        assert np.array(score_interval(agent[None], blind, oracle)).tolist() == [[-np.inf], [np.inf]]
    # One such resample in ten thousand opens nothing
    oracle = blind + np.where(np.arange(20) < 17, 1.0, -1.0)[:, None]
    assert np.isfinite(score_interval(oracle[None], blind, oracle)).all()


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan]])])
def test_bad_scores(bad):
    with pytest.raises(ValueError, match="scores must"):
        bootstrap_interval(bad)


def test_a_failed_run_is_no_number():
    bad, good = np.array([[1.0, np.nan]]), np.ones((1, 2))
    for fails in (
        lambda: performance_profile(bad, np.zeros(1)),
        lambda: probability_of_improvement(bad, good),
        lambda: probability_of_improvement(good, bad),
        lambda: interquartile_mean(bad),
        lambda: curve_interval(bad[None]),
        lambda: score_interval(bad[None], np.zeros((1, 2)), good),
        lambda: score_interval(good[None], np.zeros((1, 2)), np.array([[1.0, np.inf]])),
    ):
        with pytest.raises(ValueError, match="scores must be finite"):
            fails()


def test_what_is_paired_has_played_the_same_tasks():
    returns, references = np.zeros((1, 2, 3)), np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"\(2, 3\), got \(5, 3\) and \(5, 3\): pass paired=False"):
        score_interval(returns, references, references + 1)
    for n_tasks in (1, 3):
        with pytest.raises(ValueError, match=f"same tasks, got 2 and {n_tasks}"):
            probability_of_improvement_interval(np.zeros((1, 2)), np.zeros((1, n_tasks)))


def test_bad_confidence():
    with pytest.raises(ValueError, match="the number of resamples must be an integer of at least 1, got 0"):
        probability_of_improvement_interval(np.zeros((2, 2)), np.zeros((2, 2)), n_resamples=0)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        bootstrap_interval(np.ones((2, 2)), confidence=95)
    with pytest.raises(ValueError, match=r"\(n_runs, n_tasks, n_episodes\), got \(2, 2\)"):
        curve_interval(np.ones((2, 2)))
