"""Actor and critic heads: from what is remembered and the current token to the latents of actions and values."""

from typing import Literal

import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_trmrl.common.arguments import check_integers


class MlpHead(nn.Module):
    """
    Multilayer perceptron on the features of the memory, on the current token, or on both.

    :param features_dim: Width of the features; 0 if the head sees the token only
    :param token_dim: Width of the token; 0 if the head sees the features only
    :param sizes: Hidden sizes
    :param activation_fn: Activation function
    """

    def __init__(self, features_dim: int, token_dim: int, sizes: list[int], activation_fn: type[nn.Module]):
        super().__init__()
        self.sees_features, self.sees_token = features_dim > 0, token_dim > 0
        self.layers = nn.Sequential(*create_mlp(features_dim + token_dim, -1, sizes, activation_fn))
        self.latent_dim = sizes[-1] if sizes else features_dim + token_dim

    def forward(self, features: th.Tensor | None, tokens: th.Tensor) -> th.Tensor:
        """
        :param features: What is remembered, (batch, features_dim); None for a head that sees the token only
        :param tokens: Current tokens, (batch, token_dim)
        :return: Shape (batch, latent_dim)
        """
        if not self.sees_features:
            return self.layers(tokens)
        assert features is not None
        return self.layers(th.cat([features, tokens], dim=1) if self.sees_token else features)


class HypernetworkHead(nn.Module):
    """
    Multilayer perceptron on the current token whose weights a linear hypernetwork makes from the features of the memory
    (Beck et al. 2022, arXiv 2210.11348). Bias-HyperInit: the hypernetwork's matrix starts at zero and its bias at an ordinary
    initialisation of the generated layers, so that at the start they do not depend on the memory.

    The generated layers are the hidden ones; the output layers behind them are SB3's ``action_net`` and ``value_net``.

    :param features_dim: Width of the features
    :param token_dim: Width of the token
    :param sizes: Hidden sizes, at least one
    :param activation_fn: Activation function
    :param ortho_init: Whether generated matrices start orthogonal with gain sqrt(2), as SB3's; else Xavier-uniform
    :raises ValueError: without hidden sizes
    """

    def __init__(
        self, features_dim: int, token_dim: int, sizes: list[int], activation_fn: type[nn.Module], ortho_init: bool = True
    ):
        super().__init__()
        if not sizes:
            raise ValueError(
                "head='hypernetwork' generates hidden layers, and net_arch has none, of actor or critic: name at least one "
                "size of each, for example net_arch=[64]."
            )
        self.activation = activation_fn()
        self.shapes = list(zip(sizes, [token_dim, *sizes[:-1]], strict=True))
        generated = []
        for shape in self.shapes:
            matrix = th.empty(shape)
            if ortho_init:
                nn.init.orthogonal_(matrix, gain=2**0.5)
            else:
                nn.init.xavier_uniform_(matrix)
            generated += [matrix.flatten(), th.zeros(shape[0])]
        # Plain parameters: SB3 initialises every nn.Linear of the heads anew
        self.bias = nn.Parameter(th.cat(generated))
        self.weight = nn.Parameter(th.zeros(len(self.bias), features_dim))
        self.latent_dim = sizes[-1]

    def forward(self, features: th.Tensor | None, tokens: th.Tensor) -> th.Tensor:
        """
        :param features: What is remembered, (batch, features_dim)
        :param tokens: Current tokens, (batch, token_dim)
        :return: Shape (batch, latent_dim)
        """
        assert features is not None
        generated = nn.functional.linear(features, self.weight, self.bias)
        x, used = tokens.unsqueeze(2), 0
        for n_out, n_in in self.shapes:
            matrix, bias = generated[:, used : used + n_out * (n_in + 1)].split([n_out * n_in, n_out], dim=1)
            x = self.activation(th.baddbmm(bias.unsqueeze(2), matrix.unflatten(1, (n_out, n_in)), x))
            used += n_out * (n_in + 1)
        return x.squeeze(2)


class ActorCriticHeads(nn.Module):
    """
    The hidden layers of actor and critic, each with an input of its own (SB3's ``MlpExtractor`` shares one).

    :param features_dim: Width of what is remembered
    :param token_dim: Width of the token
    :param net_arch: Hidden sizes, ``dict(pi=[...], vf=[...])`` or one list for both
    :param activation_fn: Activation function
    :param head: ``"mlp"`` or ``"hypernetwork"``
    :param head_input: What ``"mlp"`` heads see: ``"latest"`` features or ``"mixed"`` features and token
    :param memoryless_critic: Whether the critic sees the token only
    :param ortho_init: Initialisation of generated layers
    :raises ValueError: for another ``net_arch``, a size that is none
    """

    def __init__(
        self,
        features_dim: int,
        token_dim: int,
        net_arch: list[int] | dict[str, list[int]],
        activation_fn: type[nn.Module],
        head: Literal["mlp", "hypernetwork"] = "mlp",
        head_input: Literal["latest", "mixed"] = "mixed",
        memoryless_critic: bool = False,
        ortho_init: bool = True,
    ):
        super().__init__()
        arch = net_arch if isinstance(net_arch, dict) else dict(pi=net_arch, vf=net_arch)
        if set(arch) - {"pi", "vf"}:
            raise ValueError(f"net_arch must be a list of sizes or a dict with the keys 'pi' and 'vf', got {net_arch}.")
        for sizes in arch.values():
            check_integers({f"net_arch[{index}]": size for index, size in enumerate(sizes)})

        def make(sizes: list[int]) -> MlpHead | HypernetworkHead:
            if head == "hypernetwork":
                return HypernetworkHead(features_dim, token_dim, sizes, activation_fn, ortho_init)
            return MlpHead(features_dim, token_dim if head_input == "mixed" else 0, sizes, activation_fn)

        self.policy_net = make(arch.get("pi", []))
        vf_sizes = arch.get("vf", [])
        self.value_net = MlpHead(0, token_dim, vf_sizes, activation_fn) if memoryless_critic else make(vf_sizes)
        self.latent_dim_pi, self.latent_dim_vf = self.policy_net.latent_dim, self.value_net.latent_dim

    def forward_actor(self, features: th.Tensor | None, tokens: th.Tensor) -> th.Tensor:
        """
        :param features: What the actor remembers, (batch, features_dim)
        :param tokens: Current tokens, (batch, token_dim)
        :return: Shape (batch, latent_dim_pi)
        """
        return self.policy_net(features, tokens)

    def forward_critic(self, features: th.Tensor | None, tokens: th.Tensor) -> th.Tensor:
        """
        :param features: What the critic remembers, (batch, features_dim); None without a memory
        :param tokens: Current tokens, (batch, token_dim)
        :return: Shape (batch, latent_dim_vf)
        """
        return self.value_net(features, tokens)
