"""lib.objective_soup: recipes and one step of each (O-18, O-19, O-20, O-22, O-23)."""

import math
import random

import pytest
import torch

from lib.multi_objective import corrected_cosines, cosines, simplex_projection
from lib.objective_soup import (
    METHODS,
    Balance,
    Fit,
    Level,
    PenaltySchedule,
    Recipe,
    Selection,
    Sizes,
    Soup,
    balanced,
    by_language,
    pairs_between,
    plain_sum,
    recipe_of,
    selected,
    shipped_world,
    single,
    train,
    uncertainty,
    vc,
    vm,
    vs,
)

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("asr_en", "asr_de", "st_de", "ssl")
SHARED = {"low": (5, 2), "high": (7,)}
LOW = 10  # parameters of the first layer


class Toy:
    """Four objectives on two shared layers, each with a head of two numbers."""

    def __init__(self, names=NAMES):
        g = torch.Generator().manual_seed(0)
        self.layers = {
            name: [torch.randn(size, generator=g).requires_grad_()]
            for name, size in SHARED.items()
        }
        self.heads = {
            name: [torch.randn(2, generator=g).requires_grad_()] for name in NAMES
        }
        self.names = names

    @property
    def shared(self):
        return [p for group in self.layers.values() for p in group]

    def losses(self, batch):
        """Of a batch: any whole number."""
        g, found = torch.Generator().manual_seed(batch), {}
        low, high = self.shared
        for i, name in enumerate(NAMES):
            x, y = torch.randn(2, 5, generator=g), torch.randn(7, generator=g)
            z = torch.tanh(x @ low) @ torch.ones(2) + y @ high
            head = self.heads[name][0]
            found[name] = (1 + i) * (z * head[0] + head[1] - 1).square().mean()
        return {name: found[name] for name in self.names}

    def grads(self):
        found = {str(i): p.grad for i, p in enumerate(self.shared)}
        return found | {name: p.grad for name, (p,) in self.heads.items()}

    def clear(self):
        for p in (*self.shared, *(h[0] for h in self.heads.values())):
            p.grad = None

    def rows(self, batch, names):
        """J (M, P) by plain autograd, rows as names."""
        found = self.losses(batch)
        slopes = [torch.autograd.grad(found[n], self.shared) for n in names]
        return torch.stack([torch.cat([s.flatten() for s in row]) for row in slopes])

    def own(self, batch, name):
        """The gradient of one objective for its head."""
        return torch.autograd.grad(self.losses(batch)[name], self.heads[name])[0]

    def shared_grad(self):
        return torch.cat([p.grad.flatten() for p in self.shared])


def walk(recipe, steps=5, toy=None, lr=0.01):
    """A few steps of gradient descent; the toy, all gradients, the balance."""
    toy, log = toy or Toy(), []
    balance = Balance(recipe, toy.layers, steps)
    for step in range(steps):
        toy.clear()
        halved = (100 + step, 200 + step)
        samples = halved if recipe.halved else (step,)
        balance.update(
            [toy.losses(b) for b in samples],
            toy.heads,
            step,
            lambda pair=halved: [toy.losses(b) for b in pair],
        )
        log.append({n: g.clone() for n, g in toy.grads().items() if g is not None})
        with torch.no_grad():
            for p in (*toy.shared, *(h[0] for h in toy.heads.values())):
                if p.grad is not None:
                    p -= lr * p.grad
    return toy, log, balance


def same(log, other, rtol=2e-5):
    for row, second in zip(log, other, strict=True):
        assert set(row) == set(second)
        for name, g in row.items():
            torch.testing.assert_close(g, second[name], rtol=rtol, atol=1e-6)


# -- the schedule and the levels ------------------------------------------------------


def test_penalties_grow_by_virtual_epoch_up_to_the_cap():
    schedule = PenaltySchedule()
    assert schedule.at(0, 1000) == {"eta_1": 0.1, "eta_2": 0.0, "eta": 0.0}
    rows = [schedule.at(step, 1000) for step in range(1000)]
    for name in ("eta_1", "eta_2", "eta"):
        row = [r[name] for r in rows]
        assert row == sorted(row)
    assert all(r["eta"] == r["eta_1"] * r["eta_2"] for r in rows)
    assert rows[349]["eta_1"] < rows[350]["eta_1"] == 1.5  # epoch 70 of 200
    assert rows[-1]["eta"] == 2.25  # above the cap of its factors
    # Per epoch, not per batch: five steps of a thousand are one epoch.
    assert rows[5] == rows[9] != rows[10]
    assert schedule.at(20, 100) == schedule.at(200, 1000)
    slow = PenaltySchedule(growth=0.002).at(999, 1000)
    assert slow["eta_1"] == pytest.approx(0.1 + 0.002 * 199)
    with pytest.raises(ValueError, match="give numbers that are not negative"):
        PenaltySchedule(growth=-1.0)


