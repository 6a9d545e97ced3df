"""lib.selective_ssm, second half: maps, Hydra, dynamics, long context, dual, sparse."""

import itertools

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from lib.scan import selective_scan, ssd
from lib.selective_ssm import dual, dynamics, hydra, long_context, maps, sparse
from lib.ssm_init.theory import token_law


@pytest.fixture(autouse=True, scope="module")
def one_thread_and_double():
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


def drawn(seed=0):
    """Normal and uniform draws of a seed."""
    g = torch.Generator().manual_seed(seed)
    return (
        lambda *shape: torch.randn(*shape, generator=g),
        lambda *shape: torch.rand(*shape, generator=g) + 0.1,
    )


def close(x, y, tol=1e-12):
    torch.testing.assert_close(x, y, rtol=tol, atol=tol)


# -- maps ---------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_the_hidden_attention_times_u_is_the_scan(groups, skip, kind):
    normal, positive = drawn()
    batch, channels, L, N = 2, 4, 11, 3
    delta, A = positive(batch, channels, L), -positive(channels, N)
    B, C = normal(batch, groups, N, L), normal(batch, groups, N, L)
    if kind == "complex":
        A = torch.complex(A, normal(channels, N))
        B, C = torch.complex(B, C), torch.complex(C, B)
    D = normal(channels) if skip else None
    u = normal(batch, channels, L)
    alpha = maps.hidden_attention(delta, A, B, C, D)
    y = selective_scan(u, delta, A, B, C, D, backend="reference")
    close((alpha @ u[..., None])[..., 0], y)
    assert not alpha.triu(1).any()


def test_a_hidden_attention_entry_is_the_formula():
    normal, positive = drawn(1)
    delta, A = positive(1, 1, 6), -positive(1, 2)
    B, C = normal(1, 2, 6), normal(1, 2, 6)
    alpha = maps.hidden_attention(delta, A, B, C)[0, 0]
    for t, s in itertools.product(range(6), repeat=2):
        decay = torch.exp(A[0] * delta[0, 0, s + 1 : t + 1].sum())
        expected = (C[0, :, t] * decay * B[0, :, s]).sum() * delta[0, 0, s]
        close(alpha[t, s], expected if s <= t else torch.zeros(()))


def ssd_case(batch=2, L=10, heads=4, groups=2, N=3, seed=0):
    normal, positive = drawn(seed)
    B, C = normal(batch, L, groups, N), normal(batch, L, groups, N)
    return positive(batch, L, heads), -positive(heads), B, C, normal(heads)


def test_the_ssd_attention_times_x_is_the_scan_and_a_tied_hidden_attention():
    delta, A, B, C, D = ssd_case()
    x = drawn(3)[0](2, 10, 4, 5)
    alpha = maps.ssd_attention(delta, A, B, C, D)
    y = ssd(x, delta, A, B, C, D, backend="reference")
    close(torch.einsum("bhts,bshp->bthp", alpha, x), y)
    tied = A[:, None].expand(4, 3)
    general = maps.hidden_attention(
        delta.transpose(1, 2), tied, B.permute(0, 2, 3, 1), C.permute(0, 2, 3, 1), D
    )
    close(alpha, general)


def test_segment_sums_keep_their_digits():
    x = torch.tensor([1e12, 1.0, 2.0, 3.0])
    sums = maps.segment_sums(x)
    assert sums[3, 0] == 6.0
    assert sums[3, 3] == 0.0
    assert sums[0, 3] == -torch.inf
    # the difference of cumulative sums in float32 loses these six
    assert (x.float().cumsum(0)[3] - x.float().cumsum(0)[0]) != 6.0


def test_a_scan_with_n_states_is_n_semiseparable_and_a_skip_adds_one():
    normal, positive = drawn(4)
    for N in (1, 2, 4):
        case = positive(1, 2, 14), -positive(2, N), normal(1, N, 14), normal(1, N, 14)
        assert maps.semiseparable_rank(maps.hidden_attention(*case)) == N
        skipped = maps.hidden_attention(*case, normal(2))
        assert maps.semiseparable_rank(skipped) == N + 1
        assert maps.block_ranks(skipped, "lower").max() == N
    assert maps.semiseparable_rank(normal(1, 14, 14).tril()) == 7  # no structure


def test_maps_are_differentiable():
    normal, positive = drawn(5)
    case = [positive(1, 2, 4), -positive(2, 2), normal(1, 2, 4), normal(1, 2, 4)]
    case = [x.requires_grad_() for x in (*case, normal(2))]
    assert gradcheck(maps.hidden_attention, case)


# -- Hydra --------------------------------------------------------------------------


def hydra_case(seed=0, L=12, N=3):
    delta, A, B, C, D = ssd_case(L=L, N=N, seed=seed)
    other = ssd_case(L=L, N=N, seed=seed + 50)
    forward = hydra.Direction(delta, B, C)
    return A, forward, hydra.Direction(other[0], *other[2:4]), D


