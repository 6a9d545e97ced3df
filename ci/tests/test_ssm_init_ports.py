"""assert_mamba_init against the real ports of transformers (an extra: hub)."""

import numpy as np
import pytest
import torch

from lib.ssm_init import assert_mamba_init
from lib.ssm_init.conventions import mamba_mu

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2}


def small_config():
    return transformers.MambaConfig(**SMALL, state_size=8)


def small_config2():
    sizes = {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}
    return transformers.Mamba2Config(**SMALL, **sizes, chunk_size=8)


def mamba():
    torch.manual_seed(0)
    return transformers.MambaForCausalLM(small_config())


def mamba2():
    torch.manual_seed(0)
    return transformers.Mamba2ForCausalLM(small_config2())


BUILDERS = {"Mamba": mamba, "Mamba-2": mamba2}
MIXERS = ["backbone.layers.0.mixer", "backbone.layers.1.mixer"]


def fill(model, ending, value):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(ending):
                p.fill_(value)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_fresh_model_passes(name):
    steps = assert_mamba_init(BUILDERS[name]())
    assert list(steps) == MIXERS
    every = np.concatenate(list(steps.values()))
    assert 1e-3 * 0.99 < every.min() < every.max() < 0.1 * 1.01
    assert len(np.unique(every)) > 0.9 * len(every)


def test_a_zeroed_step_bias_is_caught():
    model = mamba()
    fill(model, "layers.1.mixer.dt_proj.bias", 0.0)
    with pytest.raises(AssertionError, match=r"layers\.1\.mixer: softplus.*0\.693"):
        assert_mamba_init(model)


def test_a_hook_that_zeroes_every_bias_is_caught():
    def hook(module):
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.zeros_(module.bias)

    with pytest.raises(AssertionError, match=r"layers\.0\.mixer: softplus\(dt bias\)"):
        assert_mamba_init(mamba().apply(hook))
    assert_mamba_init(mamba2().apply(hook))  # its dt_bias belongs to no linear layer


DAMAGE = {  # what a port may lose: ending, value, sentence
    "A": ("mixer.A_log", 0.0, r"exp\(A_log\) is 7 away from 1, 2, \.\.\., 8"),
    "D": ("mixer.D", 0.0, "D is not 1 everywhere"),
    "weight": ("dt_proj.weight", 1.0, "dt_proj.weight reaches 1"),
    "no step": ("dt_proj.bias", -20.0, "expected 0.0001 to 0.1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_other_damage_is_caught(name):
    ending, value, sentence = DAMAGE[name]
    model = mamba()
    fill(model, ending, value)
    with pytest.raises(AssertionError, match=sentence):
        assert_mamba_init(model)


def test_mamba_2_without_its_step_bias_is_caught():
    model = mamba2()
    fill(model, "dt_bias", 1.0)  # what a bare parameter starts from in several ports
    with pytest.raises(AssertionError, match="softplus"):
        assert_mamba_init(model)


def test_half_precision_passes():
    assert_mamba_init(mamba().to(torch.bfloat16))


def test_about_half_of_the_channels_shrink():
    shares = mamba_mu(mamba())
    assert list(shares) == MIXERS
    for share in shares.values():
        assert 0.25 < share["channels"] < 0.75
        assert share["symmetric"] == 0.5


def test_bare_mixers_pass():
    """Only the mixer imported (huggingface/transformers#43717): 5.23 sets it inside."""
    from transformers.models.mamba.modeling_mamba import MambaMixer
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    for mixer, config in ((MambaMixer, small_config), (Mamba2Mixer, small_config2)):
        steps = assert_mamba_init(mixer(config(), layer_idx=0))
        assert list(steps) == ["the model"]


def test_mamba_2_of_transformers_counts_its_heads():
    """log(1 .. heads), where the authors draw from U(1, 16)."""
    A_log = dict(mamba2().named_parameters())["backbone.layers.0.mixer.A_log"]
    np.testing.assert_allclose(A_log.detach().exp(), np.arange(1, 9), rtol=1e-5)