def test_what_each_level_counts():
    late = {"asr": 1.0, "st": 1.5, "ssl": 2.25}
    for recipe, wanted in [
        (vm(NAMES), late),
        (vm(NAMES, "USA"), {"asr": 1.5, "st": 1.0, "ssl": 2.25}),
        (vm(NAMES, ssl=False), {"asr": 1.0, "st": 1.5}),
        (vc(NAMES), {"asr": 1.0, "st": 1.0, "ssl": 1.5}),
        (vc(NAMES, product=True), {"asr": 1.0, "st": 1.0, "ssl": 2.25}),
        (vs(NAMES), {"asr": 1.0, "st": 1.0, "ssl": 1.0}),
        (plain_sum(NAMES, 0.3), {"asr": 1.0, "st": 1.0, "ssl": 0.3}),
        (plain_sum(NAMES, 0), {"asr": 1.0, "st": 1.0}),
    ]:
        found = recipe.coefficients(99, 100)
        assert {n.partition("_")[0]: c for n, c in found.items()} == wanted
    levels = by_language(NAMES).coefficients(99, 100)
    assert levels == {"asr_en": 1.0, "asr_de": 1.5, "st_de": 1.5, "ssl": 2.25}
    assert by_language(NAMES).groups() == [("asr_en",), ("asr_de", "st_de"), ("ssl",)]
    whole = vm(NAMES, over="all")
    assert sorted(whole.groups()[0]) == ["asr_de", "asr_en", "st_de"]
    assert whole.groups()[1] == ("ssl",)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: vm(NAMES, "SUA"), "order is 'SUA'; choose one of UAS, USA"),
        (lambda: recipe_of("VN", NAMES), "method is 'VN'; choose one of"),
        (lambda: recipe_of("VM", NAMES, gama=1), "VM does not take these options"),
        (lambda: vm(NAMES, sample="thirds"), "sample is 'thirds'"),
        (lambda: balanced(NAMES, "MGDE"), "Did you mean MGDA"),
        (lambda: single(NAMES, "asr_zh"), "The single objective is 'asr_zh'"),
        (lambda: vs(["ssl"]), "balances two objectives or more"),
        (lambda: balanced(["asr_en"], "MGDA"), "or train it alone"),
        (lambda: by_language(NAMES, "it"), "The first language is 'it'"),
        (lambda: vm(["asr_en", "ssl"]), "no st objective among asr_en, ssl"),
        (lambda: vc(["asr_en", "asr_de"]), "no ssl objective"),
        (lambda: plain_sum(["ssl"]), "no supervised objective"),
        (lambda: plain_sum(NAMES, -1), "weight of ssl is -1; give 0 or more"),
        (lambda: Recipe(()), "holds no objective"),
        (lambda: Recipe((Level(("ssl", "ssl")),)), "ssl stands in the recipe twice"),
        (lambda: Recipe((Level(("ssl",), "eta_3"),)), "A coefficient is 'eta_3'"),
        (lambda: selected(NAMES, inside="uniform"), "leave the selection out"),
        (lambda: Selection(pairs="some"), "pairs is 'some'"),
        (lambda: Selection(elsewhere="none"), "elsewhere is 'none'"),
        (lambda: Selection(memory=1.0), "memory is 1.0"),
    ],
)
def test_a_recipe_that_cannot_be_gets_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# -- one step -------------------------------------------------------------------------

RECIPES = {
    "sum": plain_sum(NAMES, 0.3),
    "uncertainty": uncertainty(NAMES),
    "MGDA": balanced(NAMES, "MGDA"),
    "PCGrad": balanced(NAMES, "PCGrad"),
    "CAGrad": balanced(NAMES, "CAGrad"),
    "UPGrad": balanced(NAMES, "UPGrad"),
    "VS": vs(NAMES, gamma=0.05),
    "VC": vc(NAMES, gamma=0.05),
    "VM-UAS": vm(NAMES, gamma=0.05),
    "VM-USA": vm(NAMES, "USA", gamma=0.05, sample="halves"),
    "VM, one simplex": vm(NAMES, gamma=0.05, over="all"),
    "two levels": vm(NAMES, ssl=False, gamma=0.05),
    "languages": by_language(NAMES, gamma=0.05),
    "selected": selected(NAMES, Selection(every=2), gamma=0.05),
    "init": vs(NAMES, gamma=0.05, scaling="init"),
    "l2": balanced(NAMES, "MGDA", scaling="l2"),
}


