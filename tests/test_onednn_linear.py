"""Linear layers through oneDNN give what torch's give, gradients too, on every machine that has oneDNN."""

import pytest
import torch as th
from torch.nn import functional as F

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common import onednn_linear
from sb3_trmrl.common.env_util import make_meta_vec_env

pytestmark = pytest.mark.skipif(
    not (th.backends.mkldnn.is_available() and hasattr(th.ops.mkldnn, "_linear_pointwise")), reason="torch without oneDNN"
)


@pytest.fixture(params=[True, False], ids=["needed", "not needed"])
def needed(request, monkeypatch):
    monkeypatch.setattr(onednn_linear, "_NEEDED", request.param)
    return request.param


def by_onednn(y: th.Tensor) -> bool:
    """Whether it comes from our function, or is a view of what does."""
    y = y if y._base is None else y._base
    return type(y.grad_fn).__name__ == "_LinearBackward"


@pytest.mark.parametrize("shape", [(64,), (8, 25), (3, 5, 7), (130, 1), (1600,)])
@pytest.mark.parametrize("sizes", [(28, 128), (128, 28), (1, 1), (5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_float64(needed, shape, sizes, bias):
    th.manual_seed(0)
    n_in, n_out = sizes
    x, weight = th.randn(*shape, n_in), th.randn(n_out, n_in)
    inputs = [x, weight, th.randn(n_out)] if bias else [x, weight]
    grad = th.randn(*shape, n_out)
    exact = [part.double().requires_grad_() for part in inputs]
    expected = F.linear(*exact)
    expected.backward(grad.double())
    for part in inputs:
        part.requires_grad_()
    with onednn_linear.fast_linear():
        y = F.linear(*inputs)
    y.backward(grad)
    assert by_onednn(y) is needed
    th.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    for part, reference in zip(inputs, exact, strict=True):
        assert part.grad is not None and reference.grad is not None
        th.testing.assert_close(part.grad.double(), reference.grad, rtol=1e-5, atol=1e-4)


def test_views_and_frozen_parts(needed):
    """Transposed inputs, parts of a weight matrix, gradients for some of the inputs only."""
    th.manual_seed(0)
    matrix = th.randn(96, 200, requires_grad=True)
    x, weight = matrix.t(), th.randn(3 * 32, 96, requires_grad=True)
    part, frozen = weight[32:64], th.randn(16, 32)

    def loss() -> th.Tensor:
        return F.linear(F.linear(x, part), frozen).pow(2).sum()

    expected = th.autograd.grad(loss(), [matrix, weight])
    with onednn_linear.fast_linear():
        got = th.autograd.grad(loss(), [matrix, weight])
    for ours, reference in zip(got, expected, strict=True):
        th.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-2)
    assert not frozen.requires_grad


@pytest.mark.parametrize("shape", [(64,), (70,), (2, 64), (2, 70)])
def test_what_comes_behind_may_work_in_place(needed, shape):
    """``nn.ReLU(inplace=True)`` of a user's features extractor or encoder."""
    th.manual_seed(0)
    x, weight = th.randn(*shape, 5, requires_grad=True), th.randn(6, 5, requires_grad=True)
    expected = th.autograd.grad(F.linear(x, weight).relu().pow(2).sum(), [x, weight])
    with onednn_linear.fast_linear():
        got = th.autograd.grad(F.linear(x, weight).relu_().pow(2).sum(), [x, weight])
    for ours, reference in zip(got, expected, strict=True):
        th.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-3)


def test_it_multiplies_matrices_of_few_sizes(monkeypatch):
    """oneDNN makes and keeps a kernel for each; where trials end early, no two minibatches have equally many rows."""
    sizes: set[int] = set()
    multiply = onednn_linear._multiply

    def recorded(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
        sizes.add(max(x.shape))
        return multiply(x, weight, bias)

    monkeypatch.setattr(onednn_linear, "_NEEDED", True)
    monkeypatch.setattr(onednn_linear, "_multiply", recorded)
    weight = th.randn(3, 2, requires_grad=True)
    with onednn_linear.fast_linear():
        for n_rows in range(1024, 2048):
            F.linear(th.randn(n_rows, 2, requires_grad=True), weight).sum().backward()
    assert len(sizes) == 17 and {1024, 1600, 2048} < sizes, "no copy of the usual minibatches"


def test_what_it_does_not_suit_is_left_alone(needed):
    weight = th.randn(4, 3, requires_grad=True)
    with onednn_linear.fast_linear():
        assert not by_onednn(F.linear(th.randn(onednn_linear.MIN_ROWS - 1, 3), weight))
        assert not by_onednn(F.linear(th.randn(3), weight))
        assert not by_onednn(F.linear(th.randn(64, 3).double(), weight.double()))
        assert F.linear(input=th.randn(64, 3), weight=weight, bias=None).shape == (64, 4)
        assert F.linear(th.randn(64, 3), weight[0]).shape == (64,)
    assert not by_onednn(F.linear(th.randn(64, 3), weight))


@pytest.mark.parametrize("policy_kwargs", [{}, {"memory_encoder_kwargs": {"attention": "window"}}], ids=["trial", "window"])
def test_training_is_the_same_but_for_rounding(policy_kwargs, monkeypatch):
    def weights(needed: bool) -> list[th.Tensor]:
        monkeypatch.setattr(onednn_linear, "_NEEDED", needed)
        env = make_meta_vec_env("HalfCheetahDir-v0", n_envs=2, seed=0, env_kwargs=dict(horizon=50))
        model = TrMRLPPO(
            "TrMRLPolicy", env, n_steps=100, batch_size=100, n_epochs=1, seed=0, policy_kwargs=policy_kwargs, device="cpu"
        )
        model.learn(200)
        env.close()
        return [parameter.detach().clone() for parameter in model.policy.parameters()]

    ours, again, reference = weights(True), weights(True), weights(False)
    for first, second, expected in zip(ours, again, reference, strict=True):
        assert first.equal(second)
        th.testing.assert_close(first, expected, rtol=1e-3, atol=1e-4)
