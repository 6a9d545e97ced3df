"""Weights of transformers' Mamba and Mamba-2 in our own blocks, with the same logits.

The parameters have the same names and shapes; only the frame around the blocks is
called differently. transformers is imported by `load_pretrained` alone, which leaves
the download to the hub's own loader.
Sources: transformers (modeling_mamba, modeling_mamba2), state-spaces/mamba.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.kit.checks import choice, need
from lib.selective_ssm.models import LanguageModel

INSTALL = "./ci/setup --extra hub"
RENAMED = (  # transformers' names, or the authors', and ours
    (r"^backbone\.", ""),
    (r"^embeddings\.", "embedding."),
    (r"^norm_f\.", "norm."),
    (r"^lm_head\.", "head."),
)


def from_transformers(
    model: nn.Module | Mapping[str, Tensor], config: object | None = None
) -> LanguageModel:
    """Our language model with the weights of MambaForCausalLM or Mamba2ForCausalLM.

    model: the module, or its state_dict; config: MambaConfig, Mamba2Config or a mapping
    with the same names, default the module's own. Returns a LanguageModel in the
    weights' type, on their device; the given weights are copied. Raises ValueError for
    a configuration that our blocks do not compute, and for weights that do not fit it.
    Source: transformers 5.23.
    """
    config = getattr(model, "config", None) if config is None else config
    need(
        config is not None,
        "A state_dict does not tell its sizes; give the configuration, too.",
    )
    get = config.get if isinstance(config, Mapping) else _reader(config)
    weights = model.state_dict() if isinstance(model, nn.Module) else model
    weights = {_renamed(name): x.detach() for name, x in weights.items()}
    block, options = _options(get)
    tied = bool(get("tie_word_embeddings", block == "mamba"))
    if tied:
        weights["head.weight"] = weights.get("embedding.weight")
    with torch.random.fork_rng(devices=[]):
        ours = LanguageModel(
            *(get("vocab_size"), get("hidden_size"), get("num_hidden_layers"), block),
            tie=tied,
            eps=get("layer_norm_epsilon", 1e-5),
            **options,
        )
    _fit(ours, weights)
    like = weights["embedding.weight"]
    ours.to(device=like.device, dtype=like.dtype).load_state_dict(weights)
    return ours


def load_pretrained(name: str, **options) -> LanguageModel:
    """A Mamba or Mamba-2 from the hub, for example "state-spaces/mamba-130m-hf".

    name: a repository or a folder; options: of the hub's own loader (revision,
    local_files_only, dtype, ...). Returns a LanguageModel; the matching tokenizer is
    transformers.AutoTokenizer.from_pretrained(name). Raises ImportError with the
    command where transformers is missing, ValueError for another architecture.
    Source: transformers.AutoModelForCausalLM.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        raise ImportError(
            f"Loading {name} needs the package transformers; install it with {INSTALL}."
        ) from None
    return from_transformers(AutoModelForCausalLM.from_pretrained(name, **options))


# -- what has to agree --------------------------------------------------------------


def _reader(config: object):
    return lambda name, default=None: getattr(config, name, default)


def _renamed(name: str) -> str:
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


def _options(get) -> tuple[str, dict]:
    """The name of our block and its options; a sentence for what it cannot do."""
    block = get("model_type")
    choice("The model's type", block, ("mamba", "mamba2"))
    act = get("hidden_act", "silu")
    need(
        act in ("silu", "swish"),
        f"The configuration's hidden_act is {act!r}; our blocks compute 'silu'.",
    )
    low, high = get("time_step_limit", None) or (0.0, math.inf)
    need(
        low <= 0 and high == math.inf,
        f"The configuration limits the step to ({low}, {high}); our blocks do not.",
    )
    options = {
        "d_state": get("state_size"),
        "expand": get("expand", 2),
        "d_conv": get("conv_kernel", 4),
        "bias": get("use_bias", False),
        "conv_bias": get("use_conv_bias", True),
    }
    if block == "mamba":
        rank = get("time_step_rank", "auto")
        return block, options | {"dt_rank": None if rank == "auto" else int(rank)}
    return block, options | {"headdim": get("head_dim"), "groups": get("n_groups", 1)}


def _fit(ours: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise a sentence that names the first weight that is missing, extra or wrong."""
    wanted = ours.state_dict()
    for name in wanted.keys() - weights.keys():
        need(False, f"The weights hold no {name}; they are of another model.")
    for name in sorted(weights):
        need(name in wanted, f"There is no place for the weight {name} in our blocks.")
        found, shape = tuple(weights[name].shape), tuple(wanted[name].shape)
        need(
            found == shape,
            f"The weight {name} has shape {found}, the configuration asks for {shape}.",
        )