def turned(recipe):
    """The same recipe, its levels and their objectives in another order."""
    levels = [Level(tuple(reversed(v.names)), v.coefficient) for v in recipe.levels]
    return Recipe(
        tuple(reversed(levels)),
        **{n: getattr(recipe, n) for n in list(recipe.__dataclass_fields__)[1:]},
    )


@pytest.mark.parametrize("name", RECIPES)
def test_the_order_of_objectives_does_not_matter(name):
    _, log, _ = walk(RECIPES[name])
    shuffled = list(NAMES)
    random.Random(3).shuffle(shuffled)
    assert tuple(shuffled) != NAMES
    _, other, _ = walk(turned(RECIPES[name]), toy=Toy(shuffled))
    same(log, other, rtol=0)


@pytest.mark.parametrize("sample", ["lagged", "halves"])
@pytest.mark.parametrize(
    ("dynamic", "static"),
    [(vs, plain_sum), (vc, vc), (vm, vm), (by_language, by_language)],
)
def test_modo_with_gamma_zero_is_its_static_control(sample, dynamic, static):
    """Also the heads: they have no weights, whatever path the gradient takes."""
    recipe = dynamic(NAMES, gamma=0.0, rho=0.0, sample=sample)
    control = static(NAMES, inside="uniform")
    _, log, balance = walk(recipe)
    if sample == "lagged":
        same(log, walk(control)[1])
    else:  # the control on the mean of both halves
        toy, other = Toy(), []
        still = Balance(control, toy.layers, 5)
        for step in range(5):
            toy.clear()
            both = [toy.losses(k + step) for k in (100, 200)]
            mean = {n: (both[0][n] + both[1][n]) / 2 for n in NAMES}
            still.update([mean], toy.heads, step)
            other.append({n: g.clone() for n, g in toy.grads().items()})
            with torch.no_grad():
                for p in (*toy.shared, *(h[0] for h in toy.heads.values())):
                    p -= 0.01 * p.grad
        same(log, other)
    assert torch.equal(balance.lam * balance.size, torch.ones(4))


def test_the_mean_as_an_aggregator_is_the_plain_sum():
    same(walk(balanced(NAMES, "mean"))[1], walk(plain_sum(NAMES))[1])


def test_heads_get_their_own_gradient_whatever_the_weights():
    for recipe in (vm(NAMES), vm(NAMES, inside="uniform"), plain_sum(NAMES, 0.1)):
        toy = Toy()
        wanted = {name: toy.own(0, name) for name in NAMES}
        Balance(recipe, toy.layers, 10).update([toy.losses(0)], toy.heads, 0)
        for name in NAMES:  # eta is 0 here: ssl moves nothing but its head
            torch.testing.assert_close(toy.heads[name][0].grad, wanted[name])


def test_lagged_modo_is_the_hand_written_sequence():
    names, gamma, rho = tuple(sorted(NAMES)), 0.03, 0.5
    toy = Toy()
    balance = Balance(vs(NAMES, gamma=gamma, rho=rho), toy.layers, 9)
    lam, last = torch.full((4,), 0.25), None
    for step in range(4):
        J = toy.rows(step, names)
        w = balance.update([toy.losses(step)], toy.heads, step)
        torch.testing.assert_close(w, 4 * lam)
        torch.testing.assert_close(toy.shared_grad(), 4 * lam @ J)
        if last is not None:  # other batches: a product without bias
            lam = simplex_projection(lam - gamma * (J @ last.T @ lam + rho * lam))
            assert not torch.equal(last, J)
        last = J
        torch.testing.assert_close(balance.lam, lam)
        assert balance.last.data_ptr() != J.data_ptr()
    assert float((lam - 0.25).abs().max()) > 0.01


