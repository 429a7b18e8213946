"""What TrMRLPPO and RL2PPO promise with every memory: acting, training, evaluating and loading are one function."""

import io
import json
import zipfile
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_trmrl import RL2PPO, RL2Policy, TrMRLPPO, register_memory_encoder
from sb3_trmrl.common import on_policy_algorithm
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.common.type_aliases import TrialSlices
from sb3_trmrl.memory_encoders import MEMORY_ENCODERS, GRUEncoder, MemoryEncoder, TFixupTransformerEncoder
from tests.families import ACTION_SPACES, ENCODERS, counter_vec_env

every_encoder = pytest.mark.parametrize("label", ENCODERS)


def make_model(env, label: str, n_steps: int = 7, batch_size: int = 8, memory: dict[str, Any] | None = None, **kwargs) -> Any:
    name, memory_encoder_kwargs = ENCODERS[label]
    policy_kwargs = dict(net_arch=[8], memory_encoder=name, memory_encoder_kwargs={**memory_encoder_kwargs, **(memory or {})})
    policy_kwargs.update(kwargs.pop("policy_kwargs", {}))
    algorithm, policy = (RL2PPO, "RL2Policy") if name in ("gru", "lstm") else (TrMRLPPO, "TrMRLPolicy")
    return algorithm(
        policy,
        env,
        n_steps=n_steps,
        batch_size=batch_size,
        **{"n_epochs": 1, "learning_rate": 3e-3, "seed": 0, "device": "cpu", "policy_kwargs": policy_kwargs, **kwargs},
    )


def actions_of(model: Any, batch: Any) -> th.Tensor:
    """:return: The actions of a minibatch as PPO's update passes them on."""
    return batch.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else batch.actions


