"""The conformer: its size, its padding, its attention, dropout, and the recogniser."""

import pytest
import torch
from torch import nn

from lib.speech.conformer import (
    Attention,
    Conformer,
    Convolution,
    FeedForward,
    Recogniser,
    kept,
    valid_frames,
    without_dropout,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def small(seed=0, **sizes):
    """A small encoder whose biases and norms are not at their start."""
    torch.manual_seed(seed)
    sizes = {"features": 6, "d": 16, "blocks": 2, "heads": 2, "kernel": 5} | sizes
    encoder = Conformer(**sizes).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return encoder


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(a, b, tol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=tol)


# -- sizes --------------------------------------------------------------------------


def test_the_model_of_the_specification_has_762_124_parameters():
    assert sum(p.numel() for p in Conformer().parameters()) == 762_124


def test_every_layer_is_returned_and_depth_stops_early():
    encoder, x = small(blocks=3), noise(2, 7, 6)
    hidden = encoder(x)
    assert [h.shape for h in hidden] == [(2, 7, 16)] * 4
    for depth in range(4):
        short = encoder(x, depth=depth)
        assert len(short) == depth + 1
        assert torch.equal(short[-1], hidden[depth])


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"d": 10, "heads": 4}, "give a d that heads divides"),
        ({"kernel": 4}, "odd number of frames"),
        ({"dropout": 1.0}, "probability below 1"),
        ({"blocks": 0}, "whole number of at least 1"),
        ({"block": -3}, "block is -3"),
    ],
)
def test_wrong_sizes_are_named(sizes, words):
    with pytest.raises(ValueError, match=words):
        Conformer(**sizes)


@pytest.mark.parametrize(
    ("shape", "lengths", "depth", "words"),
    [
        ((2, 5, 7), None, None, r"give \(batch, frames, 6\)"),
        ((2, 0, 6), None, None, "at least one frame"),
        ((5, 6), None, None, "batch, frames"),
        ((2, 5, 6), [5, 5, 5], None, "give one each"),
        ((2, 5, 6), [5, 6], None, "from 5 to 6 frames and the batch holds 5"),
        ((2, 5, 6), [0, 5], None, "lengths from 1"),
        ((2, 5, 6), None, 3, "has 2 blocks"),
    ],
)
def test_wrong_input_is_named(shape, lengths, depth, words):
    lengths = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match=words):
        small()(torch.zeros(shape), lengths, depth)


# -- padding (O13) ------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 4, 5, 50])
def test_an_utterance_alone_is_the_same_padded_in_a_batch(block):
    encoder, x = small(block=block), noise(4, 13, 6)
    lengths = torch.tensor([13, 9, 4, 1])
    together = encoder(x, lengths)
    for i, T in enumerate(lengths):
        for alone, batched in zip(encoder(x[i : i + 1, :T]), together):
            close(alone[0], batched[i, :T])
            assert not batched[i, T:].any()


@pytest.mark.parametrize("block", [None, 4])
def test_what_stands_in_the_padding_changes_nothing(block):
    encoder, x = small(block=block), noise(2, 11, 6)
    lengths, other = torch.tensor([11, 6]), x.clone()
    other[1, 6:] = 1e3
    for a, b in zip(encoder(x, lengths), encoder(other, lengths)):
        assert torch.equal(a, b)


def test_longer_padding_changes_neither_states_nor_gradients():
    encoder, x = small(), noise(2, 9, 6)
    lengths, slopes = torch.tensor([9, 5]), []
    for extra in (0, 8):
        encoder.zero_grad()
        padded = nn.functional.pad(x, (0, 0, 0, extra))
        encoder(padded, lengths)[-1].square().sum().backward()
        slopes.append([p.grad.clone() for p in encoder.parameters()])
    for a, b in zip(*slopes):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_lengths_that_are_all_full_give_the_bits_of_none():
    encoder, x = small(), noise(2, 9, 6)
    for a, b in zip(encoder(x), encoder(x, torch.tensor([9, 9]))):
        assert torch.equal(a, b)