@pytest.mark.parametrize("selected", [False, True])
def test_the_quasiseparable_matrix_times_x_is_two_scans(selected):
    A, forward, backward, D = hydra_case()
    normal = drawn(9)[0]
    x, D = normal(2, 12, 4, 5), normal(2, 12, 4) if selected else D
    M = hydra.hydra_matrix(A, forward, backward, D)
    y = hydra.hydra_mix(x, A, forward, backward, D, backend="reference")
    close(torch.einsum("bhts,bshp->bthp", M, x), y)
    scans = [
        hydra.shift(ssd(v, d.delta, A, d.B, d.C, backend="reference"))
        for v, d in ((x, forward), (x.flip(1), backward.flip()))
    ]
    close(y, scans[0] + scans[1].flip(1) + D[..., None] * x)


def test_hydras_triangles_have_rank_n_and_its_diagonal_is_d():
    A, forward, backward, D = hydra_case()
    M = hydra.hydra_matrix(A, forward, backward, D)
    assert maps.block_ranks(M, "lower").max() == 3
    assert maps.block_ranks(M, "upper").max() == 3
    low = maps.block_ranks(M.tril(), "lower"), maps.block_ranks(M.tril(), "upper")
    assert low[0].max() == 3
    assert low[1].max() == 0
    close(M.diagonal(0, -2, -1), D[:, None].expand(2, 4, 12))
    one = hydra.hydra_matrix(A, forward, backward, D + 1)
    close(one - M, torch.eye(12).expand_as(M))  # the diagonal is free


def test_adding_two_scans_ties_the_diagonal_and_hydra_does_not():
    A, forward, backward, D = hydra_case(N=1)
    inner = slice(1, -1)
    added = hydra.added_matrix(A, forward, backward)
    close(hydra.tied_diagonal(added), added.diagonal(0, -2, -1)[..., inner], 1e-9)
    free = hydra.hydra_matrix(A, forward, backward, D)
    gap = hydra.tied_diagonal(free) - free.diagonal(0, -2, -1)[..., inner]
    assert gap.abs().min() > 1e-6
    x = drawn(2)[0](2, 12, 4, 2)
    y = sum(
        (ssd(v, d.delta, A, d.B, d.C, backend="reference")).flip(1 if back else ())
        for v, d, back in ((x, forward, False), (x.flip(1), backward.flip(), True))
    )
    close(torch.einsum("bhts,bshp->bthp", added, x), y)


def test_reversing_time_swaps_hydras_directions():
    A, forward, backward, D = hydra_case()
    M = hydra.hydra_matrix(A, forward, backward, D)
    swapped = hydra.hydra_matrix(A, backward.flip(), forward.flip(), D)
    close(swapped, M.flip(2, 3))


def test_the_hydra_layer_is_its_matrix_and_sees_everything():
    torch.manual_seed(0)
    layer = hydra.Hydra(8, d_state=4, headdim=4, conv=3)
    u = torch.randn(1, 7, 8, requires_grad=True)
    _, x, mixer = layer.select(u)
    mixed = torch.einsum("bhts,bshp->bthp", layer.matrix(u), x)
    close(mixed, hydra.hydra_mix(x, *mixer, backend="reference"), 1e-10)
    layer(u)[0, 3].sum().backward()
    assert (u.grad[0].abs().sum(-1) > 0).all()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters()
    )
    assert layer(u).shape == u.shape


def test_hydra_shares_its_projections():
    counts = hydra.parameter_counts(d_model=32, d_state=16, headdim=16, conv=7)
    inner, heads, width = 64, 4, 64 + 64
    by_hand = 32 * (inner + width + 2 * heads) + width * 8 + 3 * heads
    assert counts["hydra"] == by_hand + inner * heads + inner + inner * 32
    assert counts["two scans"] > 1.5 * counts["hydra"]


def test_hydra_mix_has_gradients():
    A, forward, backward, D = hydra_case(L=3, N=2)
    x = drawn(7)[0](2, 3, 4, 1)
    leaves = [v.requires_grad_() for v in (x, A, *forward, *backward, D)]

    def mix(x, A, *rest):
        one, two = hydra.Direction(*rest[:3]), hydra.Direction(*rest[3:6])
        return hydra.hydra_mix(x, A, one, two, rest[6], backend="reference")

    assert gradcheck(mix, leaves, fast_mode=True)


# -- token dynamics -----------------------------------------------------------------

ONE = np.ones((1, 1))


def scalar(x, times, mu, a=1.0, s=1.0, **options):
    x = np.asarray(x, float)[:, None]
    return dynamics.simulate(x, times, ONE, mu * ONE, np.array([s]), a, **options)


