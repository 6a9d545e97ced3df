"""lib.bilevel: penalties and the shared variable, against closed forms (O7-O10)."""

import subprocess
import sys

import pytest
import torch
from torch.func import functional_call, grad

from lib import bilevel as bl
from lib.bilevel.trees import scaled

D = {"dtype": torch.float64}
VALLEY = bl.Valley()


def scalar(value):
    return torch.tensor(value, **D)


def counted(fn):
    """The function, and a list that grows with every call."""
    calls = []

    def wrapped(*args):
        calls.append(1)
        return fn(*args)

    return wrapped, calls


def v_pbgd_end(gamma, T, kept, beta=0.4):
    """The fixed point (x, y, w) of V-PBGD on the valley, and its factor a step."""

    def step(z):
        x, y, w = z
        w = w if kept else y
        top = 1 + gamma * VALLEY.mu * (1 + VALLEY.c**2)
        how = {"gamma": gamma, "step": 1 / top, "inner": T, "inner_step": beta}
        return torch.stack(bl.penalty_step(VALLEY.f, VALLEY.g, x, y, w, **how))

    return bl.fixed_point(step, torch.zeros(3, **D))


def test_import_is_light():
    code = (
        "import sys; import lib.bilevel; "
        "heavy = {'scipy', 'pandas', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- trees --------------------------------------------------------------------------


def tree(seed):
    g = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(2, 3, generator=g, **D),
        "b": [torch.randn(2, generator=g, **D), (torch.randn((), generator=g, **D),)],
    }


def flat(t):
    return torch.cat([t["a"].ravel(), t["b"][0], t["b"][1][0][None]])


def test_trees_are_flat_vectors():
    x, y = tree(0), tree(1)
    fx, fy = flat(x), flat(y)
    assert torch.equal(flat(bl.plus(x, y, 0.3)), fx + 0.3 * fy)
    assert torch.equal(flat(bl.minus(x, y)), fx - fy)
    assert torch.equal(flat(bl.descend(x, y, 0.3)), fx - 0.3 * fy)
    assert torch.equal(flat(scaled(x, 2.0)), 2 * fx)
    torch.testing.assert_close(bl.dot(x, y), fx @ fy)
    torch.testing.assert_close(flat(bl.average([x, y, x])), (2 * fx + fy) / 3)
    assert isinstance(bl.plus(x, y)["b"][1], tuple)
    assert not bl.detached({"a": torch.ones(1, requires_grad=True) * 2})["a"].grad_fn


def test_trees_refuse_other_things():
    with pytest.raises(TypeError, match="hold a float; give tensors"):
        bl.plus({"a": 1.0}, {"a": 2.0})
    with pytest.raises(ValueError, match="nothing to average"):
        bl.average([])
    with pytest.raises(ValueError, match="shorter"):
        bl.plus([torch.ones(1)] * 2, [torch.ones(1)])


