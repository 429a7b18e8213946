"""Actor and critic heads: the hypernetwork against a loop over samples, its start, its place in the policy."""

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.heads import ActorCriticHeads, HypernetworkHead, MlpHead
from tests.families import ENCODERS, counter_vec_env


def make_hypernetwork(sizes: list[int], ortho_init: bool = True, at_start: bool = True) -> HypernetworkHead:
    """:return: Head on 5 features and tokens of width 3; with a matrix that is not zero, unless ``at_start``."""
    th.manual_seed(0)
    head = HypernetworkHead(5, 3, sizes, nn.Tanh, ortho_init)
    if not at_start:
        nn.init.normal_(head.weight, std=0.3)
        nn.init.normal_(head.bias, std=0.3)
    return head


# -- Hypernetwork ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[4], [6, 2], [2, 5, 4]])
def test_each_sample_has_a_perceptron_of_its_own(sizes):
    head = make_hypernetwork(sizes, at_start=False)
    features, tokens = th.randn(7, 5), th.randn(7, 3)
    latents = head(features, tokens)
    assert latents.shape == (7, sizes[-1]) and head.latent_dim == sizes[-1]
    for latent, feature, token in zip(latents, features, tokens, strict=True):
        generated = (head.weight @ feature + head.bias).tolist()
        x = token.tolist()
        for size in sizes:
            # One after another: the rows of the matrix, then the biases
            matrix = np.array(generated[: size * len(x)]).reshape(size, len(x))
            bias = np.array(generated[size * len(x) : size * len(x) + size])
            del generated[: size * len(x) + size]
            x = np.tanh(matrix @ x + bias).tolist()
        assert not generated, "all that is generated is used"
        np.testing.assert_allclose(latent.detach(), x, atol=1e-5)


@pytest.mark.parametrize("ortho_init", [True, False])
def test_at_the_start_it_is_an_ordinary_perceptron_that_ignores_the_memory(ortho_init):
    head = make_hypernetwork([8, 4], ortho_init)
    tokens = th.randn(6, 3)
    latents = head(th.randn(6, 5), tokens)
    assert th.equal(latents, head(100 * th.randn(6, 5), tokens))
    generated, x = head.bias, tokens
    for n_out, n_in in ((8, 3), (4, 8)):
        matrix, bias, generated = generated.split([n_out * n_in, n_out, len(generated) - n_out * (n_in + 1)])
        matrix = matrix.view(n_out, n_in)
        assert not bias.any()
        if ortho_init:
            singular_values = th.linalg.svdvals(matrix.detach())
            th.testing.assert_close(singular_values, th.full_like(singular_values, 2**0.5), atol=1e-5, rtol=0)
        else:
            assert 0.8 * (6 / (n_in + n_out)) ** 0.5 < matrix.abs().max() <= (6 / (n_in + n_out)) ** 0.5
        x = th.tanh(x @ matrix.T)
    th.testing.assert_close(latents, x)


def test_gradients_of_the_hypernetwork():
    features, tokens = th.randn(9, 5, requires_grad=True), th.randn(9, 3, requires_grad=True)
    for at_start in (True, False):
        head = make_hypernetwork([4, 4], at_start=at_start)
        gradients = th.autograd.grad(head(features, tokens).pow(2).sum(), [head.weight, head.bias, features, tokens])
        # The memory can't be trained through a matrix of zeros, but the matrix itself can: after one step it is none
        assert [bool(gradient.any()) for gradient in gradients] == [True, True, not at_start, True]
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_hypernetwork_needs_something_to_generate():
    with pytest.raises(ValueError, match=r"net_arch has none.*net_arch=\[64\]"):
        HypernetworkHead(5, 3, [], nn.Tanh)


# -- Perceptron and pair ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features_dim", "token_dim", "n_inputs"), [(5, 0, 5), (5, 3, 8), (0, 3, 3)], ids=["latest", "mixed", "memoryless"]
)
@pytest.mark.parametrize("sizes", [[], [4], [6, 2]])
def test_what_a_perceptron_sees(features_dim, token_dim, n_inputs, sizes):
    head = MlpHead(features_dim, token_dim, sizes, nn.Tanh)
    features, tokens = th.randn(6, 5), th.randn(6, 3)
    x = th.cat([part for part, width in ((features, features_dim), (tokens, token_dim)) if width], dim=1)
    assert x.shape[1] == n_inputs
    latents = head(features if features_dim else None, tokens)
    th.testing.assert_close(latents, head.layers(x))
    assert latents.shape == (6, head.latent_dim) and head.latent_dim == (sizes or [n_inputs])[-1]


