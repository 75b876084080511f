"""What a family file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.configuration import Config
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.stream import StreamFacts


@dataclass(frozen=True)
class Family:
    """The facts about one transformers model type.

    Attributes:
        model_type: As in `config.json`.
        prefixes: What head models put before the base model's names, as in `("bert.",)`. A checkpoint of the
            base model has no prefix, which is always tried too.
        blocks: From a transformers configuration to the attention blocks, with the base model's names.
        feedforwards: From a configuration to the feed-forward blocks, likewise; none are known by default.
        stream: From a configuration to what is known of the residual stream; None if nothing is.
        buffers: Name endings of tensors that older checkpoints keep and that are no parameters, such as causal masks,
            beyond those of many families (`view.BUFFERS`). transformers ignores them, and so do we.
        beside: Name endings of tensors that lie inside the modules of blocks and are no part of them.
        unread: From a configuration to the numbers of layers that checkpoints may have and transformers doesn't load.
        ties: From a configuration that ties embeddings to tied tensors and what each is, where transformers' classes
            say so for some configurations only.
        accepts: Entries of `config.json` that are refused in other families, and that the blocks here account for.
        namings: Where parts of a model are named in several ways, and each part by itself: for every part the beginning
            of its names that `blocks` gives, then what checkpoints may have instead. Prefixes aren't tried then.
        beyond: What lies outside the layers and stays as it is in every scope, in words.
        computes: The model type whose function this one's is wherever configurations mean the same and tensors are
            equal, if it is another's code; None if it is its own.
        unbiased: As `blocks`, of files that have none of the biases, which transformers takes for 0 then; None where
            the configuration alone says which biases there are.
    """

    model_type: str
    prefixes: tuple[str, ...]
    blocks: Callable[[Config], list[AttentionBlock]]
    feedforwards: Callable[[Config], Sequence[FeedForward]] = lambda config: []
    stream: Callable[[Config], StreamFacts] | None = None
    buffers: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    unread: Callable[[Config], Sequence[range]] = lambda config: []
    ties: Callable[[Config], Mapping[str, str]] = lambda config: {}
    accepts: tuple[str, ...] = ()
    namings: tuple[tuple[str, ...], ...] = ()
    beyond: tuple[str, ...] = ()
    computes: str | None = None
    unbiased: Callable[[Config], list[AttentionBlock]] | None = None
