"""lib.multi_objective: conflict, and the update of a network (O-18 to O-25)."""

import pytest
import torch
from torch import nn

from lib import multi_objective as mo

D = {"dtype": torch.float64}


class Net(nn.Module):
    """Three shared layers, a head for each of three objectives."""

    def __init__(self, seed=0, M=3):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(M))
        self.double()

    def features(self, x):
        for layer in self.body:
            x = torch.tanh(layer(x))
        return x

    def losses(self, x):
        z = self.features(x)
        wanted = [x.sum(1), -x[:, 0], x[:, 1] * 3, x[:, 2] - 1]
        return [
            (head(z)[:, 0] - y).square().mean() for head, y in zip(self.heads, wanted)
        ]


@pytest.fixture
def net():
    with torch.random.fork_rng():
        return Net()


@pytest.fixture
def batches():
    g = torch.Generator().manual_seed(3)
    return torch.randn(2, 16, 6, generator=g, **D)


def grads(module):
    return {
        n: None if p.grad is None else p.grad.clone()
        for n, p in module.named_parameters()
    }


def by_sum(net, losses, weights=None):
    """Every gradient of the (weighted) sum, by the usual backward."""
    net.zero_grad()
    weights = torch.ones(len(losses), **D) if weights is None else weights
    sum(w * loss for w, loss in zip(weights, losses)).backward(retain_graph=True)
    return grads(net)


def same(one, other, names):
    for name in names:
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-12)


def parts(net):
    body = [f"body.{n}" for n, _ in net.body.named_parameters()]
    return body, [n for n, _ in net.named_parameters() if n not in body]


# -- rows and layers ----------------------------------------------------------------


def test_layers_of(net):
    assert list(mo.layers_of(net.body)) == ["0", "1", "2"]
    assert list(mo.layers_of(net)) == ["body", "heads"]
    assert len(mo.layers_of(net.body, depth=None)) == 6
    net.body[0].requires_grad_(False)
    assert list(mo.layers_of(net.body)) == ["1", "2"]
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        mo.layers_of(net)


def test_rows_and_layer_grams(net, batches):
    losses = net.losses(batches[0])
    shared = list(net.body.parameters())
    J = mo.flat(mo.rows(losses, shared))
    for i, loss in enumerate(losses):
        net.zero_grad()
        loss.backward(retain_graph=True)
        torch.testing.assert_close(J[i], torch.cat([p.grad.ravel() for p in shared]))
    grams = mo.layer_grams(losses, mo.layers_of(net.body))
    torch.testing.assert_close(sum(grams.values()), J @ J.T)
    second = net.losses(batches[1])
    K = mo.flat(mo.rows(second, shared))
    both = mo.layer_grams(losses, mo.layers_of(net.body), second)
    torch.testing.assert_close(sum(both.values()), J @ K.T)
    # a head belongs to one objective: zeros for the others
    apart = mo.flat(mo.rows(losses, list(net.heads[1].parameters())))
    assert apart[1].any()
    assert not apart[[0, 2]].any()


def test_rows_sentences(net, batches):
    losses = net.losses(batches[0])
    with pytest.raises(ValueError, match="loss 1 depends on no trainable tensor"):
        mo.rows([losses[0], losses[1].detach()], list(net.body.parameters()))
    with pytest.raises(ValueError, match=r"loss 0 has shape \(3,\); give scalars"):
        mo.rows([torch.stack(losses)], list(net.body.parameters()))


# -- the update ---------------------------------------------------------------------


@pytest.mark.parametrize("look", [None, ["0"], ["2"], ["1", "0"]])
@pytest.mark.parametrize("elsewhere", ["weighted", "uniform"])
def test_equal_weights_are_the_plain_sum(net, batches, look, elsewhere):
    losses = net.losses(batches[0])
    want = by_sum(net, losses)
    net.zero_grad()
    w, grams = mo.aggregate(
        [losses],
        mo.layers_of(net.body),
        lambda G: torch.ones(len(G), **D),
        heads=list(net.heads.parameters()),
        look=look,
        elsewhere=elsewhere,
    )
    assert w.tolist() == [1.0] * 3
    assert sorted(grams) == sorted(look or ["0", "1", "2"])
    same(grads(net), want, want)