def test_halved_modo_moves_lam_first_and_steps_along_the_mean():
    names, gamma = tuple(sorted(NAMES)), 0.03
    toy = Toy()
    recipe = vs(NAMES, gamma=gamma, rho=0.0, sample="halves")
    balance = Balance(recipe, toy.layers, 9)
    lam = torch.full((4,), 0.25)
    for step in range(3):
        J, K = toy.rows(2 * step, names), toy.rows(2 * step + 1, names)
        assert not torch.allclose(J, K)
        lam = simplex_projection(lam - gamma * J @ K.T @ lam)
        samples = [toy.losses(2 * step), toy.losses(2 * step + 1)]
        w = balance.update(samples, toy.heads, step)
        torch.testing.assert_close(w, 4 * lam)
        torch.testing.assert_close(toy.shared_grad(), 4 * lam @ (J + K) / 2)


def test_each_level_has_a_simplex_of_its_own():
    _, _, balance = walk(RECIPES["VM-UAS"])
    lam = dict(zip(balance.names, balance.lam.tolist()))
    assert lam["asr_de"] + lam["asr_en"] == pytest.approx(1)
    assert lam["st_de"] == lam["ssl"] == 1
    assert lam["asr_de"] != pytest.approx(0.5, abs=1e-3)
    _, _, balance = walk(RECIPES["VM, one simplex"])
    lam = dict(zip(balance.names, balance.lam.tolist()))
    assert lam["asr_de"] + lam["asr_en"] + lam["st_de"] == pytest.approx(1)


def test_rows_are_tasks_so_weights_leave_one_half():
    """A16: with halves for rows the weights of two tasks could not move."""
    p = torch.tensor([1.0, 1.0], requires_grad=True)
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    balance = Balance(vs(["asr_a", "asr_b"], gamma=0.05), {"all": [p]}, 50)
    for step in range(50):
        found = {"asr_a": x[0] @ p, "asr_b": x[1] @ p}
        balance.update([found], {"asr_a": [], "asr_b": []}, step)
    # argmin |lam_1 (1, 0) + lam_2 (0, 3)|
    assert balance.lam.tolist() == pytest.approx([0.9, 0.1], abs=0.02)


def test_uncertainty_is_the_gradient_of_its_own_loss():
    toy, recipe = Toy(), uncertainty(NAMES)
    balance = Balance(recipe, toy.layers, 5)
    with torch.no_grad():
        balance.log_variance += torch.tensor([0.5, -0.3, 0.1, 0.0])
    w = balance.update([toy.losses(1)], toy.heads, 0)
    values = torch.stack([toy.losses(1)[n] for n in balance.names])
    s = balance.log_variance.detach().clone().requires_grad_()
    total = ((-s).exp() * values + s / 2).sum()
    slopes = torch.autograd.grad(total, [s, *toy.shared])
    torch.testing.assert_close(balance.log_variance.grad, slopes[0])
    for p, slope in zip(toy.shared, slopes[1:]):
        torch.testing.assert_close(p.grad, slope)
    torch.testing.assert_close(w, (-s).exp().detach())


def test_scaling_divides_by_the_first_losses():
    toy, names = Toy(), tuple(sorted(NAMES))
    balance = Balance(balanced(NAMES, "MGDA", scaling="init"), toy.layers, 5)
    first = torch.stack([toy.losses(0)[n] for n in names]).detach()
    balance.update([toy.losses(0)], toy.heads, 0)
    w = balance.update([toy.losses(1)], toy.heads, 1)
    s = 1 / first / (1 / first).mean()
    J = toy.rows(1, names) * s[:, None]
    d = (w / s / 4) @ J  # the shortest vector of the scaled rows
    assert bool((J @ d >= d @ d - 1e-4 * J.square().sum(1).max()).all())


# -- layers ---------------------------------------------------------------------------


def planted(step, conflict="high"):
    """Two tasks that agree in one layer and disagree in the other."""
    low = torch.tensor([1.0, 2.0], requires_grad=True)
    high = torch.tensor([0.5, 1.0, 1.0], requires_grad=True)
    sign = {"low": 1.0, "high": 1.0} | {conflict: -0.8}
    a, b = torch.tensor([1.0, 0.2]), torch.tensor([0.3, 1.0, 0.1])

    def found():
        return {
            "asr_a": a @ low + b @ high,
            "asr_b": 2 * sign["low"] * (a @ low) + sign["high"] * (b @ high),
        }

    return {"low": [low], "high": [high]}, found