# -- V-PBGD and G-PBGD on the valley ------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 10.0, 100.0, 1000.0])
def test_o7_penalty_solution(gamma):
    end, _ = v_pbgd_end(gamma, T=3, kept=True)
    x, y, gap = VALLEY.penalised(scalar(gamma))
    torch.testing.assert_close(end[:2], torch.stack([x, y]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        VALLEY.g(end[0], end[1]), gap, rtol=1e-6, atol=1e-12
    )  # v = 0
    torch.testing.assert_close(end[2], VALLEY.c * end[0])  # w solves the lower level


def test_o7_numbers_of_the_specification():
    gammas = torch.tensor([1.0, 10.0, 100.0, 1000.0], **D)
    x, _, gap = VALLEY.penalised(gammas)
    scaled_error = gammas * (x - VALLEY.solution[0]).abs()
    expected = torch.tensor([0.343, 0.462, 0.478, 0.480], **D)
    torch.testing.assert_close(scaled_error, expected, rtol=0, atol=5e-4)
    expected = torch.tensor([0.184, 0.333, 0.357, 0.360], **D)
    torch.testing.assert_close(gammas**2 * gap, expected, rtol=0, atol=5e-4)


def test_o7_penalised_solution_is_stationary():
    gamma = scalar(7.0)
    x, y, _ = VALLEY.penalised(gamma)
    slopes = grad(lambda x, y: VALLEY.f(x, y) + gamma * VALLEY.g(x, y), (0, 1))(x, y)
    assert max(abs(float(s)) for s in slopes) <= 1e-12


def test_valley_solution_is_where_its_hypergradient_vanishes():
    x, y = VALLEY.solution
    assert abs(float(VALLEY.hypergradient(scalar(x)))) <= 1e-12
    assert y == VALLEY.c * x
    at = scalar(0.3)
    auto = grad(lambda x: VALLEY.f(x, VALLEY.c * x))(at)
    torch.testing.assert_close(VALLEY.hypergradient(at), auto)


@pytest.mark.parametrize("T", [1, 5, 20])
@pytest.mark.parametrize("gamma", [1.0, 30.0, 1000.0])
def test_o8_restart_bias_and_kept_w(T, gamma):
    restarted, _ = v_pbgd_end(gamma, T, kept=False)
    torch.testing.assert_close(
        restarted[0], VALLEY.restarted(scalar(gamma), T, 0.4), rtol=0, atol=1e-8
    )
    kept, factor = v_pbgd_end(gamma, T, kept=True)
    assert abs(float(kept[0] - VALLEY.penalised(scalar(gamma))[0])) <= 1e-8
    assert float(factor) < 1


def test_o8_numbers_of_the_specification():
    for T, bias in ((1, 0.533), (5, 0.107), (20, 0.0028)):
        end = float(VALLEY.restarted(scalar(torch.inf), T, 0.4))
        assert abs(end - VALLEY.solution[0] - bias) <= 5e-4
    # many inner steps lose nothing: the penalised solution
    many = VALLEY.restarted(scalar(50.0), 500, 0.4)
    torch.testing.assert_close(many, VALLEY.penalised(scalar(50.0))[0])


@pytest.mark.parametrize("gamma", [1.0, 100.0])
def test_o9_largest_step(gamma):
    top = 1 + gamma * VALLEY.mu * (1 + VALLEY.c**2)

    def factor(step):
        def once(z):
            x, y = z
            w = VALLEY.c * x
            how = {"gamma": gamma, "step": step, "inner": 0, "inner_step": 0.0}
            moved = bl.penalty_step(VALLEY.f, VALLEY.g, x, y, w, **how)
            return torch.stack(moved[:2])

        return float(bl.fixed_point(once, torch.zeros(2, **D))[1])

    assert factor(1 / top) < 1
    assert factor(0.999 * 2 / top) < 1 < factor(1.001 * 2 / top)


def test_penalty_step_costs_what_it_says():
    f, f_calls = counted(VALLEY.f)
    g, g_calls = counted(VALLEY.g)
    z = scalar(0.2)
    how = {"gamma": 3.0, "step": 0.1, "inner": 4, "inner_step": 0.1}
    bl.penalty_step(f, g, z, z, z, **how)
    assert (len(f_calls), len(g_calls)) == (1, 4 + 2)


def test_penalty_step_on_trees_is_the_step_on_numbers():
    x, y, w = scalar(0.3), scalar(-0.2), scalar(0.5)
    how = {"gamma": 3.0, "step": 0.1, "inner": 2, "inner_step": 0.1}
    plain = bl.penalty_step(VALLEY.f, VALLEY.g, x, y, w, **how)
    both = bl.penalty_step(
        lambda x, y: VALLEY.f(x["x"], y[0]),
        lambda x, y: VALLEY.g(x["x"], y[0]),
        *({"x": x}, [y], [w]),
        **how,
    )
    assert (both[0]["x"], both[1][0], both[2][0]) == plain


def test_penalty_step_projects_and_takes_its_own_rate_for_x():
    x = y = w = scalar(0.05)
    how = {"gamma": 2.0, "step": 0.1, "inner": 0, "inner_step": 0.0}
    free = bl.penalty_step(VALLEY.f, VALLEY.g, x, y, w, **how)
    slow = bl.penalty_step(VALLEY.f, VALLEY.g, x, y, w, **how, step_x=0.01)
    torch.testing.assert_close((slow[0] - x) * 10, free[0] - x)
    assert slow[1] == free[1]
    boxed = bl.penalty_step(
        VALLEY.f, VALLEY.g, x, y, w, **how, project=lambda x: x.clamp(0, 0.1)
    )
    assert float(free[0]) > 0.1
    assert float(boxed[0]) == 0.1
    assert boxed[1] == free[1]


def test_box_solution():
    """x in [0, 0.1]: the solution lies at 0, and V-PBGD ends beside it."""
    x = y = w = scalar(0.05)
    for _ in range(200):
        x, y, w = bl.penalty_step(
            *(VALLEY.f, VALLEY.g, x, y, w),
            **{"gamma": 100.0, "step": 1 / 251, "inner": 1, "inner_step": 0.4},
            project=lambda x: x.clamp(0, 0.1),
        )
    assert float(x) == 0
    torch.testing.assert_close(y, scalar(-1 / (1 + 100 * 0.5)))


def test_penalty_step_names_bad_inner_steps():
    z = scalar(0.0)
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match="number of inner steps T"):
            bl.penalty_step(
                *(VALLEY.f, VALLEY.g, z, z, z),
                **{"gamma": 1.0, "step": 0.1, "inner": bad, "inner_step": 0.1},
            )


