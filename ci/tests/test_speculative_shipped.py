"""The models and heads of part 5 that lie in data/: as good as their cards say."""

from __future__ import annotations

import pytest
import torch

from lib.language import (
    Decoder,
    losses,
    prompts,
    shipped_bpe,
    shipped_corpus,
    shipped_model,
    stream,
)
from lib.language.tokens import digest
from lib.self_speculative import judge_head, shipped_head
from lib.speculative import NeuralTarget, Warp, distinct, plain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def held_out():
    """Held-out tokens, (7680,)."""
    return stream(shipped_bpe(), shipped_corpus("python").texts("held_out"))[: 40 * 192]


@pytest.mark.parametrize("role", ["target", "draft"])
def test_models(role, held_out):
    model, card = shipped_model(role)
    found = losses(model, held_out, 191)
    assert model.parameters_total == card["parameters"]
    assert card["tokenizer"] == digest(shipped_bpe())
    assert found[-1] == pytest.approx(card["held_out_by_exit"][-1], rel=0.15)
    assert found[-1] == min(found)  # the last layer knows most


def test_the_draft_is_near_the_target(held_out):
    """1 - TV of the two laws: what a drafted token passes with."""
    laws = []
    for role in ("target", "draft"):
        model, _ = shipped_model(role)
        with torch.inference_mode():
            streams = model.streams(held_out[: 8 * 192].view(8, 192))
            laws.append(model.read(streams[-1]).softmax(-1))
    assert 0.5 < torch.minimum(*laws).sum(-1).mean() < 1


def test_greedy_text_is_more_than_a_loop():
    target = NeuralTarget(Decoder(shipped_model("target")[0]))
    asked = prompts(shipped_corpus("python"), shipped_bpe(), 6, 128, follow=64)
    kept = [distinct(plain(target, one.tokens, 64, warp=Warp(0.0))[0]) for one in asked]
    assert sum(kept) / len(kept) > 0.25


@pytest.mark.parametrize("kind", ["medusa", "recurrent", "eagle", "adapter", "masks"])
def test_heads(kind, held_out):
    model, about = shipped_model("target")
    head, card = shipped_head(kind, model)
    found = judge_head(head, model, held_out)["overlap"]
    assert card["parameters"] == head.parameters_total
    assert card["tokenizer"] == about["tokenizer"]
    assert found[0] == pytest.approx(card["held_out_overlap"][0], abs=0.08)
    assert found[0] > (0.2 if kind == "medusa" else 0.4)  # it has not seen the token
