"""SGD on the pattern world, what is measured of a model, the real block, the table."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lib import mamba_icl as icl
from lib.kit.claims import Claims
from lib.mamba_icl import deep, measure, model, overview, theory
from lib.mamba_icl.training import stop_divergence

SMALL = {"runs": 2, "steps": 25, "batch": 32, "l": 10}


@pytest.fixture(scope="module")
def world():
    return icl.PatternWorld(d=16, M1=4, M2=5, seed=1)


@pytest.fixture(scope="module")
def trained():
    """Both arms after 150 steps, in the paper's world."""
    paper = icl.PatternWorld()
    setting = {"runs": 2, "steps": 150, "batch": 64}
    return paper, {
        arm: icl.train_sgd(arm, paper, **setting) for arm in ("mamba", "linear")
    }


# -- training -----------------------------------------------------------------------


def test_hinge_and_its_gradient():
    F = torch.tensor([[2.0, 0.5, -1.0]], requires_grad=True)
    z = torch.tensor([[1.0, 1.0, 1.0]])
    loss = icl.hinge(F, z)
    assert torch.allclose(loss, torch.tensor([(0 + 0.5 + 2) / 3]))
    slope = torch.autograd.grad(loss.sum(), F)[0]
    assert torch.allclose(slope, torch.tensor([[0.0, -1 / 3, -1 / 3]]))


@pytest.mark.parametrize("arm", list(icl.ARMS))
def test_the_same_seed_gives_the_same_bytes(world, arm):
    one, two = (icl.train_sgd(arm, world, seed=4, **SMALL) for _ in range(2))
    for name in one.theta:
        assert one.theta[name].numpy().tobytes() == two.theta[name].numpy().tobytes()
    assert one.loss.shape == (25, 2)
    other = icl.train_sgd(arm, world, seed=5, **SMALL)
    assert not torch.equal(one.theta["W_B"], other.theta["W_B"])


def test_one_step_by_hand(world):
    found = icl.train_sgd(
        "mamba", world, runs=1, steps=1, batch=8, l=5, eta=0.1, seed=3
    )
    data, start = icl.generator(3, 2), icl.generator(3, 1)
    theta = icl.initial("mamba", 16, generator=start, runs=(1,))
    p = icl.sample_prompts(
        world, (1, 8), 5, generator=data, frac=torch.full((1, 1), 0.6)
    )
    theta = {k: v.requires_grad_() for k, v in theta.items()}
    loss = (1 - p.z * model.mamba(theta, p.P)).clamp(min=0).mean()
    loss.backward()
    for name, value in theta.items():
        assert torch.allclose(found.theta[name], value - 0.1 * value.grad, atol=1e-7)


def test_a_rotated_world_trains_alike():
    world = icl.PatternWorld(d=16, M1=4, M2=5, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(16, 16, generator=g, dtype=torch.float64)).Q
    turned = world.rotated(Q)
    losses = []
    for some in (world, turned):  # linear attention's start has no random direction
        losses.append(icl.train_sgd("linear", some, seed=2, **SMALL).loss)
    assert torch.allclose(*losses, atol=1e-10)
    theta = icl.initial("mamba", 16, generator=g, dtype=torch.float64)
    full = torch.block_diag(Q, torch.ones(1, 1).double())
    moved = {k: full @ v @ full.T for k, v in theta.items() if k != "w"}
    moved["w"] = full @ theta["w"]
    p, q = (
        icl.sample_prompts(w, (9,), 5, generator=icl.generator(1)).P
        for w in (world, turned)
    )
    assert torch.allclose(model.mamba(theta, p), model.mamba(moved, q), atol=1e-12)


def test_linear_attention_diverges_with_a_sentence(world):
    with pytest.raises(icl.Divergence, match=r"linear arm diverges at step \d+ .*1/l"):
        icl.train_sgd("linear", world, eta=1.0, steps=100, batch=32)
    with pytest.raises(icl.Divergence, match="its gates sum to less than 1"):
        stop_divergence("mamba", torch.tensor([0.1, float("nan")]), 3, 0.5, 20)
    assert stop_divergence("mamba", torch.tensor([0.1]), 3, 0.5, 20) is None
    assert issubclass(icl.Divergence, FloatingPointError)


