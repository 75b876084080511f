"""Every verb in many situations: families, heads, stored forms of one function, configurations and weights that differ.

Each outcome is checked with the outputs that transformers computes, loaded here and not by isobasin.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from typer.main import get_command

from isobasin.architectures.tiny import TinyModel
from isobasin.cli.program import app
from isobasin.model import open_model
from isobasin.testing.assertions import model_inputs, outputs, relative_difference

from .forms import FORMS, edit_config, edit_tensors

VERBS = ("verify", "equivalent", "compare", "align", "align --scope model", "merge", "interpolate")
RIGHT, REFUSED, WRONG, CRASHED = "right", "refused", "wrong", "crashed"
# Two forms of one model load as the very same numbers. What was moved was rounded to float32 once.
_EQUAL, _ROUNDED = 1e-9, 1e-3


@dataclass(frozen=True)
class Run:
    """What a command came to."""

    code: int
    text: str

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return (self.text.strip().splitlines() or [""])[-1][:300]


def call(*arguments: object) -> Run:
    """A command in this process."""
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            get_command(app)([str(argument) for argument in arguments], prog_name="isobasin")
        except SystemExit as end:
            code = int(end.code or 0)
    return Run(code, out.getvalue())


@dataclass(frozen=True)
class Situation:
    """Three folders of one kind of model.

    Attributes:
        kind: The row of the table.
        model: Its configuration.
        a: An independent model.
        b: Another.
        given: What the situation makes of `b`.
        same: Whether `given` computes what `b` computes.
        averaged: Whether a mean of `a` and `given` is that of `a` and `b`; False: it has no meaning, and is to be
            refused. None: it is another one.
    """

    kind: str
    model: TinyModel
    a: Path
    b: Path
    given: Path
    same: bool
    averaged: bool | None = True

    def loaded(self, folder: Path) -> Any:
        """A folder's model in float64, as transformers loads it under the usual class."""
        how: dict[str, Any] = {"attn_implementation": self.model.attention, "experts_implementation": "eager"}
        return self.model.architecture().from_pretrained(folder, dtype=torch.float64, **how).eval()

    def computed(self, folder: Path) -> list[dict[str, Tensor]]:
        """What it computes on random inputs, the same ones for all."""
        module = self.loaded(folder)
        return [outputs(module, inputs) for _, inputs in model_inputs(module)]

    def apart(self, one: Path, other: Path) -> float:
        """How far two folders' outputs are apart; hidden states may be in another basis, where there are others."""
        pair = [self.computed(folder) for folder in (one, other)]
        names = [name for name in pair[0][0] if "hidden" not in name] or list(pair[0][0])
        return max(relative_difference(x[n], y[n]) for x, y in zip(*pair, strict=True) for n in names)


def judged(situation: Situation, verb: str, work: Path) -> tuple[str, Run]:
    """What a verb came to, and whether that is right."""
    given, a, b, out = situation.given, situation.a, situation.b, work / "out"
    if verb in ("verify", "equivalent", "compare"):
        run = call(verb, b, given)
        said = "same function" in run.text if verb == "compare" else run.code == 0
        return outcome(run, lambda: said == situation.same), run
    shutil.rmtree(out, ignore_errors=True)
    run = call(*_line(verb), a, given, "-o", out)
    if verb.startswith("align"):
        return outcome(run, lambda: situation.apart(given, out) < _ROUNDED), run
    if situation.averaged is False:
        return (RIGHT if run.code == 2 else outcome(run, lambda: False)), run
    return outcome(run, lambda: _is_mean(situation, verb, out, work / "whole")), run


def _line(verb: str) -> list[str]:
    """What is called: the models have random weights, which are refused as unrelated."""
    return [*verb.split(), *(["--force-unrelated"] if verb == "merge" else [])]


def _is_mean(situation: Situation, verb: str, out: Path, whole: Path) -> bool:
    """Whether a mean computes what that of the usual forms computes; its outputs are finite where there is none."""
    if situation.averaged is None:
        return all(value.isfinite().all() for found in situation.computed(out) for value in found.values())
    shutil.rmtree(whole, ignore_errors=True)
    call(*_line(verb), situation.a, situation.b, "-o", whole)
    return situation.apart(whole, out) < _ROUNDED


def outcome(run: Run, right: Callable[[], bool]) -> str:
    """What a run came to; one line and exit code 2 is never wrong."""
    if run.code not in (0, 1, 2) or "Traceback" in run.text:
        return CRASHED
    if run.code == 2:
        return REFUSED
    return RIGHT if right() else WRONG


@dataclass
class Tally:
    """Outcomes by kind of situation and verb, and a line for each that is not right."""

    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    situations: Counter[str] = field(default_factory=Counter)
    lines: list[str] = field(default_factory=list[str])

    def add(self, situation: Situation, work: Path) -> None:
        """Run every verb in a situation."""
        self.situations[situation.kind] += 1
        for verb in VERBS:
            found, run = judged(situation, verb, work)
            self.counts[situation.kind, verb][found] += 1
            if found != RIGHT:
                self.lines.append(f"{found}: {situation.model}, {situation.kind}, {verb}: {run.last}")

    @property
    def failed(self) -> bool:
        """Whether anything was wrong or crashed."""
        return any(count[WRONG] or count[CRASHED] for count in self.counts.values())

    def table(self) -> Iterator[str]:
        """Markdown: a row a kind of situation, a column a verb."""
        yield f"| situation | models | {' | '.join(VERBS)} |"
        yield "|---|---:|" + "---|" * len(VERBS)
        for kind, number in self.situations.items():
            cells = (self._cell(self.counts[kind, verb]) for verb in VERBS)
            yield f"| {kind} | {number} | {' | '.join(cells)} |"

    @staticmethod
    def _cell(count: Counter[str]) -> str:
        return ", ".join(f"{count[found]} {found}" for found in (RIGHT, REFUSED, WRONG, CRASHED) if count[found])