def test_the_velocity_is_a_scan_and_the_sum_of_the_equation():
    rng = np.random.default_rng(0)
    L, D, N, a = 6, 3, 2, 0.7
    x, S_B, S_C = (rng.normal(size=s) for s in ((L, D), (N, D), (N, D)))
    for S_delta in (rng.normal(size=D), rng.normal(size=(D, D))):
        got = dynamics.velocity(x, S_B, S_C, S_delta, a)
        step = dynamics.softplus(x @ S_delta.T).reshape(L, -1)
        for t in range(L):
            terms = [
                (S_C @ x[t]) @ (S_B @ x[j])
                * np.exp(-a * step[j + 1 : t + 1].sum(0)) * step[j] * x[j]
                for j in range(t + 1)
            ]  # fmt: skip
            np.testing.assert_allclose(got[t], np.sum(terms, axis=0), atol=1e-13)
        x_, B, C, step = (
            torch.tensor(v)[None] for v in (x, x @ S_B.T, x @ S_C.T, step)
        )
        if S_delta.ndim == 1:
            A = torch.tensor([-a])
            y = ssd(x_[:, :, None], step, A, B[:, :, None], C[:, :, None])[0, :, 0]
        else:
            y = selective_scan(
                x_, step, torch.full((D, N), -a), B, C, channel_last=True
            )
            y = y[0]
        np.testing.assert_allclose(got, y.numpy(), atol=1e-13)


def test_convergent_tokens_fall_like_one_over_the_square_root_of_depth():
    times = np.logspace(0, 6, 4)
    for a in (1.0, 3.0):
        flow = scalar([0.8, -0.5, 0.6, 0.3], times, -1.5, a)
        first, _ = token_law(times, mu=-1.5, start=0.8)
        np.testing.assert_allclose(flow.tokens[:, 0, 0], first, rtol=1e-6)
        scaled = np.abs(flow.tokens[:, :, 0]) * np.sqrt(times)[:, None]
        ratio = scaled / dynamics.decay_constants(4, -1.5, a)
        assert np.abs(ratio[-1] - 1).max() < 2e-3
        assert np.abs(ratio[-1] - 1).max() < np.abs(ratio[-2] - 1).max() / 3
        assert (np.sign(flow.tokens[:, :, 0]) == [1, -1, 1, 1]).all()


def test_the_constants_solve_the_self_similar_equations():
    c = dynamics.decay_constants(6, -0.7, 2.0)
    q, K2 = 2.0**-2.0, 1 / (2 * 0.7 * np.log(2))
    for n in range(1, 7):
        total = sum(q ** (n - 1 - j) * c[j] ** 2 for j in range(n))
        assert total == pytest.approx(K2, rel=1e-12)


def test_a_positive_first_token_blows_up_when_the_integral_says():
    T = dynamics.blow_up_time(0.5)
    assert 0 < T < min(1 / (3 * 0.5**3), 1 / (2 * np.log(2) * 0.5**2))
    flow = scalar([0.5, 0.3], [100.0], 1.0, limit=1e3)
    assert flow.escape + 1 / (3 * 1e9) == pytest.approx(T, rel=1e-6)
    assert dynamics.travel_time(0.5, 1e3, 1.0) + 1 / 3e9 == pytest.approx(T, rel=1e-9)
    near = dynamics.travel_time(50.0, np.inf, 1.0)  # softplus(x) = x there: (3 x^3)^-1
    assert near == pytest.approx(1 / (3 * 50.0**3), rel=1e-9)
    assert dynamics.blow_up_time(0.5, 4.0) == pytest.approx(T / 4, rel=1e-9)
    flat = dynamics.blow_up_time(-0.5, 1.0, 0.0)  # Delta = ln 2: 1 / (2 ln2 x^2)
    assert flat == pytest.approx(2 / np.log(2), rel=1e-9)
    assert dynamics.blow_up_time(-0.5) == np.inf


def test_later_tokens_blow_up_no_later_than_alone():
    flow = scalar([-0.3, 0.9], [100.0], 1.0)
    assert flow.escape < dynamics.blow_up_time(0.9)
    assert len(flow.times) == 0
    alone = scalar([0.9], [100.0], 1.0).escape
    assert flow.escape < alone


def test_negative_tokens_diverge_slowly_like_the_logarithm():
    times = np.logspace(2, 8, 4)
    flow = scalar([-0.5, -0.3, -1.0], times, 1.0)
    assert flow.escape == np.inf
    x = flow.tokens[:, :, 0]
    assert (np.diff(np.abs(x), axis=0) > 0).all()
    assert (x < 0).all()
    took = [dynamics.travel_time(-0.5, v, 1.0) for v in x[:, 0]]
    np.testing.assert_allclose(took, times, rtol=1e-6)
    ratio = x[:, 1:] / x[:, :1]
    assert np.abs(ratio[-1] / ratio[-2] - 1).max() < 1e-3  # both grow like ln t here


