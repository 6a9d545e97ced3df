"""Selective state space models: blocks, language models and what they compute.

`Mamba` and `Mamba2` are the blocks, `LanguageModel` trains and decodes with them,
`from_transformers` fills them with published weights; the tasks and the training loop
are those of notebook 14. Everything else stands in modules of its own, imported where
it is used: hydra, maps, dynamics, long_context, dual and sparse.
"""

from lib.selective_ssm.blocks import LayerState, Mamba, Mamba2, causal_conv
from lib.selective_ssm.decoding import distribution, sample
from lib.selective_ssm.models import LanguageModel, State
from lib.selective_ssm.tasks import (
    IGNORE,
    induction_heads,
    mqar,
    selective_copying,
    source_bytes,
    text_of,
    text_origin,
)
from lib.selective_ssm.training import (
    bits_per_byte,
    ngram_bits,
    param_groups,
    recall_accuracy,
    recall_batches,
    text_batches,
    train,
)
from lib.selective_ssm.weights import from_transformers, load_pretrained

__all__ = [
    "IGNORE",
    "LanguageModel",
    "LayerState",
    "Mamba",
    "Mamba2",
    "State",
    "bits_per_byte",
    "causal_conv",
    "distribution",
    "from_transformers",
    "induction_heads",
    "load_pretrained",
    "mqar",
    "ngram_bits",
    "param_groups",
    "recall_accuracy",
    "recall_batches",
    "sample",
    "selective_copying",
    "source_bytes",
    "text_batches",
    "text_of",
    "text_origin",
    "train",
]