def test_gradient_penalty_is_a_step_on_its_objective():
    x, y, gamma = scalar(0.3), scalar(-0.2), 5.0
    found = bl.gradient_penalty_step(
        VALLEY.f, VALLEY.g, x, y, gamma=gamma, step=0.01, project=lambda x: x + 0
    )

    def objective(x, y):
        return VALLEY.f(x, y) + gamma * (VALLEY.mu * (y - VALLEY.c * x)) ** 2

    eps = 1e-5
    dx = (objective(x + eps, y) - objective(x - eps, y)) / (2 * eps)
    dy = (objective(x, y + eps) - objective(x, y - eps)) / (2 * eps)
    torch.testing.assert_close(found, (x - 0.01 * dx, y - 0.01 * dy), rtol=0, atol=1e-9)


def test_gradient_penalty_stalls_where_the_curvature_vanishes():
    """2302.05185's counterexample: y = 2 pi / 3 is stationary, and no solution."""
    zero, trap = scalar(0.0), scalar(2 * torch.pi / 3)

    def f(x, y):
        return torch.sin(y - 2 * torch.pi / 3).square() + 0 * x

    def g(x, y):
        return y.square() + 2 * torch.sin(y).square() + 0 * x

    how = {"gamma": 1000.0, "step": 1e-3}
    _, y = bl.gradient_penalty_step(f, g, zero, trap, **how)
    assert abs(float(y - trap)) <= 1e-9
    _, y, _ = bl.penalty_step(f, g, zero, trap, zero, **how, inner=0, inner_step=0.0)
    assert float(trap - y) > 1


@pytest.mark.parametrize("gamma", [1.0, 10.0, 1000.0])
def test_penalty_hypergradient_on_the_valley(gamma):
    x = scalar(0.4)
    w = VALLEY.c * x
    y = (VALLEY.b + gamma * VALLEY.mu * w) / (1 + gamma * VALLEY.mu)
    found = bl.penalty_hypergradient(VALLEY.f, VALLEY.g, x, y, w, gamma)
    error = -VALLEY.c * (w - VALLEY.b) / (1 + gamma * VALLEY.mu)
    torch.testing.assert_close(found - VALLEY.hypergradient(x), error)


def test_inner_steps_follow_fresh_batches():
    targets = [scalar(1.0), scalar(-2.0), scalar(0.5)]
    losses = [lambda w, t=t: (w - t).square() / 2 for t in targets]
    w = scalar(0.0)
    for t in targets:
        w = w - 0.3 * (w - t)
    assert bl.inner_steps(losses, scalar(0.0), 0.3) == w
    assert bl.inner_steps([], scalar(0.7), 0.3) == 0.7


# -- the shared variable ------------------------------------------------------------


