"""The loss and metrics of a model on prepared examples, and what a better softmax temperature would gain."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobasin.choices import TaskKind
from isobasin.tasks.calibration import Mean, Predictions, solve
from isobasin.tasks.examples import IGNORED, Examples
from isobasin.tasks.processes import Group
from isobasin.tasks.reading import reading

if TYPE_CHECKING:
    from collections.abc import Generator

# Logits kept for the temperature: at most so many, and always those of some predictions.
_KEPT = 2**26
_FEWEST = 1024
# A pass over kept logits costs a small language model as much as it took to compute them if its vocabulary is large:
# of those, one in vocabulary / 256 is kept.
_SMALL_VOCABULARY = 256


@dataclass(frozen=True)
class Evaluation:
    """How well a model does.

    Attributes:
        loss: Mean cross-entropy over all predictions, in nats.
        group_losses: Mean of every group of consecutive examples.
        group_weights: Predictions of every group.
        metrics: "accuracy" of classification; "perplexity" of language models, with "bits_per_character" for causal
            ones and "accuracy" for masked ones.
        calibrated_loss: The loss with the softmax temperature that makes it least; None if that wasn't asked for.
        temperature: That temperature.
        seconds: Of all of it.
    """

    loss: float
    group_losses: tuple[float, ...]
    group_weights: tuple[float, ...]
    metrics: dict[str, float]
    calibrated_loss: float | None
    temperature: float | None
    seconds: float


@dataclass(frozen=True)
class _Batch:
    """Sums over the predictions of one batch and of each of its examples, and some of them for the temperature."""

    index: int
    loss: float
    right: int
    predictions: int
    losses: list[float]
    counts: list[int]
    kept: Predictions | None


def evaluate(
    model: nn.Module,
    examples: Examples,
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    accelerator: Any = None,
    temperature: bool = True,
    group: int = 1,
) -> Evaluation:
    """Evaluate a model on all examples.

    With several processes each takes every n-th batch, and all of them return the same result, that of one process.
    The temperature is that of the convex `CE(β) = mean[logsumexp(β z) - β z_y]`, solved for in float64 sums on all
    predictions, or on an even share of them where logits would take more than 256 MB or the vocabulary of a language
    model is large; what it gains there is taken off the whole loss.

    Args:
        model: Of transformers; it is moved to the device, and its mode is kept.
        examples: Prepared for it.
        batch_size: Examples of a forward pass.
        device: Where it runs; with an accelerator, its device instead.
        accelerator: An `accelerate.Accelerator`, or None for this process alone.
        temperature: Whether to look for the best softmax temperature.
        group: How many consecutive examples the losses of groups are means of.

    Raises:
        DataError: The model can't be run on them.
    """
    started = time.perf_counter()
    processes = Group(accelerator)
    place = torch.device(processes.device(device))
    with passing(model), _evaluating(model), torch.inference_mode():
        model.to(place)
        stride = _stride(model, examples) if temperature else 0
        mine = list(_batches(model, examples, batch_size, place, processes, stride))
        rows = processes.gathered([(b.index, b.loss, b.right, b.predictions, b.losses, b.counts) for b in mine])
        loss = sum(row[1] for row in rows) / max(sum(row[3] for row in rows), 1)
        calibrated, best = _calibrated(mine, processes, loss) if temperature else (None, None)
    totals, counts = (_grouped(chain.from_iterable(row[i] for row in rows), group) for i in (4, 5))
    groups = list(zip(totals, counts, strict=True))
    return Evaluation(
        loss=loss,
        group_losses=tuple(total / count if count else math.nan for total, count in groups),
        group_weights=tuple(float(count) for _, count in groups),
        metrics=_metrics(examples, loss, rows),
        calibrated_loss=calibrated,
        temperature=best,
        seconds=time.perf_counter() - started,
    )


def _grouped(values: Iterable[float], size: int) -> list[float]:
    """The sums of so many consecutive values each."""
    left = iter(values)
    return [sum(found) for found in iter(lambda: tuple(islice(left, size)), ())]


def passing(model: nn.Module) -> AbstractContextManager[None]:
    """Turn whatever a model's forward pass raises over examples into DataError, which names its class."""
    advice = "check that data and tokenizer are this model's, or take a smaller --batch-size or --length"
    return reading(f"{type(model).__name__} can't be run on the examples", advice)


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _stride(model: Any, examples: Examples) -> int:
    """Of how many predictions one is kept for the temperature."""
    labels = examples.fetch([0])["labels"]
    count = max(int((targets(examples.kind, labels) != IGNORED).sum()), 1) * len(examples)
    classifies = examples.kind.classifies
    width = model.config.num_labels if classifies else model.config.vocab_size
    room = _KEPT / width if classifies else min(_KEPT, _SMALL_VOCABULARY * count) / width
    return math.ceil(count / max(room, _FEWEST))


