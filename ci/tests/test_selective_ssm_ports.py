"""Our blocks with transformers' weights: the same logits (an extra: hub)."""

import sys

import pytest
import torch

from lib.selective_ssm.weights import from_transformers, load_pretrained
from lib.ssm_init import assert_mamba_init

SMALL = {"vocab_size": 29, "hidden_size": 24, "num_hidden_layers": 2}
MAMBA = {
    "plain": {"state_size": 8},
    "other sizes": {"state_size": 5, "expand": 3, "time_step_rank": 4},
    "biases": {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3},
    "untied": {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-3},
}
MAMBA2 = {
    "plain": {"num_heads": 6, "head_dim": 8, "n_groups": 1, "state_size": 16},
    "groups": {"num_heads": 4, "head_dim": 12, "n_groups": 2, "state_size": 8},
    "biases": {
        **{"num_heads": 3, "head_dim": 16, "n_groups": 1, "state_size": 8},
        **{"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True},
    },
}
CASES = [("mamba", name) for name in MAMBA] + [("mamba2", name) for name in MAMBA2]


def build(block, name):
    """A random model whose every parameter is away from its start."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if block == "mamba":
        config = transformers.MambaConfig(**SMALL, **MAMBA[name])
        model = transformers.MambaForCausalLM(config)
    else:
        config = transformers.Mamba2Config(**SMALL, **MAMBA2[name], chunk_size=8)
        model = transformers.Mamba2ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model.eval()


TOKENS = torch.randint(29, (3, 21), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("block", "name"), CASES)
def test_the_logits_are_the_same(block, name):
    theirs = build(block, name)
    ours = from_transformers(theirs)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(ours(TOKENS), expected, rtol=0, atol=1e-4)
        state, steps = ours.empty_state(3), []
        for token in TOKENS.T:
            logits, state = ours.step(token, state)
            steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("block", ["mamba", "mamba2"])
def test_greedy_generation_is_the_same(block):
    theirs = build(block, "plain")
    ours = from_transformers(theirs).generate(TOKENS[:, :5], 8, temperature=0)
    expected = theirs.generate(
        TOKENS[:, :5],
        attention_mask=torch.ones(3, 5),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    torch.testing.assert_close(ours, expected[:, 5:])


def test_a_state_dict_needs_its_configuration():
    theirs = build("mamba", "plain")
    weights = theirs.state_dict()
    with pytest.raises(ValueError, match="give the configuration"):
        from_transformers(weights)
    for config in (theirs.config, theirs.config.to_dict()):
        ours = from_transformers(weights, config)
        torch.testing.assert_close(
            ours.embedding.weight, theirs.get_input_embeddings().weight
        )
    assert ours.head.weight is ours.embedding.weight
    assert ours.embedding.weight is not theirs.get_input_embeddings().weight


def test_a_fresh_model_still_has_its_start():
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(**SMALL, state_size=8)
    assert_mamba_init(from_transformers(transformers.MambaForCausalLM(config)))


def test_wrong_weights_get_a_sentence():
    theirs = build("mamba", "plain")
    weights, config = dict(theirs.state_dict()), theirs.config.to_dict()
    with pytest.raises(ValueError, match=r"A_log has shape \(48, 8\).*\(48, 4\)"):
        from_transformers(weights, config | {"state_size": 4, "time_step_rank": 10})
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        from_transformers(weights, config | {"hidden_act": "gelu"})
    with pytest.raises(ValueError, match="type is 'bert'"):
        from_transformers(weights, config | {"model_type": "bert"})
    with pytest.raises(ValueError, match="limits the step"):
        from_transformers(weights, config | {"time_step_limit": (0.0, 1.0)})
    extra = weights | {"backbone.layers.0.mixer.other": torch.ones(1)}
    with pytest.raises(ValueError, match=r"no place for the weight layers\.0"):
        from_transformers(extra, config)
    del weights["backbone.layers.1.mixer.D"]
    with pytest.raises(ValueError, match=r"hold no layers\.1\.mixer\.D"):
        from_transformers(weights, config)


def test_a_folder_is_loaded_by_the_hubs_own_loader(tmp_path):
    theirs = build("mamba2", "groups")
    theirs.save_pretrained(tmp_path)
    ours = load_pretrained(str(tmp_path), local_files_only=True)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        torch.testing.assert_close(ours(TOKENS), expected, rtol=0, atol=1e-4)


def test_without_transformers_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"\./ci/setup --extra hub"):
        load_pretrained("state-spaces/mamba-130m-hf")