# -- attention ----------------------------------------------------------------------


def test_the_relative_bias_reads_the_table_at_the_clipped_distance():
    part = Attention(8, 2, 3, None, 0.0)
    with torch.no_grad():
        part.distance.copy_(noise(2, 7))
    for T in (1, 2, 9):
        bias = part.bias(T)
        assert bias.shape == (2, T, T)
        for i in range(T):
            for j in range(T):
                at = max(-3, min(3, j - i)) + 3
                assert torch.equal(bias[:, i, j], part.distance[:, at])


def test_attention_is_the_formula_head_by_head():
    torch.manual_seed(0)
    part, x = Attention(8, 2, 3, None, 0.0), noise(1, 6, 8)
    with torch.no_grad():
        part.distance.normal_()
    q, k, v = part.qkv(part.norm(x))[0].split(8, dim=-1)
    heads = []
    for h in range(2):
        own = slice(4 * h, 4 * h + 4)
        scores = q[:, own] @ k[:, own].T / 2 + part.bias(6)[h]
        heads.append(scores.softmax(-1) @ v[:, own])
    close(part(x)[0], x[0] + part.out(torch.cat(heads, -1)), 1e-6)


def test_the_convolution_is_torchs_own():
    torch.manual_seed(0)
    part, x = Convolution(8, 5, 0.0), noise(2, 7, 8)
    y = nn.functional.glu(part.gate(part.norm(x)), dim=-1)
    y = part.depthwise(y.transpose(1, 2)).transpose(1, 2)
    close(part(x), x + part.out(nn.functional.silu(part.inner(y))), 1e-6)


def test_half_of_the_feed_forward_is_added():
    torch.manual_seed(0)
    part, x = FeedForward(8, 2, 0.0), noise(2, 7, 8)
    y = part.down(nn.functional.silu(part.up(part.norm(x))))
    close(part(x), x + y / 2, 1e-6)


# -- block attention (O18) ----------------------------------------------------------


@pytest.mark.parametrize("block", [9, 12])
def test_a_block_as_long_as_the_utterance_is_full_attention(block):
    x, lengths = noise(2, 9, 6), torch.tensor([9, 5])
    for a, b in zip(small()(x, lengths), small(block=block)(x, lengths)):
        close(a, b, 1e-6)


def test_with_kernel_1_a_change_in_one_block_stays_in_it():
    encoder, x = small(block=4, kernel=1), noise(1, 12, 6)
    other = x.clone()
    other[:, 4:8] += 1
    a, b = encoder(x)[-1], encoder(other)[-1]
    close(a[:, :4], b[:, :4], 1e-6)
    close(a[:, 8:], b[:, 8:], 1e-6)
    assert (a[:, 4:8] - b[:, 4:8]).abs().min(-1).values.max() > 1e-3


def test_context_crosses_blocks_by_the_convolution_only_as_far_as_it_reaches():
    encoder, x = small(block=4, kernel=3, blocks=1), noise(1, 12, 6)
    other = x.clone()
    other[:, 4] += 1
    moved = (encoder(x)[-1] - encoder(other)[-1]).abs().amax(-1)[0] > 1e-6
    assert moved.nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7, 8]


def test_a_padded_last_block_is_the_unpadded_one():
    encoder, x = small(block=4), noise(1, 10, 6)
    padded = nn.functional.pad(x, (0, 0, 0, 2), value=7.0)
    for a, b in zip(encoder(x), encoder(padded, torch.tensor([10]))):
        close(a, b[:, :10], 1e-6)


# -- dropout ------------------------------------------------------------------------


