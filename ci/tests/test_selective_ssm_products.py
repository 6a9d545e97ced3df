"""The blocks' linear maps against torch's own, with and without oneDNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lib.selective_ssm import Mamba, Mamba2, products

# rows, features, outputs: large ones go to oneDNN, the last is small
SHAPES = [((4, 256), 128, 96), ((1000,), 64, 33), ((3, 5, 70), 129, 17), ((2, 3), 8, 5)]


def case(rows, features, outputs, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(*rows, features, requires_grad=True)
    weight = torch.randn(outputs, features, requires_grad=True)
    return x, weight, torch.randn(outputs, requires_grad=True)


def all_of(function, given, g):
    y = function(*given)
    return [y, *torch.autograd.grad(y, given, g)]


@pytest.mark.parametrize(("rows", "features", "outputs"), SHAPES)
def test_values_and_gradients_are_those_of_float64(rows, features, outputs):
    given = case(rows, features, outputs)
    g = torch.randn(*rows, outputs)
    exact = [v.detach().double().requires_grad_() for v in given]
    found = all_of(products.linear, given, g)
    for got, want in zip(found, all_of(functional.linear, exact, g.double())):
        assert got.shape == want.shape
        assert (got - want).abs().max() < 2e-6 * want.abs().max()


def test_layouts_do_not_matter():
    x, weight, _ = case((512,), 64, 64)
    wide, g = torch.randn(512, 200), torch.randn(64, 512).T
    wide[:, 7:71] = x.detach()
    parts = wide[:, 7:71].requires_grad_()
    for a, b in ((parts, weight), (parts, weight.detach().T.contiguous().T)):
        b = b.requires_grad_()
        got = all_of(products.linear, (a, b), g)
        for p, q in zip(got, all_of(functional.linear, (a, b), g)):
            assert (p - q).abs().max() < 4e-6 * q.abs().max()


def test_it_differentiates_twice():
    x, weight, _ = case((512,), 64, 64)
    v = torch.randn(512, 64)

    def second(function, x, weight, v):
        (first,) = torch.autograd.grad(
            function(x, weight).tanh().sum(), x, create_graph=True
        )
        return torch.autograd.grad((first * v).sum(), (x, weight))

    exact = [t.detach().double().requires_grad_() for t in (x, weight, v)]
    found = second(products.linear, x, weight, v)
    for got, want in zip(found, second(functional.linear, *exact)):
        assert (got - want).abs().max() < 8e-6 * want.abs().max()


def test_only_what_is_asked_for_is_computed(monkeypatch):
    x, weight, _ = case((512,), 64, 64)
    calls, product = [], products._product
    monkeypatch.setattr(
        products, "_product", lambda *given: calls.append(1) or product(*given)
    )
    if not products._serves(x, weight, None):
        pytest.skip("torch has no oneDNN here")
    products.linear(x.detach(), weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    assert len(calls) == 2


@pytest.mark.parametrize("why", ["small", "float64", "switched off", "shape"])
def test_what_onednn_does_not_serve_is_torchs_own(why, monkeypatch):
    def refuse(*_):
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr(products, "_product", refuse)
    x, weight, bias = case((512,), 64, 64)
    if why == "small":
        x = x[:2]
    if why == "float64":
        x, weight, bias = x.double(), weight.double(), bias.double()
    if why == "shape":
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            products.linear(x[:, :10], weight)
        return
    if why == "switched off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    y = products.linear(x, weight, bias)
    assert torch.equal(y, functional.linear(x, weight, bias))


def test_the_parts_are_those_of_the_layer():
    torch.manual_seed(0)
    for bias in (True, False):
        layer, x = nn.Linear(64, 96, bias), torch.randn(4, 100, 64)
        parts = products.split_linear(x, layer, [40, 50, 6])
        assert all(part.is_contiguous() for part in parts)
        for part, want in zip(parts, layer(x).split([40, 50, 6], -1)):
            assert torch.allclose(part, want, atol=1e-5)


@pytest.mark.parametrize("make", [Mamba, Mamba2])
def test_a_block_is_the_same_without_onednn(make, monkeypatch):
    torch.manual_seed(0)
    block, x = make(64), torch.randn(2, 200, 64, requires_grad=True)
    named = [x, *block.parameters()]
    w = torch.randn(2, 200, 64)
    found = torch.autograd.grad((block(x) * w).sum(), named)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    want = torch.autograd.grad((block(x) * w).sum(), named)
    for got, expected in zip(found, want):
        scale = expected.abs().max().clamp(min=1e-6)
        assert ((got - expected).abs() / scale).max() < 2e-5
