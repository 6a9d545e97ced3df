"""What labels and hidden states know about phones: purities, PNMI, linear probes.

Labels and phones are whole numbers, one a frame, padding taken out (see `frames`).
Sources: 2106.07447 (purities, PNMI); the bias of PNMI is derived here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lib.codebooks import usage
from lib.kit.checks import need
from lib.speech.conformer import valid_frames


def frames(values: Tensor, lengths: Tensor) -> Tensor:
    """The frames that belong to an utterance: (batch, T, ...) to (n, ...).

    Raises ValueError for lengths outside 1 to T.
    """
    return values[valid_frames(lengths, values.shape[1])]


class Quality(NamedTuple):
    """What labels say about phones, from their joint frequencies over n frames.

    phone_purity: of guessing the phone from the label, sum_c max_p p(p, c);
    cluster_purity: sum_p max_c p(p, c); pnmi: mutual information / H(phone); bias: the
    pnmi of independent labels; used, perplexity: of the labels; n: frames.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float
    bias: float
    used: int
    perplexity: float
    n: int

    @property
    def above_chance(self) -> float:
        """pnmi less its bias: compare this where the number of codes differs."""
        return self.pnmi - self.bias


def pnmi_bias(phones: int, codes: int, n: int, entropy: float) -> float:
    """The PNMI of independent labels: (P - 1)(V - 1) / (2 n H), to first order in 1/n.

    phones, codes: how many kinds; n: frames; entropy: H of the phones in nats. Derived
    here: 2 n times the mutual information tends to chi-squared with (P - 1)(V - 1)
    degrees of freedom. Raises ValueError for no frames or no entropy.
    """
    need(
        n > 0 and entropy > 0,
        f"There are {n} frames and the phones have entropy {entropy}; give frames of "
        "at least two phones.",
    )
    return (phones - 1) * (codes - 1) / (2 * n * entropy)


def label_quality(phones: Tensor, labels: Tensor) -> Quality:
    """Purities, PNMI with its bias, and use of labels against the phones of frames.

    phones, labels: whole numbers from 0, one a frame, of one shape, without padding.
    Raises ValueError for unequal shapes, negative numbers, or a single phone.
    Source: 2106.07447, section 4.4.
    """
    need(
        phones.shape == labels.shape and phones.numel() > 0,
        f"There are phones of shape {tuple(phones.shape)} and labels of shape "
        f"{tuple(labels.shape)}; give one of each a frame.",
    )
    phones, labels = phones.reshape(-1).cpu(), labels.reshape(-1).cpu()
    P, V, n = int(phones.max()) + 1, int(labels.max()) + 1, len(labels)
    need(
        int(phones.min()) >= 0 and int(labels.min()) >= 0,
        "A phone or label is negative; leave such frames out.",
    )
    joint = torch.bincount(phones * V + labels, minlength=P * V).view(P, V).double() / n
    p, c = joint.sum(1), joint.sum(0)
    H = -torch.xlogy(p, p).sum()
    mutual = torch.xlogy(joint, joint).sum() + H - torch.xlogy(c, c).sum()
    need(
        int((p > 0).sum()) > 1,
        "All frames have one phone, so there is nothing to know; give more speech.",
    )
    use = usage(labels, V)
    return Quality(
        phone_purity=float(joint.max(0).values.sum()),
        cluster_purity=float(joint.max(1).values.sum()),
        pnmi=max(0.0, float(mutual / H)),
        bias=pnmi_bias(int((p > 0).sum()), use.used, n, float(H)),
        used=use.used,
        perplexity=use.perplexity,
        n=n,
    )


class Probe(NamedTuple):
    """A linear map on standardised states: mean, scale (d,), W (d, P), offset (P,)."""

    mean: Tensor
    scale: Tensor
    W: Tensor
    offset: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        """The class of every state: (..., d) to (...)."""
        z = (h.double() - self.mean) / self.scale
        return (z @ self.W + self.offset).argmax(-1)

    def accuracy(self, h: Tensor, classes: Tensor) -> float:
        """The share of frames that the probe gets right."""
        return float((self(h) == classes).double().mean())


def ridge_probe(h: Tensor, classes: Tensor, lam: float = 30.0) -> Probe:
    """Ridge regression from standardised states to one-hot classes, in closed form.

    h: (n, d) states of a frozen encoder; classes: (n,) whole numbers from 0; lam:
    added to the diagonal of Z^T Z. W = (Z^T Z + lam I)^-1 Z^T (Y - mean Y), the mean
    being the offset. Raises ValueError for shapes or lam.
    """
    need(
        h.dim() == 2 and classes.shape == h.shape[:1] and len(h) > 1,
        f"There are states {tuple(h.shape)} and classes {tuple(classes.shape)}; give "
        "(n, d) and (n,).",
    )
    need(lam > 0, f"lam is {lam}; give a positive number.")
    h = h.detach().double()
    mean, scale = h.mean(0), h.std(0, correction=0).clamp(min=1e-8)
    Z = (h - mean) / scale
    Y = torch.nn.functional.one_hot(classes).double()
    offset = Y.mean(0)
    gram = Z.T @ Z + lam * torch.eye(Z.shape[1], dtype=Z.dtype, device=Z.device)
    return Probe(mean, scale, torch.linalg.solve(gram, Z.T @ (Y - offset)), offset)
