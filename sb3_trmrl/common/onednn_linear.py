"""
Linear layers through oneDNN on processors on which torch's own are slow.

Torch multiplies float32 matrices by Intel's MKL, which takes the AVX2 kernels on AMD processors even where there is AVX-512:
105 GFLOP/s on one core of an EPYC on which oneDNN, a part of torch too, reaches 230 (``benchmarks/learn_speed.py`` prints
both). Both compute in float32; results differ in the last bits.
"""

import contextlib
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

#: Fewer rows than this are no faster
MIN_ROWS = 64


def mkl_leaves_avx512_unused() -> bool:
    """:return: Whether this is an AMD processor with AVX-512 and torch has both libraries."""
    if not (th.backends.mkl.is_available() and th.backends.mkldnn.is_available()):
        return False
    if th.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(th.ops.mkldnn, "_linear_pointwise"):
        return False
    cpuinfo = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows the vendor
    return "AuthenticAMD" in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


def _multiply(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    # x weight^T + bias
    return th.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Linear(th.autograd.Function):
    """``F.linear`` of rows, (n_rows, n), with some of zeros behind them, and its gradients as three products of oneDNN."""

    @staticmethod
    def forward(ctx: Any, rows: th.Tensor, weight: th.Tensor, bias: th.Tensor | None, n_zeros: int) -> th.Tensor:
        x = F.pad(rows, (0, 0, 0, n_zeros)) if n_zeros > 0 else rows
        ctx.save_for_backward(x, weight)
        ctx.n_rows = len(rows)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: th.Tensor) -> tuple[th.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_weight = None
        if needs_weight:
            # The left factor is copied to its transpose: let that be the smaller one
            if grad.shape[1] <= x.shape[1]:
                grad_weight = _multiply(grad.t(), x.t())
            else:
                grad_weight = _multiply(x.t(), grad.t()).t()
        grad_rows = _multiply(grad, weight.t())[: ctx.n_rows] if needs_x else None
        return grad_rows, grad_weight, grad.sum(0) if needs_bias else None, None


def _linear(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """
    ``F.linear`` by oneDNN. That makes a kernel for each shape, which takes as long as a product, and keeps a thousand of them
    (a gigabyte). Where trials end early, no two minibatches have equally many rows, so zeros fill them up to multiples of 32,
    from 512 rows on to one of 16 counts between two powers of two.
    """
    # Shapes change here and not in the function, behind whose views nothing could work in place
    rows = x.flatten(0, -2)
    n_zeros = -len(rows) % (1 << max(5, len(rows).bit_length() - 5))
    y = _Linear.apply(rows, weight, bias, n_zeros)
    return (y[: len(rows)] if n_zeros > 0 else y).unflatten(0, x.shape[:-1])


class _LinearByOneDNN(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs:
            x, weight, *bias = args
            if x.dtype == weight.dtype == th.float32 and x.device.type == "cpu" and x.dim() > 1 and weight.dim() == 2:
                if x.shape[:-1].numel() >= MIN_ROWS:
                    return _linear(x, weight, *bias)
        return func(*args, **(kwargs or {}))


_NEEDED = mkl_leaves_avx512_unused()


def fast_linear() -> contextlib.AbstractContextManager[Any]:
    """
    :return: A context in which ``F.linear``, and so ``nn.Linear``, of at least ``MIN_ROWS`` rows of float32 on the CPU goes
        through oneDNN; one that does nothing where MKL is as fast
    """
    return _LinearByOneDNN() if _NEEDED else contextlib.nullcontext()
