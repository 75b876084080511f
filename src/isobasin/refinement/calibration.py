"""What data say of models: what blocks read, where to start a residual stream's map, which of several ends is best."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobasin.alignment import Alignment
from isobasin.errors import ArchitectureError
from isobasin.matching.whole.basis import StreamFit
from isobasin.model import Model
from isobasin.refinement.ends import End, type_of
from isobasin.refinement.line import ModuleLine, batches_of
from isobasin.refinement.names import names_in_memory
from isobasin.symmetries.along import Role, Stream
from isobasin.symmetries.stream import Basis
from isobasin.tasks.examples import Examples
from isobasin.tasks.kind import load_model
from isobasin.tasks.losses import evaluate, model_inputs, passing
from isobasin.verbs.settings import chosen_device

_EXAMPLES = 128
_BATCH = 32


class DataCalibration:
    """Calibration on examples of the models' task.

    Distance hardly differs between starts of a residual stream's map, the loss of the mid-point does: it chooses.
    """

    def __init__(self, examples: Examples, device: str = "cpu") -> None:
        """Use some of the examples.

        Args:
            examples: Training data, prepared for the reference.
            device: Where models run.
        """
        self._examples, self._device = examples, chosen_device(device)

    @torch.no_grad()
    def moments(self, model: Model, names: Collection[str]) -> dict[str, Tensor]:
        """`E[[x, 1]^T [x, 1]]` of what weights multiply, over all tokens of the examples, in one pass.

        Args:
            model: The model.
            names: Stored names of its weights; those of one module are measured once.

        Returns:
            `(d + 1, d + 1)` in float64 on the cpu, by name.
        """
        memory = names_in_memory(model, self._examples.kind)
        module = load_model(model.checkpoint, self._examples.kind, self._device)
        owners = {name: memory[name][0].module for name in names if memory[name]}
        if unused := [name for name in names if name not in owners]:
            raise ArchitectureError(f"{model.name}: transformers has no parameter of tensor {unused[0]!r}")

        def run(inputs: dict[str, Tensor]) -> None:
            with passing(module):
                module(**inputs)

        sums = moments_within(module, owners.values(), self._batches(module, len(self._examples)), run)
        return {name: sums[owner] for name, owner in owners.items()}

    def starts(self, a: Model, b: Model, stream: Stream) -> dict[str, Tensor]:
        """The map that brings b's hidden states nearest to a's, each normalised, summed over layers and tokens."""
        if stream.group.basis is Basis.linear:
            return {}
        fit = StreamFit(stream.group, self._device)
        for ours, theirs in zip(self._states(a, stream), self._states(b, stream), strict=True):
            fit.add(Role.vector, ours, theirs)
        return {"activations": fit.best()}

    def scores(self, a: Model, b: Model, alignments: Sequence[Alignment]) -> list[float]:
        """The loss half-way between a and the moved b, for each alignment."""
        line: ModuleLine | None = None
        batches: list[tuple[dict[str, Tensor], int]] = []
        found: list[float] = []
        for alignment in alignments:
            if line is None:
                line = ModuleLine.between(a, b, alignment, self._examples.kind, device=self._device)
                # Once for all candidates: they differ in weights alone.
                batches += [(line.placed(x), size) for x, size in batches_of(self._examples, _EXAMPLES, _BATCH)]
            else:
                end = End.of(b, alignment, moved=True, device=self._device, dtype=type_of(a, b))
                line = replace(line, ends=(line.ends[0], end))
            found += line.means(line.loss, batches, (0.5,))
        return found

    def loss(self, model: Model) -> float:
        """The mean loss of a model on all examples."""
        module = load_model(model.checkpoint, self._examples.kind, self._device)
        return evaluate(module, self._examples, batch_size=_BATCH, device=self._device, temperature=False).loss

    @torch.no_grad()
    def _states(self, model: Model, stream: Stream) -> Iterator[Tensor]:
        """Normalised hidden states in float64, `(tokens, d)` for every layer and batch."""
        module = load_model(model.checkpoint, self._examples.kind, self._device)
        for inputs in self._batches(module, _EXAMPLES):
            with passing(module):
                found = module(**inputs, output_hidden_states=True).hidden_states
            # The last one is after the last normalisation in some families and before it in others.
            for state in found[:-1]:
                rows = state.double().flatten(0, -2)
                rows = rows - rows.mean(-1, keepdim=True) if stream.centred else rows
                yield rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _batches(self, module: nn.Module, limit: int) -> Iterator[dict[str, Tensor]]:
        """What the module is called with, for some of the examples."""
        for batch, _ in batches_of(self._examples, limit, _BATCH):
            yield model_inputs(module, batch, torch.device(self._device))


@torch.no_grad()
def moments_within(
    module: nn.Module,
    owners: Iterable[str],
    calls: Iterable[dict[str, Tensor]],
    run: Callable[[dict[str, Tensor]], object],
) -> dict[str, Tensor]:
    """`E[[x, 1]^T [x, 1]]` of what some modules inside of one read, over all tokens of some calls, by their names.

    Args:
        module: What is run.
        owners: The modules inside.
        calls: What it is called with.
        run: Calls it.
    """
    sums = {owner: _Sum() for owner in owners}
    with ExitStack() as hooks:
        for owner, found in sums.items():
            hooks.callback(module.get_submodule(owner).register_forward_pre_hook(found.add).remove)
        for inputs in calls:
            for found in sums.values():
                found.mask = inputs.get("attention_mask")
            run(inputs)
    return {owner: found.mean() for owner, found in sums.items()}


class _Sum:
    """Second moments of a module's inputs, summed as they come."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._sum: Tensor | None = None

    def add(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Called before the module is: adds its first argument, without what stands for no token."""
        x = args[0].detach()
        kept = x[self.mask.bool()] if self.mask is not None and self.mask.shape == x.shape[:-1] else x.flatten(0, -2)
        rows = functional.pad(kept.double(), (0, 1), value=1.0)
        found = rows.mT @ rows
        self._sum = found if self._sum is None else self._sum + found

    def mean(self) -> Tensor:
        """The moments; their last entry is 1."""
        if self._sum is None:
            raise ArchitectureError("a block was never called on the data: objective activations can't weigh it")
        return (self._sum / self._sum[-1, -1]).cpu()
