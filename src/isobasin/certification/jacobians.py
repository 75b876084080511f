"""Jacobians of what transformers computes by the parameters of blocks: of each block alone, and of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from isobasin.architectures.feedforwards import ExpertsBlock
from isobasin.certification.loaded import Loaded
from isobasin.certification.nullity import Spectrum, folded, seen, spectrum
from isobasin.errors import ArchitectureError
from isobasin.inputs import SHORT, farthest, model_inputs, padding_mask, promised

# How many more outputs must leave the rank as it is, and how often it may rise: units that are rarely active, or rarely
# not, are seen late.
_MORE = 800
_CHECKS = 10
# Of long texts so many outputs, chosen at random: together they say nearly as much as all.
_MOST = 1000

Rows = list[Tensor]
"""Derivatives of some outputs by the stored values of each block: `(outputs, values)`."""


@dataclass(frozen=True)
class Measured:
    """What one function sees of a block.

    Attributes:
        jacobian: The triangular factor of the Jacobian.
        spectrum: Its rank.
    """

    jacobian: Tensor
    spectrum: Spectrum

    def seen(self, directions: Tensor) -> int:
        """How many of these directions change the function."""
        return seen(self.jacobian, directions, self.spectrum.level)


class _Double(TorchFunctionMode):
    """Float64 wherever a model asks for float32, as norms, softmaxes and rotary positions of transformers do."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        double = tuple(torch.float64 if x is torch.float32 else x for x in args)
        return func(*double, **{k: torch.float64 if x is torch.float32 else x for k, x in (kwargs or {}).items()})


@contextmanager
def _exactly() -> Generator[None]:
    """All arithmetic in float64, and attention in plain steps, whose derivatives can be batched."""
    with _Double(), sdpa_kernel(SDPBackend.MATH):
        yield


def measured_alone(model: nn.Module, blocks: list[Loaded], seed: int) -> list[Measured]:
    """What every block by itself sees of its values, at random inputs of its own.

    What the block reads is replaced by random numbers, and its output is what its last projection returns, so that
    normalisations and sums around it play no part. Masks, rotary tables and all between are the model's own.
    """
    generator = torch.Generator().manual_seed(seed)

    def rows() -> Iterator[Rows]:
        for inputs in _inputs(model, seed, padded=False):
            with _replaced_inputs(blocks, generator), _outputs_of(blocks) as written, _exactly():
                model(**inputs)
            found = zip(blocks, written, strict=True)
            yield [_rows(_some(outputs, generator), [block])[0] for block, outputs in found]

    # Experts are chosen by few tokens.
    routed = any(isinstance(block.block, ExpertsBlock) for block in blocks)
    return _settled(rows()) if routed else _measured([], rows())


def measured_whole(model: nn.Module, blocks: list[Loaded], seed: int) -> list[Measured]:
    """What the outputs of the whole model see of the values of every block."""
    generator = torch.Generator().manual_seed(seed)
    width = blocks[0].block.width

    def rows() -> Iterator[Rows]:
        for inputs in _inputs(model, seed, padded=True):
            with _exactly():
                outputs = [_narrowed(x, width, generator) for x in _model_outputs(model, inputs)]
            yield _rows(_some(outputs, generator), blocks)

    return _settled(rows())


def _settled(rows: Iterator[Rows]) -> list[Measured]:
    """The rank of every block's Jacobian once more inputs leave it as it is: some values are seen by few of them."""
    found = _measured([], rows)
    for _ in range(_CHECKS):
        before, found = found, _measured([block.jacobian for block in found], rows)
        if all(one.spectrum.rank == other.spectrum.rank for one, other in zip(before, found, strict=True)):
            break
    return found


def _measured(known: Rows, rows: Iterator[Rows]) -> list[Measured]:
    """The rank that follows from rows known before and `_MORE`, or without any from twice as many as columns."""
    found = [known] if known else [next(rows)]
    needed = [len(part) + _MORE if known else 2 * part.shape[1] for part in found[0]]
    while any(sum(map(len, parts)) < least for parts, least in zip(zip(*found, strict=True), needed, strict=True)):
        found.append(next(rows))
    factors = [folded(torch.cat(parts)) for parts in zip(*found, strict=True)]
    return [Measured(factor, spectrum(factor)) for factor in factors]


