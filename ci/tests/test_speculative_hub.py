"""Any causal model of transformers as target and draft, on tiny models from configs."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from lib.speculative import (
    Fixed,
    HubTarget,
    LookUp,
    ModelDrafter,
    NoDraft,
    Scripted,
    Tree,
    TreeDrafter,
    Warp,
    decode,
    lossless,
)
from lib.speculative.measuring import plain

transformers = pytest.importorskip("transformers")

V = 13
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
CLOSE = 2e-5  # some models normalise and turn in float32, whatever their dtype
SIZES = dict(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    initializer_range=0.6,
    attn_implementation="eager",
)
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=V,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        initializer_range=0.6,
        attn_implementation="eager",
    ),
}


@functools.cache
def made(name, seed=0):
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    return model.double().eval()


def own_generation(model, prompt, most):
    """Greedy text of transformers' own loop."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return found[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_plain_greedy_text_is_that_of_its_own_generation(name):
    target = HubTarget(made(name))
    found, _ = plain(target, PROMPT, 30, warp=Warp(0.0))
    assert found == own_generation(made(name), PROMPT, 30)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_drafted_greedy_text_is_the_same(name, attention):
    model = made(name)
    model.set_attn_implementation(attention)
    target, draft = HubTarget(model), HubTarget(made(name, 1))
    cold = Warp(0.0)
    expected, _ = plain(target, PROMPT, 30, warp=cold)
    fixed = Scripted(
        lambda tokens, budget: (
            Tree([2, 7, 1, 3], [-1, -1, 0, 0]) if budget.depth >= 2 else Tree()
        )
    )
    drafters = [
        NoDraft(),
        LookUp(2),
        ModelDrafter(draft),
        ModelDrafter(target),
        TreeDrafter(draft, (2, 2), False),
        fixed,
    ]
    for drafter in drafters:
        found, _ = decode(target, drafter, lossless, Fixed(3), PROMPT, 30, warp=cold)
        assert found == expected
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tree_pass_is_the_chains_and_the_cache_a_fresh_prefill(name):
    target = HubTarget(made(name))
    tree = Tree([2, 7, 1, 3, 9], [-1, -1, 0, 0, 2])
    state = target.start(PROMPT)
    logits = target.forward(state, PROMPT[-1], tree).logits
    for path in ([0, 2, 4], [0, 3], [1]):
        text = [*PROMPT, *(tree.tokens[node] for node in path)]
        fresh = target.forward(target.start(text), text[-1], Tree()).logits[0]
        assert logits[path[-1] + 1] == pytest.approx(fresh, abs=CLOSE)
    target.commit(state, [0, 3])
    text = [*PROMPT, 2, 3]
    assert target.rows(state) == len(text)
    fresh = target.start([*text, 0])
    for found, expected in zip(state.cache.layers, fresh.cache.layers):
        torch.testing.assert_close(found.keys, expected.keys, rtol=0, atol=CLOSE)
        torch.testing.assert_close(found.values, expected.values, rtol=0, atol=CLOSE)
    again = target.forward(state, 5, Tree([1])).logits
    direct = target.forward(fresh, 5, Tree([1])).logits
    assert again == pytest.approx(direct, abs=CLOSE)


def test_a_crop_forgets():
    target = HubTarget(made("llama"))
    state = target.start([*PROMPT, 1, 2, 3])
    target.crop(state, len(PROMPT) - 1)
    found = target.forward(state, PROMPT[-1], Tree()).logits
    fresh = target.forward(target.start(PROMPT), PROMPT[-1], Tree()).logits
    assert found == pytest.approx(fresh, abs=CLOSE)
    with pytest.raises(ValueError, match="99 rows"):
        target.crop(state, 99)


def test_sampling_with_a_draft_of_another_kind():
    target, draft = HubTarget(made("llama")), HubTarget(made("gpt2", 1))
    text, trace = decode(
        target, ModelDrafter(draft), lossless, Fixed(2), PROMPT, 20, seed=4
    )
    assert len(text) == 20
    assert 0 <= trace.acceptance < 1
    again, _ = decode(
        target, ModelDrafter(draft), lossless, Fixed(2), PROMPT, 20, seed=4
    )
    assert text == again


def test_models_whose_state_cannot_go_back_are_refused():
    sliding = transformers.MistralConfig(**SIZES, sliding_window=4)
    with pytest.raises(ValueError, match="sliding-window"):
        HubTarget(transformers.AutoModelForCausalLM.from_config(sliding))
    small = dict(vocab_size=V, hidden_size=16, state_size=4, num_hidden_layers=1)
    mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**small))
    with pytest.raises(ValueError, match="recurrent state"):
        HubTarget(mamba)


def test_bad_prompts_get_a_sentence():
    target = HubTarget(made("llama"))
    for prompt, sentence in (([], "empty"), ([V], "knows 0 to 12")):
        with pytest.raises(ValueError, match=sentence):
            decode(target, NoDraft(), lossless, Fixed(1), prompt, 3)
    with pytest.raises(ValueError, match="context of 64"):
        decode(target, NoDraft(), lossless, Fixed(1), PROMPT, 60)
    assert np.isfinite(target.forward(target.start([1]), 1, Tree()).logits).all()


def test_our_transformer_is_a_llama():
    from lib.language import Decoder, Sizes, Transformer, as_llama
    from lib.speculative import NeuralTarget

    made = Transformer(Sizes(V, 24, 3, 2, hidden=40, max_len=32, theta=500.0), 3)
    made = made.double().requires_grad_(False)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.3 * torch.randn(p.shape, dtype=p.dtype)
    there = as_llama(made)
    tokens = torch.tensor([PROMPT])
    # Theirs turns and normalises in float32, whatever the dtype.
    torch.testing.assert_close(there(tokens).logits, made(tokens), rtol=0, atol=1e-5)
    cold = Warp(0.0)
    ours = plain(NeuralTarget(Decoder(made)), PROMPT, 20, warp=cold)[0]
    assert plain(HubTarget(there), PROMPT, 20, warp=cold)[0] == ours
    assert own_generation(there, PROMPT, 20) == ours
