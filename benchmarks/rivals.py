"""Two published statistics of kinship, written anew from their papers: what `isobasin compare` is measured beside.

Both see a model as its families' blocks; neither knows of normalisations' gains.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from isobasin.model import open_model
from isobasin.symmetries.stream import rows
from isobasin.verification import known_feedforwards


@dataclass(frozen=True)
class Weights:
    """What the statistics read of one model: the embedding, `(n, d)`, and of every layer matrices `(d, ·)`."""

    embedding: Tensor
    query: list[Tensor]
    key: list[Tensor]
    value: list[Tensor]
    output: list[Tensor]
    up: list[Tensor]
    down: list[Tensor]


def weights_of(folder: Path) -> Weights:
    """The weights of a checkpoint, heads side by side, those of shared keys and values once for every query head."""
    with open_model(folder) as model:
        first, width = model.stream().along[0], model.stream().group.width
        embedding = rows(model.double([first.tensor])[first.tensor], first.axis, width)
        heads = [block.read(model.stored(block)) for block in model.specification.attention]
        units = [block.read(model.stored(block)) for block in known_feedforwards(model)]

    def beside(each: Tensor, like: Tensor) -> Tensor:
        each = each if each.ndim == like.ndim else each.unsqueeze(1).expand(*like.shape[:2], *each.shape[1:])
        return each.movedim(-2, 0).flatten(1)

    roles = ("query", "key", "value", "output")
    query, key, value, output = ([beside(getattr(w, name), w.query) for w in heads] for name in roles)
    return Weights(embedding, query, key, value, output, [w.up.mT for w in units], [w.down.mT for w in units])


def awm(a: Weights, b: Weights) -> float:
    """AWM (arXiv 2510.06738): mean unbiased CKA of query and key weights.

    Coordinates are assigned with their signs by the cosines of the embeddings' columns, on common tokens; layers in
    order, or assigned where the depths differ.
    """
    count = min(len(a.embedding), len(b.embedding))
    cosines = torch.nn.functional.normalize(a.embedding[:count], dim=0).mT
    cosines = cosines @ torch.nn.functional.normalize(b.embedding[:count], dim=0)
    _, order = linear_sum_assignment(cosines.abs().numpy(), maximize=True)
    signs = cosines[torch.arange(len(order)), order].sign()

    def placed(weight: Tensor) -> Tensor:
        return weight[order] * signs.unsqueeze(-1)

    theirs = [(placed(q), placed(k)) for q, k in zip(b.query, b.key, strict=True)]
    alike = len(a.query) == len(theirs)
    scores = torch.zeros(len(a.query), len(theirs))
    for i, own in enumerate(zip(a.query, a.key, strict=True)):
        for j in [i] if alike else range(len(theirs)):
            scores[i, j] = sum(_cka(x, y) for x, y in zip(own, theirs[j], strict=True)) / 2
    places = linear_sum_assignment(scores.numpy(), maximize=True) if not alike else (range(len(theirs)),) * 2
    return abs(float(scores[list(places[0]), list(places[1])].mean()))


def _cka(x: Tensor, y: Tensor) -> float:
    """Unbiased linear CKA of features `(n, ·)`, Song's estimator of HSIC."""
    one, other = (_centred(each @ each.mT) for each in (x, y))
    return float((one * other).sum() / (one.square().sum() * other.square().sum()).sqrt())


def _centred(gram: Tensor) -> Tensor:
    n = len(gram)
    gram = gram - torch.diag(gram.diagonal())
    means = gram.sum(0) / (n - 2)
    means = means - means.sum() / (2 * (n - 1))
    gram = gram - means.unsqueeze(0) - means.unsqueeze(1)
    return gram - torch.diag(gram.diagonal())


def huref(a: Weights, b: Weights, layers: int = 2) -> float:
    """HuRef (arXiv 2312.04828): the cosine of `X Q K^T X^T`, `X V O^T X^T` and `X W_up W_down X^T` of the last layers.

    X are common tokens' embeddings; all of them, where the paper takes 4 096 rare ones.
    """
    count, layers = min(len(a.embedding), len(b.embedding), 4096), min(layers, len(a.query), len(b.query))
    one, other = (_invariants(w, count, layers) for w in (a, b))
    return float(torch.stack([torch.cosine_similarity(x, y, dim=0) for x, y in zip(one, other, strict=True)]).mean())


def _invariants(w: Weights, count: int, layers: int) -> list[Tensor]:
    seen = w.embedding[:count]
    pairs = ((w.query, w.key), (w.value, w.output), (w.up, w.down))
    return [
        ((seen @ left) @ (seen @ right).mT).flatten()
        for ours, theirs in pairs
        for left, right in list(zip(ours, theirs, strict=True))[-layers:]
    ]