def _narrowed(outputs: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Random combinations of the outputs of each position, as many as the stream is wide: more say nothing new."""
    if outputs.shape[-1] <= width:
        return outputs
    mixed = torch.randn(outputs.shape[-1], width, generator=generator, dtype=torch.float64)
    return outputs @ mixed


def _some(outputs: list[Tensor], generator: torch.Generator) -> Tensor:
    """All outputs in a row, or `_MOST` of them."""
    found = torch.cat([x.flatten() for x in outputs])
    return found if len(found) <= _MOST else found[torch.randperm(len(found), generator=generator)[:_MOST]]


def _inputs(model: nn.Module, seed: int, *, padded: bool) -> Iterator[dict[str, Any]]:
    """Random inputs of the model without end, every time all kinds of them."""
    lengths = _lengths(model)
    for again in count(seed):
        for _, inputs in model_inputs(model, again, lengths):
            if padded or padding_mask(inputs) is None:
                yield inputs


def _lengths(model: nn.Module) -> tuple[int, ...]:
    """Lengths of texts; where there is a table of position biases, first one that reads all that some text reads."""
    distance = farthest(model.config)
    # The text of a decoder is shorter by one token.
    return SHORT if distance is None or distance + 2 <= max(SHORT) else (distance + 2, *SHORT)


def _model_outputs(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Every output; at positions that are padding nothing is promised."""
    found = [value for value in model(**inputs).values() if isinstance(value, Tensor) and value.is_floating_point()]
    return [promised(value, inputs) for value in found]


def _rows(outputs: Tensor, blocks: list[Loaded]) -> Rows:
    """Derivatives of all these outputs by the stored values of each block."""
    parameters = list({id(p): p for block in blocks for p in block.parameters}.values())
    # A graph may be shared: that of the biases which several blocks take from one table.
    options: dict[str, Any] = {"is_grads_batched": True, "materialize_grads": True, "retain_graph": True}
    each = torch.eye(len(outputs), dtype=outputs.dtype)
    found = torch.autograd.grad(outputs, parameters, each, **options)
    by_parameter = {id(p): rows.flatten(1) for p, rows in zip(parameters, found, strict=True)}
    return [torch.cat([by_parameter[id(p)] for p in block.parameters], 1)[:, block.order] for block in blocks]


@contextmanager
def _replaced_inputs(blocks: list[Loaded], generator: torch.Generator) -> Generator[None]:
    """Every block reads random numbers; the same ones wherever its modules would have read the same tensor."""
    # The tensors that were replaced are kept, so that no other is put in their place in memory.
    replaced: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if not args or not isinstance(args[0], Tensor):
            raise ArchitectureError(f"a {type(module).__name__} isn't given its input first: it can't be certified")
        key = (args[0].data_ptr(), *args[0].shape)
        if key not in replaced:
            replaced[key] = args[0], torch.randn(args[0].shape, generator=generator, dtype=torch.float64)
        return replaced[key][1], *args[1:]

    with ExitStack() as hooks:
        for module in {reader: None for block in blocks for reader in block.readers}:
            hooks.callback(module.register_forward_pre_hook(replace).remove)
        yield


@contextmanager
def _outputs_of(blocks: list[Loaded]) -> Generator[list[list[Tensor]]]:
    """What every block's last projection returns while the model runs."""
    written: list[list[Tensor]] = [[] for _ in blocks]

    def keep(outputs: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, args, output: outputs.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as hooks:
        for block, outputs in zip(blocks, written, strict=True):
            hooks.callback(block.writer.register_forward_hook(keep(outputs)).remove)
        yield written
    for block, outputs in zip(blocks, written, strict=True):
        if not any(output.requires_grad for output in outputs):
            raise ArchitectureError(f"transformers doesn't run the modules of {block.block.name} one by one")
