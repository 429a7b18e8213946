"""Running statistics: against numpy, part by part."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_trmrl.common.normalization import ObservationNormalizer, RunningMoments, ValueScale
from sb3_trmrl.envs.trial import TokenSpace


def test_moments_of_unequal_batches_are_those_of_all_samples():
    rng = np.random.default_rng(0)
    batches = [rng.normal(loc=i, scale=1 + i, size=(n, 3)) for i, n in enumerate((5, 100, 17))]
    moments = RunningMoments(3)
    for batch in batches:
        moments.update(batch)
    everything = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean, everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, everything.var(axis=0), rtol=1e-5)
    assert int(moments.count) == 122


def test_moments_of_many_samples_far_from_zero():
    samples = np.random.default_rng(0).normal(1e4, 0.1, size=(100_000, 2)).astype(np.float32)
    moments = RunningMoments(2)
    moments.update(samples)
    np.testing.assert_allclose(moments.variance, 0.01, rtol=0.02)
    np.testing.assert_allclose(moments.mean, 1e4, rtol=1e-7)


def test_each_part_of_a_token_gets_its_own_treatment():
    space = TokenSpace(spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, 1, (1,)))
    normalizer = ObservationNormalizer(space)
    rng = np.random.default_rng(0)
    # obs (2), action, reward, done
    tokens = rng.normal(loc=[5.0, -3.0, 0.5, 2.0, 0.3], scale=[2.0, 0.1, 1.0, 1.0, 0.2], size=(1000, 5)).astype(np.float32)
    before = th.as_tensor(tokens)
    assert th.equal(normalizer(before), before), "the identity before the first update"
    normalizer.update({"token": tokens})
    after = normalizer(before).numpy()
    np.testing.assert_allclose(after[:, :2], (tokens[:, :2] - tokens[:, :2].mean(0)) / tokens[:, :2].std(0), atol=1e-4)
    np.testing.assert_allclose(after[:, 3], tokens[:, 3] / np.sqrt((tokens[:, 3] ** 2).mean()), rtol=1e-4)
    np.testing.assert_array_equal(after[:, [2, 4]], tokens[:, [2, 4]])


def test_normalised_parts_are_clipped_and_no_others():
    space = TokenSpace(spaces.Box(-np.inf, np.inf, (1,)), spaces.Box(-100, 100, (1,)))
    normalizer = ObservationNormalizer(space, clip=10.0)
    normalizer.update({"token": np.array([[-1.0, 0.0, 1.0, 0.0], [1.0, 0.0, -1.0, 0.0]])})
    assert normalizer(th.tensor([[1e6, 50.0, -1e6, 1.0]])).tolist() == [[10.0, 50.0, -10.0, 1.0]]


def test_dict_tokens_by_key():
    box = spaces.Box(-np.inf, np.inf, (2, 3))
    space = spaces.Dict(
        dict(
            state=box,
            camera=spaces.Box(0, 255, (3, 36, 36), np.uint8),
            kind=spaces.Discrete(3),
            prev_action=spaces.Box(-1, 1, (2,)),
            prev_reward=spaces.Box(-np.inf, np.inf, (1,)),
            prev_done=spaces.Box(0, 1, (1,)),
        )
    )
    normalizer = ObservationNormalizer(space)
    assert set(normalizer.moments) == {"state", "prev_reward"}
    rng = np.random.default_rng(0)
    batch = {key: rng.normal(3.0, 2.0, size=(500, *shape)) for key, shape in (("state", (2, 3)), ("prev_reward", (1,)))}
    normalizer.update(batch)
    tensors = {key: th.as_tensor(part, dtype=th.float32) for key, part in batch.items()}
    tensors["prev_action"] = th.ones(500, 2)
    after = normalizer(tensors)
    assert after["state"].shape == (500, 2, 3)
    assert after["state"].mean().item() == pytest.approx(0.0, abs=1e-4) and after["state"].std().item() == pytest.approx(
        1.0, abs=1e-3
    )
    assert after["prev_reward"].pow(2).mean().item() == pytest.approx(1.0, abs=1e-3) and after["prev_reward"].mean() > 0.5
    assert th.equal(after["prev_action"], tensors["prev_action"])


def test_what_hardly_differs_stays_small():
    normalizer = ObservationNormalizer(spaces.Box(-1, 1, (1,)))
    almost_zero = np.array([[-1e-6], [1e-6]], np.float32)
    normalizer.update({"token": almost_zero})
    np.testing.assert_allclose(normalizer(th.as_tensor(almost_zero)), [[-0.01], [0.01]], rtol=1e-3)


def test_integers_are_normalised_too():
    normalizer = ObservationNormalizer(spaces.Box(0, 10, (1,), np.int64))
    normalizer.update({"token": np.array([[0], [10]])})
    np.testing.assert_allclose(normalizer(th.tensor([[0.0], [10.0]])), [[-1.0], [1.0]], rtol=1e-5)


def test_value_scale_is_the_root_mean_square_of_all_targets():
    value_scale = ValueScale()
    assert value_scale.scale == 1.0
    value_scale.update(np.zeros((3, 2)))
    assert value_scale.scale == 1.0, "nothing to measure with yet"
    value_scale.update(np.full(3, 1e-6))
    assert value_scale.scale == 1.0, "all but zero"
    value_scale = ValueScale()
    value_scale.update(np.array([[3.0, -3.0]]))
    value_scale.update(np.array([[1.0, 1.0], [5.0, -1.0]]))
    assert value_scale.scale == pytest.approx(np.sqrt((9 + 9 + 1 + 1 + 25 + 1) / 6), rel=1e-6)