@pytest.mark.parametrize(
    ("x", "mu", "s", "word"),
    [
        ([0.5, -0.2], -1.0, 1.0, "convergent"),
        ([-0.5, 0.4], 1.0, 1.0, "fast"),
        ([-0.5, 0.4], 1.0, -1.0, "fast"),
        ([-0.5, -0.4], 1.0, 0.0, "fast"),
        ([-0.5, -0.4, 0.0], 1.0, 1.0, "slow"),
        ([0.5, 0.4], 1.0, -1.0, "slow"),
        ([0.5], 0.0, 1.0, "still"),
        ([0.0, 0.0], 1.0, 1.0, "still"),
    ],
)
def test_the_regime_is_what_a_simulation_does(x, mu, s, word):
    assert dynamics.regime(np.array(x), mu, s) == word
    flow = scalar(x, [1e3], mu, s=s)
    assert (flow.escape < np.inf) == (word == "fast")
    if word != "fast":
        end, start = np.abs(flow.tokens[-1, :, 0]), np.abs(x)
        moved = np.sign(np.round(end - start, 12))
        way = {"convergent": -1, "slow": 1, "still": 0}[word]
        assert (moved == way * (start > 0)).all()


def matrix_flow(x, M, times, s, **options):
    D = len(M)
    return dynamics.simulate(x, times, np.eye(D), M.T, s, 1.0, **options)


def test_definite_matrices_decide_for_every_token():
    rng = np.random.default_rng(3)
    x, s = rng.normal(size=(5, 3)), 0.3 * rng.normal(size=3)
    Q = rng.normal(size=(3, 3))
    Q = Q @ Q.T + 0.5 * np.eye(3)
    assert dynamics.eigen_regime(-Q) == "convergent"
    flow = matrix_flow(x, -Q, np.logspace(2, 5, 2), s)
    scaled = np.linalg.norm(flow.tokens, axis=2) * np.sqrt(flow.times)[:, None]
    assert scaled.max() < 3
    assert dynamics.eigen_regime(Q) == "divergent"
    grown = matrix_flow(x, Q, [1e-3, 1e4], s)
    assert grown.escape < np.inf
    assert dynamics.eigen_regime(np.diag([1.0, -1.0])) == "mixed"
    assert dynamics.eigen_regime(np.zeros((2, 2))) == "mixed"


def test_one_positive_eigenvalue_leaves_the_first_token_its_choice():
    M, s = np.diag([1.0, -1.0]), np.array([0.4, 0.2])
    down, up = np.array([[0.3, 0.6]]), np.array([[0.6, 0.3]])
    assert dynamics.first_token_regime(down[0], M, s) == "convergent"
    assert dynamics.first_token_regime(up[0], M, s) == "fast"
    flow = matrix_flow(down, M, np.logspace(1, 5, 3), s)
    direction = flow.tokens[:, 0] / np.linalg.norm(flow.tokens[:, 0], axis=1)[:, None]
    np.testing.assert_allclose(direction, np.repeat(down, 3, 0) / 0.45**0.5, rtol=1e-8)
    assert np.linalg.norm(flow.tokens[-1]) < 0.01
    u = up[0] / np.linalg.norm(up)
    T = dynamics.blow_up_time(np.linalg.norm(up), u @ M @ u, s @ u)
    assert matrix_flow(up, M, [1e3], s).escape == pytest.approx(T, rel=1e-5)
    assert dynamics.first_token_regime(np.zeros(2), M, s) == "still"


def test_the_soft_order_puts_importance_last():
    scores = np.array([0.3, -1.0, 2.0, 0.9])
    P = dynamics.soft_order(scores, 0.5)
    np.testing.assert_allclose(P.sum(1), 1)
    hard = dynamics.soft_order(scores, 1e-3)
    np.testing.assert_allclose(hard @ scores, np.sort(scores))
    np.testing.assert_allclose(hard, np.eye(4)[np.argsort(scores)], atol=1e-12)


# -- long context -------------------------------------------------------------------

L0 = 256
STEPS = [0.5, 0.003, 0.001]  # one local channel, two global ones


def needles(stretch, batch=64):
    rng = np.random.default_rng(stretch)
    return long_context.needle(L0 * stretch, torch.tensor(STEPS), rng, L0, batch)


def test_memory_collapses_beyond_the_training_length_and_filtering_restores_it():
    train = needles(1)
    chosen = long_context.global_channels(train.delta, train.A)
    assert chosen.tolist() == [False, True, True]
    trained = long_context.recalled(train).mean(0)
    long = needles(8)
    plain = long_context.recalled(long).mean(0)
    expected = torch.exp(-torch.tensor(STEPS) * (8 * L0 - 1))
    close(plain[1:], expected[1:], 0.05)
    assert (plain[1:] < 0.2 * trained[1:]).all()
    limit = long_context.calibrate(train.delta[..., 1:], 8 * L0)
    kept = long_context.filter_steps(long.delta, limit, chosen)
    filtered = long_context.recalled(long, kept).mean(0)
    assert ((filtered - trained)[1:].abs() < 0.1 * trained[1:]).all()
    close(kept[:, 0], long.delta[:, 0])  # local channels are left alone


