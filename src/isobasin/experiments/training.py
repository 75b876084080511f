"""Training with transformers' Trainer: what the settings say, resumable, and the same result every time."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from isobasin.choices import Device
from isobasin.errors import EXPERIMENT_EXTRA, DependencyError, TrainingError
from isobasin.experiments.models import stream
from isobasin.experiments.settings import TrainingSettings
from isobasin.loading import like, quiet_transformers
from isobasin.verbs.settings import chosen_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from isobasin.tasks.examples import Examples

Progress = Callable[[int, int], None]
Batch = dict[str, Tensor]

_STATE = "trainer_state.json"
# Losses in a log, about so many.
_SAMPLES = 100


@dataclass(frozen=True)
class TrainingLog:
    """What happened.

    Attributes:
        losses: `(step, loss)`: means over the steps since the entry before.
        final_loss: The last of them.
        steps: Optimiser steps of the whole training.
    """

    losses: tuple[tuple[int, float], ...]
    final_loss: float
    steps: int


def train(
    model: PreTrainedModel,
    examples: Examples,
    settings: TrainingSettings,
    *,
    seed: int,
    folder: Path,
    device: str = "cpu",
    progress: Progress | None = None,
) -> TrainingLog:
    """Train those parameters of a model that require gradients, in place.

    On one machine the result follows from the arguments to the bit, also where an interrupted training was resumed.
    Every pass over the examples has an order of its own; what is left over at its end, less than a batch, is skipped.
    As always with Trainer, biases and norms have no weight decay.

    Args:
        model: With a head that returns a loss. It ends in evaluation mode, on the device that it was on.
        examples: The training data, with "labels".
        settings: Steps, rate, and so on.
        seed: Of the batches and of the dropout.
        folder: Where states to resume from are kept, under `trainer`; they are removed at the end.
        device: Where the work is done; of CUDA devices the first one is used.
        progress: Called with the steps done and all steps, after each.

    Raises:
        TrainingError: There are no examples, or the schedule is unknown.
        DependencyError: accelerate is missing, or the device.
    """
    home = model.device
    states = folder / "trainer"
    device = chosen_device(device)
    _check(examples, settings, device)
    with quiet_transformers(), _own_randomness(device), _kept_configuration(model):
        trainer = _trainer(model, examples, settings, seed, states, device, progress)
        state = _last_state(states)
        if state is not None:
            _load_weights(model, state)
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
    shutil.rmtree(states, ignore_errors=True)
    model.to(home).eval()  # pyright: ignore[reportArgumentType]
    losses = tuple((int(entry["step"]), float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry)
    return TrainingLog(losses, losses[-1][1], settings.steps)


def _check(examples: Examples, settings: TrainingSettings, device: str) -> None:
    from transformers.trainer_utils import SchedulerType
    from transformers.utils.import_utils import is_accelerate_available

    if not is_accelerate_available():
        raise DependencyError(f"training needs accelerate: {EXPERIMENT_EXTRA}")
    if device not in list(Device):
        raise DependencyError(
            f"device {device!r}: training takes the first CUDA device that it sees; use --device cuda, and "
            "CUDA_VISIBLE_DEVICES=N to say which that is"
        )
    if not len(examples):
        raise TrainingError("there are no examples to train on")
    schedules = [schedule.value for schedule in SchedulerType]
    if settings.schedule not in schedules:
        raise TrainingError(f"unknown schedule {settings.schedule!r}: transformers has {', '.join(schedules)}")


class _Batches(Dataset[Batch]):
    """Examples, fetched a whole batch at a time: one call is far quicker than one for each example."""

    def __init__(self, examples: Examples) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Batch:
        return self._examples.fetch([index])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self._examples.fetch(indices)


def _as_it_is(batch: Any) -> Batch:
    return batch


def _trainer(
    model: PreTrainedModel,
    examples: Examples,
    settings: TrainingSettings,
    seed: int,
    states: Path,
    device: str,
    progress: Progress | None,
) -> Any:
    import transformers

    class Steps(transformers.TrainerCallback):
        """Tells the progress."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= settings.steps:
                control.should_save = False  # the model is about to be returned
            if progress is not None:
                progress(state.global_step, settings.steps)

    class Uncounted(transformers.Trainer):
        """Doesn't count floating-point operations, which takes a noticeable share of a tiny model's step."""

        def floating_point_ops(self, inputs: Any) -> int:
            return 0

    trainer = Uncounted(
        model=model,
        args=_arguments(settings, len(examples), seed, states, device),
        train_dataset=_Batches(examples),
        data_collator=_as_it_is,
        callbacks=[Steps()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _arguments(settings: TrainingSettings, examples: int, seed: int, states: Path, device: str) -> Any:
    from transformers import TrainingArguments

    # Pass n of a sampler with seed s has the order of s + n: neighbouring seeds would share their batches.
    seed = stream("training", seed)
    arguments = TrainingArguments(
        output_dir=str(states),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        dataloader_drop_last=examples >= settings.batch,
        learning_rate=settings.rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.clip,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        logging_steps=_logging_steps(settings),
        logging_nan_inf_filter=False,
        save_strategy="no" if settings.save_every is None else "steps",
        save_steps=settings.save_every or settings.steps,
        save_total_limit=1,
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if device == "cuda":
        # Otherwise several devices would share each step, and a batch be as many times larger.
        arguments._n_gpu = min(arguments.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
    return arguments


def _logging_steps(settings: TrainingSettings) -> int:
    """Steps between logged losses: a state doesn't have the loss since the last one, so one is logged before each."""
    wanted = max(1, settings.steps // _SAMPLES)
    every = settings.save_every or wanted
    return max(step for step in range(1, wanted + 1) if every % step == 0)


def _last_state(states: Path) -> Path | None:
    """The last state that was written completely; others are removed."""
    found: dict[int, Path] = {}
    for folder in states.glob("checkpoint-*"):
        try:
            # Written after everything else.
            found[json.loads((folder / _STATE).read_text())["global_step"]] = folder
        except (OSError, ValueError, KeyError):
            shutil.rmtree(folder)
    return found[max(found)] if found else None


@torch.no_grad()
def _load_weights(model: PreTrainedModel, state: Path) -> None:
    """Load a state's weights, which Trainer doesn't where a model's tensors have other names on disk than in memory."""
    model.load_state_dict(like(model, state, model.dtype).state_dict())


@contextmanager
def _kept_configuration(model: PreTrainedModel) -> Generator[None]:
    """Trainer switches caching off in the configuration; it is put back."""
    values = vars(model.config)
    before = dict(values)
    try:
        yield
    finally:
        values.clear()
        values.update(before)


@contextmanager
def _own_randomness(device: str) -> Generator[None]:
    """Put the global generators back, which Trainer seeds; on CUDA, take deterministic kernels."""
    python, arrays = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
        if device == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            random.setstate(python)
            np.random.set_state(arrays)