def targets(kind: TaskKind, labels: Tensor) -> Tensor:
    """What every position predicts: of causal models the next token."""
    return functional.pad(labels, (0, 1), value=IGNORED)[..., 1:] if kind == TaskKind.causal_lm else labels


def _batches(
    model: nn.Module, examples: Examples, size: int, device: torch.device, group: Group, stride: int
) -> Iterator[_Batch]:
    """This process's batches, evaluated."""
    for index in range(group.rank, math.ceil(len(examples) / size), group.count):
        batch = examples.fetch(range(index * size, min((index + 1) * size, len(examples))))
        labels = targets(examples.kind, batch["labels"]).to(device, non_blocking=True)
        logits: Tensor = model(**model_inputs(model, batch, device)).logits
        yield _summed(index, logits.reshape(-1, logits.shape[-1]), labels, examples.kind, stride)


def model_inputs(model: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """What a model is called with for a batch, labels left out: on the device, floating-point inputs in its type."""
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]
    inputs: dict[str, Any] = {"use_cache": False} if _caches(type(model)) else {}
    for name, value in batch.items():
        if name != "labels":
            inputs[name] = value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
    return inputs


@cache
def _caches(kind: type[nn.Module]) -> bool:
    """Whether models of this class keep keys and values unless they are told not to."""
    return "use_cache" in inspect.signature(kind.forward).parameters


def _summed(index: int, logits: Tensor, labels: Tensor, kind: TaskKind, stride: int) -> _Batch:
    """The sums of one batch, accumulated in float64; `labels` have a row for each example."""
    count, of = len(labels), torch.arange(len(labels), device=labels.device)
    of, labels = of.repeat_interleave(labels.numel() // count), labels.reshape(-1)
    if kind == TaskKind.masked_lm:
        masked = labels != IGNORED
        logits, labels, of = logits[masked], labels[masked], of[masked]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    predicted = labels != IGNORED
    sums = torch.zeros(count, dtype=torch.float64, device=of.device).index_add_(0, of, losses.double())
    counts = torch.bincount(of[predicted], minlength=count).tolist()
    count = sum(counts)
    right = 0 if kind == TaskKind.causal_lm else int((logits.argmax(-1) == labels).sum())
    kept = None
    if stride:
        rows = predicted.nonzero().squeeze(-1)[(-index * count) % stride :: stride]
        kept = Predictions.of(logits[rows], labels[rows], float(losses[rows].sum(dtype=torch.float64)))
    return _Batch(index, float(losses.sum(dtype=torch.float64)), right, count, sums.tolist(), counts, kept)


def _calibrated(mine: list[_Batch], group: Group, loss: float) -> tuple[float, float | None]:
    """The loss with the best temperature, and that."""
    kept = group.gathered([(b.index, len(b.kept.right), b.kept.loss) for b in mine if b.kept is not None])
    count = max(sum(row[1] for row in kept), 1)
    before = sum(row[2] for row in kept) / count

    def mean(beta: float) -> Mean:
        rows = group.gathered([(b.index, *b.kept.sums(beta)) for b in mine if b.kept is not None])
        return sum(row[1] for row in rows) / count, sum(row[2] for row in rows) / count

    if not (math.isfinite(loss) and math.isfinite(before)):
        return math.nan, None
    beta, after = solve(mean)
    if not math.isfinite(after):
        return math.nan, None
    return (loss - (before - after), 1 / beta) if after < before else (loss, 1.0)


def _metrics(examples: Examples, loss: float, rows: list[tuple[Any, ...]]) -> dict[str, float]:
    accuracy = sum(row[2] for row in rows) / max(sum(row[3] for row in rows), 1)
    if examples.kind.classifies:
        return {"accuracy": accuracy}
    perplexity = math.exp(loss) if loss < 700 else math.inf if loss == loss else math.nan
    if examples.kind == TaskKind.masked_lm:
        return {"perplexity": perplexity, "accuracy": accuracy}
    characters = examples.facts.characters
    bits = {"bits_per_character": loss / math.log(2) / characters} if characters else {}
    return {"perplexity": perplexity, **bits}
