"""SB3's PPO for policies with a memory: what TrMRLPPO and RL2PPO share."""

import contextlib
import io
import math
import pathlib
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_trmrl.common.arguments import check_flags, check_integers, is_number
from sb3_trmrl.common.buffers import MemoryRolloutBuffer, TrialSliceRolloutBuffer, WorkingMemoryRolloutBuffer
from sb3_trmrl.common.env_util import plays_trials
from sb3_trmrl.common.evaluation import derived_seed
from sb3_trmrl.common.onednn_linear import fast_linear
from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.common.save_util import PretrainedMixin
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.memory_encoders import MemoryState

SelfMemoryPPO = TypeVar("SelfMemoryPPO", bound="MemoryPPO")

#: Multiplications of a step of acting, about one for each weight and token, up to which one thread is enough
SMALL_STEP = 2**24
#: From this magnitude on observations that are not normalised yet may be why a gradient is not finite
HUGE_OBSERVATION = 1e4


class MemoryPPO(PretrainedMixin, PPO):
    """
    Proximal Policy Optimization for a policy with a memory, meta-trained over trials of several episodes. The base of
    :class:`~sb3_trmrl.trmrl_ppo.TrMRLPPO` and :class:`~sb3_trmrl.rl2_ppo.RL2PPO`.

    It is SB3's PPO: the rollout buffer hands PPO working memories or slices of trials and ``evaluate_actions`` encodes them
    again under the current weights.

    :param policy: One of ``policy_aliases`` or a subclass of
        :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: The learning rate, it can be a function of the current progress remaining (from 1 to 0)
    :param n_steps: The number of steps to run for each environment per update; None: 8192 of all environments together, at
        least 256 of each
    :param batch_size: Minibatch size, in steps. Memories of windows: steps in random order, each with its working memory.
        Memories of sequences: whole slices of trials in random order, ``batch_size`` steps on average (docs/guide/memory.md)
    :param n_epochs: Number of epochs when optimizing the surrogate loss
    :param gamma: Discount factor
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator
    :param clip_range: Clipping parameter, it can be a function of the current progress remaining (from 1 to 0)
    :param clip_range_vf: Clipping parameter for the value function, in units of the policy's ``value_scale``
    :param normalize_advantage: Whether to normalize the advantage, per minibatch
    :param ent_coef: Entropy coefficient for the loss calculation
    :param vf_coef: Value function coefficient for the loss calculation
    :param max_grad_norm: The maximum value for the gradient clipping; ``float("inf")`` for none
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
    :param rollout_buffer_class: Rollout buffer class, a subclass of the one that the memory needs:
        :class:`WorkingMemoryRolloutBuffer` or :class:`TrialSliceRolloutBuffer`
    :param rollout_buffer_kwargs: Keyword arguments to pass to the rollout buffer on creation
    :param target_kl: Limit the KL divergence between updates
    :param stats_window_size: Number of trials to average the reported returns over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: Arguments of the policy, see :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param bootstrap_trial_end: Whether a trial whose episodes are used up is a time limit, behind which the value goes on as
        it was at the last step; the paper takes zero. (The value of the token behind the last step, as for the time limits of
        plain environments, is never fitted, and an agent that can steer it chases it: docs/guide/trmrl.md has the numbers.)
    :param bootstrap_episode_end: Whether an episode that really ends in the middle of a trial is an ordinary step (the paper),
        behind which the value of the next episode follows. If not, nothing follows: where episodes can fail, who is handed the
        next one at once has no reason to stay on its feet
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for a policy without memory, an environment whose tokens VecNormalize would distort, options that do
        not fit together
    """

    policy: MemoryActorCriticPolicy
    rollout_buffer: MemoryRolloutBuffer

    def __init__(
        self,
        policy: str | type[MemoryActorCriticPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        n_steps: int | None = None,
        batch_size: int = 2048,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: type[RolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        bootstrap_trial_end: bool = True,
        bootstrap_episode_end: bool = True,
        _init_setup_model: bool = True,
    ):
        if not isinstance(policy, str) and not issubclass(policy, MemoryActorCriticPolicy):
            raise ValueError(self._policy_error(policy.__name__))
        check_integers(dict(batch_size=batch_size, n_epochs=n_epochs, **({} if n_steps is None else dict(n_steps=n_steps))))
        for name, value in (("gamma", gamma), ("gae_lambda", gae_lambda)):
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}.")
        limits = [("max_grad_norm", max_grad_norm, 'float("inf")')]
        limits += [] if callable(clip_range) else [("clip_range", clip_range, 'float("inf")')]
        limits += [] if target_kl is None else [("target_kl", target_kl, "None")]
        for name, value, no_limit in limits:
            if not is_number(value) or not value > 0:
                raise ValueError(f"{name} must be a positive number, got {value!r}: pass {no_limit} for no limit.")
        check_integers(dict(stats_window_size=stats_window_size))
        check_flags(dict(bootstrap_trial_end=bootstrap_trial_end, bootstrap_episode_end=bootstrap_episode_end))
        # SB3 needs a number now; where none was given, it follows the number of environments when the model is loaded, too
        self._default_n_steps: int | None = None
        if n_steps is None:
            n_steps = default_n_steps(env.num_envs if isinstance(env, VecEnv) else 1)
            # In load(), the file tells whether one was given
            self._default_n_steps = n_steps if _init_setup_model else None
        self.bootstrap_trial_end = bootstrap_trial_end
        self.bootstrap_episode_end = bootstrap_episode_end
        self.trial_info_buffer: deque[dict[str, Any]] | None = None
        self.n_iterations = 0
        with warnings.catch_warnings():
            # Minibatches of whole slices have sizes of their own, and a smaller last one of windows does no harm
            warnings.filterwarnings("ignore", "You have specified a mini-batch size")
            super().__init__(
                policy,
                env,
                learning_rate=learning_rate,
                n_steps=n_steps,
                batch_size=batch_size,
                n_epochs=n_epochs,
                gamma=gamma,
                gae_lambda=gae_lambda,
                clip_range=clip_range,
                clip_range_vf=clip_range_vf,
                normalize_advantage=normalize_advantage,
                ent_coef=ent_coef,
                vf_coef=vf_coef,
                max_grad_norm=max_grad_norm,
                use_sde=use_sde,
                sde_sample_freq=sde_sample_freq,
                rollout_buffer_class=rollout_buffer_class,
                rollout_buffer_kwargs=rollout_buffer_kwargs,
                target_kl=target_kl,
                stats_window_size=stats_window_size,
                tensorboard_log=tensorboard_log,
                policy_kwargs=policy_kwargs,
                verbose=verbose,
                seed=seed,
                device=device,
                _init_setup_model=False,
            )
        if _init_setup_model:
            self._setup_model()

    # -- Construction ------------------------------------------------------------------------------------------------

    @classmethod
    def _policy_error(cls, got: str) -> str:
        return (
            f"{cls.__name__} needs a policy with a memory, got policy={got!r}: pass one of {sorted(cls.policy_aliases)} or a "
            "subclass of MemoryActorCriticPolicy, or train the memory-less policy with stable_baselines3.PPO."
        )

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise ValueError(self._policy_error(policy_name))
        return super()._get_policy_from_name(policy_name)

    def _check_tokens(self, env: VecEnv) -> None:
        space = env.observation_space
        prev_done = space.spaces.get("prev_done") if isinstance(space, spaces.Dict) else None
        has_parts = isinstance(space, TokenSpace) or prev_done is not None
        # Stacked frames tell the end of an episode several times
        tells_ends = isinstance(space, TokenSpace) or (prev_done is not None and prev_done.shape == (1,))
        forgets = self.policy_kwargs.get("memory_reset") == "episode"
        if forgets and not tells_ends and plays_trials(env):
            raise ValueError(
                "memory_reset='episode' needs the token's prev_done to tell the episodes of a trial apart, but a wrapper "
                f"around the trial environment hides the token's parts: the observation space is {space}. Wrap the MetaEnv "
                "inside TrialWrapper instead, or use memory_reset='trial'."
            )
        vec_normalize = unwrap_vec_normalize(env)
        if vec_normalize is not None and not vec_normalize.norm_obs:
            vec_normalize = None
        if not has_parts and plays_trials(env):
            hidden = f"a wrapper around the trial environment hides the token's parts, the observation space is {space}"
            if vec_normalize is not None:
                raise ValueError(
                    f"VecNormalize(norm_obs=True) would normalise the previous action, reward and done too, which tell what "
                    f"happened: {hidden}. Use VecNormalize(norm_obs=False), or no VecNormalize."
                )
            if self.policy_kwargs.get("normalize_observations", True):
                warnings.warn(
                    f"The policy normalises the previous action, reward and done like observations, since {hidden}: wrap "
                    "the MetaEnv inside TrialWrapper instead, or use policy_kwargs=dict(normalize_observations=False).",
                    stacklevel=3,
                )
        if vec_normalize is None:
            return
        parts = (
            {key: space[key] for key in vec_normalize.norm_obs_keys or []} if isinstance(space, spaces.Dict) else {"": space}
        )
        if any(isinstance(part, spaces.Box) and part.dtype.kind != "f" for part in parts.values()):
            raise ValueError(
                f"VecNormalize(norm_obs=True) makes fractions of {space}, which the rollout buffer would round to integers "
                "again: use VecNormalize(norm_obs=False), and let the policy normalise (the default)."
            )
        if not has_parts:
            return
        if isinstance(space, TokenSpace) or {"prev_action", "prev_reward", "prev_done"} & set(
            vec_normalize.norm_obs_keys or []
        ):
            raise ValueError(
                "VecNormalize(norm_obs=True) would normalise the previous action, reward and done of the token too, which "
                "tell what happened: use VecNormalize(norm_obs=False), leave these keys out of norm_obs_keys, or use no "
                "VecNormalize, and let the policy normalise (policy_kwargs=dict(normalize_observations=True), the default)."
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Check the new environment and use it from now on.

        :param env: The environment for learning a policy
        :param force_reset: Force call to ``reset()`` before training
        """
        # An environment that is refused must not stay
        vec_env = self._wrap_env(env, self.verbose)
        self._check_tokens(vec_env)
        super().set_env(vec_env, force_reset)

    @classmethod
    def load(
        cls: type[SelfMemoryPPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfMemoryPPO:
        """
        Load the model from a zip-file, see SB3. Where ``n_steps`` was not given, it follows the number of environments.

        :param path: Path to the file (or a file-like) where to load the model from
        :param env: The new environment to run the loaded model on
        :param device: Device on which the code should run
        :param custom_objects: Objects to replace upon loading
        :param print_system_info: Whether to print system info from the saved model and the current system info
        :param force_reset: Force call to ``reset()`` before training
        :param kwargs: Extra arguments to change the model when loading
        :return: The model
        """
        if {**(custom_objects or {}), **kwargs}.get("n_steps") is not None:
            kwargs["_default_n_steps"] = None
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def _resolve_n_steps(self) -> None:
        if self.n_steps in (None, self._default_n_steps):
            self.n_steps = self._default_n_steps = default_n_steps(self.n_envs)

    def _setup_model(self) -> None:
        self._resolve_n_steps()
        # Here, where a model that is loaded has its policy_kwargs
        if self.env is not None:
            self._check_tokens(self.env)
        if np.any(getattr(self.action_space, "start", 0)):
            raise ValueError(
                f"Policies choose from 0, 1, ..., the environment's actions are {self.action_space}: let its action space "
                "begin at 0, and add the start in a gymnasium.ActionWrapper around the base environment."
            )
        self._setup_lr_schedule()
        # A zip that is loaded goes on: not with the training's first trials again
        seed = self.seed
        if seed is not None and self.num_timesteps > 0:
            seed = derived_seed(seed, self.num_timesteps)
        self.set_random_seed(seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space, self.action_space, self.lr_schedule, use_sde=self.use_sde, **self.policy_kwargs
        ).to(self.device)
        windows = self.policy.actor_memory.training_unit == "window"
        needed: type[MemoryRolloutBuffer] = WorkingMemoryRolloutBuffer if windows else TrialSliceRolloutBuffer
        buffer_class = self.rollout_buffer_class or needed
        if not issubclass(buffer_class, needed):
            raise ValueError(
                f"rollout_buffer_class must be a subclass of {needed.__name__}, which hands out what a "
                f"{type(self.policy.actor_memory).__name__} is trained on; got {buffer_class.__name__}. Leave it out for the "
                "default."
            )
        self.rollout_buffer = buffer_class(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            n_envs=self.n_envs,
            context_length=self.policy.context_length,
            **self.rollout_buffer_kwargs,
        )
        self.clip_range = FloatSchedule(self.clip_range)
        if self.clip_range_vf is not None:
            if isinstance(self.clip_range_vf, (float, int)) and not self.clip_range_vf > 0:
                raise ValueError(f"clip_range_vf must be positive, got {self.clip_range_vf}: pass None to switch it off.")
            self.clip_range_vf = FloatSchedule(self.clip_range_vf)

    # -- Acting ------------------------------------------------------------------------------------------------------

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if self.trial_info_buffer is None or reset_num_timesteps:
            self.trial_info_buffer = deque(maxlen=self._stats_window_size)
        if reset_num_timesteps:
            self.n_iterations = 0
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect experiences using the current policy and its memory and fill the rollout buffer.

        :param env: The training environment
        :param callback: Callback that will be called at each step (and at the beginning and end of the rollout)
        :param rollout_buffer: Buffer to fill with rollouts
        :param n_rollout_steps: Number of experiences to collect per environment
        :return: True if at least ``n_rollout_steps`` were collected, False if the callback terminated the rollout prematurely
        :raises ValueError: if the environment returns an observation or a reward that is not finite
        """
        assert isinstance(rollout_buffer, MemoryRolloutBuffer), f"{rollout_buffer} does not hand out memories"
        # Switch to eval mode (this affects batch norm / dropout)
        self.policy.set_training_mode(False)

        n_steps = 0
        rollout_buffer.reset()
        # Before anything random: what a callback saves here goes on exactly. Before memory and unit of value, too: it may
        # change the weights that both come from
        callback.on_rollout_start()
        if self._last_obs is None:  # a callback has evaluated in this environment, which breaks its trials off
            self._last_obs = env.reset()  # type: ignore[assignment]
            self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
        self._check_finite("observation", self._last_obs)
        with th.no_grad():
            # In mid-trial the memory is what the stored tokens give under the weights of now: the ratio starts at 1
            _, memory_starts = self._enter_memory(self._last_obs, self._last_episode_starts)
            memory_state = self.policy.state_from_context(rollout_buffer.context(memory_starts.cpu().numpy()))
        # Where nothing that came before has an influence on the return
        return_starts = self._last_episode_starts
        # One unit of value for the whole rollout: rewards are stored in it, values are predicted in it
        value_scale = self.policy.value_scale
        if self.use_sde:
            self.policy.reset_noise(env.num_envs)

        with threads_for_acting(self.policy, env.num_envs), self._trials_end_with_errors():
            while n_steps < n_rollout_steps:
                if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                    self.policy.reset_noise(env.num_envs)

                with th.no_grad():
                    obs_tensor, memory_starts = self._enter_memory(self._last_obs, self._last_episode_starts)
                    actions_tensor, values, log_probs, memory_state = self.policy(obs_tensor, memory_state, memory_starts)
                actions = actions_tensor.cpu().numpy()

                # Rescale and perform action
                clipped_actions = actions
                if isinstance(self.action_space, spaces.Box):
                    if self.policy.squash_output:
                        clipped_actions = self.policy.unscale_action(clipped_actions)
                    else:
                        # Clip the actions to avoid out of bound error, as they are sampled from an unbounded Gaussian
                        clipped_actions = np.clip(actions, self.action_space.low, self.action_space.high)

                self.in_step = True
                new_obs, rewards, dones, infos = env.step(clipped_actions)
                rewards = np.asarray(rewards, dtype=np.float32)  # SubprocVecEnv's are float64: others would be rounded later
                self._check_finite("observation", new_obs)
                self._check_finite("reward", rewards)
                self.num_timesteps += env.num_envs

                # Give access to local variables
                callback.update_locals(locals())
                go_on = callback.on_step()

                self._update_info_buffer(infos, dones)
                n_steps += 1

                if isinstance(self.action_space, spaces.Discrete):
                    # Reshape in case of discrete action
                    actions = actions.reshape(-1, 1)

                scaled_rewards = rewards / value_scale
                if dones.any():
                    scaled_rewards += self.gamma * self._values_behind(infos, dones, values, memory_state)

                rollout_buffer.add(
                    obs_tensor,
                    actions,
                    scaled_rewards,
                    return_starts,  # type: ignore[arg-type]
                    values,
                    log_probs,
                    memory_starts,
                )
                self._last_obs = new_obs  # type: ignore[assignment]
                self._last_episode_starts = dones
                return_starts = dones if self.bootstrap_episode_end else dones | self._real_ends(infos)
                self.in_step = False
                if not go_on:
                    # Only now: the memory of a continued training must know this step, and where its trial ended
                    return False

        with th.no_grad():
            # Compute value for the last timestep
            obs_tensor, memory_starts = self._enter_memory(new_obs, dones)
            values = self.policy.predict_values(obs_tensor, memory_state, memory_starts)

        assert return_starts is not None
        self._compute_targets(rollout_buffer, values, return_starts)
        if self.policy.value_normalizer is not None:
            # Values do not enter the ratio, so their unit may follow the targets before the update that fits them
            self.policy.value_normalizer.update(rollout_buffer.returns * value_scale)
            rollout_buffer.rescale(value_scale / self.policy.value_scale)

        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @contextlib.contextmanager
    def _trials_end_with_errors(self) -> Iterator[None]:
        # An error or an interrupt within a step leaves the environments a step ahead: learn() has to start new trials
        try:
            yield
        except BaseException:
            if self.in_step:
                self._last_obs, self.in_step = None, False
            raise

    def _compute_targets(self, rollout_buffer: MemoryRolloutBuffer, last_values: th.Tensor, dones: np.ndarray) -> None:
        # Advantages and value targets of a full buffer
        rollout_buffer.compute_returns_and_advantage(last_values=last_values, dones=dones)

    def _enter_memory(self, obs: Any, episode_starts: np.ndarray | None) -> tuple[Any, th.Tensor]:
        starts = th.as_tensor(episode_starts, dtype=th.bool, device=self.device)
        # In the layout of a copy, not of a transposed image: the order in which a convolution adds up depends on it
        parts = (
            {key: np.array(part, order="C") for key, part in obs.items()}
            if isinstance(obs, dict)
            else np.array(obs, order="C")
        )
        return self.policy.enter_memory(obs_as_tensor(parts, self.device), starts)

    def _values_behind(
        self, infos: list[dict[str, Any]], dones: np.ndarray, values: th.Tensor, memory_state: MemoryState
    ) -> np.ndarray:
        """
        What is expected behind the end of the VecEnv's episode: zero after a real end, a value after a time limit.

        :param infos: Infos of the step
        :param dones: Whether the VecEnv's episode ended with the step, (n_envs,)
        :param values: Values at the step, (n_envs, 1)
        :param memory_state: The memory with the step's token
        :return: Values in units of ``value_scale``, (n_envs,); zero where the episode goes on
        """
        behind = np.zeros(len(infos), dtype=np.float32)
        cut = [idx for idx in np.flatnonzero(dones).tolist() if infos[idx].get("TimeLimit.truncated", False)]
        trials = [idx for idx in cut if ended_trial(infos[idx]) is not None]
        if self.bootstrap_trial_end and trials:
            behind[trials] = values[trials].cpu().numpy().flatten()
        plain = [idx for idx in cut if idx not in trials and infos[idx].get("terminal_observation") is not None]
        if plain:
            assert self.env is not None
            if plays_trials(self.env):
                warnings.warn(
                    "Something outside of the trials ended one before its last episode, so that the rest is never played, or "
                    "hides info['trial']. The length of an episode is the family's `horizon`; max_episode_steps, at "
                    "registration too, and TimeLimit count steps of the whole trial: leave them out.",
                    stacklevel=2,
                )
            behind[plain] = self._terminal_values([infos[idx]["terminal_observation"] for idx in plain], plain, memory_state)
        return behind

    @staticmethod
    def _real_ends(infos: list[dict[str, Any]]) -> np.ndarray:
        # Whether an episode of the trial really ended with the step, (n_envs,)
        episodes = [info.get("inner_episode") for info in infos]
        # Other environments may have such a key of their own
        return np.array([isinstance(one, dict) and bool(one.get("terminated", False)) for one in episodes], dtype=bool)

    def _terminal_values(self, observations: list[Any], slots: list[int], memory_state: MemoryState) -> np.ndarray:
        # The last token never gets to the policy: the VecEnv has already reset. It continues the memory of its episode.
        if isinstance(self.observation_space, spaces.Dict):
            stacked: Any = {key: np.stack([obs[key] for obs in observations]) for key in self.observation_space.spaces}
        else:
            stacked = np.stack(observations)
        self._check_finite("terminal observation", stacked, slots)
        obs_tensor, _ = self.policy.obs_to_tensor(stacked)
        with th.no_grad():
            no_starts = th.zeros(len(slots), dtype=th.bool, device=self.device)
            # It may be the first of an episode, where a wrapper has cut the trial between two
            obs_tensor, memory_starts = self.policy.enter_memory(obs_tensor, no_starts)
            slot_state = tuple(part[slots] for part in memory_state)
            return self.policy.predict_values(obs_tensor, slot_state, memory_starts).cpu().numpy().flatten()

    @staticmethod
    def _check_finite(what: str, values: Any, slots: list[int] | None = None) -> None:
        for name, part in values.items() if isinstance(values, dict) else [(what, values)]:
            if part.dtype.kind != "f" or np.isfinite(part).all():
                continue
            row = int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))[0])
            label = what if name == what else f"{what} {name!r}"
            raise ValueError(
                f"The environment in slot {slots[row] if slots else row} returned a {label} that is not finite ({part[row]}). "
                "Nothing was learned from it; mend the environment (stable_baselines3's VecCheckNan tells the step)."
            )

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        assert self.trial_info_buffer is not None
        self.trial_info_buffer.extend(trial for trial in map(ended_trial, infos) if trial is not None)

    def dump_logs(self, iteration: int = 0) -> None:
        """
        Write log: SB3's keys and, for trials, the mean return of each of their episodes.

        :param iteration: Current logging iteration
        """
        if self.trial_info_buffer:
            # Trials of different lengths meet when the environment changed
            returns = [trial["returns"] for trial in self.trial_info_buffer]
            for index in range(max(map(len, returns))):
                reached = [episodes[index] for episodes in returns if len(episodes) > index]
                self.logger.record(f"meta/return_episode_{index + 1}", float(np.mean(reached)))
            self.logger.record("meta/adaptation_gain", float(np.mean([episodes[-1] - episodes[0] for episodes in returns])))
        super().dump_logs(iteration)

    # -- Training ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """
        Update the policy from the rollout buffer, then take the rollout's observations into the running statistics, so that
        acting and training within one iteration used the same numbers.
        """
        context, normalizer = self.rollout_buffer.context_length, self.policy.normalizer
        tokens = {key: array[context:] for key, array in self.rollout_buffer.tokens.items()}
        # For the update alone: copies of an optimizer lose its hooks
        guards = [optimizer.register_step_pre_hook(refuse_non_finite_gradients) for optimizer in self.optimizers().values()]
        try:
            with fast_linear():
                self._update()
        except NonFiniteGradient:
            largest = 0.0 if normalizer is None else normalizer.largest_unscaled(tokens)
            if largest < HUGE_OBSERVATION:
                raise
            warnings.warn(
                f"Observations (or rewards) of {largest:.3g} are too large for a network, and nothing was known yet to "
                "normalise them by: the first update was broken off. From the next rollout on they are normalised.",
                stacklevel=2,
            )
        finally:
            for guard in guards:
                guard.remove()
        self.n_iterations += 1
        if normalizer is not None:
            # (n_steps, n_envs, ...) -> (n_steps * n_envs, ...)
            normalizer.update({key: part.reshape(-1, *part.shape[2:]) for key, part in tokens.items()})

    def optimizers(self) -> dict[str, th.optim.Optimizer]:
        """:return: The optimizers, by the name of their attribute."""
        named = {name: recursive_getattr(self, name) for name in self._get_torch_save_params()[0]}
        return {name: thing for name, thing in named.items() if isinstance(thing, th.optim.Optimizer)}

    def _update(self) -> None:
        super().train()

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout may end behind total_timesteps: a schedule such as RL Zoo's lin_1e-3 would be negative there, and
        # the last update would unlearn
        super()._update_current_progress_remaining(min(num_timesteps, total_timesteps), total_timesteps)


class NonFiniteGradient(FloatingPointError):
    """A gradient is infinite or NaN."""


def default_n_steps(n_envs: int) -> int:
    """
    :param n_envs: Number of environments
    :return: What ``n_steps=None`` stands for: 8,192 steps of all environments together, at least 256 of each
    """
    return max(256, 8192 // n_envs)


def ended_trial(info: dict[str, Any]) -> dict[str, Any] | None:
    """
    :param info: Info of a step
    :return: What ``TrialWrapper`` tells of the trial that has ended with it; None if none has. Other environments have
        something of their own under that name
    """
    trial = info.get("trial")
    return trial if isinstance(trial, dict) and isinstance(trial.get("returns"), list) else None


@contextlib.contextmanager
def threads_for_acting(policy: MemoryActorCriticPolicy, n_envs: int) -> Iterator[None]:
    """
    A context in which torch has one thread if a step of acting is small work for the CPU. More would save next to nothing, and
    GNU's OpenMP lets threads that have nothing to do spin for milliseconds, on the cores that are to step the environments.

    :param policy: Who acts
    :param n_envs: In how many environments at once
    """
    n_threads = th.get_num_threads()
    memory = policy.actor_memory
    # A window is encoded anew at every step
    n_tokens = n_envs * (memory.context_length + 1 if memory.training_unit == "window" else 1)
    if n_tokens * sum(parameter.numel() for parameter in policy.parameters()) <= SMALL_STEP:
        th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(n_threads)


def refuse_non_finite_gradients(optimizer: th.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """
    A pre-hook of an optimizer's step: weights that are NaN can't be mended, a refused step can.

    :raises NonFiniteGradient: if a gradient is not finite
    :raises FloatingPointError: if the learning rate is not finite
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not all(math.isfinite(group["lr"]) for group in optimizer.param_groups):
        raise FloatingPointError("The learning rate is not finite; the step was refused: mend learning_rate or its schedule.")
    if not th.isfinite(th.stack([gradient.sum() for gradient in gradients])).all():
        raise NonFiniteGradient(
            "A gradient is not finite; the step was refused and the weights are as they were before it. Lower learning_rate, "
            "set max_grad_norm (now perhaps infinite), or look for huge rewards or observations."
        )