def test_mamba_is_stable_where_linear_attention_is_not(world):
    found = icl.train_sgd("mamba", world, eta=1.0, steps=60, batch=32)
    assert found.loss.isfinite().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arm": "retnet"}, "arm is 'retnet'"),
        ({"eta": 0.0}, "positive step size"),
        ({"runs": 0}, "runs is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"p_a": 1.0}, "outlier fraction is 1"),
        ({"delta": 0.0}, "vanishes"),
    ],
)
def test_wrong_settings_get_a_sentence(world, change, words):
    given = {"arm": "mamba", "steps": 2} | change
    with pytest.raises(ValueError, match=words):
        icl.train_sgd(given.pop("arm"), world, **given)


def test_training_stops_when_every_run_is_below(world):
    full = icl.train_sgd("mamba", world, runs=2, steps=120, batch=32, seed=1)
    took = icl.steps_to(full.loss, 0.8)
    assert took.isfinite().all()
    some = {"runs": 2, "steps": 120, "batch": 32, "seed": 1, "until": 0.8}
    short = icl.train_sgd("mamba", world, **some)
    assert len(short.loss) == int(took.max())
    assert torch.equal(short.loss, full.loss[: len(short.loss)])


def test_steps_to_a_level_by_hand():
    loss = torch.tensor([[1.0, 0.1], [0.0, 1.0], [0.0, 1.0]])  # averages 1, .9, .81
    assert icl.steps_to(loss, 0.85).tolist() == [3.0, 1.0]
    assert icl.steps_to(loss, 0.01).isnan().all()


def test_tuning_names_divergence_as_infinite(world):
    found = icl.tune("linear", world, (0.01, 1.0), steps=60, batch=32)
    assert found[1.0] == float("inf")
    assert 0 < found[0.01] < 1


def test_training_watches(world):
    seen = []
    icl.train_sgd(
        "mamba", world, on_step=lambda k, t: seen.append((k, set(t))), **SMALL
    )
    assert [k for k, _ in seen] == list(range(25))
    assert seen[0][1] == {"W_B", "W_C", "w"}


# -- measures -----------------------------------------------------------------------


def test_the_paper_s_effect(trained):
    """Mamba survives 60 % of flipped labels, linear attention does not."""
    world, models = trained
    frame = icl.errors(models, world, [0.6], n=1000, placement="exact")
    mean = frame.groupby("model").error.mean()
    assert mean["mamba"] < 0.02
    assert mean["linear"] > 0.9


def test_mechanism_after_training(trained):
    world, models = trained
    w = models["mamba"].theta["w"]
    p = icl.draw_test(world, 2, 800, frac=0.3)
    sigma = measure.gate_levels(w, p)
    assert (sigma["outlier"] < 0.03).all()
    assert ((sigma["clean"] > 0.15) & (sigma["clean"] < 0.5)).all()
    sums = measure.attention_sums(models["mamba"].theta, p)
    assert (sums["same"] > 0).all()
    assert (sums["other"] < 0).all()
    S = measure.score_matrix(models["mamba"].theta, world)
    assert min(theory.cosine(s, theory.projector(6)) for s in S) > 0.95
    found = measure.gates_by_rank(w, p, 4).mean(0)
    closed = theory.gate_profile(
        *(float(sigma[k].mean()) for k in ("clean", "query")), 4
    )
    assert np.allclose(found, closed, rtol=0.12)


def test_errors_are_those_of_a_loop(trained):
    world, models = trained
    rules = {"n": 150, "seed": 9, "placement": "exact"}
    frame = icl.errors(models, world, [0.0, 0.5], labels=("flip", "target+"), **rules)
    assert len(frame) == 2 * 2 * 2 * 2
    drawn = icl.draw_test(world, 2, 150, seed=10, frac=0.5, placement="exact")
    p = drawn.relabelled("target+")
    F = models["linear"](p.P)
    wrong = [(np.sign(f) != np.sign(z)).mean() for f, z in zip(F.numpy(), p.z.numpy())]
    part = frame.query("model == 'linear' and label == 'target+' and alpha == 0.5")
    assert np.allclose(part.error, wrong)


def test_ties_count_half():
    F, z = torch.tensor([[1.0, 0.0, -1.0, 2.0]]), torch.ones(1, 4)
    assert float(icl.error_rate(F, z)) == pytest.approx(1.5 / 4)