def test_a_filtered_step_is_skipped_exactly():
    normal, _ = drawn(0)
    case = needles(1, batch=2)
    delta = case.delta.masked_fill(torch.arange(L0) % 3 == 1, 0)
    stay = torch.arange(L0) % 3 != 1
    u = normal(*delta.shape)
    y = selective_scan(u, delta, *case[2:], backend="reference")
    B, C = case.B[..., stay], case.C[..., stay]
    short = selective_scan(
        u[..., stay], delta[..., stay], case.A, B, C, backend="reference"
    )
    close(y[..., stay], short)


def test_calibration_meets_its_closed_form_for_exponential_steps():
    rng = np.random.default_rng(0)
    delta = torch.tensor(rng.exponential(size=(200, 2, 512))) * torch.tensor(
        [[2.0], [7]]
    )
    for stretch in (2, 4, 8):
        p = long_context.kept_share(stretch)
        assert p * (1 - np.log(p)) == pytest.approx(1 / stretch, rel=1e-12)
        found = long_context.calibrate(delta, 512 * stretch) / torch.tensor([2.0, 7.0])
        close(found, torch.full((2,), -np.log(p)), 0.02)
    assert long_context.kept_share(1) == 1
    assert long_context.calibrate(delta, 512).tolist() == [0, 0]


def test_calibration_of_four_steps_by_hand():
    delta = torch.tensor([[[1.0, 4.0, 3.0, 2.0]]])  # the sum is 10
    # stretched to 8: 4, 3.75, 3.25, 2.75, ...: three exceed 10, the fourth is out
    assert long_context.calibrate(delta, 8).tolist() == [2.75]
    # clamped to 3, 3, 2, 1 (sum 9): 3, 3, 3, 2.75, ...: four exceed 9, the fifth is out
    assert long_context.calibrate(delta, 8, clamp=0.5).tolist() == [2.25]


def test_an_outlier_spoils_the_calibration_and_the_clamp_repairs_it():
    delta = needles(1).delta
    clean = long_context.calibrate(delta[..., 1:], 4 * L0)
    spoiled = long_context.calibrate(delta, 4 * L0)
    clamped = long_context.calibrate(delta, 4 * L0, clamp=0.05)
    assert (spoiled[1:] > 20 * clean[1:]).all()
    close(clamped / clean, torch.ones(3), 0.15)


def test_budgets_bound_the_decay():
    long, train = needles(4, batch=3), needles(1, batch=3)
    budget = train.delta.sum(-1).mean(0)
    for way in (long_context.keep_largest, long_context.rescale):
        delta = way(long.delta, budget)
        assert (delta.sum(-1) <= budget * (1 + 1e-12)).all()
    kept = long_context.keep_largest(long.delta, budget)
    assert ((kept == 0) | (kept == long.delta)).all()
    for row, whole, limit in zip(kept[0], long.delta[0], budget):  # by sorting by hand
        order = sorted(whole.tolist(), reverse=True)
        count, total = 0, 0.0
        while count < len(order) and total + order[count] <= limit:
            total, count = total + order[count], count + 1
        assert (row > 0).sum() == count
        assert row.sum() == pytest.approx(total)
    same = long_context.keep_largest(train.delta, train.delta.sum(-1).amax(0) + 1)
    close(same, train.delta)


def test_receptive_fields_and_memory_by_hand():
    delta = torch.full((1, 2, 10), 0.5)
    A = torch.tensor([[-1.0, -0.1], [-4.0, -1e-3]])
    field = long_context.receptive_field(delta, A, level=0.2)
    assert field[0].tolist() == [[3, 10], [0, 10]]  # ln 0.2 = -1.61
    close(long_context.memory(delta, A)[0], torch.exp(5 * A))
    close(long_context.memory(delta, A[:, 0])[0], torch.exp(5 * A[:, 0]))
    assert long_context.global_channels(delta, A[:, 1], 0.6).tolist() == [True, True]


# -- dual selection -----------------------------------------------------------------


