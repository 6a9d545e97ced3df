"""Label quality at its ends and by definition, its bias, and the linear probe."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.speech.quality import frames, label_quality, pnmi_bias, ridge_probe


def g(seed=0):
    return torch.Generator().manual_seed(seed)


def test_code_equal_to_phone_is_perfect_in_any_numbering():
    phones = torch.randint(9, (500,), generator=g())
    found = label_quality(phones, torch.randperm(9, generator=g(1))[phones])
    assert found.phone_purity == pytest.approx(1)
    assert found.cluster_purity == pytest.approx(1)
    assert found.pnmi == pytest.approx(1)
    assert found.n == 500
    assert found.used == 9


def test_one_code_knows_nothing():
    phones = torch.tensor([0] * 6 + [1] * 3 + [2])
    found = label_quality(phones, torch.full((10,), 4))
    assert found.pnmi == pytest.approx(0, abs=1e-12)
    assert found.phone_purity == pytest.approx(0.6)  # the largest prior
    assert found.cluster_purity == pytest.approx(1)
    assert (found.used, found.bias) == (1, 0)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=40)
)
def test_all_numbers_are_their_definitions(pairs):
    phones, labels = (list(row) for row in zip(*pairs))
    if len(set(phones)) == 1:
        return
    found, n = label_quality(torch.tensor(phones), torch.tensor(labels)), len(pairs)
    p = {(a, b): pairs.count((a, b)) / n for a, b in set(pairs)}
    prior = {a: phones.count(a) / n for a in set(phones)}
    code = {b: labels.count(b) / n for b in set(labels)}
    mutual = sum(v * math.log(v / prior[a] / code[b]) for (a, b), v in p.items())
    H = -sum(v * math.log(v) for v in prior.values())
    best_phone = sum(max(p.get((a, b), 0) for a in prior) for b in code)
    best_code = sum(max(p.get((a, b), 0) for b in code) for a in prior)
    assert found.pnmi == pytest.approx(mutual / H, abs=1e-9)
    assert found.phone_purity == pytest.approx(best_phone)
    assert found.cluster_purity == pytest.approx(best_code)
    wanted = (len(prior) - 1) * (len(code) - 1) / (2 * n * H)
    assert found.bias == pytest.approx(wanted)
    assert found.above_chance == pytest.approx(found.pnmi - wanted)


@pytest.mark.parametrize(("n", "V", "tol"), [(30_000, 64, 0.05), (60_000, 256, 0.1)])
def test_independent_labels_have_the_bias_as_their_pnmi(n, V, tol):
    means = []
    for seed in range(4):
        phones = torch.randint(39, (n,), generator=g(seed))
        found = label_quality(phones, torch.randint(V, (n,), generator=g(seed + 50)))
        means.append(found.pnmi)
        assert found.bias == pytest.approx(pnmi_bias(39, V, n, math.log(39)), rel=1e-2)
    mean = sum(means) / len(means)
    assert mean == pytest.approx(found.bias, rel=tol)
    assert mean > 0.005  # not 0, which is why N stands beside it


def test_frames_takes_the_padding_out():
    values = torch.arange(8).reshape(2, 4)
    assert frames(values, torch.tensor([2, 3])).tolist() == [0, 1, 4, 5, 6]
    deep = frames(values[..., None].expand(2, 4, 3), torch.tensor([4, 1]))
    assert deep.shape == (5, 3)


# -- the probe ----------------------------------------------------------------------


def test_the_probe_is_scikit_learns_ridge():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    h = torch.randn(300, 7, generator=g()) * torch.arange(1, 8) + 3
    classes = (h[:, 2] > 4).long() + (h[:, 5] > 0).long()
    probe = ridge_probe(h, classes, lam=30.0)
    Z = StandardScaler().fit_transform(h.double().numpy())
    Y = torch.nn.functional.one_hot(classes).double().numpy()
    peer = Ridge(alpha=30.0).fit(Z, Y)
    W = torch.from_numpy(peer.coef_.T)
    torch.testing.assert_close(probe.W, W, rtol=1e-6, atol=1e-8)
    expected = torch.from_numpy(peer.predict(Z)).argmax(1)
    assert torch.equal(probe(h), expected)
    rate = float((expected == classes).float().mean())
    assert probe.accuracy(h, classes) == pytest.approx(rate)


def test_the_probe_learns_a_linear_map_and_survives_a_constant_channel():
    h = torch.randn(2000, 6, generator=g())
    h[:, 3] = 5.0
    classes = (h[:, :3] @ torch.randn(3, 4, generator=g(1))).argmax(1)
    probe = ridge_probe(h[:1500], classes[:1500], lam=1.0)
    assert probe.accuracy(h[1500:], classes[1500:]) > 0.75  # the largest class: 0.40
    assert bool(torch.isfinite(probe.W).all())


BAD = [
    (lambda: label_quality(torch.zeros(3), torch.zeros(2)), "give one of each a frame"),
    (
        lambda: label_quality(torch.tensor([0, -1]), torch.tensor([0, 1])),
        "negative; leave such frames out",
    ),
    (
        lambda: label_quality(torch.tensor([1, 1]), torch.tensor([0, 1])),
        "All frames have one phone",
    ),
    (lambda: pnmi_bias(3, 4, 0, 1.0), "There are 0 frames"),
    (lambda: frames(torch.ones(1, 3), torch.tensor([4])), "batch holds 3"),
    (lambda: ridge_probe(torch.ones(3, 2), torch.zeros(2).long()), "classes"),
    (lambda: ridge_probe(torch.ones(3, 2), torch.zeros(3).long(), 0.0), "lam is 0"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
