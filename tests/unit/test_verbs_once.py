"""What every verb does once for each model that it opens: read its configuration, and look for what its tensors are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch

import isobasin
from isobasin import model as opening
from isobasin.alignment import AnyMove, Move
from isobasin.architectures import description
from isobasin.architectures.description import Description
from isobasin.architectures.examples import tiny
from isobasin.architectures.view import View
from isobasin.checkpoints import Checkpoint
from isobasin.loading import classes
from isobasin.verbs import conflicts

Verb = Callable[[Path, Path, Path], object]

MOVE = "move.safetensors"
# Verb, how many models it opens (those that it writes and looks at too), and how often it has transformers load one.
VERBS: dict[str, tuple[Verb, int, int]] = {
    "align": (lambda a, b, out: isobasin.align(a, b, out), 3, 3),
    "align block": (lambda a, b, out: isobasin.align(a, b, out, scope="block"), 3, 3),
    "align model": (lambda a, b, out: isobasin.align(a, b, out, scope="model"), 3, 3),
    "align to nothing": (lambda a, b, out: isobasin.align(a, b, scope="model"), 2, 0),
    "apply": (lambda a, b, out: isobasin.Alignment.load(b.parent / MOVE).apply(b, out), 2, 3),
    "scramble": (lambda a, b, out: isobasin.scramble(b, out, scope="model"), 2, 3),
    "canonicalize": (lambda a, b, out: isobasin.canonicalize(b, out, scope="block"), 2, 3),
    "verify": (lambda a, b, out: isobasin.verify(a, b), 2, 5),
    "equivalent": (lambda a, b, out: isobasin.equivalent(a, b), 2, 0),
    "compare": (lambda a, b, out: isobasin.compare(a, b), 2, 0),
    "fingerprint": (lambda a, b, out: isobasin.fingerprint(a), 1, 0),
    "symmetry": (lambda a, b, out: isobasin.symmetry(a), 1, 0),
    # A model without values, to see whether the tensors fit: one for both, as they are alike.
    "check": (lambda a, b, out: isobasin.check([a, b]), 2, 1),
    "interpolate": (lambda a, b, out: isobasin.interpolate(a, b, 0.5, out), 2, 1),
    "merge": (lambda a, b, out: isobasin.merge([a, b], out, scope="model"), 3, 2),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    a, b = (tiny("gpt2").save(folder / name, seed, dtype=torch.float32) for seed, name in enumerate("ab"))
    isobasin.random_alignment(b, scope="block").save(folder / MOVE)
    return a, b


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a checkpoint is opened, a part of it is worked out, and transformers loads a model."""
    found: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            found[name] += 1
            return function(*args, **options)

        return call

    monkeypatch.setattr(Checkpoint, "open", counted("opened", Checkpoint.open))
    monkeypatch.setattr(View, "of", counted("viewed", View.of))
    monkeypatch.setattr(description, "described_by", counted("configured", description.described_by))
    stated = cached_property(counted("stated", Description.__dict__["specification"].func))
    stated.__set_name__(Description, "specification")
    monkeypatch.setattr(Description, "specification", stated)
    for name in ("specification", "check_feedforwards", "check_stream"):
        monkeypatch.setattr(opening, name, counted(name, getattr(opening, name)))
    act = Move.act

    def counted_act(move: AnyMove, weights: Any) -> Any:
        found["acted"] += 1
        return act(move, weights)

    monkeypatch.setattr(Move, "act", counted_act)
    monkeypatch.setattr(conflicts, "conflicts", counted("compared", conflicts.conflicts))
    # What other tests found out about such a model counts here.
    monkeypatch.setattr(classes, "_found", {})
    monkeypatch.setattr(classes, "pretrained", counted("loaded", classes.pretrained))
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_is_opened_and_resolved_once(verb: str, pair: tuple[Path, Path], counts: Counter[str], tmp_path: Path):
    run, models, loads = VERBS[verb]
    run(*pair, tmp_path / "out")
    assert (counts["opened"], counts["loaded"]) == (models, loads)
    assert counts["viewed"] == counts["configured"] == models
    for part in ("stated", "specification", "check_feedforwards", "check_stream"):
        assert counts[part] <= models, part


@pytest.mark.parametrize("verb", ["apply", "scramble", "canonicalize"])
def test_every_block_is_moved_once(verb: str, pair: tuple[Path, Path], counts: Counter[str], tmp_path: Path):
    VERBS[verb][0](*pair, tmp_path / "out")
    written = isobasin.Alignment.load(tmp_path / "out")
    assert counts["acted"] == written.blocks == 4
    assert all(0 < move.statistics.rounding < 1e-6 for move in written.layers)


@pytest.mark.parametrize("t", [0, 0.5, 1])
def test_what_stands_between_two_models_is_asked_once(t: float, counts: Counter[str], tmp_path: Path):
    a, b = (tiny("gpt2", config={"n_positions": n}).save(tmp_path / str(n), dtype=torch.float32) for n in (32, 40))
    if t == 0.5:
        with pytest.raises(isobasin.IsobasinError, match="has shape"):
            isobasin.interpolate(a, b, t, tmp_path / "out")
    else:
        isobasin.interpolate(a, b, t, tmp_path / "out")
    assert counts["compared"] == 1