def in_forms(model: TinyModel, home: Path) -> Iterator[Situation]:
    """Every stored form in which transformers takes the files for the same model."""
    a, b = (model.save(home / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
    for kind, form in FORMS.items():
        given = Path(shutil.copytree(b, home / kind.replace(" ", "-")))
        situation = Situation(f"form: {kind}", model, a, b, given, same=True)
        with contextlib.suppress(RuntimeError):  # transformers doesn't load it: no form of this model
            if form(given) and situation.apart(b, given) < _EQUAL:
                yield situation


_HEADS = {
    "sequence classifier": transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "token classifier": transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    "question answering": transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    "no head": transformers.MODEL_MAPPING,
}


def under_heads(model: TinyModel, home: Path) -> Iterator[Situation]:
    """Other heads that transformers has for a model type."""
    usual = getattr(transformers, model.head, None)
    if usual is None:
        return
    for kind, known in _HEADS.items():
        found = known.get(usual.config_class, None)
        if not isinstance(found, type) or found is usual:
            continue
        other = replace(model, head=found.__name__)
        folder = home / kind.replace(" ", "-")
        a, b = (other.save(folder / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
        yield Situation(f"head: {kind}", other, a, b, b, same=True)


def _faster(config: dict[str, Any]) -> dict[str, Any]:
    rope = config.get("rope_parameters")
    return config | ({"rope_parameters": {**rope, "rope_theta": 100.0}} if rope and "rope_theta" in rope else {})


def _activated(config: dict[str, Any]) -> dict[str, Any]:
    names = ("hidden_act", "activation_function", "hidden_activation", "activation")
    return config | {name: "tanh" for name in names if name in config}


_MEANINGS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "rotary base": _faster,
    "epsilon": lambda config: config | {name: 0.5 for name in config if name.endswith(("_eps", "_epsilon"))},
    "activation": _activated,
    "window": lambda config: config | ({"sliding_window": 3} if "sliding_window" in config else {}),
    "entries that only training reads": lambda config: (
        config | {name: 0.3 for name in config if "dropout" in name or name.endswith("_pdrop")} | {"use_cache": False}
    ),
}


def with_meanings(model: TinyModel, home: Path) -> Iterator[Situation]:
    """The same tensors under another configuration."""
    a, b = (model.save(home / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
    for kind, change in _MEANINGS.items():
        given = Path(shutil.copytree(b, home / kind.replace(" ", "-")))
        if not edit_config(given, change):
            continue
        situation = Situation(f"configuration: {kind}", model, a, b, given, same=True)
        with contextlib.suppress(RuntimeError, ValueError, KeyError):
            same = situation.apart(b, given) < _EQUAL
            yield replace(situation, same=same, averaged=same)


def _beheaded(folder: Path) -> None:
    """Remove the first head of the first layer: what it writes is zero."""
    with open_model(folder) as model:
        block = model.specification.attention[0]
        stored = model.stored(block)
        weights = block.read(stored)
        weights.output[0] = 0
        moved = block.write(stored, weights)
    edit_tensors(folder, lambda tensors: tensors | {n: t.to(tensors[n].dtype) for n, t in moved.items()})


def _tuned(folder: Path) -> None:
    """Move every value by about a hundredth of its tensor's size."""
    generator = torch.Generator().manual_seed(5)

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        noise = {n: torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
        return {n: t + (0.01 * t.std(correction=0) * noise[n]).to(t.dtype) for n, t in tensors.items()}

    edit_tensors(folder, change)


def with_weights(model: TinyModel, home: Path) -> Iterator[Situation]:
    """The same configuration with other weights: the same function, or nearly."""
    a, b = (model.save(home / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
    made = call("scramble", b, "-o", home / "scrambled")
    assert made.code == 0, made.text
    # Without alignment its mean with another model is another one; with it the solver may end in another minimum.
    yield Situation("weights: scrambled", model, a, b, home / "scrambled", same=True, averaged=None)
    for kind, change in (("one head removed", _beheaded), ("fine-tuned", _tuned)):
        given = Path(shutil.copytree(b, home / kind.replace(" ", "-")))
        change(given)
        yield Situation(f"weights: {kind}", model, a, b, given, same=False, averaged=None)


def with_rows(model: TinyModel, home: Path) -> Iterator[Situation]:
    """Tables and heads of another number of rows."""
    for kind, entry in (("vocabulary", "vocab_size"), ("positions", "max_position_embeddings")):
        if entry not in model.config:
            continue
        other = replace(model, config={**model.config, entry: model.config[entry] + 8})
        folder = home / kind
        a = model.save(folder / "a", 0, dtype=torch.float32)
        b = other.save(folder / "b", 1, dtype=torch.float32)
        shapes = ({n: t.shape for n, t in load_file(x / "model.safetensors").items()} for x in (a, b))
        if len({json.dumps(found) for found in shapes}) > 1:
            yield Situation(f"rows: {kind}", other, a, b, b, same=True, averaged=None)


Kind = Callable[[TinyModel, Path], Iterator[Situation]]
KINDS: tuple[Kind, ...] = (in_forms, under_heads, with_meanings, with_weights, with_rows)
"""Each gives the situations of a model, in a folder of its own."""