def two_losses():
    """A shared trunk with two heads, as in BL-JUST: loss on labels, loss on inputs."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20, 4, generator=g)
    trunk = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh())
    theta = {
        f"trunk.{k}": torch.randn(p.shape, generator=g)
        for k, p in trunk.named_parameters()
    }
    theta["phi"] = torch.randn(6, 4, generator=g)
    theta["eta"] = torch.randn(6, 4, generator=g)

    def hidden(theta):
        own = {k[6:]: p for k, p in theta.items() if k.startswith("trunk.")}
        return functional_call(trunk, own, x)

    def upper(theta):
        return (hidden(theta) @ theta["phi"] - y).square().mean()

    def lower(theta):
        return (hidden(theta) @ theta["eta"] - x).square().mean()

    return theta, upper, lower


def test_o10_gamma_zero_is_supervised_training_bit_for_bit():
    theta, upper, _ = two_losses()

    def broken(theta):
        raise AssertionError("the lower level was evaluated at gamma = 0")

    plain = {k: p.clone() for k, p in theta.items()}
    for _ in range(20):
        theta = bl.descend(theta, bl.joint_gradient(upper, broken, theta, 0.0), 0.1)
        leaf = {k: p.clone().requires_grad_() for k, p in plain.items()}
        upper(leaf).backward()
        with torch.no_grad():
            for k, p in leaf.items():
                plain[k] = p - 0.1 * p.grad if p.grad is not None else p.detach()
    assert all(torch.equal(theta[k], plain[k]) for k in theta)


def test_joint_gradient_is_the_gradient_of_the_sum():
    theta, upper, lower = two_losses()
    found = bl.joint_gradient(upper, lower, theta, 2.5)
    whole = grad(lambda t: upper(t) + 2.5 * lower(t))(theta)
    for k in theta:
        torch.testing.assert_close(found[k], whole[k], rtol=1e-5, atol=1e-6)
    # every group moves (a penalty added by .item() would not), and each head by its own
    assert all(float(g.abs().max()) > 0 for g in found.values())
    up, down = grad(upper)(theta), grad(lower)(theta)
    assert not up["eta"].any()
    assert not down["phi"].any()
    assert torch.equal(found["phi"], up["phi"])
    torch.testing.assert_close(found["eta"], 2.5 * down["eta"])


def test_joint_gradient_phases():
    theta, upper, lower = two_losses()
    explore = bl.joint_gradient(None, lower, theta, 0.0)
    assert all(torch.equal(explore[k], g) for k, g in grad(lower)(theta).items())
    tune = bl.joint_gradient(upper, None, theta, 3.0)
    assert all(torch.equal(tune[k], g) for k, g in grad(upper)(theta).items())


def test_joint_gradient_is_v_pbgd_without_x():
    theta, upper, lower = two_losses()
    nothing = torch.zeros(())
    _, moved, _ = bl.penalty_step(
        *(lambda x, t: upper(t), lambda x, t: lower(t), nothing, theta, theta),
        **{"gamma": 3.0, "step": 0.1, "inner": 0, "inner_step": 0.0},
    )
    step = bl.descend(theta, bl.joint_gradient(upper, lower, theta, 3.0), 0.1)
    assert all(torch.equal(moved[k], step[k]) for k in theta)


def test_joint_gradient_bad_input():
    theta, upper, lower = two_losses()
    with pytest.raises(ValueError, match="gamma is -1"):
        bl.joint_gradient(upper, lower, theta, -1)
    with pytest.raises(ValueError, match="both levels are None"):
        bl.joint_gradient(None, None, theta, 1.0)


def test_ramp():
    assert [bl.ramp(k, 4, 2.0) for k in range(6)] == [0, 0.5, 1, 1.5, 2, 2]
    assert bl.ramp(0, 0, 3.0) == 3.0
    assert bl.ramp(1, 2, 0.0, start=1.0) == 0.5
    with pytest.raises(ValueError, match="gamma runs from"):
        bl.ramp(0, 4, -1)
    with pytest.raises(ValueError, match="step is -1"):
        bl.ramp(-1, 4, 1.0)


# -- the toy problem ----------------------------------------------------------------


def test_toy_formulas():
    x, y = torch.rand(2, 50, generator=torch.Generator().manual_seed(0), **D)
    x, y = 3 * x, 6 * y - 3
    f = torch.cos(4 * y + 2) / (1 + torch.exp(2 - 4 * x))
    f = f + 0.5 * torch.log((4 * x - 2) ** 2 + 1)
    torch.testing.assert_close(bl.toy_upper(x, y), f.sum())
    g = (x + y) ** 2 + x * torch.sin(x + y) ** 2
    torch.testing.assert_close(bl.toy_lower(x, y), g.sum())
    assert float(bl.toy_lower(x, -x)) == 0


def test_toy_hand_derivative():
    x = torch.linspace(0, 3, 50, **D)
    auto = grad(bl.toy_upper)(x, -x)
    torch.testing.assert_close(bl.toy_slope(x, -x), auto)
    half = scalar(0.5)
    wrong = bl.toy_slope(half, -half, public=True) - grad(bl.toy_upper)(half, -half)
    torch.testing.assert_close(wrong, scalar(1.0))


def test_toy_points_are_stationary_and_complete():
    points, least = bl.toy_points()
    slope = grad(lambda x: bl.toy_upper(x, -x))
    assert float(slope(points).abs().max()) <= 1e-9  # none lies at an end here
    curve = grad(lambda x: slope(x).sum())(points)
    assert torch.equal(curve > 0, least)
    assert least.tolist() == [True, False, True, False, True]
    coarse, _ = bl.toy_points(grid=501)
    torch.testing.assert_close(coarse, points)


def test_toy_lower_level_is_pl_on_the_box():
    """No stationary point of g(x, .) but y = -x: what the penalty needs."""
    u = torch.linspace(-12, 12, 4801, **D)
    for x in (0.0, 1.0, 3.0):
        at = torch.full_like(u, x)
        slope = grad(bl.toy_lower, argnums=1)(at, u - x)
        away = u.abs() > 1e-3
        assert bool((slope[away] * u[away] > 0).all())


# -- fixed points -------------------------------------------------------------------


def test_fixed_point_of_an_affine_map():
    A = torch.tensor([[0.5, 0.2], [0.0, -0.8]], **D)
    end, factor = bl.fixed_point(lambda z: A @ z + 1, torch.tensor([9.0, -4.0], **D))
    torch.testing.assert_close(A @ end + 1, end)
    torch.testing.assert_close(factor, scalar(0.8))
    with pytest.raises(ValueError, match="give one axis"):
        bl.fixed_point(lambda z: z, torch.zeros(2, 2))