def test_measures_by_a_loop(world):
    p = icl.draw_test(world, 1, 6, l=7, frac=0.4)
    g = icl.generator(0)
    theta = icl.initial("mamba", 16, generator=g, runs=(1,))
    s, G = icl.scores(theta, p.P)[0], icl.gates(theta["w"], p.P)[0]
    own, ranked, levels = 0.0, [[], []], {"clean": [], "outlier": [], "query": []}
    sigma = torch.sigmoid(p.P[0] @ theta["w"][0])
    for b in range(6):
        rank = 0
        for i in reversed(range(7)):
            own += (
                float(s[b, i]) / 6 if p.pattern[0, b, i] == p.pattern[0, b, -1] else 0
            )
            kind = "outlier" if p.outlier[0, b, i] else "clean"
            levels[kind].append(float(sigma[b, i]))
            if kind == "clean":
                rank += 1
                if rank <= 2:
                    ranked[rank - 1].append(float(G[b, i]))
        levels["query"].append(float(sigma[b, -1]))
    assert measure.attention_sums(theta, p)["same"][0] == pytest.approx(own, rel=1e-5)
    found = measure.gates_by_rank(theta["w"], p, 2)[0]
    assert np.allclose(found, [np.mean(r) for r in ranked], rtol=1e-5)
    for name, values in measure.gate_levels(theta["w"], p).items():
        assert values[0] == pytest.approx(np.mean(levels[name]), rel=1e-5)


def test_scores_that_were_asked_for(world):
    S = np.arange(16.0).reshape(4, 4)
    theta = measure.with_scores(world, S)
    assert np.allclose(measure.score_matrix(theta, world), S, atol=1e-4)


# -- the real block -----------------------------------------------------------------

SWITCHES = [
    {},
    {"conv": False},
    {"gate": False},
    {"discretization": "zoh"},
    {"conv": False, "gate": False, "discretization": "zoh"},
]


def loop_layer(layer, x):
    """The layer's equations, one token after another."""
    u = layer.enter(x)
    if layer.conv is not None:
        padded = functional.pad(u, (0, 0, 3, 0))
        taps = layer.conv.weight[:, 0]  # (inner, 4)
        u = sum(padded[:, k : k + x.shape[1]] * taps[:, k] for k in range(4))
        u = u + layer.conv.bias
    if layer.branch is not None:
        u = functional.silu(u)
    dt, B, C = layer.select(u).split([layer.rank, layer.N, layer.N], -1)
    delta, A = functional.softplus(layer.step(dt)), -layer.A_log.exp()
    h, out = torch.zeros(len(x), *A.shape, dtype=x.dtype), []
    for t in range(x.shape[1]):
        d = delta[:, t, :, None]
        gain = d if layer.rule == "euler" else (torch.exp(d * A) - 1) / A
        h = torch.exp(d * A) * h + gain * B[:, t, None] * u[:, t, :, None]
        out.append((h * C[:, t, None]).sum(-1) + layer.D * u[:, t])
    y = torch.stack(out, 1)
    y = y if layer.branch is None else y * functional.silu(layer.branch(x))
    return layer.leave(y)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_layer_is_its_equations(switch):
    torch.manual_seed(0)
    layer = deep.MambaLayer(16, 12, 4, **switch).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    assert torch.allclose(layer(x), loop_layer(layer, x), atol=1e-10)


@pytest.mark.parametrize("rule", ["euler", "zoh"])
def test_hidden_attention_rebuilds_the_scan(rule):
    torch.manual_seed(1)
    layer = deep.MambaLayer(16, 1, 4, discretization=rule).double()  # one channel
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    u, delta, A, B, C = layer.parts(x)
    found = deep.hidden_attention(layer, x)
    for s in range(9):  # the answer to an impulse at s is the weight
        impulse = torch.zeros_like(u)
        impulse[:, s] = 1
        y = deep.scan.selective_scan(
            impulse, delta, A, B, C, discretization=rule, channel_last=True
        )
        assert torch.allclose(found["weight"][:, s], y[:, -1, 0].abs())
        later = delta[:, s + 1 :].sum(1)
        assert torch.allclose(found["decay"][:, s], torch.exp(later * A).mean(-1))
    assert torch.allclose(found["write"], delta[..., 0])