@pytest.mark.parametrize("name", ["MGDA", "UPGrad", "CAGrad", "PCGrad"])
def test_weights_reach_every_layer_and_heads_stay_plain(net, batches, name):
    """Looking at all layers, or at some: the same weights act on all of theta."""
    losses = net.losses(batches[0])
    layers, heads = mo.layers_of(net.body), list(net.heads.parameters())
    body, tops = parts(net)
    plain = by_sum(net, losses)
    weigh = mo.AGGREGATORS[name]
    for look in (None, ["0", "1", "2"], ["2"], ["0"]):
        net.zero_grad()
        w, grams = mo.aggregate([losses], layers, weigh, heads, look)
        found = grads(net)
        want = weigh(sum(mo.layer_grams(losses, layers)[n] for n in grams))
        torch.testing.assert_close(w, want)
        same(found, by_sum(net, losses, w), body)
        same(found, plain, tops)


@pytest.mark.parametrize("elsewhere", ["weighted", "uniform", "frozen"])
@pytest.mark.parametrize("samples", [1, 2])
def test_starting_below_the_layers_looked_at_changes_nothing(
    net, batches, samples, elsewhere
):
    layers, heads = mo.layers_of(net.body), list(net.heads.parameters())
    found, below = [], []
    for x in batches[:samples]:
        kept = torch.tanh(net.body[1](torch.tanh(net.body[0](x))))
        z = torch.tanh(net.body[2](kept))
        wanted = [x.sum(1), -x[:, 0], x[:, 1] * 3]
        found.append(
            [(h(z)[:, 0] - y).square().mean() for h, y in zip(net.heads, wanted)]
        )
        below.append([kept, kept * 2])  # the second is read by no loss
    how = {"look": ["2"], "elsewhere": elsewhere}
    v, _ = mo.aggregate(found, layers, mo.upgrad, heads, **how)
    want = grads(net)
    net.zero_grad()
    w, _ = mo.aggregate(found, layers, mo.upgrad, heads, **how, below=below)
    torch.testing.assert_close(w, v)
    same(grads(net), want, want)
    assert (want["body.0.weight"] is None) == (elsewhere == "frozen")


def test_o18_shuffled_objectives_give_the_same_update(net, batches):
    losses = net.losses(batches[0])
    layers, heads = mo.layers_of(net.body), list(net.heads.parameters())
    w, _ = mo.aggregate([losses], layers, mo.mgda, heads, ["2"])
    want = grads(net)
    order = [2, 0, 1]
    v, _ = mo.aggregate([[losses[i] for i in order]], layers, mo.mgda, heads, ["2"])
    torch.testing.assert_close(v, w[order])
    same(grads(net), want, want)


def test_two_samples(net, batches):
    """Rows are objectives, matrices are samples: lam must leave equal weights (A16)."""
    one, two = net.losses(batches[0]), net.losses(batches[1])
    layers, heads = mo.layers_of(net.body), list(net.heads.parameters())
    mean = [(a + b) / 2 for a, b in zip(one, two)]
    body, tops = parts(net)
    lam = torch.full((3,), 1 / 3, **D)
    seen = []

    def weigh(A):
        seen.append(A)
        return mo.modo(lam, A, gamma=0.5)

    for look in (None, ["1"]):
        w, grams = mo.aggregate([one, two], layers, weigh, heads, look)
        found = grads(net)
        same(found, by_sum(net, mean, w), body)
        same(found, by_sum(net, mean), tops)
        want = mo.layer_grams(one, layers, two)
        torch.testing.assert_close(seen[-1], sum(want[n] for n in grams))
        assert float((seen[-1] - seen[-1].mT).abs().max()) > 1e-6  # not one sample
        assert float((w - lam).abs().max()) > 1e-3


def test_features_give_the_update_of_their_own_weights(net, batches):
    def made():
        z = net.features(batches[0])
        wanted = [batches[0].sum(1), -batches[0][:, 0], batches[0][:, 1]]
        return z, [(h(z)[:, 0] - y).square().mean() for h, y in zip(net.heads, wanted)]

    z, losses = made()
    body, tops = parts(net)
    layers, heads = mo.layers_of(net.body), list(net.heads.parameters())
    w, G = mo.aggregate_features(losses, [z], layers, mo.mgda, heads)
    found = grads(net)
    z, losses = made()
    torch.testing.assert_close(G, mo.gram(mo.flat(mo.rows(losses, [z]))))
    torch.testing.assert_close(w, mo.mgda(G))
    same(found, by_sum(net, losses, w), body)
    same(found, by_sum(net, losses), tops)