def unit(x):
    """x over its root mean square."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def test_the_plain_start_is_a_chain_of_mixers():
    torch.manual_seed(0)
    model = dual.MambaMixer(channels=5, length=8, layers=3, states=2)
    assert model.weights() == 3 * (2 * 3 + 3)
    x = torch.randn(2, 8, 5)
    y = x
    for token, channel in zip(model.token, model.channel):
        y = token(unit(y))
        y = channel(unit(y).transpose(1, 2)).transpose(1, 2)
    close(model(x), y)


def test_every_weight_gets_a_gradient_and_averages_are_weighted_sums():
    torch.manual_seed(1)
    model = dual.MambaMixer(channels=4, length=6, layers=2, states=2)
    x = torch.randn(2, 6, 4)
    for kind in (model.alpha, model.beta, model.theta, model.gamma):
        for weight in kind:
            torch.nn.init.normal_(weight)
    token, channel = model.token[0], model.channel[0]
    read = (model.alpha[0] + model.beta[0]) * x
    first = token(unit(read))
    read = model.theta[0][0] * x + model.theta[0][1] * first + model.gamma[0] * x
    second = channel(unit(read).transpose(1, 2)).transpose(1, 2)
    short = dual.MambaMixer(channels=4, length=6, layers=1, states=2)
    ours = {k: v for k, v in model.state_dict().items() if k in short.state_dict()}
    short.load_state_dict(ours)
    close(short(x), second)
    model(x).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters()
    )


def test_the_token_mixer_is_causal_and_the_channel_mixer_sees_all():
    torch.manual_seed(2)
    token, channel = dual.SelectiveMixer(4, 2), dual.channel_mixer(6, 2)
    x = torch.randn(1, 6, 4, requires_grad=True)
    (seen,) = torch.autograd.grad(token(x)[0, 2].sum(), x)
    assert not seen[0, 3:].any()
    assert (seen[0, :3].abs().sum(-1) > 0).all()
    (seen,) = torch.autograd.grad(channel(x.transpose(1, 2))[0, 1, 2], x)
    assert (seen[0].abs() > 0).all()


def test_flipping_swaps_the_two_directions_of_a_mixer():
    torch.manual_seed(3)
    mixer, mirror = (dual.SelectiveMixer(4, 2, both=True) for _ in range(2))
    mirror.load_state_dict(mixer.state_dict())
    mirror.ahead, mirror.back = mirror.back, mirror.ahead
    x = torch.randn(2, 7, 4)
    close(mirror(x.flip(1)).flip(1), mixer(x))


def test_renaming_channels_renames_the_token_mixers_output():
    torch.manual_seed(4)
    mixer, renamed = dual.SelectiveMixer(4, 2), dual.SelectiveMixer(4, 2)
    order = torch.tensor([2, 0, 3, 1])
    state = mixer.state_dict()
    for name, value in state.items():
        if name.endswith(("inner.weight", "step.weight", "gate.weight")):
            state[name] = value[order][:, order]
        elif name.endswith("select.weight"):
            state[name] = value[:, order]
        else:
            state[name] = value[order]
    renamed.load_state_dict(state)
    x = torch.randn(2, 7, 4)
    close(renamed(x[..., order]), mixer(x)[..., order])


# -- joint recall and sparse attention ----------------------------------------------


def recall(contexts=4, keys=6, values=8, batch=3, seed=0):
    rng = np.random.default_rng(seed)
    case = sparse.joint_recall(rng, batch, contexts, keys, values)
    codes = torch.tensor(rng.choice([-1.0, 1.0], (contexts + keys + values, 64)))
    return case, codes


def test_joint_recall_asks_what_its_table_says():
    case, _ = recall()
    assert case.tokens.shape == (3, 4 * (1 + 12) + 2 * 24)
    for tokens, targets in zip(case.tokens.tolist(), case.targets.tolist()):
        table, context, asked = {}, None, set()
        for i, token in enumerate(tokens):
            if token < 4:
                context = token
            elif token < 10 and i < 4 * 13:
                table[context, token] = tokens[i + 1]
            if targets[i] >= 0:
                asked.add((context, token))
                assert targets[i] == table[context, token]
        assert len(table) == len(asked) == 24
    one = sparse.joint_recall(np.random.default_rng(0), 2, contexts=1, queries=3)
    assert (one.targets >= 0).sum(1).tolist() == [3, 3]


def test_full_attention_solves_it_and_hashing_needs_hardly_any_pairs():
    case, codes = recall()
    L = case.tokens.shape[1]
    assert sparse.solve(case, codes, sparse.causal(L)) == 1
    q, k, _ = sparse.solver_features(case, codes)
    planes = drawn(0)[0](64, 8)
    mask = sparse.lsh_pattern(q, k, planes, 8)
    assert sparse.solve(case, codes, mask) == 1
    assert sparse.pairs(mask).double().mean() < 3
    assert sparse.pairs(sparse.causal(L)).double().mean() == (L + 1) / 2
    for fixed in (sparse.window_pattern(L, 8), sparse.dilated_pattern(L, L // 8)):
        assert sparse.solve(case, codes, fixed) < 0.4


def test_registers_carry_the_latest_token_of_a_range():
    tokens = torch.tensor([[5, 0, 4, 1, 6, 0]])
    codes = drawn(1)[0](7, 3)
    carried = sparse.carry(tokens, codes, 0, 2)
    latest = [None, 0, 0, 1, 1, 0]
    for i, token in enumerate(latest):
        expected = torch.zeros(3) if token is None else codes[token]
        close(carried[0, i], expected)


def test_patterns_by_brute_force():
    normal, _ = drawn(2)
    q, k, planes = normal(2, 12, 5), normal(2, 12, 5), normal(5, 2)
    mine, theirs = sparse.buckets(q, planes), sparse.buckets(k, planes)
    mask = sparse.lsh_pattern(q, k, planes, 3)
    scores = normal(2, 12).round(decimals=1)
    chosen = sparse.selection_pattern(scores, 4)
    for b, i in itertools.product(range(2), range(12)):
        same = [j for j in range(i + 1) if theirs[b, j] == mine[b, i]]
        assert mask[b, i].nonzero().flatten().tolist() == same[-3:]
        best = sorted(range(i + 1), key=lambda j: (-scores[b, j], j))[:4]
        assert chosen[b, i].nonzero().flatten().tolist() == sorted(best)
        code = [(q[b, i] @ planes[:, n] > 0).item() for n in range(2)]
        assert mine[b, i] == code[0] + 2 * code[1]
    both = sparse.pairs(mask | chosen)
    assert both.max() <= 3 + 4
    assert both.min() >= 1


def test_a_mask_of_everything_is_full_attention():
    normal, _ = drawn(3)
    q, k, v = normal(2, 9, 4), normal(2, 9, 4), normal(2, 9, 3)
    every = sparse.selection_pattern(normal(2, 9), 9)
    assert (every == sparse.causal(9)).all()
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    close(sparse.attention(q, k, v, every, 0.5), full)
    ssm, gain = normal(2, 9, 3), normal(3)
    close(sparse.hax(ssm, q, k, v, every, gain), ssm + gain * full)
    empty = torch.zeros(9, 9, dtype=torch.bool)
    assert not sparse.attention(q, k, v, empty, 0.5).any()
    leaves = [x[:1, :4].clone().requires_grad_() for x in (q, k, v)]
    half = sparse.window_pattern(4, 2) & (torch.arange(4) != 0)[:, None]
    assert gradcheck(lambda *x: sparse.attention(*x, half, 0.5), leaves)


def test_hash_collisions_follow_the_angle():
    normal, _ = drawn(4)
    angle, bits = 0.9, 3
    x = torch.tensor([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    planes = normal(2, bits * 20000)
    same = ((x @ planes > 0).long().diff(dim=0) == 0).reshape(20000, bits).all(1)
    expected = (1 - angle / np.pi) ** bits
    assert same.double().mean().item() == pytest.approx(expected, abs=0.015)


def test_the_key_scorer_is_causal_and_leaves_attention_alone():
    torch.manual_seed(0)
    scorer, normal = sparse.KeyScorer(4), drawn(5)[0]
    q, k = normal(1, 6, 4), normal(1, 6, 4)
    changed = q.clone()
    changed[0, 4:] += 1
    close(scorer(q, k)[0, :4], scorer(changed, k)[0, :4])
    assert scorer(q.requires_grad_(), k.requires_grad_())[0, 3].requires_grad
    scorer(q, k).sum().backward()
    assert q.grad is None
    assert k.grad is None


def best_code(states, entries, values):
    """The least mean error of any decoder with so many states, by trying them all."""
    tables = np.array(list(itertools.product(range(values), repeat=entries)))
    wrong = (tables[:, None] != tables).mean(-1)
    codes = itertools.combinations(range(len(tables)), states)
    rows = [wrong[:, list(code)].min(1) for code in codes]
    return min(row.mean() for row in rows), min((row > 0).mean() for row in rows)


@pytest.mark.parametrize(
    "size", [(0, 2, 3), (1, 2, 2), (1, 3, 2), (2, 3, 2), (1, 2, 3)]
)
def test_no_code_beats_the_counting_bounds(size):
    bits, entries, values = size
    per_entry, any_entry = best_code(2**bits, entries, values)
    assert any_entry == pytest.approx(sparse.recall_error_bound(*size), abs=1e-12)
    assert per_entry >= sparse.entry_error_bound(*size) - 1e-12


def test_the_bounds_vanish_only_when_the_state_holds_the_table():
    for entries in (8, 64, 512):
        need = entries * np.log2(16)
        assert sparse.recall_error_bound(need, entries, 16) == 0
        assert sparse.entry_error_bound(need, entries, 16) == 0
        assert sparse.recall_error_bound(need - 1, entries, 16) == pytest.approx(0.5)
        assert sparse.entry_error_bound(need / 2, entries, 16) > 0.2
    assert sparse.entry_error_bound(0, 5, 4) == pytest.approx(0.75, abs=1e-6)
    assert sparse.entry_error_bound(0, 5, 1) == 0


# -- sentences for wrong input ------------------------------------------------------

WRONG = {
    "square matrices": lambda: maps.block_ranks(torch.ones(3, 4)),
    "choose one of semi": lambda: maps.block_ranks(torch.ones(3, 3), "left"),
    "one step size a position": lambda: maps.segment_sums(torch.tensor(1.0)),
    "B does not fit delta": lambda: maps.hidden_attention(
        torch.ones(1, 2, 4), torch.ones(2, 3), torch.ones(1, 3, 5), torch.ones(1, 3, 4)
    ),
    "they must agree": lambda: maps.hidden_attention(
        torch.ones(1, 2, 4), torch.ones(2, 3), torch.ones(1, 2, 4), torch.ones(1, 2, 4)
    ),
    "one number a channel or head": lambda: maps.hidden_attention(
        *(torch.ones(1, 2, 4), torch.ones(2, 3)),
        *[torch.ones(1, 3, 4)] * 2,
        torch.ones(3),
    ),
    "twice \\(batch, L, groups, N\\)": lambda: maps.ssd_attention(
        torch.ones(1, 4, 2), torch.ones(3), torch.ones(1), torch.ones(1)
    ),
    "D is \\(7,\\)": lambda: hydra.hydra_mix(
        torch.ones(2, 12, 4, 1), *hydra_case()[:3], torch.ones(7)
    ),
    "L at least 3": lambda: hydra.tied_diagonal(torch.ones(2, 2)),
    "needs an odd one": lambda: hydra.Hydra(8, conv=4),
    "does not divide": lambda: hydra.Hydra(8, headdim=5),
    "d_state is 0": lambda: hydra.Hydra(8, d_state=0),
    "give \\(batch, L, 8\\)": lambda: hydra.Hydra(8)(torch.ones(1, 3, 7)),
    "a of 0 or more": lambda: dynamics.velocity(ONE, ONE, ONE, np.ones(1), -1.0),
    "and \\(D,\\) or": lambda: dynamics.velocity(ONE, ONE, ONE, np.ones(2)),
    "does not increase": lambda: scalar([1.0], [2.0, 1.0], 1.0),
    "times is empty": lambda: scalar([1.0], [], 1.0),
    "beyond the limit": lambda: scalar([1e4], [1.0], 1.0),
    "scalar tokens": lambda: dynamics.regime(ONE, 1.0),
    "mu < 0 < a": lambda: dynamics.decay_constants(2, 1.0),
    "keeps its sign": lambda: dynamics.travel_time(-1.0, 1.0, 1.0),
    "the proof needs it": lambda: dynamics.eigen_regime(np.triu(np.ones((2, 2)))),
    "give \\(D,\\), \\(D, D\\)": lambda: dynamics.first_token_regime(
        np.ones(2), np.ones((3, 3)), np.ones(2)
    ),
    "temperature must be": lambda: dynamics.soft_order(np.ones(2), 0.0),
    "only decays forget": lambda: long_context.memory(
        torch.ones(1, 1, 2), torch.ones(1)
    ),
    "share between 0 and 1": lambda: long_context.receptive_field(
        torch.ones(1, 1, 2), -torch.ones(1), 2.0
    ),
    "up to but not 1": lambda: long_context.calibrate(torch.ones(1, 1, 4), 8, 1.0),
    "length is 0": lambda: long_context.calibrate(torch.ones(1, 1, 4), 0),
    "\\(channels,\\) twice": lambda: long_context.filter_steps(
        torch.ones(1, 2, 4), torch.ones(3), torch.ones(2)
    ),
    "budget \\(3,\\)": lambda: long_context.rescale(torch.ones(1, 2, 4), torch.ones(3)),
    "new over training length": lambda: long_context.kept_share(0.5),
    "small beside the needle": lambda: long_context.needle(
        9, torch.tensor([2.0]), np.random.default_rng(0), 4
    ),
    "maps fix the length": lambda: dual.MambaMixer(4, 6)(torch.ones(1, 7, 4)),
    "layers is 0": lambda: dual.MambaMixer(4, 6, layers=0),
    "features is 0": lambda: dual.SelectiveMixer(0),
    "give one each": lambda: dual.average([torch.ones(2)], torch.ones(2)),
    "there are 6 pairs": lambda: sparse.joint_recall(
        np.random.default_rng(0), 1, 2, 3, 4, queries=7
    ),
    "0 bits or more": lambda: sparse.recall_error_bound(-1, 2, 2),
    "give 62 at most": lambda: sparse.buckets(torch.ones(1, 2, 3), torch.ones(3, 63)),
    "planes \\(2, 2\\)": lambda: sparse.buckets(torch.ones(1, 2, 3), torch.ones(2, 2)),
    "budget is 0": lambda: sparse.window_pattern(4, 0),
    "give \\(batch, L\\)": lambda: sparse.selection_pattern(torch.ones(3), 1),
    "sees the future": lambda: sparse.attention(
        *[torch.ones(1, 3, 2)] * 3, torch.ones(3, 3, dtype=torch.bool), 1.0
    ),
    "give bool": lambda: sparse.attention(
        *[torch.ones(1, 3, 2)] * 3, torch.ones(3, 3), 1.0
    ),
    "and \\(batch, L, m\\)": lambda: sparse.attention(
        *(torch.ones(1, 3, 2), torch.ones(1, 4, 2), torch.ones(1, 3, 2)),
        *(sparse.causal(3), 1.0),
    ),
    "gain \\(3,\\)": lambda: sparse.hax(
        *[torch.ones(1, 3, 2)] * 4, sparse.causal(3), torch.ones(3)
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_input_gets_a_sentence(words):
    with pytest.raises(ValueError, match=words):
        WRONG[words]()