@pytest.mark.parametrize("where", ["low", "high"])
@pytest.mark.parametrize("sample", ["lagged", "halves"])
def test_the_layer_with_the_planted_conflict_is_selected(where, sample):
    layers, found = planted(0, where)
    recipe = vs(["asr_a", "asr_b"], selection=Selection(every=2), sample=sample)
    balance = Balance(recipe, layers, 9)
    heads = {"asr_a": [], "asr_b": []}
    samples = [found(), found()] if recipe.halved else [found()]
    balance.update(samples, heads, 0)
    assert balance.look() == [where]
    for group in layers.values():  # never frozen
        assert float(group[0].grad.abs().max()) > 0


@pytest.mark.parametrize("sample", ["lagged", "halves"])
def test_selecting_all_layers_is_selecting_none(sample):
    every = Selection(threshold=2.0, every=1)
    how = {"gamma": 0.05, "sample": sample}
    _, log, balance = walk(selected(NAMES, every, **how))
    assert balance.look() == list(SHARED)
    same(log, walk(vm(NAMES, **how))[1], rtol=0)


@pytest.mark.parametrize("sample", ["lagged", "halves"])
def test_weights_come_from_the_selected_layers_and_move_all(sample):
    names, gamma = tuple(sorted(NAMES)), 0.03
    results = {}
    for elsewhere in ("weighted", "uniform", "frozen"):
        toy = Toy()
        never = Selection(every=99, elsewhere=elsewhere)
        recipe = vs(NAMES, gamma=gamma, rho=0.0, sample=sample, selection=never)
        balance = Balance(recipe, toy.layers, 99)
        balance.chosen[:] = torch.tensor([False, True])  # the layer "high"
        lam = torch.full((4,), 0.25)
        for step in (1, 2):
            parts = (10 + step, 20 + step) if recipe.halved else (step,)
            J = [toy.rows(b, names) for b in parts]
            if recipe.halved:
                lam = simplex_projection(
                    lam - gamma * J[0][:, LOW:] @ J[1][:, LOW:].T @ lam
                )
            w = balance.update([toy.losses(b) for b in parts], toy.heads, step)
            torch.testing.assert_close(w, 4 * lam)
            whole, mean = 4 * lam @ (sum(J) / len(J)), sum(J) / len(J)
            low, high = (p.grad for p in toy.shared)
            torch.testing.assert_close(high, whole[LOW:])
            if elsewhere == "frozen":
                assert low is None
            elif elsewhere == "weighted":
                torch.testing.assert_close(low.flatten(), whole[:LOW])
            else:
                torch.testing.assert_close(low.flatten(), mean.sum(0)[:LOW])
            if not recipe.halved and step == 2:
                product = J[0][:, LOW:] @ toy.rows(1, names)[:, LOW:].T
                lam = simplex_projection(lam - gamma * product @ lam)
        torch.testing.assert_close(balance.lam, lam)
        results[elsewhere] = balance.lam.clone()
    assert torch.equal(results["weighted"], results["frozen"])


def test_a_layer_that_was_not_looked_at_is_left_out_of_the_product():
    toy = Toy()
    balance = Balance(vs(NAMES, gamma=0.05), toy.layers, 9)
    balance.chosen[:] = torch.tensor([True, False])
    balance.update([toy.losses(0)], toy.heads, 0)
    balance.chosen[:] = torch.tensor([False, True])
    balance.update([toy.losses(1)], toy.heads, 1)
    assert torch.equal(balance.lam, torch.full((4,), 0.25))  # no layer in common
    balance.update([toy.losses(2)], toy.heads, 2)
    assert not torch.equal(balance.lam, torch.full((4,), 0.25))


def test_cosines_of_layers_are_remembered_between_looks():
    toy, names = Toy(), tuple(sorted(NAMES))
    how = Selection(every=2, memory=0.75, pairs="asr x st", least=2)
    balance = Balance(selected(NAMES, how), toy.layers, 9)
    mean = None
    for step in range(5):
        balance.update([toy.losses(step)], toy.heads, step)
        if step % 2:
            continue
        J = toy.rows(step, names)
        new = []
        for part in (J[:, :LOW], J[:, LOW:]):
            C = cosines(part @ part.T)  # rows: asr_de, asr_en, ssl, st_de
            new.append(float((C[0, 3] + C[1, 3]) / 2))
        new = torch.tensor(new)
        mean = new if mean is None else 0.75 * mean + 0.25 * new
        torch.testing.assert_close(balance.cosine, mean, rtol=1e-4, atol=1e-5)
    assert balance.look() == list(SHARED)