def test_linear_layer_by_hand():
    torch.manual_seed(2)
    layer = deep.LinearLayer(6).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    q, k, v = (m(x)[0] for m in (layer.q, layer.k, layer.v))
    y = torch.stack([sum((q[t] @ k[s]) * v[s] for s in range(t + 1)) for t in range(4)])
    assert torch.allclose(layer(x)[0], layer.leave(y / (4 * 6**0.5)))


@pytest.mark.parametrize("kind", ["mamba", "linear"])
def test_deep_training_learns_and_repeats(world, kind):
    given = {"kind": kind, "layers": 1, "width": 16, "steps": 80, "batch": 32, "l": 8}
    given |= {"p_a": 0.0, "lr": 1e-2}
    (one, losses), (two, again) = (deep.train_deep(world, **given) for _ in range(2))
    assert losses == again
    for a, b in zip(one.parameters(), two.parameters()):
        assert torch.equal(a, b)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_the_random_state_outside_is_untouched():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    deep.DeepNet(8, layers=1, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_groups_of_examples(world):
    net = deep.DeepNet(16, layers=2, width=16)
    p = icl.draw_test(world, 1, 30, l=8, frac=0.4).first()
    frame = deep.layer_groups(net, p)
    assert frame[["layer", "group"]].value_counts().max() == 1
    assert len(frame) == 6
    x = net.norms[1](net.streams(p.P)[1])
    found = deep.hidden_attention(net.layers[1], x)["write"][:, :-1]
    row = frame[(frame.layer == 2) & (frame.group == "outlier")]
    assert row.write.item() == pytest.approx(float(found[p.outlier].mean()))
    whole, parts = deep.error(net, p), deep.error(net, p, chunk=7)
    assert whole == pytest.approx(parts)
    with torch.no_grad():
        assert whole == pytest.approx(float((net(p.P) * p.z < 0).double().mean()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: deep.DeepNet(8, "gru"), "kind is 'gru'"),
        (lambda: deep.DeepNet(8, "linear", conv=False), "A linear layer has no conv"),
        (lambda: deep.DeepNet(8, layers=0), "layers is 0"),
        (lambda: deep.MambaLayer(discretization="bilinear"), "discretization is"),
    ],
)
def test_wrong_nets_get_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_linear_net_has_no_hidden_attention(world):
    p = icl.draw_test(world, 1, 5, l=4).first()
    with pytest.raises(ValueError, match="Only Mamba layers"):
        deep.layer_groups(deep.DeepNet(16, "linear", layers=1), p)


def test_a_deep_net_that_diverges_says_so(world):
    with pytest.raises(icl.Divergence, match="net diverges at step"):
        deep.train_deep(world, layers=1, width=16, steps=5, l=4, lr=1e30)


# -- the table of statements --------------------------------------------------------


def values():
    names = (
        "eps",
        "batch",
        "steps",
        "l",
        "kappa",
        "p_a",
        "B_M",
        "low",
        "high",
        "least",
        "T_M",
        "vote",
        "kappa_is",
        "l_is",
    )
    return dict.fromkeys(names, 0.5)


def some_claims(leave_out=()):
    claims = Claims("21_mamba_icl")
    for k in range(1, 41):
        if f"C{k}" not in leave_out:
            claims.identity(f"C{k}", f"word{k}", residual=0.0, tol=1e-9, source="us")
    return claims


def test_statements_are_made_of_claims():
    rows = overview.statement_rows(some_claims().claims, values())
    assert [one.name for one, _, _ in rows] == [one.name for one in overview.STATEMENTS]
    for one, words, tested in rows:
        assert [claim.id for claim in tested] == list(one.claims)
        assert "{" not in words
    judged = {name for one in overview.STATEMENTS for name in one.claims}
    assert judged == {f"C{k}" for k in range(1, 41)}


def test_a_missing_claim_is_named():
    with pytest.raises(ValueError, match="Theorem 1 is judged by C5"):
        overview.statement_rows(some_claims(("C5",)).claims, values())


def test_the_table_links_to_the_sections(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda b, raw: shown.append(b))
    overview.show_statements(some_claims(), values())
    page, text = shown[0]["text/html"], shown[0]["text/plain"]
    for one in overview.STATEMENTS:
        assert f'href="#{one.anchor}"' in page
        assert one.name in text
    assert "residual &lt;= 1e-09" in page