def test_dropout_keeps_the_mean_and_the_rate():
    torch.manual_seed(0)
    factors = kept(torch.empty(400_000), 0.1)
    assert factors.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert float((factors == 0).float().mean()) == pytest.approx(0.1, abs=0.002)
    assert float(kept(torch.empty(99_999), 0.3, 0.5).mean()) == pytest.approx(
        0.5, abs=5e-3
    )


@pytest.mark.parametrize("lane", range(4))
def test_every_lane_of_a_draw_is_uniform(lane):
    torch.manual_seed(1)
    own = kept(torch.empty(200_000), 0.25)[lane::4]
    assert float((own == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_the_label_branch_runs_without_dropout_and_leaks_nothing():
    encoder, x = small(dropout=0.5).train(), noise(1, 9, 6)
    encoder.blocks[0].eval()  # a mode of its own, which must come back
    quiet = small(dropout=0.5)(x)[-1]
    with without_dropout(encoder):
        assert torch.equal(encoder(x)[-1], quiet)
    assert encoder.training
    assert encoder.blocks[1][0].training
    assert not encoder.blocks[0].training
    assert not torch.equal(encoder(x)[-1], encoder(x)[-1])


def test_dropout_comes_back_after_an_error():
    encoder = small(dropout=0.5).train()

    def fails():
        with without_dropout(encoder):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    assert encoder.training


def test_valid_frames():
    expected = torch.tensor([[True, False, False], [True, True, True]])
    assert torch.equal(valid_frames(torch.tensor([1, 3]), 3), expected)


# -- the recogniser: self-conditioned CTC (O17) --------------------------------------


def recogniser(conditioned, **sizes):
    encoder = small(**sizes)
    torch.manual_seed(5)
    return Recogniser(encoder, 4, conditioned).eval()


def test_with_w_mid_zero_the_conditioned_model_is_the_plain_one():
    x, lengths = noise(2, 9, 6), torch.tensor([9, 4])
    (plain,) = recogniser(False)(x, lengths)
    end, middle = recogniser(True)(x, lengths)
    assert torch.equal(plain, end)
    assert plain.shape == middle.shape == (2, 9, 5)
    torch.testing.assert_close(plain.exp().sum(-1), torch.ones(2, 9))


def test_the_middle_feeds_back_what_the_shared_output_says():
    model, x = recogniser(True), noise(1, 7, 6)
    with torch.no_grad():
        model.back.weight.normal_()
    seen = {}
    model.encoder(x, after=lambda n, h: seen.setdefault(n, h))
    h = seen[1] + model.back(model.out(seen[1]).softmax(-1))
    for branch in model.encoder.blocks[1][:-1]:
        h = branch(h)
    h = model.encoder.blocks[1][-1](h)
    end, middle = model(x)
    close(end, model.out(h).log_softmax(-1), 1e-6)
    close(middle, model.out(seen[1]).log_softmax(-1), 1e-6)


def test_middle_and_end_share_one_tensor_so_their_gradients_add():
    model, x = recogniser(True), noise(1, 7, 6)
    end, middle = (o.square().sum() for o in model(x))
    slopes = [
        torch.autograd.grad(loss, model.out.weight, retain_graph=True)[0]
        for loss in (end, middle, end + middle)
    ]
    assert all(s.abs().max() > 0 for s in slopes)
    close(slopes[0] + slopes[1], slopes[2], 1e-3)


def test_w_mid_learns_although_it_starts_at_zero():
    model = recogniser(True)
    model(noise(1, 7, 6))[0][..., 1].sum().backward()
    assert model.back.weight.grad.abs().max() > 0


def test_a_frozen_encoder_gets_no_gradient_and_the_output_does():
    model = recogniser(True)
    outputs = model(noise(1, 7, 6), frozen=True)
    sum(o.square().sum() for o in outputs).backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert model.out.weight.grad.abs().max() > 0
    for a, b in zip(outputs, model(noise(1, 7, 6))):
        assert torch.equal(a, b)


def test_a_model_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="no middle; give two"):
        recogniser(True, blocks=1)
