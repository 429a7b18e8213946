"""Actor-critic policies with a memory."""

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
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_trmrl.common.normalization import ObservationNormalizer, ValueScale
from sb3_trmrl.common.type_aliases import MemoryWindows
from sb3_trmrl.envs.trial import TokenSpace
from sb3_trmrl.memory_encoders import MemoryEncoder, MemoryState, WindowMemoryEncoder, get_memory_encoder_class


class ActorCriticHeads(nn.Module):
    """
    The multilayer perceptrons of actor and critic, each with an input of its own (SB3's ``MlpExtractor`` shares one).

    :param actor_dim: Width of the actor's input
    :param critic_dim: Width of the critic's input
    :param net_arch: Hidden sizes, ``dict(pi=[...], vf=[...])`` or one list for both
    :param activation_fn: Activation function
    """

    def __init__(
        self, actor_dim: int, critic_dim: int, net_arch: list[int] | dict[str, list[int]], activation_fn: type[nn.Module]
    ):
        super().__init__()
        arch = net_arch if isinstance(net_arch, dict) else dict(pi=net_arch, vf=net_arch)
        unknown = set(arch) - {"pi", "vf"}
        if unknown:
            raise ValueError(f"net_arch must be a list of sizes or a dict with the keys 'pi' and 'vf', got {net_arch}.")
        pi_sizes, vf_sizes = arch.get("pi", []), arch.get("vf", [])
        self.policy_net = nn.Sequential(*create_mlp(actor_dim, -1, pi_sizes, activation_fn))
        self.value_net = nn.Sequential(*create_mlp(critic_dim, -1, vf_sizes, activation_fn))
        self.latent_dim_pi = pi_sizes[-1] if pi_sizes else actor_dim
        self.latent_dim_vf = vf_sizes[-1] if vf_sizes else critic_dim

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Shape (batch, actor_dim)
        :return: Shape (batch, latent_dim_pi)
        """
        return self.policy_net(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        """
        :param features: Shape (batch, critic_dim)
        :return: Shape (batch, latent_dim_vf)
        """
        return self.value_net(features)


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
    :param head_input: What the heads see: ``"latest"``: the encoder's output at the current token (the paper); ``"mixed"``:
        that and the current token itself
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
        head_input: Literal["latest", "mixed"] = "mixed",
        critic: Literal["shared", "separate", "memoryless"] = "shared",
        output_scale: float = 0.01,
        normalize_observations: bool = True,
        value_log_std_init: float | None = None,
    ):
        for name, value, choices in (
            ("memory_reset", memory_reset, ("trial", "episode")),
            ("head_input", head_input, ("latest", "mixed")),
            ("critic", critic, ("shared", "separate", "memoryless")),
        ):
            if value not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {value!r}.")
        # Read by _build, which the parent's constructor calls
        self.memory_encoder_class = get_memory_encoder_class(memory_encoder)
        self.memory_encoder_name = memory_encoder
        self.memory_encoder_kwargs = memory_encoder_kwargs or {}
        self.memory_reset = memory_reset
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
            head_input=self.head_input,
            critic=self.critic,
            output_scale=self.output_scale,
            normalize_observations=self.normalize_observations,
            value_log_std_init=self.value_log_std_init,
        )
        return data

    # -- Construction ------------------------------------------------------------------------------------------------

    def _make_memory_encoder(self) -> MemoryEncoder:
        return self.memory_encoder_class(self.features_extractor.features_dim, **self.memory_encoder_kwargs)

    def _build_mlp_extractor(self) -> None:
        token_dim = self.features_extractor.features_dim
        self.normalizer = ObservationNormalizer(self.observation_space) if self.normalize_observations else None
        self.value_normalizer = ValueScale() if self.normalize_observations else None
        self.actor_memory = self._make_memory_encoder()
        self.critic_memory = self._make_memory_encoder() if self.critic == "separate" else None
        if self.value_log_std_init is not None:
            self.value_log_std = nn.Parameter(th.tensor(float(self.value_log_std_init)))
        head_dim = self.actor_memory.features_dim + (token_dim if self.head_input == "mixed" else 0)
        critic_dim = token_dim if self.critic == "memoryless" else head_dim
        self.mlp_extractor = ActorCriticHeads(  # type: ignore[assignment]
            head_dim, critic_dim, self.net_arch, self.activation_fn
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        # The optimizer exists already and keeps the parameters: they are changed in place
        if self.ortho_init:
            nn.init.orthogonal_(self.action_net.weight, gain=self.output_scale)
        else:
            for head in (self.mlp_extractor, self.action_net, self.value_net):
                for module in head.modules():
                    if isinstance(module, nn.Linear):
                        nn.init.xavier_uniform_(module.weight, gain=self.output_scale if module is self.action_net else 1.0)
                        nn.init.zeros_(module.bias)

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
        if isinstance(self.observation_space, TokenSpace):
            assert isinstance(obs, th.Tensor)
            space = self.observation_space
            memory_starts = episode_starts | (obs[:, space.done_slice] > 0.5).any(dim=1)
            obs = obs.clone()
            obs[:, space.observation_slice.stop :].masked_fill_(memory_starts.unsqueeze(1), 0.0)
            return obs, memory_starts
        if isinstance(obs, dict) and "prev_done" in obs:
            memory_starts = episode_starts | (obs["prev_done"] > 0.5).flatten(1).any(dim=1)
            forgotten = {
                key: obs[key].masked_fill(memory_starts.view(-1, *[1] * (obs[key].dim() - 1)), 0)
                for key in ("prev_action", "prev_reward", "prev_done")
            }
            return {**obs, **forgotten}, memory_starts
        return obs, episode_starts

    def _tokens(self, obs: PyTorchObs) -> th.Tensor:
        # (batch, ...) -> (batch, token_dim)
        obs = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        if self.normalizer is not None:
            obs = self.normalizer(obs)
        return self.features_extractor(obs)

    def _window_tokens(self, windows: PyTorchObs) -> th.Tensor:
        # (batch, memory_length, ...) -> (batch, memory_length, token_dim)
        if isinstance(windows, dict):
            batch_shape = next(iter(windows.values())).shape[:2]
            return self._tokens({key: part.flatten(0, 1) for key, part in windows.items()}).unflatten(0, batch_shape)
        return self._tokens(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])

    def state_from_context(self, context: MemoryWindows) -> MemoryState:
        """
        Rebuild the memories from stored observations under the current weights.

        :param context: The last observations of each environment, newest last, (n_envs, context, ...), and how many of them
            (counted from the newest) are remembered, (n_envs,)
        :return: The memories after these observations
        """
        n_envs = len(context.lengths)
        if self.context_length == 0:
            return self.initial_state(n_envs)
        tokens = self._window_tokens(context.observations)
        state = self.actor_memory.state_from_context(tokens, context.lengths)
        return state if self.critic_memory is None else state + self.critic_memory.state_from_context(tokens, context.lengths)

    def _actor_input(self, features: th.Tensor, tokens: th.Tensor) -> th.Tensor:
        return th.cat([features, tokens], dim=1) if self.head_input == "mixed" else features

    def _values(self, critic_features: th.Tensor) -> th.Tensor:
        return self.value_net(self.mlp_extractor.forward_critic(critic_features))

    def _remember(
        self, obs: PyTorchObs, state: MemoryState | None, memory_starts: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, MemoryState]:
        """
        :return: Actor features (n_envs, head_dim), critic features (n_envs, critic_dim), the new memories
        """
        if state is None:
            raise ValueError(
                f"{type(self).__name__} has a memory and was called without its state (memory_state=None), as "
                "stable_baselines3's PPO and A2C do: train it with an algorithm of this package, for example "
                'TrMRLPPO("TrMRLPolicy", env).'
            )
        tokens = self._tokens(obs)
        n_actor = len(state) if self.critic_memory is None else len(state) // 2
        features, new_state = self.actor_memory.step(tokens, state[:n_actor], memory_starts)
        actor_features = self._actor_input(features, tokens)
        if self.critic_memory is not None:
            features, critic_state = self.critic_memory.step(tokens, state[n_actor:], memory_starts)
            return actor_features, self._actor_input(features, tokens), new_state + critic_state
        return actor_features, tokens if self.critic == "memoryless" else actor_features, new_state

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
        :param memory_state: The memories before these tokens
        :param memory_starts: Whether a memory is emptied first, bool, (n_envs,); see :meth:`enter_memory`
        :param deterministic: Whether to take the mode of the action distribution
        :return: actions (n_envs, ...), values (n_envs, 1), log probabilities (n_envs,), the memories with these tokens
        """
        actor_features, critic_features, memory_state = self._remember(obs, memory_state, memory_starts)  # type: ignore[arg-type]
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(actor_features))
        actions = distribution.get_actions(deterministic=deterministic)
        log_prob = distribution.log_prob(actions)
        actions = actions.reshape((-1, *self.action_space.shape))  # type: ignore[misc]
        return actions, self._values(critic_features), log_prob, memory_state

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
        _, critic_features, _ = self._remember(obs, memory_state, memory_starts)  # type: ignore[arg-type]
        return self._values(critic_features)

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
        assert memory_state is not None and memory_starts is not None
        tokens = self._tokens(obs)
        features, memory_state = self.actor_memory.step(tokens, memory_state, memory_starts)
        latent_pi = self.mlp_extractor.forward_actor(self._actor_input(features, tokens))
        return self._get_action_dist_from_latent(latent_pi), memory_state

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
        :param state: What the last call returned; None empties the memory
        :param episode_start: Whether a *trial* starts (the ``done`` of the VecEnv), (n_envs,); none does if None
        :param deterministic: Whether to take the mode of the action distribution
        :return: The action(s) and the memory state to hand back: numpy arrays whose first axis is the environment
        :raises ValueError: if shapes of observation, state and episode_start do not fit
        """
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
            expected = [tuple(part.shape) for part in self.actor_memory.initial_state(n_envs)]
            got = [tuple(part.shape) for part in memory_state]
            if got != expected:
                raise ValueError(
                    f"state must hold arrays of shapes {expected} for {n_envs} environment(s), got {got}: pass what the last "
                    "call of this model returned, and state=None when the number of environments changes."
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
        self, obs: MemoryWindows, actions: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        """
        Re-encode working memories under the current weights and evaluate the actions taken.

        :param obs: Working memories cut from the rollout buffer
        :param actions: Actions, (batch, ...)
        :return: values (batch, 1) in units of :attr:`value_scale`, log likelihoods (batch,), entropies (batch,) or None
        """
        if not isinstance(obs, MemoryWindows):
            raise ValueError(
                f"{type(self).__name__} needs working memories (MemoryWindows) to evaluate actions, got {type(obs).__name__}: "
                "train it with an algorithm of this package, whose rollout buffer cuts them."
            )
        tokens = self._window_tokens(obs.observations)
        current = tokens[th.arange(len(tokens), device=tokens.device), obs.lengths - 1]
        actor_features = self._actor_input(self._encode(self.actor_memory, tokens, obs.lengths), current)
        if self.critic == "shared":
            critic_features = actor_features
        else:
            critic_features = self._critic_features(tokens, current, obs.lengths)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(actor_features))
        return self._values(critic_features), distribution.log_prob(actions), distribution.entropy()

    def evaluate_values(self, obs: MemoryWindows) -> th.Tensor:
        """
        The values of :meth:`evaluate_actions` alone, without the work for the actor.

        :param obs: Working memories cut from the rollout buffer
        :return: Values in units of :attr:`value_scale` rewards, (batch, 1)
        """
        tokens = self._window_tokens(obs.observations)
        current = tokens[th.arange(len(tokens), device=tokens.device), obs.lengths - 1]
        return self._values(self._critic_features(tokens, current, obs.lengths))

    def _critic_features(self, tokens: th.Tensor, current: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        if self.critic == "memoryless":
            return current
        memory = self.actor_memory if self.critic_memory is None else self.critic_memory
        return self._actor_input(self._encode(memory, tokens, lengths), current)

    @staticmethod
    def _encode(encoder: MemoryEncoder, tokens: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        assert isinstance(encoder, WindowMemoryEncoder)
        return encoder.encode_windows(tokens, lengths)
