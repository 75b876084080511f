"""A model whose layers stand side by side: each reads what the first one reads, and what all add is added up.

So a layer is compared by what rounding does to its own tensors, and to the embedding, however many come before it. The
same weights compute something else, but every move that leaves the function as it is leaves this as it is too: a map of
the residual stream is the same at every layer. On the way it is noted what each part of a layer makes of the tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from isobasin.verification.parts import Parts, products

# Scores below this stand for what a mask hides.
_HIDDEN = -5e3
_ADDING = (torch.add, Tensor.add, Tensor.add_)
_SOFTMAX = (torch.softmax, functional.softmax, Tensor.softmax)


class Abreast(TorchFunctionMode):
    """Within it layers read what the first one reads, in the thread that entered it.

    Layers follow one another where one is given the very tensor that another returned; where they don't, or change its
    shape, the next one is a first one again.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, mean: bool) -> None:
        """Of these layers.

        Args:
            layers: By name.
            mean: Whether nothing reads the mean of the residual stream's features: what is added to it is left out.
        """
        super().__init__()
        self._layers, self._mean = layers, mean
        self._noted: list[tuple[str, str, list[Tensor]]] = []
        self._here = threading.get_ident()
        self._layer, self._blocks = "", 0
        # What layers read and returned last, the stream within one, and where experts add up.
        self._given: Any = None
        self._returned: Any = None
        self._stream: Any = None
        self._sum: Any = None

    @property
    def parts(self) -> list[Parts]:
        """Those that were noted, in turn."""
        return [Parts(layer, kind, torch.cat(found)) for layer, kind, found in self._noted]

    def __enter__(self) -> Self:
        """Hook the layers."""
        self._hooks = [
            hook
            for name, layer in self._layers.items()
            for hook in (
                layer.register_forward_pre_hook(partial(self._enter, name)),
                layer.register_forward_hook(self._leave),
            )
        ]
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        """Unhook them."""
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*args)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute what an operation of torch computes, and note it."""
        given = dict(kwargs or {})
        if not self._layer:
            return func(*args, **given)
        if func is functional.scaled_dot_product_attention:
            self._attended(_scores(*args, **given))
        elif func in _SOFTMAX:
            self._attended(args[0] if args else given["input"])
        elif func in (torch.topk, Tensor.topk):
            self._chosen(args[0])
        elif func is Tensor.index_add_:
            self._expert(*args)
        elif func in _ADDING and isinstance(self._stream, Tensor) and any(x is self._stream for x in args):
            added = args[args[0] is self._stream]
            if isinstance(added, Tensor) and added.shape == self._stream.shape:
                self._added(f"block {self._blocks}", added)
                self._stream, self._blocks = func(*args, **given), self._blocks + 1
                return self._stream
        return func(*args, **given)

    def _enter(self, name: str, layer: nn.Module, args: Any) -> Any:
        if threading.get_ident() != self._here:
            return None
        self._layer, self._blocks, read = name, 0, args[0] if args else None
        if read is None or read is not self._returned:
            self._given = self._returned = self._stream = read
            return None
        self._stream = self._given
        return self._given, *args[1:]

    def _leave(self, layer: nn.Module, args: Any, returned: Any) -> Any:
        if threading.get_ident() != self._here:
            return None
        self._stream, made = None, returned[0] if isinstance(returned, tuple) else returned
        if not isinstance(made, Tensor) or not isinstance(self._given, Tensor) or made.shape != self._given.shape:
            self._returned = None
            return None
        added = made - self._given
        self._added("output", added)
        self._returned, self._layer = self._returned + added, ""
        return (self._returned, *returned[1:]) if isinstance(returned, tuple) else self._returned

    def _attended(self, scores: Tensor) -> None:
        """Note heads, given scores `(texts, heads, queries, keys)`; softmax doesn't see what is added for all keys."""
        if scores.ndim != 4:
            return
        shown = scores > _HIDDEN
        scores = torch.where(shown, scores, 0.0)
        scores = torch.where(shown, scores - scores.sum(-1, keepdim=True) / shown.sum(-1, keepdim=True), 0.0)
        self._note("head", scores.transpose(0, 1).flatten(1, 2))

    def _chosen(self, scores: Tensor) -> None:
        """Note a router, given scores `(tokens, experts)`; what is added for all experts chooses none."""
        if scores.ndim == 2:  # else of groups of experts, in any order
            self._note("router", (scores - scores.mean(-1, keepdim=True))[None])

    def _expert(self, total: Tensor, dim: int, index: Tensor, source: Tensor) -> None:
        """Note the next expert, if it adds to all tokens of a block's sum."""
        if len(index) != len(total):
            return
        made = source[index.argsort()][None]
        if total is self._sum:
            self._noted[-1][-1].append(products(made))
        else:
            self._note("expert", made)
        self._sum = total

    def _added(self, kind: str, added: Tensor) -> None:
        """Note what is added to the stream."""
        flat = added.flatten(0, -2)[None]
        self._note(kind, flat - flat.mean(-1, keepdim=True) if self._mean else flat)

    def _note(self, kind: str, made: Tensor) -> None:
        self._noted.append((self._layer, kind, [products(made)]))


def _scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What softmax is taken of in `scaled_dot_product_attention`, whose arguments these are."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores
    return scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