class CheckRatio(BaseCallback):
    """Before the first optimiser step of every iteration the ratio is 1, for each step of the rollout exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.worst = 0.0
        self.worst_value = 0.0
        self.n_steps = 0
        self.reached_back = 0
        self.longest_memory = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, MemoryPPO)
        buffer, policy = self.model.rollout_buffer, self.model.policy
        seen = []
        for batch in buffer.get(7):
            with th.no_grad():
                values, log_prob, _ = policy.evaluate_actions(batch.observations, actions_of(self.model, batch))
            self.worst = max(self.worst, float((th.exp(log_prob - batch.old_log_prob) - 1).abs().max()))
            # As predicted, whatever unit the targets have now: what clip_range_vf limits the change of starts at zero
            self.worst_value = max(self.worst_value, float((values.flatten() - batch.old_values).abs().max()))
            seen.append(th.stack([batch.old_values, batch.old_log_prob, batch.advantages, batch.returns]).cpu().numpy())
        numbers = [buffer.values / buffer.factor, buffer.log_probs, buffer.advantages, buffer.returns]
        rollout = np.stack([part.flatten() for part in numbers])
        sampled = np.concatenate(seen, axis=1)
        np.testing.assert_array_equal(sampled[:, np.lexsort(sampled)], rollout[:, np.lexsort(rollout)])
        self.n_steps += sampled.shape[1]
        self.reached_back += int((buffer.memory_lengths[buffer.context_length] > 1).sum())
        self.longest_memory = max(self.longest_memory, int(buffer.memory_lengths.max()))


# -- Acting and training ---------------------------------------------------------------------------------------------


@every_encoder
@pytest.mark.parametrize("action_space", ACTION_SPACES)
@pytest.mark.parametrize("memory_reset", ["trial", "episode"])
def test_ratio_is_one_before_the_first_optimiser_step(label, action_space, memory_reset):
    # Trials of 6 to 12 steps, episodes of 2 to 4, against rollouts of 7
    env = counter_vec_env(3, episodes_per_trial=3, action_space=action_space, noise=1.0)
    model = make_model(env, label, policy_kwargs=dict(memory_reset=memory_reset))
    check = CheckRatio()
    model.learn(4 * 7 * 3, callback=check)
    assert check.n_steps == 4 * 7 * 3
    assert check.worst < 1e-5 and check.worst_value < 1e-4
    assert check.reached_back > 0, "no memory of the test went on over the rollout boundary"


@pytest.mark.parametrize("label", ["window", "trial-sinusoidal-none", "gru-embedding-truncated", "lstm", "gtrxl", "snail"])
@pytest.mark.parametrize(
    ("n_envs", "n_steps", "episodes_per_trial", "horizon"),
    [
        (1, 3, 2, 4),  # trials longer than a rollout
        (2, 40, 1, 2),  # many trials in a rollout
        (3, 5, 3, 12),  # trials longer than several rollouts and than every bounded context
        (1, 13, 1, 13),  # one trial is one rollout, unless it ends early
    ],
)
def test_ratio_is_one_however_trials_and_rollouts_overlap(label, n_envs, n_steps, episodes_per_trial, horizon):
    env = counter_vec_env(n_envs, episodes_per_trial, horizon=horizon, noise=1.0)
    model = make_model(env, label, n_steps=n_steps)
    check = CheckRatio()
    model.learn(5 * n_steps * n_envs, callback=check)
    assert check.n_steps == 5 * n_steps * n_envs and check.worst < 1e-5 and check.worst_value < 1e-4
    if horizon == 12:
        assert check.longest_memory > n_steps + 14 >= n_steps + (0 if label == "lstm" else model.policy.context_length)


@pytest.mark.parametrize("label", ["trial-rotary-none", "trial-learned-none", "gru", "gtrxl", "snail"])
def test_ratio_is_one_in_trials_longer_than_a_fresh_cache(label):
    task = {"reward": 1.0, "length": 999.0}
    env = counter_vec_env(2, tasks=[task], horizon=75, noise=1.0)
    model = make_model(env, label, n_steps=50, batch_size=50, memory={} if label == "gru" else dict(memory_length=140))
    check = CheckRatio()
    model.learn(4 * 100, callback=check)
    assert check.worst < 1e-5 and check.longest_memory == 150 and check.reached_back == 4


@every_encoder
@pytest.mark.parametrize(("n_envs", "memory_reset"), [(1, "trial"), (3, "trial"), (3, "episode")])
def test_predict_over_three_trials_is_the_forward_of_training(monkeypatch, label, n_envs, memory_reset):
    predict_against_training(monkeypatch, label, "box", n_envs, memory_reset)


@pytest.mark.parametrize("label", ["window", "trial-rotary-none", "lstm"])
@pytest.mark.parametrize("action_space", ["discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_predict_with_other_action_spaces(monkeypatch, label, action_space, critic):
    predict_against_training(monkeypatch, label, action_space, 2, "trial", critic=critic)


def predict_against_training(monkeypatch, label: str, action_space: str, n_envs: int, memory_reset: str, **options) -> None:
    env = counter_vec_env(n_envs, episodes_per_trial=3, action_space=action_space, noise=1.0)
    model = make_model(env, label, policy_kwargs=dict(memory_reset=memory_reset, output_scale=1.0, **options))
    model.learn(7 * n_envs)
    policy, make_distribution, recorded = model.policy, model.policy._get_action_dist_from_latent, []

    def record(latent: th.Tensor) -> Any:
        distribution = make_distribution(latent)
        parts = distribution.distribution if isinstance(distribution.distribution, list) else [distribution.distribution]
        means = [part.mean if action_space == "box" else part.logits for part in parts]
        recorded.append(th.cat(means, dim=1).detach())
        return distribution

    monkeypatch.setattr(policy, "_get_action_dist_from_latent", record)
    obs, starts, state = env.reset(), np.ones(n_envs, dtype=bool), None
    steps, ends = [], np.zeros(n_envs, dtype=int)
    times_of_ends = set()
    while ends.min() < 3:
        assert isinstance(obs, np.ndarray)
        steps.append(policy.enter_memory(th.as_tensor(obs.copy()), th.as_tensor(starts)))
        actions, state = model.predict(obs, state, starts, deterministic=True)
        if action_space == "box":
            np.testing.assert_allclose(actions, recorded[-1].clamp(-1, 1).numpy(), atol=1e-6)
        obs, _, starts, _ = env.step(actions)
        ends += starts
        times_of_ends |= {(slot, len(steps)) for slot in np.flatnonzero(starts)}
    assert n_envs == 1 or len({time for _, time in times_of_ends}) > 3, "trials must end at times of their own"

    # The same tokens through a rollout buffer, each step with its number as value
    acting = th.stack(recorded).flatten(0, 1)
    buffer = type(model.rollout_buffer)(
        len(steps), env.observation_space, env.action_space, "cpu", n_envs=n_envs, context_length=policy.context_length
    )
    numbers = th.arange(float(len(acting))).view(-1, n_envs, 1)
    nothing = np.zeros(n_envs)
    for (tokens, memory_starts), number in zip(steps, numbers, strict=True):
        action = np.zeros((n_envs, buffer.action_dim))
        buffer.add(tokens, action, nothing, nothing, number, th.zeros(n_envs), memory_starts)
    compared = 0
    for batch in buffer.get(25):
        with th.no_grad():
            policy.evaluate_actions(batch.observations, actions_of(model, batch))
        th.testing.assert_close(recorded[-1], acting[batch.old_values.long()], atol=1e-5, rtol=1e-5)
        compared += len(batch.old_values)
    assert compared == len(acting)


# -- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["window", "trial-rotary-none", "gru", "lstm-embedding-truncated", "gtrxl", "snail"])
@pytest.mark.parametrize("critic", ["shared", "separate", "memoryless"])
@pytest.mark.parametrize("head", ["latest", "mixed", "hypernetwork"])
def test_the_loss_reaches_every_parameter(label, critic, head):
    options = dict(head="hypernetwork") if head == "hypernetwork" else dict(head_input=head)
    model = make_model(counter_vec_env(2, noise=1.0), label, policy_kwargs=dict(critic=critic, **options))
    model.learn(14)
    policy = model.policy
    with th.no_grad():
        for parameter in policy.parameters():  # away from zeros and saturation
            parameter += 0.1 * th.randn_like(parameter)
    actor, critic_only = set(policy.actor_parameters()), set(policy.critic_parameters())
    for loss in ("actor", "critic"):
        policy.zero_grad()
        for batch in model.rollout_buffer.get(8):
            values, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
            (log_prob if loss == "actor" else values).pow(2).sum().backward()
        for name, parameter in policy.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == (parameter in (actor if loss == "actor" else critic_only)), f"{loss}: {name}"
    assert actor | critic_only == set(policy.parameters())


# -- Saving and loading ----------------------------------------------------------------------------------------------


def weights(model: Any) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


@every_encoder
def test_a_loaded_model_acts_and_trains_as_the_saved_one(label):
    model = make_model(counter_vec_env(3, noise=1.0), label, policy_kwargs=dict(critic="separate", output_scale=1.0))
    model.learn(2 * 21)
    file = io.BytesIO()
    model.save(file)
    loaded = type(model).load(io.BytesIO(file.getvalue()), device="cpu")
    assert all(th.equal(tensor, weights(loaded)[name]) for name, tensor in weights(model).items())
    states: list[Any] = [None, None]
    for observation in np.random.default_rng(0).normal(size=(8, 2, 6)).astype(np.float32):
        results = [m.predict(observation, s, deterministic=True) for m, s in zip((model, loaded), states, strict=True)]
        np.testing.assert_array_equal(results[0][0], results[1][0])
        states = [state for _, state in results]
    for either in (model, loaded):
        either.set_env(counter_vec_env(3, noise=1.0))
        either.set_random_seed(5)
        check = CheckRatio()
        either.learn(2 * 21, callback=check, reset_num_timesteps=False)
        assert either.num_timesteps == 4 * 21 and check.worst < 1e-5
    assert all(th.equal(tensor, weights(loaded)[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize("label", ["window", "trial-rotary-none", "lstm", "gtrxl", "snail"])
def test_nothing_of_rollout_or_memory_is_saved(label):
    sizes = []
    for n_steps in (7, 700):
        model = make_model(counter_vec_env(2, noise=1.0), label, n_steps=n_steps)
        file = io.BytesIO()
        model.save(file)
        sizes.append(len(file.getvalue()))
    assert abs(sizes[1] - sizes[0]) < 500
    model = make_model(counter_vec_env(2, noise=1.0), label)
    model.learn(14)
    file = io.BytesIO()
    model.save(file)
    with zipfile.ZipFile(io.BytesIO(file.getvalue())) as archive:
        saved = json.loads(archive.read("data"))
    assert not [key for key in saved if "buffer" in key and not key.startswith("rollout_buffer_")
                and key not in ("ep_info_buffer", "ep_success_buffer", "trial_info_buffer")]  # fmt: skip
    assert not [key for key in saved if "state" in key]
    _, parameters, _ = load_from_zip_file(io.BytesIO(file.getvalue()), device="cpu")
    names = {name for name, _ in model.policy.named_parameters()}
    others = set(parameters["policy"]) - names
    assert names <= set(parameters["policy"]) and all(name.startswith(("normalizer.", "value_normalizer.")) for name in others)


# -- An encoder of one's own -----------------------------------------------------------------------------------------


class Mean(MemoryEncoder):
    """The mean of all embedded tokens."""

    def __init__(self, token_dim: int, width: int = 4):
        super().__init__(token_dim, features_dim=width, context_length=100)
        self.embedding = th.nn.Linear(token_dim, width)

    def initial_state(self, n_envs: int) -> tuple[th.Tensor, ...]:
        return self._anchor.new_zeros(n_envs, self.features_dim), self._anchor.new_zeros(n_envs, 1)

    def step(self, tokens, state, memory_starts):
        total, count = (part.masked_fill(memory_starts.unsqueeze(1), 0.0) for part in state)
        total, count = total + self.embedding(tokens), count + 1
        return total / count, (total, count)

    def forward(self, tokens, offsets):
        return self.embedding(tokens).cumsum(dim=1) / th.arange(1, tokens.shape[1] + 1).view(1, -1, 1)


@pytest.mark.parametrize("algorithm", [TrMRLPPO, RL2PPO])
def test_a_registered_encoder_is_used_by_name_saved_and_loaded(monkeypatch, algorithm, tmp_path):
    monkeypatch.setattr("sb3_trmrl.memory_encoders.MEMORY_ENCODERS", dict(MEMORY_ENCODERS))
    register_memory_encoder("mean", Mean)
    kwargs = dict(memory_encoder="mean", memory_encoder_kwargs=dict(width=5), net_arch=[8])
    env = counter_vec_env(2, noise=1.0)
    policy = next(iter(algorithm.policy_aliases))
    model = algorithm(policy, env, n_steps=7, batch_size=7, n_epochs=1, seed=0, device="cpu", policy_kwargs=kwargs)
    assert type(model.policy.actor_memory) is Mean and model.policy.actor_memory.features_dim == 5
    check = CheckRatio()
    model.learn(4 * 14, callback=check)
    assert check.worst < 1e-5 and check.reached_back > 0
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    obs = np.ones((2, 6), dtype=np.float32)
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))
    # Whoever has not registered it is told what to do
    monkeypatch.setattr("sb3_trmrl.memory_encoders.MEMORY_ENCODERS", dict(MEMORY_ENCODERS))
    with pytest.raises(ValueError, match=r"got 'mean'.*register_memory_encoder\(name, cls\) first"):
        algorithm.load(tmp_path / "model.zip", device="cpu")


def test_a_class_is_taken_in_place_of_a_name(tmp_path):
    env = counter_vec_env(2, noise=1.0)
    model = RL2PPO(RL2Policy, env, n_steps=7, batch_size=7, device="cpu", policy_kwargs=dict(memory_encoder=Mean))
    model.learn(14)
    model.save(tmp_path / "model.zip")
    assert type(RL2PPO.load(tmp_path / "model.zip", device="cpu").policy.actor_memory) is Mean


@pytest.mark.parametrize("algorithm", [TrMRLPPO, RL2PPO])
@pytest.mark.parametrize(("name", "encoder_class"), [("gru", GRUEncoder), ("tfixup", TFixupTransformerEncoder)])
def test_every_algorithm_takes_every_encoder(algorithm, name, encoder_class):
    policy = next(iter(algorithm.policy_aliases))
    kwargs = dict(memory_encoder=name, net_arch=[8])
    model = algorithm(policy, counter_vec_env(1), n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs)
    assert type(model.policy.actor_memory) is encoder_class


@pytest.mark.parametrize("label", ["gru", "window"])
def test_a_schedule_does_not_go_on_behind_the_last_step(label):
    # As RL Zoo's lin_3e-3, which nothing keeps from becoming negative
    model = make_model(counter_vec_env(2), label, learning_rate=lambda progress: progress * 3e-3)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(1)
    assert model.num_timesteps > 1 and model.policy.optimizer.param_groups[0]["lr"] == 0.0
    assert model.num_timesteps == model.n_steps * model.n_envs, "one rollout: there was no update with a rate above zero"
    for name, parameter in model.policy.named_parameters():
        th.testing.assert_close(parameter, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", [TrMRLPPO, RL2PPO])
@pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 8192), (20, 409), (64, 256)])
def test_by_default_all_environments_together_make_8192_steps(algorithm, n_envs, n_steps):
    policy = next(iter(algorithm.policy_aliases))
    model = algorithm(policy, counter_vec_env(n_envs), device="cpu")
    assert model.n_steps == model.rollout_buffer.buffer_size == n_steps
    if n_envs == 1:
        assert algorithm(policy, counter_vec_env(1).envs[0], device="cpu").n_steps == n_steps
    assert algorithm(policy, counter_vec_env(n_envs), n_steps=5, device="cpu").n_steps == 5


@pytest.mark.parametrize("algorithm", [TrMRLPPO, RL2PPO])
def test_default_numbers_of_steps_follow_the_environments_that_a_model_is_loaded_with(algorithm, tmp_path):
    policy = next(iter(algorithm.policy_aliases))
    for given, loaded_with, expected in ((None, 20, 409), (None, 64, 256), (None, None, 8192), (8192, 20, 8192)):
        model = algorithm(policy, counter_vec_env(1), n_steps=given, device="cpu")
        model.save(tmp_path / "model.zip")
        model.save_pretrained(tmp_path / "model")
        env = None if loaded_with is None else counter_vec_env(loaded_with)
        from_zip = algorithm.load(tmp_path / "model.zip", env=env, device="cpu")
        from_folder = algorithm.from_pretrained(tmp_path / "model", env=env, device="cpu")
        for loaded in (from_zip, from_folder):
            assert loaded.n_steps == loaded.rollout_buffer.buffer_size == expected
    algorithm(policy, counter_vec_env(1), n_steps=7, device="cpu").save(tmp_path / "model.zip")
    for given, expected in ((None, 409), (5, 5)):
        loaded = algorithm.load(tmp_path / "model.zip", env=counter_vec_env(20), n_steps=given, device="cpu")
        assert loaded.n_steps == loaded.rollout_buffer.buffer_size == expected
    # A number that is given stays, be it that of the file
    algorithm(policy, counter_vec_env(1), device="cpu").save(tmp_path / "model.zip")
    told: list[dict[str, Any]] = [dict(n_steps=8192), dict(custom_objects=dict(n_steps=8192))]
    for kwargs in told:
        assert algorithm.load(tmp_path / "model.zip", env=counter_vec_env(4), device="cpu", **kwargs).n_steps == 8192
    # So does that of a zip from before numbers were told apart
    old = algorithm(policy, counter_vec_env(16), n_steps=8192, device="cpu")
    del old._default_n_steps
    old.save(tmp_path / "old.zip")
    assert algorithm.load(tmp_path / "old.zip", device="cpu").n_steps == 8192


@pytest.mark.parametrize("space", [spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 3], start=[0, 1])])
@pytest.mark.parametrize("algorithm", [TrMRLPPO, RL2PPO])
def test_actions_that_do_not_begin_at_zero_are_refused(algorithm, space):
    env = counter_vec_env(1)
    env.action_space = space
    with pytest.raises(ValueError, match=r"Policies choose from 0, 1, ..., the environment's actions are (Multi)?Discrete"):
        algorithm(next(iter(algorithm.policy_aliases)), env, device="cpu")


class CountThreads(BaseCallback):
    """Torch's threads at every step."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.fails = fails
        self.seen: set[int] = set()

    def _on_step(self) -> bool:
        if self.fails:
            raise RuntimeError("on purpose")
        self.seen.add(th.get_num_threads())
        return True