def test_o19_the_optimiser_moves_every_parameter(net, batches):
    """A helper that writes only into existing .grad writes nothing (A2)."""
    layers, heads = mo.layers_of(net.body), list(net.heads.parameters())
    for look in (None, ["2"]):
        for to_none in (True, False):
            with torch.random.fork_rng():
                fresh = Net()
            fresh_layers = mo.layers_of(fresh.body)
            opt = torch.optim.AdamW(fresh.parameters(), lr=1e-3, weight_decay=1e-2)
            before = {n: p.detach().clone() for n, p in fresh.named_parameters()}
            opt.zero_grad(set_to_none=to_none)
            losses = fresh.losses(batches[0])
            mo.aggregate(
                [losses], fresh_layers, mo.upgrad, list(fresh.heads.parameters()), look
            )
            opt.step()
            for n, p in fresh.named_parameters():
                decayed = before[n] * (1 - 1e-3 * 1e-2)
                assert float((p.detach() - decayed).abs().max()) > 1e-5, n
    # and the trap itself
    opt = torch.optim.SGD(net.parameters(), lr=1.0)
    opt.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    mo.assign(list(net.parameters()), [torch.ones_like(p) for p in net.parameters()])
    assert all(p.grad is not None for p in net.parameters())
    assert layers
    assert heads


def test_frozen_layers_stay_and_uniform_ones_get_the_plain_share(net, batches):
    losses = net.losses(batches[0])
    layers = mo.layers_of(net.body)
    total = by_sum(net, losses)
    net.zero_grad()
    w, _ = mo.aggregate([losses], layers, mo.nash, look=["2"], elsewhere="uniform")
    found = grads(net)
    for n in ("body.0.weight", "body.1.bias"):
        torch.testing.assert_close(found[n], total[n] * w.mean())
    mo.aggregate([losses], layers, mo.nash, look=["2"], elsewhere="frozen")
    found = grads(net)
    assert found["body.0.weight"] is None
    assert found["body.2.weight"] is not None


def test_aggregate_sentences(net, batches):
    losses = net.losses(batches[0])
    layers = mo.layers_of(net.body)
    with pytest.raises(ValueError, match=r"elsewhere is 'freeze'.*Did you mean frozen"):
        mo.aggregate([losses], layers, mo.mgda, elsewhere="freeze")
    with pytest.raises(ValueError, match="look is '7'; choose one of 0, 1, 2"):
        mo.aggregate([losses], layers, mo.mgda, look=["7"])
    with pytest.raises(ValueError, match="look names no layer"):
        mo.aggregate([losses], layers, mo.mgda, look=[])
    with pytest.raises(ValueError, match="one list of M losses, or two"):
        mo.aggregate([losses, losses[:2]], layers, mo.mgda)
    with pytest.raises(ValueError, match="one objective has nothing"):
        mo.aggregate([losses[:1]], layers, mo.mgda)
    with pytest.raises(ValueError, match="not finite: objective 1; check these losses"):
        mo.aggregate([[losses[0], losses[1] * torch.nan]], layers, mo.mgda)
    with pytest.raises(ValueError, match="do not fit the parameters"):
        mo.assign(layers["0"], [torch.ones(2)])


