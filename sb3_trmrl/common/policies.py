"""Actor-critic policies with a memory."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_trmrl.common.arguments import check_choice, check_flags
from sb3_trmrl.common.heads import ActorCriticHeads
from sb3_trmrl.common.normalization import ObservationNormalizer, ValueScale
from sb3_trmrl.common.type_aliases import MemoryContext, MemoryWindows, TrialSlices
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.memory_encoders import MemoryEncoder, MemoryState, WindowMemoryEncoder, get_memory_encoder_class


class MemoryActorCriticPolicy(ActorCriticPolicy):
    """
    Actor-critic policy whose features come from a memory of the trial.

    observation -> normaliser -> features extractor (flatten, or a CNN for images) -> *token* -> memory encoder -> heads.

    Values are predicted in units of :attr:`value_scale` rewards.

    :param observation_space: Observation space; a :class:`~sb3_trmrl.envs.trial.TokenSpace` or a Dict of token parts from
        the package's environments, any Box or Dict from others
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule (could be constant)
    :param net_arch: Hidden sizes of actor and critic head, ``[64, 64]`` each if None
    :param activation_fn: Activation function of the heads
    :param ortho_init: Heads with SB3's orthogonal initialisation; if False, Xavier-uniform with zero biases (the paper)
    :param use_sde: Whether to use State Dependent Exploration or not
    :param log_std_init: Initial value of the log standard deviation of continuous actions
    :param full_std: As in SB3, for gSDE
    :param use_expln: As in SB3, for gSDE
    :param squash_output: As in SB3, for gSDE
    :param features_extractor_class: Makes a token from one observation; by default SB3's flatten extractor, its CNN
        for images, or its combined extractor (a CNN for image keys) for Dict observations
    :param features_extractor_kwargs: Its keyword arguments
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: The optimizer, ``th.optim.Adam`` by default
    :param optimizer_kwargs: Its keyword arguments, without the learning rate
    :param memory_encoder: Name or class of the memory encoder
    :param memory_encoder_kwargs: Its keyword arguments, for example ``dict(embed_dim=128, memory_length=5)``
    :param memory_reset: When the memory is emptied: ``"trial"``: it lasts over the episodes of a trial; ``"episode"``: at
        every episode (the paper); previous action, reward and done are then zeroed at the first step of each episode
    :param head: ``"mlp"``: perceptrons on what ``head_input`` says; ``"hypernetwork"``: the features make the weights of the
        perceptrons, which act on the current token (Beck et al. 2022, arXiv 2210.11348)
    :param head_input: What ``head="mlp"`` sees: ``"latest"``: the encoder's output at the current token (the paper);
        ``"mixed"``: that and the current token itself
    :param critic: ``"shared"``: the critic sees what the actor sees and trains the encoder too; ``"separate"``: it has an
        encoder of its own; ``"memoryless"``: it sees the current token only
    :param output_scale: Gain of the initial weights of the action layer
    :param normalize_observations: Normalise the observation part of the token, the previous reward and the value target with
        running statistics kept in the policy
    :param value_log_std_init: If given, the value is a Gaussian with a learned scalar standard deviation starting at
        ``exp(value_log_std_init)``, fitted by maximum likelihood (the paper; needs ``two_phase_update``)
    :raises ValueError: for an option that does not exist
    """

    features_extractor: BaseFeaturesExtractor
    action_net: nn.Linear

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        memory_encoder: str | type[MemoryEncoder] = "tfixup",
        memory_encoder_kwargs: dict[str, Any] | None = None,
        memory_reset: Literal["trial", "episode"] = "trial",
        head: Literal["mlp", "hypernetwork"] = "mlp",
        head_input: Literal["latest", "mixed"] = "mixed",
        critic: Literal["shared", "separate", "memoryless"] = "shared",
        output_scale: float = 0.01,
        normalize_observations: bool = True,
        value_log_std_init: float | None = None,
    ):
        check_choice("memory_reset", memory_reset, ("trial", "episode"))
        check_choice("head", head, ("mlp", "hypernetwork"))
        check_choice("head_input", head_input, ("latest", "mixed"))
        check_choice("critic", critic, ("shared", "separate", "memoryless"))
        check_flags(dict(normalize_observations=normalize_observations))
        # Read by _build, which the parent's constructor calls
        self.memory_encoder_class = get_memory_encoder_class(memory_encoder)
        self.memory_encoder_name = memory_encoder
        self.memory_encoder_kwargs = memory_encoder_kwargs or {}
        self.memory_reset = memory_reset
        self.head = head
        self.head_input = head_input
        self.critic = critic
        self.output_scale = output_scale
        self.normalize_observations = normalize_observations
        self.value_log_std_init = value_log_std_init
        if features_extractor_class is None:
            if isinstance(observation_space, spaces.Dict):
                features_extractor_class = CombinedExtractor
            else:
                features_extractor_class = NatureCNN if is_image_space(observation_space) else FlattenExtractor
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=[64, 64] if net_arch is None else net_arch,
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            squash_output=squash_output,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update(
            memory_encoder=self.memory_encoder_name,
            memory_encoder_kwargs=self.memory_encoder_kwargs,
            memory_reset=self.memory_reset,
            head=self.head,
            head_input=self.head_input,
            critic=self.critic,
            output_scale=self.output_scale,
            normalize_observations=self.normalize_observations,
            value_log_std_init=self.value_log_std_init,
        )
        return data

    # -- Construction ------------------------------------------------------------------------------------------------

    def _make_memory_encoder(self) -> MemoryEncoder:
        # Of MultiDiscrete spaces it is a NumPy integer, which torch's recurrent networks refuse
        return self.memory_encoder_class(int(self.features_extractor.features_dim), **self.memory_encoder_kwargs)

    def _build_mlp_extractor(self) -> None:
        token_dim = self.features_extractor.features_dim
        self.normalizer = ObservationNormalizer(self.observation_space) if self.normalize_observations else None
        self.value_normalizer = ValueScale() if self.normalize_observations else None
        self.actor_memory = self._make_memory_encoder()
        self.critic_memory = self._make_memory_encoder() if self.critic == "separate" else None
        if self.value_log_std_init is not None:
            self.value_log_std = nn.Parameter(th.tensor(float(self.value_log_std_init)))
        self.mlp_extractor = ActorCriticHeads(  # type: ignore[assignment]
            self.actor_memory.features_dim,
            token_dim,
            self.net_arch,
            self.activation_fn,
            self.head,
            self.head_input,
            memoryless_critic=self.critic == "memoryless",
            ortho_init=self.ortho_init,
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        if self.ortho_init:
            nn.init.orthogonal_(self.action_net.weight, gain=self.output_scale)
        else:
            for head in (self.mlp_extractor, self.action_net, self.value_net):
                for module in head.modules():
                    if isinstance(module, nn.Linear):
                        nn.init.xavier_uniform_(module.weight, gain=self.output_scale if module is self.action_net else 1.0)
                        nn.init.zeros_(module.bias)
        self.optimizer = self.make_optimizer(self.parameters(), lr_schedule(1))

    def make_optimizer(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> th.optim.Optimizer:
        """
        :param parameters: What it optimizes
        :param learning_rate: Its learning rate
        :return: An optimizer of the policy's class, with its keyword arguments
        """
        kwargs = self.optimizer_kwargs
        if self.optimizer_class in (th.optim.Adam, th.optim.AdamW) and not {"foreach", "differentiable"} & set(kwargs):
            # One pass over all numbers in place of ten over each matrix
            kwargs = {"fused": True, **kwargs}
        return self.optimizer_class(parameters, lr=learning_rate, **kwargs)  # type: ignore[call-arg]

    @property
    def context_length(self) -> int:
        """How many tokens before the current one can influence action and value."""
        return self.actor_memory.context_length

    @property
    def value_scale(self) -> float:
        """Size of one unit of predicted value, in rewards (1 without normalisation)."""
        return 1.0 if self.value_normalizer is None else self.value_normalizer.scale

    def critic_parameters(self) -> list[nn.Parameter]:
        """The parameters that the value loss trains: the value head and the memory whose features it sees."""
        modules: list[nn.Module] = [self.mlp_extractor.value_net, self.value_net]
        if self.critic == "shared":
            modules.append(self.actor_memory)
        elif self.critic_memory is not None:
            modules.append(self.critic_memory)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        return [*parameters, self.value_log_std] if self.value_log_std_init is not None else parameters

    def actor_parameters(self) -> list[nn.Parameter]:
        """The parameters that the policy loss trains: everything that is not only the critic's."""
        shared = set(self.actor_memory.parameters())
        critic_only = set(self.critic_parameters()) - shared
        return [parameter for parameter in self.parameters() if parameter not in critic_only]

    # -- Memory ------------------------------------------------------------------------------------------------------

    def initial_state(self, n_envs: int) -> MemoryState:
        """
        :param n_envs: Number of environments
        :return: Empty memories of the actor and, if it has one, of the critic
        """
        state = self.actor_memory.initial_state(n_envs)
        return state if self.critic_memory is None else state + self.critic_memory.initial_state(n_envs)

    def enter_memory(self, obs: PyTorchObs, episode_starts: th.Tensor) -> tuple[PyTorchObs, th.Tensor]:
        """
        Find out where the memory is emptied. With ``memory_reset="episode"`` that is also the first step of each later
        episode of a trial, which the token tells by ``prev_done``; forgetting then includes the previous action, reward and
        done, as at the start of a trial (author's code, ``algos/rl2.py:60-95``).

        :param obs: Tokens, (n_envs, ...) or a dict of these
        :param episode_starts: Whether a trial starts, bool, (n_envs,)
        :return: The tokens as the memory gets them and whether the memory is emptied before them, bool, (n_envs,)
        """
        if self.memory_reset == "trial":
            return obs, episode_starts
        space = self.observation_space
        if isinstance(space, TokenSpace):
            assert isinstance(obs, th.Tensor)
            prev_done = obs[:, space.done_slice]
        elif isinstance(obs, dict) and "prev_done" in obs:
            prev_done = obs["prev_done"].flatten(1)
        else:
            return obs, episode_starts
        memory_starts = episode_starts | (prev_done > 0.5).any(dim=1)
        if not memory_starts.any():
            return obs, memory_starts
        if isinstance(obs, dict):
            forgotten: dict[str, th.Tensor] = {
                key: obs[key].masked_fill(memory_starts.view(-1, *[1] * (obs[key].dim() - 1)), 0)
                for key in ("prev_action", "prev_reward", "prev_done")
                if key in obs  # a wrapper may have left some out
            }
            return {**obs, **forgotten}, memory_starts
        assert isinstance(space, TokenSpace)
        obs = obs.clone()
        obs[:, space.observation_slice.stop :].masked_fill_(memory_starts.unsqueeze(1), 0.0)
        return obs, memory_starts

    def _tokens(self, obs: PyTorchObs) -> th.Tensor:
        # (batch, ...) -> (batch, token_dim)
        obs = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        if self.normalizer is not None:
            obs = self.normalizer(obs)
        return self.features_extractor(obs)

    def _token_sequences(self, observations: PyTorchObs) -> th.Tensor:
        # (batch, seq_len, ...) -> (batch, seq_len, token_dim)
        if isinstance(observations, dict):
            batch_shape = next(iter(observations.values())).shape[:2]
            return self._tokens({key: part.flatten(0, 1) for key, part in observations.items()}).unflatten(0, batch_shape)
        return self._tokens(observations.flatten(0, 1)).unflatten(0, observations.shape[:2])

    def state_from_context(self, context: MemoryContext) -> MemoryState:
        """
        Rebuild the memories from stored observations under the current weights.

        :param context: The last observations of each environment and how many tokens its memory holds
        :return: The memories after these observations
        """
        if not context.lengths.any():
            return self.initial_state(len(context.lengths))
        tokens = self._token_sequences(context.observations)
        state = self.actor_memory.state_from_context(tokens, context.lengths)
        return state if self.critic_memory is None else state + self.critic_memory.state_from_context(tokens, context.lengths)

    def _latent_pi(self, features: th.Tensor, tokens: th.Tensor) -> th.Tensor:
        return self.mlp_extractor.forward_actor(features, tokens)  # type: ignore[call-arg]

    def _values(self, features: th.Tensor | None, tokens: th.Tensor) -> th.Tensor:
        return self.value_net(self.mlp_extractor.forward_critic(features, tokens))  # type: ignore[call-arg, arg-type]

    def _stateless_error(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} has a memory and was called without its state (memory_state=None), as "
            "stable_baselines3's PPO and A2C do: train it with an algorithm of this package, for example "
            'TrMRLPPO("TrMRLPolicy", env), and act with predict.'
        )

    def _remember(
        self, obs: PyTorchObs, state: MemoryState | None, memory_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None, MemoryState]:
        """
        :return: The tokens (n_envs, token_dim), what actor and critic remember, (n_envs, features_dim) each (None: nothing),
            and the new memories
        """
        if state is None:
            raise self._stateless_error()
        tokens = self._tokens(obs)
        n_actor = len(state) if self.critic_memory is None else len(state) // 2
        actor_features, new_state = self.actor_memory.step(tokens, state[:n_actor], memory_starts)
        if self.critic_memory is not None:
            critic_features, critic_state = self.critic_memory.step(tokens, state[n_actor:], memory_starts)
            return tokens, actor_features, critic_features, new_state + critic_state
        return tokens, actor_features, None if self.critic == "memoryless" else actor_features, new_state

    # -- Acting ------------------------------------------------------------------------------------------------------

    def forward(  # type: ignore[override]
        self,
        obs: PyTorchObs,
        memory_state: MemoryState | None = None,
        memory_starts: th.Tensor | None = None,
        deterministic: bool = False,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, MemoryState]:
        """
        Act for one step in every environment.

        :param obs: Tokens, (n_envs, ...)
        :param memory_state: The memories before these tokens, which are used up
        :param memory_starts: Whether a memory is emptied first, bool, (n_envs,); see :meth:`enter_memory`
        :param deterministic: Whether to take the mode of the action distribution
        :return: actions (n_envs, ...), values (n_envs, 1), log probabilities (n_envs,), the memories with these tokens
        """
        tokens, actor_features, critic_features, memory_state = self._remember(
            obs, memory_state, memory_starts  # type: ignore[arg-type]
        )
        distribution = self._get_action_dist_from_latent(self._latent_pi(actor_features, tokens))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        return actions, self._values(critic_features, tokens), log_prob, memory_state

    def predict_values(
        self, obs: PyTorchObs, memory_state: MemoryState | None = None, memory_starts: th.Tensor | None = None
    ) -> th.Tensor:
        """
        Values of observations given what came before them.

        :param obs: Tokens, (n_envs, ...)
        :param memory_state: The memories before these tokens
        :param memory_starts: Whether a memory is emptied first, bool, (n_envs,)
        :return: Values in units of :attr:`value_scale` rewards, (n_envs, 1)
        """
        tokens, _, critic_features, _ = self._remember(obs, memory_state, memory_starts)  # type: ignore[arg-type]
        return self._values(critic_features, tokens)

    def get_distribution(  # type: ignore[override]
        self, obs: PyTorchObs, memory_state: MemoryState | None = None, memory_starts: th.Tensor | None = None
    ) -> tuple[Distribution, MemoryState]:
        """
        The action distribution given the memory; the critic's memory, if it has one, is left alone.

        :param obs: Tokens, (n_envs, ...)
        :param memory_state: The actor's memory before these tokens
        :param memory_starts: Whether the memory is emptied first, bool, (n_envs,)
        :return: The distribution and the actor's memory with these tokens
        """
        if memory_state is None or memory_starts is None:
            raise self._stateless_error()
        tokens = self._tokens(obs)
        features, memory_state = self.actor_memory.step(tokens, memory_state, memory_starts)
        return self._get_action_dist_from_latent(self._latent_pi(features, tokens)), memory_state

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """
        Act with memory, for one or for any number of environments.

        :param observation: Token(s) of one environment or of a batch of environments
        :param state: What the last call returned, which is used up: its arrays may be written to; None empties the memory
        :param episode_start: Whether a *trial* starts (the ``done`` of the VecEnv), (n_envs,); none does if None
        :param deterministic: Whether to take the mode of the action distribution
        :return: The action(s) and the memory state to hand back: numpy arrays whose first axis is the environment
        :raises ValueError: if shapes of observation, state and episode_start do not fit
        """
        if self.training:  # or it would visit all modules at every step
            self.set_training_mode(False)
        if isinstance(observation, tuple):
            raise ValueError(
                "observation must be an array or a dict of arrays, got a tuple: `obs, info = env.reset()` (gymnasium) was "
                "perhaps passed whole; pass `obs`."
            )
        obs_tensor, vectorized_env = self.obs_to_tensor(observation)
        n_envs = len(next(iter(obs_tensor.values()))) if isinstance(obs_tensor, dict) else len(obs_tensor)
        if state is None:
            memory_state = self.actor_memory.initial_state(n_envs)
        else:
            memory_state = tuple(th.as_tensor(part, device=self.device) for part in state)
            expected, got = len(self.actor_memory.initial_state(1)), [tuple(part.shape) for part in memory_state]
            if len(got) != expected or any(shape[:1] != (n_envs,) for shape in got):
                raise ValueError(
                    f"state must hold {expected} arrays whose first axis is {n_envs} environment(s), got shapes {got}: pass "
                    "what the last call of this model returned, and state=None when the number of environments changes."
                )
        starts = np.zeros(n_envs, dtype=bool) if episode_start is None else np.asarray(episode_start, dtype=bool).reshape(-1)
        if len(starts) != n_envs:
            raise ValueError(
                f"episode_start must have one entry per environment ({n_envs}), got shape {np.asarray(episode_start).shape}."
            )

        with th.no_grad():
            obs_tensor, memory_starts = self.enter_memory(obs_tensor, th.as_tensor(starts, device=self.device))
            distribution, memory_state = self.get_distribution(obs_tensor, memory_state, memory_starts)
            actions_tensor = distribution.get_actions(deterministic=deterministic)
        actions = actions_tensor.cpu().numpy().reshape((-1, *self.action_space.shape))  # type: ignore[misc, arg-type]
        if isinstance(self.action_space, spaces.Box):
            if self.squash_output:
                actions = self.unscale_action(actions)
            else:
                actions = np.clip(actions, self.action_space.low, self.action_space.high)
        if not vectorized_env:
            actions = actions.squeeze(axis=0)
        return actions, tuple(part.cpu().numpy() for part in memory_state)

    # -- Training ----------------------------------------------------------------------------------------------------

    def evaluate_actions(  # type: ignore[override]
        self, obs: MemoryWindows | TrialSlices, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Encode memories again under the current weights and evaluate the actions taken.

        :param obs: Working memories or slices of trials, cut from the rollout buffer, with ``batch`` steps in all
        :param actions: Actions, (batch, ...)
        :return: values (batch, 1) in units of :attr:`value_scale`, log likelihoods (batch,), entropies (batch,) or None
        """
        if not isinstance(obs, (MemoryWindows, TrialSlices)):
            raise ValueError(
                f"{type(self).__name__} needs memories (MemoryWindows or TrialSlices) to evaluate actions, got "
                f"{type(obs).__name__}: train it with an algorithm of this package, whose rollout buffer cuts them."
            )
        tokens = self._token_sequences(obs.observations)
        current = self._current_tokens(tokens, obs)
        actor_features = self._encode(self.actor_memory, tokens, obs)
        critic_features = self._critic_features(tokens, obs, actor_features)
        latent_pi = self._latent_pi(actor_features, current)
        distribution = self._get_action_dist_from_latent(latent_pi)
        return self._values(critic_features, current), distribution.log_prob(actions), distribution.entropy()

    def evaluate_values(self, obs: MemoryWindows | TrialSlices) -> th.Tensor:
        """
        The values of :meth:`evaluate_actions` alone, without the work for the actor.

        :param obs: Working memories or slices of trials, cut from the rollout buffer, with ``batch`` steps in all
        :return: Values in units of :attr:`value_scale` rewards, (batch, 1)
        """
        tokens = self._token_sequences(obs.observations)
        return self._values(self._critic_features(tokens, obs, None), self._current_tokens(tokens, obs))

    def _critic_features(
        self, tokens: th.Tensor, obs: MemoryWindows | TrialSlices, actor_features: th.Tensor | None
    ) -> th.Tensor | None:
        if self.critic == "memoryless":
            return None
        if self.critic == "shared" and actor_features is not None:
            return actor_features
        return self._encode(self.actor_memory if self.critic_memory is None else self.critic_memory, tokens, obs)

    @staticmethod
    def _current_tokens(tokens: th.Tensor, obs: MemoryWindows | TrialSlices) -> th.Tensor:
        # (batch or n_slices, seq_len, token_dim) -> (batch, token_dim)
        if isinstance(obs, TrialSlices):
            return obs.select(tokens)
        return tokens[th.arange(len(tokens), device=tokens.device), obs.lengths - 1]

    @staticmethod
    def _encode(encoder: MemoryEncoder, tokens: th.Tensor, obs: MemoryWindows | TrialSlices) -> th.Tensor:
        # (batch or n_slices, seq_len, token_dim) -> (batch, features_dim)
        if isinstance(obs, TrialSlices):
            return obs.select(encoder(tokens, obs.offsets))
        assert isinstance(encoder, WindowMemoryEncoder)
        return encoder.encode_windows(tokens, obs.lengths)