def test_unbiased_cosines_come_from_two_halves():
    toy, names = Toy(), tuple(sorted(NAMES))
    recipe = selected(NAMES, Selection(unbiased=True))
    balance = Balance(recipe, toy.layers, 9)
    balance.update(
        [toy.losses(0)], toy.heads, 0, lambda: [toy.losses(7), toy.losses(8)]
    )
    J, K = toy.rows(7, names)[:, LOW:], toy.rows(8, names)[:, LOW:]
    C = corrected_cosines(J @ K.T)[torch.triu(torch.ones(4, 4), 1) > 0]
    known = C[~C.isnan()].mean() if not C.isnan().all() else torch.tensor(math.nan)
    torch.testing.assert_close(balance.cosine[1], known, equal_nan=True)


def test_pairs_of_objectives_by_kind():
    names = ("asr_de", "asr_en", "ssl", "st_de")
    found = {
        kind: int(pairs_between(names, kind).triu(1).sum())
        for kind in ("all", "asr x st", "supervised x ssl")
    }
    assert found == {"all": 6, "asr x st": 2, "supervised x ssl": 3}
    assert bool(pairs_between(names, "supervised x ssl")[2, 3])


# -- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "VS", "MGDA", "VM-USA"])
def test_what_is_not_finite_is_named(name):
    recipe = RECIPES[name]
    toy = Toy()
    balance = Balance(recipe, toy.layers, 5)

    def losses(batch):
        found = toy.losses(batch)
        return found | {"asr_de": found["asr_de"] * math.nan}

    samples = [losses(0), losses(1)] if recipe.halved else [losses(0)]
    with pytest.raises(FloatingPointError, match="The loss of asr_de is nan at step 3"):
        balance.update(samples, toy.heads, 3)


@pytest.mark.parametrize("inside", ["MoDo", "MGDA"])
def test_a_gradient_that_is_not_finite_is_named(inside):
    p = torch.zeros(1, requires_grad=True)
    recipe = Recipe((Level(("asr_a", "asr_b")),), inside)
    balance = Balance(recipe, {"all": [p]}, 5)
    found = {"asr_a": p.sum(), "asr_b": p.abs().sqrt().sum()}  # slope 0 * inf
    with pytest.raises(FloatingPointError, match="gradient of asr_b is not finite"):
        balance.update([found], {"asr_a": [], "asr_b": []}, 0)


@pytest.mark.parametrize("inside", ["MoDo", "MGDA"])
def test_gradients_that_are_all_zero_get_a_sentence(inside):
    p = torch.zeros(2, requires_grad=True)
    recipe = Recipe((Level(("asr_a", "asr_b")),), inside, sample="halves")
    balance = Balance(recipe, {"all": [p]}, 5)
    found = {"asr_a": 0 * p.sum(), "asr_b": p.square().sum()}
    with pytest.raises(ValueError, match="all 2 gradients are zero"):
        balance.update([found, found][: 1 + recipe.halved], {n: [] for n in found}, 0)


def test_a_missing_objective_and_no_weight_at_all_get_a_sentence():
    toy = Toy(NAMES[:3])
    balance = Balance(vm(NAMES), toy.layers, 5)
    with pytest.raises(ValueError, match="An objective of the recipe is 'ssl'"):
        balance.update([toy.losses(0)], toy.heads, 0)
    nothing = Recipe((Level(("asr_de",), 0.0),))
    with pytest.raises(ValueError, match="All weights are 0"):
        Balance(nothing, toy.layers, 5).update([toy.losses(0)], toy.heads, 0)


# -- the optimiser's trap (O-19) -------------------------------------------------------

STEPPED = {
    "single": {"task": "st_de"},
    "balanced": {"by": "PCGrad"},
    "selected": {"chosen": {"every": 1}},
}


@pytest.fixture(scope="module")
def world():
    return shipped_world(("en", "de"))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_every_shared_parameter(world, method):
    """The published script wrote no gradient: only weight decay moved the encoder."""
    model = Soup(world, Sizes(d=8, blocks=1, heads=2))
    before = {n: p.detach().clone() for n, p in model.encoder.named_parameters()}
    recipe = recipe_of(method, world.objectives, **STEPPED.get(method, {}))
    fit = Fit(steps=1, batch=2)
    train(model, world, recipe, fit)
    for name, p in model.encoder.named_parameters():
        decay = fit.rate(0) * fit.weight_decay * before[name].abs().max()
        moved = float((p.detach() - before[name]).abs().max())
        assert moved > max(5 * float(decay), 1e-3), name