def test_unused_layers_get_zeros():
    """A layer that one objective does not use, or none, is no error."""
    a, b, c = (torch.ones(2, requires_grad=True, **D) for _ in range(3))
    losses = [(a * torch.tensor([1.0, 2.0])).sum(), (a * b).sum() - 4 * a[0]]
    w, grams = mo.aggregate([losses], {"a": [a], "b": [b], "c": [c]}, mo.upgrad)
    assert not grams["c"].any()
    assert not c.grad.any()
    assert grams["b"][0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(b.grad, w[1] * a.detach())


# -- conflict -----------------------------------------------------------------------


def test_cosines_and_conflict():
    J = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 1.0], [0.0, 0.0]], **D)
    C = mo.cosines(mo.gram(J))
    half = 0.5**0.5
    want = torch.tensor([0.0, -half, half], **D)
    torch.testing.assert_close(C[[0, 0, 1], [1, 2, 2]], want)
    assert C[3].isnan().all()
    mean, share = mo.conflict(C)  # pairs with the zero gradient are left out
    assert abs(float(mean)) <= 1e-12
    assert float(share) == pytest.approx(1 / 3)
    pairs = torch.zeros(4, 4, dtype=torch.bool)
    pairs[2, 0] = True  # either side of the diagonal
    assert float(mo.conflict(C, pairs)[0]) == pytest.approx(-half)
    assert mo.off_diagonal(C).shape == (6,)
    with pytest.raises(ValueError, match="no pair of objectives is left"):
        mo.off_diagonal(C, torch.zeros(4, 4, dtype=torch.bool))


def test_stationarity_and_gains():
    J = torch.tensor([[3.0, 0.0], [0.0, 4.0]], **D)
    assert float(mo.stationarity(mo.gram(J))) == pytest.approx(2.4)
    assert float(mo.stationarity(mo.gram(torch.stack([J[0], -J[0]])))) <= 1e-9
    w = torch.tensor([1.0, -1.0], **D)
    assert mo.gains(mo.gram(J), w).tolist() == [9.0, -16.0]


@pytest.mark.parametrize("cosine", [-0.6, 0.0, 0.4])
def test_o25_noise_corrected_cosines(cosine):
    """Noise ten times the gradient: raw cosines near 0, corrected ones right."""
    P, batches, g = 10_000, 200, torch.Generator().manual_seed(5)
    u = torch.zeros(2, P, **D)
    u[0, 0] = u[1, 1] = 1
    J = torch.stack([u[0], cosine * u[0] + (1 - cosine**2) ** 0.5 * u[1]])
    noise = 10 / P**0.5
    single = J + noise * torch.randn(20, 2, P, generator=g, **D)
    raw = mo.cosines(mo.gram(single))[:, 0, 1].mean()
    assert abs(float(raw)) <= 0.05
    # two independent averages of many batches
    z = torch.randn(2, 2, P, generator=g, **D) * noise / batches**0.5
    found = mo.corrected_cosines(mo.gram(J + z[0], J + z[1]))
    assert float(found[0, 1]) == pytest.approx(cosine, abs=0.05)
    assert float(found[0, 0]) == pytest.approx(1.0, abs=1e-12)
    # noise that hides a gradient is said, not guessed
    hidden = torch.tensor([[-0.1, 0.0], [0.0, 1.0]], **D)
    assert mo.corrected_cosines(hidden)[0].isnan().all()


def test_o23_planted_conflict_is_selected():
    g = torch.Generator().manual_seed(0)
    grams = {}
    for name in ("a", "b", "c", "d"):
        base = torch.randn(20, generator=g, **D)
        J = base + 0.3 * torch.randn(4, 20, generator=g, **D)
        if name == "c":  # two objectives against two
            J = J * torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
        grams[name] = mo.gram(J)
    mean = {name: float(mo.conflict(mo.cosines(G))[0]) for name, G in grams.items()}
    assert mo.conflicting_layers(mean) == ["c"]
    assert mo.conflicting_layers(mean, threshold=2.0) == ["a", "b", "c", "d"]


def test_o23_all_layers_selected_is_the_full_gram(net, batches):
    losses = net.losses(batches[0])
    layers = mo.layers_of(net.body)
    full, _ = mo.aggregate([losses], layers, mo.mgda)
    picked = mo.conflicting_layers({n: -1.0 for n in layers})
    some, _ = mo.aggregate([losses], layers, mo.mgda, look=picked)
    assert torch.equal(full, some)


def test_conflicting_layers_falls_back_and_complains():
    cosine = {"x": 0.4, "y": 0.1, "z": float("nan"), "w": 0.3}
    assert mo.conflicting_layers(cosine) == ["y"]
    assert mo.conflicting_layers(cosine, least=2) == ["y", "w"]
    with pytest.raises(ValueError, match="3 layers have a cosine, but 4"):
        mo.conflicting_layers(cosine, least=4)
    with pytest.raises(ValueError, match="least is 0"):
        mo.conflicting_layers(cosine, least=0)
