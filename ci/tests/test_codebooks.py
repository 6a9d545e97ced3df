"""Codebooks against their definitions, closed forms, scikit-learn and finite cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lib.codebooks import (
    EMACodebook,
    KMeans,
    ProductQuantizer,
    ProjectionQuantizer,
    RandomProjection,
    diversity_loss,
    fitted_projection,
    gumbel_select,
    nearest_code,
    usage,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=g(seed), dtype=dtype)


# -- the random projection (O1) -----------------------------------------------------


def explicit(x, A, C, unit=True):
    """argmin_j || n(c_j) - n(A x) ||, written out."""
    z = x.double() @ A.double()
    c = C.double()
    if unit:
        z, c = functional.normalize(z, dim=-1), functional.normalize(c, dim=-1)
    return (z[..., None, :] - c).norm(dim=-1).argmin(-1)


@pytest.mark.parametrize("seed", range(3))
def test_the_quantizer_is_the_nearest_code_by_definition(seed):
    q, x = RandomProjection(12, 5, 30, seed), noise(4, 50, 12, seed=seed + 9)
    assert torch.equal(q(x), explicit(x, q.A, q.C))
    raw = ProjectionQuantizer(q.A, q.C, "l2")
    assert torch.equal(raw(x), explicit(x, q.A, q.C, unit=False))
    assert 0.3 < float((raw(x) == q(x)).float().mean()) < 1  # the choice matters


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-2, 1e2), st.integers(0, 99))
def test_scaling_the_input_or_the_codes_changes_no_label(s, c, seed):
    q, x = RandomProjection(8, 4, 16, seed), noise(40, 8, seed=seed)
    assert torch.equal(q(x), q(s * x))
    scales = torch.rand(16, 1, generator=g(seed)) + c
    assert torch.equal(q(x), ProjectionQuantizer(q.A, scales * q.C)(x))


def test_a_shift_of_the_input_collapses_the_labels():
    q, x = RandomProjection(80, 16, 64), noise(3000, 80)
    centred, shifted = usage(q(x), 64), usage(q(x + 20), 64)
    assert centred.used == 64
    assert shifted.perplexity < centred.perplexity / 4


def test_the_projection_is_xavier_uniform_and_repeats_with_its_seed():
    q = RandomProjection(400, 100, 50, seed=3)
    bound = math.sqrt(6 / 500)
    assert float(q.A.abs().max()) <= bound
    assert float(q.A.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(q.C.std()) == pytest.approx(1, rel=0.05)
    again, other = RandomProjection(400, 100, 50, 3), RandomProjection(400, 100, 50, 4)
    assert torch.equal(q.A, again.A)
    assert torch.equal(q.C, again.C)
    assert not torch.equal(q.A, other.A)


def test_a_checkpoint_holds_projection_and_codes_and_nothing_trains():
    q, x = RandomProjection(6, 4, 8, 1), noise(20, 6)
    other = RandomProjection(6, 4, 8, 2)
    other.load_state_dict(q.state_dict())
    assert torch.equal(q(x), other(x))
    assert not list(q.parameters())


def test_logits_are_kappa_times_the_cosine_with_a_gradient():
    q = RandomProjection(6, 4, 8)
    x = noise(3, 6).requires_grad_()
    expected = functional.cosine_similarity((x @ q.A)[:, None], q.C[None], dim=-1)
    torch.testing.assert_close(q.logits(x, 50.0), 50 * expected)
    q.logits(x).sum().backward()
    assert x.grad.abs().max() > 0
    far = (x @ q.A)[:, None] - q.C
    raw = ProjectionQuantizer(q.A, q.C, "l2").logits(x, 2.0)
    torch.testing.assert_close(raw, -2 * far.square().sum(-1))


def test_a_fitted_projection_takes_the_principal_directions():
    x = noise(500, 6) * torch.tensor([1.0, 9.0, 0.1, 5.0, 0.1, 0.1])
    q = fitted_projection(x, 2, 10, seed=0)
    wanted = torch.zeros(6, 2)
    wanted[1, 0] = wanted[3, 1] = 1
    torch.testing.assert_close(q.A.abs(), wanted, rtol=0, atol=0.1)
    rows = (x @ q.A).double()
    away = (rows[:, None] - q.C.double()).norm(dim=-1).min(0).values
    assert float(away.max()) < 1e-4  # codes are frames
    km = fitted_projection(x, 2, 10, seed=0, codes="kmeans")
    torch.testing.assert_close(km.C.norm(dim=1), torch.ones(10))
    cosine = [torch.max(f.logits(x), -1).values.mean() for f in (q, km)]
    assert cosine[1] > cosine[0]


# -- k-means (O21) ------------------------------------------------------------------


def blobs(n=600, V=5, d=3, seed=0):
    centres = 6 * noise(V, d, seed=seed)
    which = torch.randint(V, (n,), generator=g(seed))
    return centres[which] + noise(n, d, seed=seed + 1)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("start", ["k-means++", "rows"])
def test_inertia_never_rises(spherical, start):
    x = noise(400, 5)
    fit = KMeans(20, 40, seed=1, spherical=spherical, start=start).fit(x)
    assert len(fit.inertia) > 3
    assert all(b <= a + 1e-6 for a, b in zip(fit.inertia, fit.inertia[1:]))


@pytest.mark.parametrize("seed", range(3))
def test_from_the_same_start_it_ends_where_scikit_learn_ends(seed):
    from sklearn.cluster import KMeans as Peer

    x = blobs(seed=seed)
    first = x[:5].clone()
    peer = Peer(5, init=first.numpy(), n_init=1, max_iter=100, tol=0).fit(x.numpy())
    fit = KMeans(5, iterations=100).fit(x, first)
    centres = torch.from_numpy(peer.cluster_centers_)
    torch.testing.assert_close(fit.codes, centres, rtol=1e-4, atol=1e-4)
    assert np.array_equal(fit(x).numpy(), peer.labels_)
    assert fit.inertia[-1] * len(x) == pytest.approx(peer.inertia_, rel=1e-4)


def test_its_own_starts_are_as_good_as_scikit_learns():
    from sklearn.cluster import KMeans as Peer

    x = blobs(V=12, seed=4)
    ours = min(KMeans(12, 60, seed=s).fit(x).inertia[-1] for s in range(5))
    peer = Peer(12, n_init=5, random_state=0).fit(x.numpy())
    assert ours * len(x) < 1.05 * peer.inertia_


def test_the_mini_batch_form_comes_close_and_repeats():
    x = blobs(n=3000, seed=2)
    whole = KMeans(5, 50, seed=0).fit(x)
    small = KMeans(5, 200, seed=0, batch=100).fit(x)
    assert small.inertia[-1] < 1.05 * whole.inertia[-1]
    again = KMeans(5, 200, seed=0, batch=100).fit(x)
    assert torch.equal(small.codes, again.codes)


def test_spherical_codes_are_unit_vectors_of_largest_cosine():
    x = noise(300, 4)
    fit = KMeans(6, 30, spherical=True).fit(x)
    torch.testing.assert_close(fit.codes.norm(dim=1), torch.ones(6))
    cosine = functional.normalize(x, dim=1) @ fit.codes.T
    assert torch.equal(fit(x), cosine.argmax(1))
    assert torch.equal(fit(x), fit(7 * x))


def test_a_code_without_members_stays_where_it_is():
    x = noise(50, 2)
    far = torch.tensor([[100.0, 100.0]])
    fit = KMeans(3, 20).fit(x, torch.cat([x[:2], far]))
    assert torch.equal(fit.codes[2:], far)


def test_nearest_code_chunks_and_shapes(monkeypatch):
    x, codes = noise(3, 7, 4), noise(5, 4, seed=1)
    far = (x[..., None, :] - codes).square().sum(-1)
    monkeypatch.setattr("lib.codebooks.CHUNK", 4)
    labels, away = nearest_code(x, codes)
    assert torch.equal(labels, far.argmin(-1))
    torch.testing.assert_close(away, far.min(-1).values, rtol=1e-4, atol=1e-5)
    assert nearest_code(x[:0], codes)[0].shape == (0, 7)


# -- EMA codes (O21) ----------------------------------------------------------------


def test_with_decay_0_codes_are_the_batch_means():
    book, x = EMACodebook(3, 4, decay=0.0), noise(2, 40, 3)
    labels = torch.randint(3, (2, 40), generator=g())  # code 3 has no members
    before = book.codes[3].clone()
    book.update(x, labels)
    means = torch.stack([x[labels == v].mean(0) for v in range(3)])
    torch.testing.assert_close(book.codes[:3], means, rtol=0, atol=1e-6)
    assert torch.equal(book.codes[3], before)


def test_the_update_is_dinosrs_rule_and_spares_codes_without_members():
    book = EMACodebook(2, 5, decay=0.9, seed=2)
    S, N = book.sums.clone(), book.counts.clone()
    for step in range(4):
        x = noise(30, 2, seed=step)
        labels = torch.randint(4, (30,), generator=g(step))
        book.update(x, labels)
        for v in range(4):
            S[v] = 0.9 * S[v] + 0.1 * x[labels == v].sum(0)
            N[v] = 0.9 * N[v] + 0.1 * int((labels == v).sum())
    torch.testing.assert_close(book.codes, S / N[:, None], rtol=1e-5, atol=1e-6)
    assert torch.equal(book.sums[4], S[4])
    assert float(book.counts[4]) == 1


def test_ema_labels_are_nearest_and_its_state_is_in_a_checkpoint():
    book, x = EMACodebook(3, 8), noise(50, 3)
    book.update(x, book(x))
    assert torch.equal(book(x), (x[:, None] - book.codes).norm(dim=-1).argmin(1))
    other = EMACodebook(3, 8, seed=5)
    other.load_state_dict(book.state_dict())
    assert torch.equal(other(x), book(x))


# -- Gumbel selection (O2, O3) ------------------------------------------------------


def test_the_largest_entry_is_drawn_from_the_softmax():
    s = torch.tensor([1.0, 0.0, -1.0, 2.0])
    y = gumbel_select(s.expand(200_000, 4), 0.5, generator=g())
    rate = torch.bincount(y.argmax(-1), minlength=4) / 200_000
    torch.testing.assert_close(rate, s.softmax(0), rtol=0, atol=5e-3)


def test_the_limits_of_tau():
    s = noise(500, 6)
    cold, warm = (gumbel_select(s, tau, generator=g(1)) for tau in (1e-3, 1e5))
    assert float((cold.max(-1).values > 0.999).float().mean()) > 0.98
    torch.testing.assert_close(warm, torch.full_like(warm, 1 / 6), rtol=0, atol=1e-3)


def test_with_large_kappa_the_selection_is_the_nearest_code():
    q, x = RandomProjection(20, 16, 64), noise(2000, 20)

    def agreement(kappa):
        y = gumbel_select(q.logits(x, kappa), 0.5, generator=g(2))
        return float((y.argmax(-1) == q(x)).float().mean())

    shares = [agreement(kappa) for kappa in (1.0, 10.0, 50.0, 1e5)]
    assert shares == sorted(shares)
    assert shares[0] < 0.06  # the specification's table: 0.03, 0.34, 0.85
    assert shares[2] > 0.5
    assert shares[3] > 0.99


def test_straight_through_is_one_hot_forward_and_soft_backward():
    s = noise(30, 5).requires_grad_()
    hard = gumbel_select(s, 0.7, hard=True, generator=g(3))
    assert torch.equal(hard.sort(-1).values[:, -1], torch.ones(30))
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    weights = noise(30, 5, seed=1)
    (slope,) = torch.autograd.grad((hard * weights).sum(), s)
    soft = gumbel_select(s, 0.7, generator=g(3))
    assert torch.equal(hard.argmax(-1), soft.argmax(-1))
    (expected,) = torch.autograd.grad((soft * weights).sum(), s)
    torch.testing.assert_close(slope, expected)


def test_the_gradient_of_the_cross_entropy_through_the_labels():
    s = noise(9, 7, dtype=torch.float64).requires_grad_()
    log_p, tau = noise(9, 7, seed=1, dtype=torch.float64).log_softmax(-1), 0.5
    y = gumbel_select(s, tau, generator=g(4))
    F = -(y * log_p).sum(-1)
    (slope,) = torch.autograd.grad(F.sum(), s)
    expected = y / tau * (-log_p - F[:, None])
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        slope.sum(-1), torch.zeros(9).double(), atol=1e-14, rtol=0
    )
    uniform = torch.full((9, 7), -math.log(7)).double()
    y = gumbel_select(s, tau, generator=g(4))
    (slope,) = torch.autograd.grad(-(y * uniform).sum(), s)
    assert float(slope.abs().max()) < 1e-14


def test_its_own_generator_leaves_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    gumbel_select(noise(4, 4), generator=g())
    assert torch.equal(torch.rand(3), expected)


# -- the product quantizer ----------------------------------------------------------


def test_a_product_code_is_its_entries_side_by_side():
    torch.manual_seed(0)
    quantizer, x = ProductQuantizer(6, G=2, V=5, d_q=8), noise(3, 7, 6)
    q, codes, p = quantizer(x, generator=g())
    assert q.shape == (3, 7, 8)
    assert codes.shape == (3, 7, 2)
    parts = [quantizer.entries[i][codes[..., i]] for i in range(2)]
    torch.testing.assert_close(q, torch.cat(parts, -1))
    torch.testing.assert_close(p.sum(-1), torch.ones(2))
    best = quantizer.score(x).unflatten(-1, (2, 5)).argmax(-1)
    assert torch.equal(quantizer(x, noise=False).codes, best)


def test_every_parameter_of_the_product_quantizer_gets_a_gradient():
    torch.manual_seed(0)
    quantizer = ProductQuantizer(6)
    q, _, p = quantizer(noise(200, 6), generator=g())
    (q.square().mean() + diversity_loss(p)).backward()
    assert all(w.grad.abs().max() > 0 for w in quantizer.parameters())


def test_diversity_is_0_for_uniform_use_and_near_1_for_one_code():
    assert float(diversity_loss(torch.full((2, 8), 1 / 8))) == pytest.approx(
        0, abs=1e-6
    )
    one = functional.one_hot(torch.tensor([3, 5]), 8).float()
    assert float(diversity_loss(one)) == pytest.approx(1 - 2 / 16)
    half = torch.zeros(1, 8)
    half[0, :4] = 0.25
    assert float(diversity_loss(half)) == pytest.approx(0.5)


# -- usage --------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=60))
def test_perplexity_lies_between_1_and_the_codes_in_use(labels):
    use = usage(torch.tensor(labels), 10)
    assert use.used == len(set(labels))
    assert 1 - 1e-9 <= use.perplexity <= use.used + 1e-9
    assert use.counts.tolist() == [labels.count(v) for v in range(10)]


def test_perplexity_at_its_ends():
    assert usage(torch.arange(12).reshape(3, 4), 12).perplexity == pytest.approx(12)
    assert usage(torch.zeros(5, dtype=torch.long), 12).perplexity == pytest.approx(1)


# -- bad input ----------------------------------------------------------------------

BAD = [
    (lambda: RandomProjection(4, 2, 0), "V is 0"),
    (lambda: RandomProjection(4, 2, 3)(torch.ones(5, 3)), r"give \(\.\.\., 4\)"),
    (lambda: RandomProjection(2, 2, 3)(torch.full((1, 2), float("nan"))), "not finite"),
    (lambda: RandomProjection(4, 2, 3, distance="cos"), "Did you mean cosine"),
    (lambda: ProjectionQuantizer(torch.ones(4, 2), torch.ones(5, 3)), "V, d_c"),
    (lambda: fitted_projection(torch.ones(5, 3), 4, 2), "3 directions"),
    (lambda: fitted_projection(torch.ones(5, 3), 2, 6), "5 vectors for 6 codes"),
    (lambda: fitted_projection(torch.ones(5, 3), 2, 2, codes="dta"), "mean data"),
    (lambda: KMeans(4).fit(torch.ones(3, 2)), "3 vectors for 4 codes"),
    (lambda: KMeans(4)(torch.ones(3, 2)), "not fitted; call fit first"),
    (lambda: KMeans(2).fit(noise(9, 3))(torch.ones(3, 2)), r"give \(\.\.\., 3\)"),
    (lambda: KMeans(2).fit(noise(9, 3), torch.ones(3, 3)), r"shape \(2, 3\)"),
    (lambda: KMeans(4, start="row"), "mean rows"),
    (lambda: KMeans(4, batch=0), "batch is 0"),
    (lambda: EMACodebook(3, 4, decay=1.0), "decay is 1.0"),
    (lambda: EMACodebook(3, 4)(torch.ones(2, 2)), r"give \(\.\.\., 3\)"),
    (lambda: gumbel_select(torch.ones(3), tau=0.0), "positive temperature"),
    (lambda: ProductQuantizer(4, G=3, d_q=8), "G divides"),
    (lambda: usage(torch.tensor([0, 9]), 9), "run from 0 to 9; a codebook of 9"),
    (lambda: usage(torch.tensor([], dtype=torch.long), 9), "no labels to count"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
