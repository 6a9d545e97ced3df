"""Our transformer as a Llama of `transformers`: the same weights, the same logits.

The two differ in which numbers of a head RoPE turns together: neighbours (2j, 2j + 1)
here, (j, j + width / 2) there, so rows of the query and key matrices change places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lib.language.transformer import EPS, Transformer


def as_llama(model: Transformer) -> Any:
    """A `transformers.LlamaForCausalLM` that computes what the model computes.

    model: its sizes and weights are copied, in its dtype. The result can be saved with
    `save_pretrained` and opened by whatever reads Llama checkpoints.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    s = model.sizes
    config = LlamaConfig(
        vocab_size=s.vocab,
        hidden_size=s.d,
        intermediate_size=s.hidden,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads,
        max_position_embeddings=s.max_len,
        rms_norm_eps=EPS,
        rope_theta=s.theta,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    there = LlamaForCausalLM(config).to(model.embedding.weight.dtype)
    state = {
        "model.embed_tokens.weight": model.embedding.weight,
        "lm_head.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
    }
    for number, layer in enumerate(model.layers):
        q, k, v = layer.qkv.weight.chunk(3)
        gate, up = layer.up.weight.chunk(2)
        own = {
            "input_layernorm": layer.attention_norm.weight,
            "self_attn.q_proj": halves(q, s.heads),
            "self_attn.k_proj": halves(k, s.heads),
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.out.weight,
            "post_attention_layernorm": layer.mlp_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.weight,
        }
        state |= {f"model.layers.{number}.{n}.weight": w for n, w in own.items()}
    there.load_state_dict({name: w.detach().clone() for name, w in state.items()})
    return there.eval()


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head with the even ones first, then the odd ones.

    weight: (heads * width, d). Returns the same shape.
    """
    rows = weight.unflatten(0, (heads, -1))
    return torch.cat([rows[:, 0::2], rows[:, 1::2]], dim=1).flatten(0, 1)
