"""Small language models and what they need: texts, tokenizers, n-grams, transformers.

`corpus` and `prompts` bring texts, `Bytes` and `BPE` turn them into tokens, `Ngram` has
exact laws without training and `Table` drafts, `Transformer` is trained by `train` and
run with a `Cache` by `Decoder`: one pass over a chain or a tree of drafted tokens, up
to an early exit or without some layers. `python -m lib.language train` makes a model
file.
"""

from lib.language.caches import Cache
from lib.language.corpora import Corpus, Document, corpus, shipped_corpus
from lib.language.decoding import Decoder, Pass, Skip, continued
from lib.language.hub import as_llama
from lib.language.ngrams import Ngram, Table
from lib.language.prompts import Prompt, copy_prompts, prompts
from lib.language.tokens import (
    BPE,
    EOS,
    Bytes,
    Tokenizer,
    bytes_of,
    load_bpe,
    same,
    shipped_bpe,
    stream,
    train_bpe,
)
from lib.language.training import Recipe, losses, train
from lib.language.transformer import Sizes, Transformer
from lib.language.trees import Layout, chain, leaves, padded, path_to, tree
from lib.language.weights import load_model, rounded, save_model, shipped_model

__all__ = [
    "BPE",
    "EOS",
    "Bytes",
    "Cache",
    "Corpus",
    "Decoder",
    "Document",
    "Layout",
    "Ngram",
    "Pass",
    "Prompt",
    "Recipe",
    "Sizes",
    "Skip",
    "Table",
    "Tokenizer",
    "Transformer",
    "as_llama",
    "bytes_of",
    "chain",
    "continued",
    "copy_prompts",
    "corpus",
    "leaves",
    "load_bpe",
    "load_model",
    "losses",
    "padded",
    "path_to",
    "prompts",
    "rounded",
    "same",
    "save_model",
    "shipped_bpe",
    "shipped_corpus",
    "shipped_model",
    "stream",
    "train",
    "train_bpe",
    "tree",
]
