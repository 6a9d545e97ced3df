"""The linear maps of the blocks, by the quicker of two libraries that torch carries.

For float32 on an x86 processor torch multiplies matrices by MKL, and on some of them
(AMD's) oneDNN takes half of the time; torch's compiler calls it, `functional.linear`
does not. So large products go there, forward and backward, where torch has it and
`torch.backends.mkldnn` is enabled; everything else is `functional.linear`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGE = 1 << 20  # multiply-adds; below this, the call costs more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, differentiable any number of times.

    x: (..., features); weight: (outputs, features); bias: (outputs,). Returns (...,
    outputs), up to rounding what `torch.nn.functional.linear` returns, whose errors it
    raises.
    """
    if not _serves(x, weight, bias):
        return functional.linear(x, weight, bias)
    y = _Linear.apply(x, weight)
    return y if bias is None else y + bias


def split_linear(x: Tensor, layer: nn.Linear, widths: list[int]) -> tuple[Tensor, ...]:
    """The parts of layer(x), each a product of its own.

    x: (..., features); widths: of the parts, sum: the layer's outputs. Each part is
    contiguous, and its gradient needs no place among the others' before it is used.
    """
    weights = layer.weight.split(widths)
    biases = [None] * len(widths) if layer.bias is None else layer.bias.split(widths)
    return tuple(linear(x, w, b) for w, b in zip(weights, biases))


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    given = [t for t in (x, weight, bias) if t is not None]
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in given)
        and x.ndim > 1
        and weight.ndim == 2
        and x.shape[-1] == weight.shape[1]
        and x.numel() * len(weight) >= LARGE
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a B^T by oneDNN, without a graph. a: (..., k); b: (n, k)."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        x = x.contiguous()  # of other layouts oneDNN's products are many times slower
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx, g):
        (x, weight), g = ctx.saved_tensors, g.contiguous()
        rows, columns = x.flatten(0, -2), g.flatten(0, -2)
        of_x, of_weight = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph=True: these must have a graph
            return g @ weight if of_x else None, columns.T @ rows if of_weight else None
        dx = _product(g, weight.T) if of_x else None
        return dx, _product(columns.T, rows.T) if of_weight else None