def test_actor_and_critic_have_sizes_of_their_own():
    kinds: list[dict[str, Any]] = [dict(), dict(head="hypernetwork"), dict(memoryless_critic=True)]
    for kwargs in kinds:
        heads = ActorCriticHeads(5, 3, dict(pi=[4], vf=[7, 6]), nn.ReLU, **kwargs)
        assert (heads.latent_dim_pi, heads.latent_dim_vf) == (4, 6)
        features, tokens = th.randn(2, 5), th.randn(2, 3)
        assert heads.forward_actor(features, tokens).shape == (2, 4)
        critic_features = None if kwargs.get("memoryless_critic") else features
        assert heads.forward_critic(critic_features, tokens).shape == (2, 6)
    with pytest.raises(ValueError, match=r"'pi' and 'vf', got \{'pi': \[4\], 'q': \[4\]\}"):
        ActorCriticHeads(5, 3, dict(pi=[4], q=[4]), nn.ReLU)


# -- In the policy ---------------------------------------------------------------------------------------------------


def make_model(label: str = "trial-rotary-none", use_sde: bool = False, env: Any = None, **policy_kwargs: Any) -> TrMRLPPO:
    name, memory_encoder_kwargs = ENCODERS[label]
    options = dict(head="hypernetwork", net_arch=[8], memory_encoder=name, memory_encoder_kwargs=memory_encoder_kwargs)
    env = counter_vec_env(2, noise=1.0) if env is None else env
    return TrMRLPPO(
        "TrMRLPolicy", env, n_steps=8, batch_size=8, n_epochs=2, learning_rate=3e-3, use_sde=use_sde, seed=0, device="cpu",
        policy_kwargs={**options, **policy_kwargs},
    )  # fmt: skip


def hypernetworks(model: TrMRLPPO) -> list[HypernetworkHead]:
    return [module for module in model.policy.modules() if isinstance(module, HypernetworkHead)]


@pytest.mark.parametrize("ortho_init", [True, False])
@pytest.mark.parametrize(("critic", "n_hypernetworks"), [("shared", 2), ("separate", 2), ("memoryless", 1)])
@pytest.mark.parametrize("use_sde", [False, True])
def test_a_built_policy_keeps_the_start_of_its_hypernetworks_and_trains_them(ortho_init, critic, n_hypernetworks, use_sde):
    model = make_model(use_sde=use_sde, ortho_init=ortho_init, critic=critic)
    heads = hypernetworks(model)
    assert len(heads) == n_hypernetworks
    assert all(not head.weight.any() and head.bias.any() for head in heads)
    for head in heads:
        n_out, n_in = head.shapes[0]
        singular_values = th.linalg.svdvals(head.bias[: n_out * n_in].detach().view(n_out, n_in))
        assert th.allclose(singular_values, th.tensor(2**0.5), atol=1e-4) == ortho_init
    if critic == "memoryless":
        assert isinstance(model.policy.mlp_extractor.value_net, MlpHead)
    optimized = {id(parameter) for group in model.policy.optimizer.param_groups for parameter in group["params"]}
    assert {id(parameter) for parameter in model.policy.parameters()} == optimized
    before = [head.bias.clone() for head in heads]
    model.learn(32)
    for head, bias in zip(heads, before, strict=True):
        assert head.weight.any() and not th.equal(head.bias, bias)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_memory_enters_the_action_through_the_generated_weights_alone():
    model = make_model()
    tokens = th.randn(4, 6)
    for at_start in (True, False):
        if not at_start:
            for head in hypernetworks(model):
                nn.init.normal_(head.weight, std=0.3)
        with th.no_grad():
            heads: Any = model.policy.mlp_extractor
            latents = [heads.forward_actor(scale * th.ones(4, 8), tokens) for scale in (0.0, 1.0)]
        assert th.equal(*latents) == at_start


@pytest.mark.parametrize("action_space", ["discrete", "multi_discrete", "multi_binary"])
def test_hypernetworks_with_other_action_spaces(action_space, tmp_path):
    env = counter_vec_env(2, noise=1.0, action_space=action_space)
    model = make_model(label="gru", env=env).learn(32)
    model.save(tmp_path / "model.zip")
    loaded = TrMRLPPO.load(tmp_path / "model.zip", device="cpu")
    assert isinstance(loaded.policy.mlp_extractor.policy_net, HypernetworkHead)
    obs = np.ones(env.observation_space.shape, dtype=np.float32)
    np.testing.assert_array_equal(*(m.predict(obs, deterministic=True)[0] for m in (model, loaded)))