@pytest.fixture
def three_threads():
    before = th.get_num_threads()
    th.set_num_threads(3)
    yield
    th.set_num_threads(before)


@pytest.mark.parametrize("label", ["window", "trial-rotary-none"])
def test_small_steps_of_acting_have_one_thread(label, three_threads, monkeypatch):
    model, callback = make_model(counter_vec_env(2), label), CountThreads()
    n_weights = sum(parameter.numel() for parameter in model.policy.parameters())
    # Two environments; a window has context_length + 1 tokens
    work = 2 * n_weights * (model.policy.context_length + 1 if label == "window" else 1)
    for limit, expected in ((work, 1), (work - 1, 3)):
        monkeypatch.setattr(on_policy_algorithm, "SMALL_STEP", limit)
        callback.seen.clear()
        model.learn(14, callback)
        assert callback.seen == {expected}
        assert th.get_num_threads() == 3


def test_a_failed_rollout_gives_the_threads_back(three_threads):
    with pytest.raises(RuntimeError, match="on purpose"):
        make_model(counter_vec_env(2), "trial-rotary-none").learn(14, CountThreads(fails=True))
    assert th.get_num_threads() == 3


@pytest.mark.parametrize(
    "optimizer_class, kwargs, fused",
    [
        (th.optim.Adam, {}, True),
        (th.optim.AdamW, dict(weight_decay=0.1), True),
        (th.optim.Adam, dict(fused=False), False),
        (th.optim.Adam, dict(foreach=True), None),
        (th.optim.SGD, {}, None),
    ],
)
def test_adam_is_fused_unless_told_otherwise(optimizer_class, kwargs, fused):
    policy_kwargs = dict(optimizer_class=optimizer_class, optimizer_kwargs=kwargs)
    model = make_model(counter_vec_env(2), "trial-rotary-none", policy_kwargs=policy_kwargs)
    assert type(model.policy.optimizer) is optimizer_class
    assert model.policy.optimizer.param_groups[0]["fused"] is fused
    assert model.policy.optimizer_kwargs == kwargs, "what is saved is what was given"
    model.learn(14)


def test_steps_are_selected_with_and_without_padding():
    sequences = th.arange(24.0).view(2, 4, 3).requires_grad_()
    everything = TrialSlices(sequences, th.zeros(2, dtype=th.int64), th.ones(2, 4, dtype=th.bool))
    assert th.equal(everything.select(sequences), sequences.view(8, 3))
    some = everything._replace(steps=th.tensor([[False, True, True, True], [True, True, False, False]]))
    assert th.equal(some.select(sequences), th.stack([sequences[0, 1], sequences[0, 2], sequences[0, 3], *sequences[1, :2]]))
