"""lib.bilevel: hypergradients and local constraints, against closed forms (O4-O6)."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, grad, jacrev

from lib import bilevel as bl
from lib.bilevel.problems import KINDS

D = {"dtype": torch.float64}
SETTINGS = settings(max_examples=15, deadline=None, derandomize=True)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **D)


def tilted(x, y):
    """An upper level that is not quadratic; x: (3,), y: (4,)."""
    return torch.tanh(y).sum() + (y * y).sum() / 3 + torch.sin(x).sum() * y[0]


def strong(x, y):
    """A lower level, strongly convex in y, that couples x and y nonlinearly."""
    mixing = torch.cos(torch.arange(12, **D)).reshape(4, 3)
    return (y - mixing @ torch.sin(x)).square().sum() / 2 + torch.logsumexp(y, 0)


def lowest(x, steps=60):
    return bl.inner_steps([lambda y: strong(x, y)] * steps, torch.zeros(4, **D), 0.5)


def hessian(loss, *args, argnum=0):
    """By two reverse passes; `torch.func.hessian` warns of a deprecated compiler."""
    return jacrev(grad(loss, argnum), argnum)(*args)


def differences(F, x, eps=1e-5):
    """Central differences of a function of a vector."""
    eye = torch.eye(len(x), **D) * eps
    return torch.stack([(F(x + e) - F(x - e)) / (2 * eps) for e in eye])


# -- hypergradients -----------------------------------------------------------------


def test_implicit_is_the_derivative_of_the_reduced_problem():
    x = normal(3)
    truth = differences(lambda x: tilted(x, lowest(x)), x)
    cg = partial(bl.conjugate_gradient, iterations=4)
    found = bl.implicit_hypergradient(tilted, strong, x, lowest(x), cg)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-7)
    series = partial(bl.neumann, iterations=200, step=0.5)
    found = bl.implicit_hypergradient(tilted, strong, x, lowest(x), series)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-7)


def test_unrolled_is_the_derivative_of_what_it_runs():
    x, y, how = normal(3), normal(4, seed=1), {"steps": 3, "step": 0.3}

    def run(x):
        return bl.inner_steps([lambda y: strong(x, y)] * 3, y, 0.3)

    found, end = bl.unrolled_hypergradient(tilted, strong, x, y, **how)
    assert torch.equal(end, run(x))
    truth = differences(lambda x: tilted(x, run(x)), x)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-8)


def test_truncated_unrolling_starts_later():
    x, y = normal(3), normal(4, seed=1)
    middle = bl.inner_steps([lambda y: strong(x, y)] * 5, y, 0.3)
    late = bl.unrolled_hypergradient(tilted, strong, x, middle, steps=2, step=0.3)
    found = bl.unrolled_hypergradient(tilted, strong, x, y, steps=7, step=0.3, last=2)
    torch.testing.assert_close(found, late)
    whole = bl.unrolled_hypergradient(tilted, strong, x, y, steps=7, step=0.3)
    same = bl.unrolled_hypergradient(tilted, strong, x, y, steps=7, step=0.3, last=7)
    assert torch.equal(whole[0], same[0])
    assert float((found[0] - whole[0]).abs().max()) > 1e-4  # truncation is seen


@pytest.mark.parametrize("terms", [1, 3, 9])
def test_unrolling_at_the_solution_is_a_neumann_series(terms):
    task = bl.Cleaning.draw(3, n=12, m=9, d=4)
    x = torch.linspace(0.1, 0.9, 12, **D)
    y = task.respond(x)
    series = partial(bl.neumann, iterations=terms, step=0.4)
    found = bl.implicit_hypergradient(task.f, task.g, x, y, series)
    path, end = bl.unrolled_hypergradient(task.f, task.g, x, y, steps=terms, step=0.4)
    torch.testing.assert_close(path, found, rtol=0, atol=1e-12)
    torch.testing.assert_close(end, y)


@SETTINGS
@given(st.integers(1, 7), st.integers(0, 1000))
def test_conjugate_gradient_ends_after_n(n, seed):
    A = normal(n, n, seed=seed)
    H, b = A @ A.mT + torch.eye(n, **D), normal(n, seed=seed + 1)
    v = bl.conjugate_gradient(lambda v: H @ v, b, n)
    torch.testing.assert_close(v, torch.linalg.solve(H, b), rtol=1e-6, atol=1e-8)
    more = bl.conjugate_gradient(lambda v: H @ v, b, n + 5)  # no nan after the end
    torch.testing.assert_close(more, v, rtol=1e-6, atol=1e-8)


def test_conjugate_gradient_of_nothing_is_nothing():
    v = bl.conjugate_gradient(lambda v: 2 * v, torch.zeros(3, **D), 4)
    assert torch.equal(v, torch.zeros(3, **D))


@pytest.mark.parametrize("terms", [1, 2, 7])
def test_neumann_error_is_a_power(terms):
    A = normal(4, 4)
    H, b = A @ A.mT / 8 + torch.eye(4, **D), normal(4, seed=1)
    step = 1 / float(torch.linalg.eigvalsh(H)[-1])
    v = bl.neumann(lambda v: H @ v, b, terms, step)
    right = torch.linalg.solve(H, b)
    power = torch.linalg.matrix_power(torch.eye(4, **D) - step * H, terms)
    torch.testing.assert_close(right - v, power @ right)


def test_hypergradients_on_trees():
    x, y = normal(3), normal(4, seed=1)
    f = lambda x, y: tilted(torch.cat([x["a"], x["b"]]), y[0])  # noqa: E731
    g = lambda x, y: strong(torch.cat([x["a"], x["b"]]), y[0])  # noqa: E731
    parts = {"a": x[:1], "b": x[1:]}
    cg = partial(bl.conjugate_gradient, iterations=4)
    found = bl.implicit_hypergradient(f, g, parts, [y], cg)
    plain = bl.implicit_hypergradient(tilted, strong, x, y, cg)
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), plain)
    found, _ = bl.unrolled_hypergradient(f, g, parts, [y], steps=2, step=0.3)
    plain, _ = bl.unrolled_hypergradient(tilted, strong, x, y, steps=2, step=0.3)
    torch.testing.assert_close(torch.cat([found["a"], found["b"]]), plain)


def test_hypergradients_name_bad_numbers():
    x, y = normal(3), normal(4)
    run = partial(bl.unrolled_hypergradient, tilted, strong, x, y, step=0.1)
    with pytest.raises(ValueError, match="number of inner steps T"):
        run(steps=0)
    with pytest.raises(ValueError, match="last is 5, but only 3"):
        run(steps=3, last=5)
    for solver in (bl.conjugate_gradient, partial(bl.neumann, step=0.1)):
        with pytest.raises(ValueError, match="iterations is 0"):
            solver(lambda v: v, y, iterations=0)


def test_hessian_vector():
    y, v = normal(4), normal(4, seed=1)
    loss = partial(strong, normal(3))
    torch.testing.assert_close(bl.hessian_vector(loss, y, v), hessian(loss, y) @ v)


# -- data cleaning ------------------------------------------------------------------


def test_cleaning_closed_forms():
    task = bl.Cleaning.draw(1)
    x = torch.rand(40, generator=torch.Generator().manual_seed(5), **D)
    y = task.respond(x)
    assert float(grad(task.g, 1)(x, y).abs().max()) <= 1e-12
    torch.testing.assert_close(task.hessian(x), hessian(task.g, x, y, argnum=1))
    torch.testing.assert_close(grad(task.value)(x), task.hypergradient(x))
    cg = partial(bl.conjugate_gradient, iterations=6)
    found = bl.implicit_hypergradient(task.f, task.g, x, y, cg)
    torch.testing.assert_close(found, task.hypergradient(x), rtol=1e-6, atol=1e-9)


def test_cleaning_solution_is_stationary_on_the_box():
    task = bl.Cleaning.draw(2)
    x, F = task.solve()
    h = task.hypergradient(x)
    assert float((x - (x - h).clamp(0, 1)).abs().max()) <= 1e-5
    assert float(task.value(x)) == pytest.approx(F)
    assert float(task.value(torch.ones(40, **D))) > F
    assert bool((x[~task.clean] < 0.5).double().mean() > 0.8)  # bad samples are out


def test_cleaning_draws():
    one, two = bl.Cleaning.draw(4), bl.Cleaning.draw(4)
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.t, two.t)
    assert int((~one.clean).sum()) == 12
    assert not torch.equal(one.A, bl.Cleaning.draw(5).A)
    with pytest.raises(ValueError, match="share is 1"):
        bl.Cleaning.draw(0, share=1.0)
    with pytest.raises(ValueError, match="d is 0"):
        bl.Cleaning.draw(0, d=0)


# -- local constraints on quadratics ------------------------------------------------

WORLD = bl.Sources.draw(3, 5, seed=1)


def direction(kind, theta, alpha, K):
    if kind == "mixing":
        return bl.mixing(WORLD.losses(1), theta)
    if kind == "reptile":
        return bl.reptile(WORLD.losses(K), theta, alpha)
    method = {"exact": bl.exact_local, "first_order": bl.first_order_local}[kind]
    return method(WORLD.losses(K + 1), theta, alpha)


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_o4_directions(kind, K):
    theta = normal(5)
    found = direction(kind, theta, 0.2, K)
    torch.testing.assert_close(
        found, WORLD.gradient(theta, kind, 0.2, K), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_o5_iterations_end_at_the_closed_form(kind, K):
    theta = torch.zeros(5, **D)
    for _ in range(8 if kind != "exact" else 12):  # then Newton, the map being affine
        theta = theta - 0.5 * direction(kind, theta, 0.2, K)
    end, factor = bl.fixed_point(lambda t: t - 0.5 * direction(kind, t, 0.2, K), theta)
    assert float(factor) < 1
    torch.testing.assert_close(end, WORLD.stays(kind, 0.2, K), rtol=0, atol=1e-9)


def test_o5_plain_iteration():
    theta, home = torch.zeros(5, **D), WORLD.stays("first_order", 0.2, 1)
    for _ in range(60):
        theta = theta - 0.8 * direction("first_order", theta, 0.2, 1)
    torch.testing.assert_close(theta, home, rtol=0, atol=1e-6)


@SETTINGS
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_o5_exact_has_the_least_adapted_loss(seed, K):
    world = bl.Sources.draw(3, 4, seed=seed)
    J = {k: float(world.adapted_loss(world.stays(k, 0.2, K), 0.2, K)) for k in KINDS}
    assert all(J["exact"] <= value + 1e-12 for value in J.values())


def test_adapted_loss_is_the_mean_after_k_steps():
    theta, total = normal(5), 0.0
    for *inner, outer in WORLD.losses(4):
        total += float(outer(bl.inner_steps(inner, theta, 0.2))) / 3
    assert total == pytest.approx(float(WORLD.adapted_loss(theta, 0.2, 3)))


def test_first_order_is_a_penalty_on_the_gradients():
    """K = 1: gradient of sum_i [L_i - alpha/2 |grad L_i|^2] on quadratics."""
    theta, alpha = normal(5), 0.2

    def surrogate(theta):
        each = []
        for (loss,) in WORLD.losses(1):
            each.append(loss(theta) - alpha / 2 * grad(loss)(theta).square().sum())
        return sum(each) / 3

    torch.testing.assert_close(
        bl.first_order_local(WORLD.losses(2), theta, alpha), grad(surrogate)(theta)
    )


@pytest.mark.parametrize("K", [1, 2, 3])
def test_o5b_sign(K):
    steep = bl.Sources(torch.full((1, 1, 1), 2.0, **D), torch.zeros(1, 1, **D))
    theta = torch.ones(1, **D)
    first = float(bl.first_order_local(steep.losses(K + 1), theta, 0.6))
    exact = float(bl.exact_local(steep.losses(K + 1), theta, 0.6))
    assert first == pytest.approx(2 * (1 - 1.2) ** K)
    assert exact == pytest.approx(2 * (1 - 1.2) ** (2 * K))
    assert (first < 0) == (K % 2 == 1)
    assert exact > 0


def test_sources_bad_input():
    with pytest.raises(ValueError, match="Did you mean first_order"):
        WORLD.weights("first order", 0.2, 1)
    with pytest.raises(ValueError, match="number of inner steps"):
        WORLD.weights("reptile", 0.2, 0)
    with pytest.raises(ValueError, match="give 0 < low"):
        bl.Sources.draw(2, 2, 0, low=0.0)
    with pytest.raises(ValueError, match="losses of a source"):
        WORLD.losses(0)
    assert torch.equal(bl.Sources.draw(2, 3, 7).H, bl.Sources.draw(2, 3, 7).H)
    lam = torch.linalg.eigvalsh(WORLD.H)
    assert float(lam.min()) > 0.5
    assert float(lam.max()) < 2


# -- local constraints on a network -------------------------------------------------


def network(each, dtype=torch.float32):
    """A small net and three sources of fresh batches; the parameters are a tree."""
    g = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
    )
    net = net.to(dtype)
    own = {"generator": g, "dtype": dtype}
    theta = {k: torch.randn(p.shape, **own) for k, p in net.named_parameters()}

    def batch():
        x, y = torch.randn(8, 3, **own), torch.randn(8, 2, **own)
        return lambda t: (functional_call(net, t, x) - y).square().mean()

    return theta, [[batch() for _ in range(each)] for _ in range(3)]


def test_o6_no_inner_step_is_mixing_bit_for_bit():
    theta, sources = network(1)
    leaf = {k: p.clone().requires_grad_() for k, p in theta.items()}
    for (loss,) in sources:
        loss(leaf).backward()  # the usual loop: gradients accumulate in order
    for found in (
        bl.mixing(sources, theta),
        bl.first_order_local(sources, theta, 0.1),
        bl.exact_local(sources, theta, 0.1),
    ):
        assert all(torch.equal(found[k], p.grad / 3) for k, p in leaf.items())


def test_first_order_is_the_autograd_gradient_at_phi():
    theta, sources = network(3)
    found = bl.first_order_local(sources, theta, 0.1)
    total = {k: torch.zeros_like(p) for k, p in theta.items()}
    for *inner, outer in sources:
        phi = {k: p.clone().requires_grad_() for k, p in theta.items()}
        for loss in inner:
            slopes = torch.autograd.grad(loss(phi), list(phi.values()))
            phi = {
                k: (p - 0.1 * s).detach().requires_grad_()
                for (k, p), s in zip(phi.items(), slopes)
            }
        for k, s in zip(phi, torch.autograd.grad(outer(phi), list(phi.values()))):
            total[k] += s / 3
    for k in theta:
        torch.testing.assert_close(found[k], total[k], rtol=0, atol=1e-6)


def test_exact_is_the_derivative_through_the_steps():
    theta, sources = network(3, torch.float64)
    found = bl.exact_local(sources, theta, 0.1)

    def adapted(t):
        ends = [s[-1](bl.inner_steps(s[:-1], t, 0.1)) for s in sources]
        return sum(ends) / 3

    eps, name = 1e-6, "0.weight"
    for place in ((0, 0), (4, 2)):
        move = torch.zeros_like(theta[name])
        move[place] = eps
        up, down = (
            theta | {name: theta[name] + move},
            theta | {name: theta[name] - move},
        )
        slope = (adapted(up) - adapted(down)) / (2 * eps)
        torch.testing.assert_close(found[name][place], slope, rtol=1e-4, atol=1e-8)


def test_reptile_walks_to_the_mean_of_the_adapted():
    theta, sources = network(2)
    found = bl.reptile(sources, theta, 0.1)
    ends = [bl.inner_steps(s, theta, 0.1) for s in sources]
    moved = bl.descend(theta, found, 0.1 * 2)  # the whole way
    for k, p in bl.average(ends).items():
        torch.testing.assert_close(moved[k], p, rtol=0, atol=1e-6)
    once = bl.reptile([s[:1] for s in sources], theta, 0.1)
    mixed = bl.mixing([s[:1] for s in sources], theta)
    for k in theta:
        torch.testing.assert_close(once[k], mixed[k], rtol=0, atol=1e-5)


def test_mixing_averages_a_source_before_the_sources():
    theta, sources = network(2)
    uneven = [sources[0], sources[1][:1]]
    found = bl.mixing(uneven, theta)["0.bias"]
    a, b, c = (grad(f)(theta)["0.bias"] for f in (*sources[0], sources[1][0]))
    torch.testing.assert_close(found, (a + b) / 4 + c / 2)


@pytest.mark.parametrize("method", [bl.exact_local, bl.first_order_local, bl.reptile])
def test_empty_sources_are_named(method):
    theta, sources = network(1)
    with pytest.raises(ValueError, match="source 1 has no loss"):
        method([sources[0], []], theta, 0.1)
    with pytest.raises(ValueError, match="nothing to average"):
        method([], theta, 0.1)


def test_largest_curvature():
    loss = WORLD.losses(1)[0][0]
    top = float(torch.linalg.eigvalsh(WORLD.H[0])[-1])
    assert bl.largest_curvature(loss, normal(5), 300) == pytest.approx(top, rel=1e-3)
    assert bl.largest_curvature(lambda t: t.sum(), normal(3)) == 0.0
    theta, sources = network(1)
    found = bl.largest_curvature(sources[0][0], theta, 100)
    again = bl.largest_curvature(sources[0][0], theta, 100)
    assert found == again > 0
    with pytest.raises(ValueError, match="iterations is 0"):
        bl.largest_curvature(loss, normal(5), 0)
