"""What every family must satisfy, as assertions on checkpoint folders; `test_planted_bugs` shows that they can fail."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import isobasin
from isobasin.alignment import Alignment
from isobasin.architectures.activations import activation_functions
from isobasin.architectures.feedforwards import FeedForward
from isobasin.architectures.registry import family
from isobasin.architectures.schema import Specification
from isobasin.architectures.tiny import TinyModel
from isobasin.beside import ALIGNMENT, CARD, RECIPE
from isobasin.model import open_model
from isobasin.symmetries.feedforward import FeedForwardWeights, feed_forward
from isobasin.symmetries.function import attend
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import relative_difference

Blocks = list[tuple[AttentionGroup, AttentionWeights]]
# One family, with its variants, for every kind of group and layout: at every scope.
THOROUGH = (
    *("vit", "bert", "distilbert", "gpt2", "opt", "llama", "qwen2", "gpt_neox", "gptj", "roformer"),
    *("isobasin_vit", "isobasin_bert", "isobasin_gpt2", "qwen3", "olmo2", "gpt_oss", "bloom", "falcon", "smollm3"),
    *("gpt_bigcode", "albert", "clip", "whisper", "qwen2_moe", "deepseek_v2"),
)
# Of them: one with free biases, grouped rotary heads, scores in float32, normalised heads, latents, unlike layers.
KINDS = ("bert", "llama", "gptj", "qwen3", "deepseek_v2", "isobasin_gpt2")
SCOPES = ("attention", "block", "model")


def at_scope(models: Iterable[TinyModel], scope: str) -> list[TinyModel]:
    """Those to test at a scope: at their widest all, at a narrower one those that no other family stands for."""
    chosen: list[TinyModel] = []
    for model in models:
        widest = SCOPES[1 + (family(model.model_type).stream is not None)]
        if scope == widest or (SCOPES.index(scope) < SCOPES.index(widest) and model.model_type in THOROUGH):
            chosen.append(model)
    return chosen


def thorough(models: Iterable[TinyModel], quick: Collection[str] | None = None) -> pytest.MarkDecorator:
    """Those of some models that no other family stands for, in `make test` only the `quick` ones, where given."""
    return mostly_long([m for m in models if m.model_type in THOROUGH], quick)


def mostly_long(models: Iterable[TinyModel], quick: Collection[str] | None) -> pytest.MarkDecorator:
    """Some models, in `make test` only the `quick` ones, where given."""
    cases = [pytest.param(m, marks=[pytest.mark.long] * (quick is not None and str(m) not in quick)) for m in models]
    return pytest.mark.parametrize("model", cases, ids=str)


def kinds(models: Iterable[TinyModel]) -> pytest.MarkDecorator:
    """One of some models for every kind: for what doesn't depend on the family."""
    return pytest.mark.parametrize("model", [m for m in models if str(m) in KINDS], ids=str)


def models_at(models: Iterable[TinyModel], name: str, *values: object) -> pytest.MarkDecorator:
    """Models at the last value of an argument, and one for every kind at all of them."""
    cases = [(m, v) for m in models for v in values if v == values[-1] or str(m) in KINDS]
    return pytest.mark.parametrize(("model", name), cases, ids=[f"{m}-{v}" for m, v in cases])


def specification(folder: Path) -> Specification:
    """What a checkpoint is; it is worked out once for as long as its files are these."""
    files = ((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir())
    return _specification(folder, frozenset(files))


@lru_cache(maxsize=256)
def _specification(folder: Path, files: frozenset[tuple[str, int, int]]) -> Specification:
    with open_model(folder) as model:
        return model.specification


def blocks(folder: Path) -> Blocks:
    """Group and weights of every layer of a checkpoint."""
    stored = tensors(folder)
    return [(block.group, block.read(stored)) for block in specification(folder).attention]


def assert_blocks_preserved(a: Blocks, b: Blocks, tolerance: float = 1e-9) -> None:
    """Every layer's plain attention in float64, at several lengths and offsets, with and without a causal mask."""
    generator = torch.Generator().manual_seed(7)
    for (group, one), (other_group, other) in zip(a, b, strict=True):
        assert group == other_group
        planes = max(len(group.rotary.planes), len(group.value_output.planes))
        frequencies = 1e4 ** -(torch.arange(planes, dtype=torch.float64) / max(planes, 1))
        for length, offset, causal in ((1, 0, False), (6, 0, True), (9, 5, False), (9, 1000, True)):
            hidden = torch.randn(2, length, one.width, generator=generator, dtype=torch.float64)
            angles = (torch.arange(length, dtype=torch.float64) + offset).unsqueeze(-1) * frequencies
            outputs = [attend(w, group, hidden, angles, causal) for w in (one, other)]
            found = relative_difference(*outputs)
            assert found <= tolerance, f"attend at length {length}, offset {offset} differs by {found:.3g}"


def relative_distances(a: AttentionWeights, b: AttentionWeights) -> dict[str, float]:
    """`||A - B|| / ||A||` of every weight and bias."""
    other = b.tensors()
    assert a.tensors().keys() == other.keys()
    return {name: float((t - other[name]).norm() / t.norm()) for name, t in a.tensors().items()}


def worst_distance(a: Blocks, b: Blocks) -> float:
    """The largest of `relative_distances` in any layer."""
    return max(max(relative_distances(x, y).values()) for (_, x), (_, y) in zip(a, b, strict=True))


def assert_recovered(original: Path, recovered: Path, tolerance: float) -> None:
    """Every attention tensor of a file is back: whole stored tensors, and each role in them."""
    for layer, ((_, x), (_, y)) in enumerate(zip(blocks(original), blocks(recovered), strict=True)):
        for name, found in relative_distances(x, y).items():
            assert found <= tolerance, f"layer {layer}: {name} is {found:.3g} from the original"
    assert_tensors_equal(original, recovered, attention_names(original), tolerance)


def assert_heads_undone(scrambled: Alignment, found: Alignment) -> None:
    """The permutation found is exactly the inverse of the scramble's, in every layer."""
    for one, other in zip(scrambled.layers, found.layers, strict=True):
        there, back = one.element.head_permutation(), other.element.head_permutation()
        assert torch.equal(there[back], torch.arange(len(there))), (there, back)


def recover(original: Path, folder: Path, *, seed: int, condition: float, tolerance: float) -> None:
    """Scramble, align back, and assert that weights and heads are as they were."""
    isobasin.scramble(original, folder / "scrambled", seed=seed, condition=condition, verify=False)
    assert_undone(original, folder / "scrambled", folder / "aligned", tolerance)


def assert_undone(original: Path, scrambled: Path, out: Path, tolerance: float) -> Alignment:
    """Aligning a scrambled model, into `out`, brings weights and heads back."""
    assert worst_distance(blocks(original), blocks(scrambled)) > 0.1
    found = isobasin.align(original, scrambled, out, verify=False)
    assert_heads_undone(Alignment.load(scrambled), found)
    assert_recovered(original, out, tolerance)
    return found


def weight_files(folder: Path) -> list[Path]:
    """The model's safetensors files."""
    return sorted(folder.glob("*.safetensors"))


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, as they are stored."""
    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dictionary
    return found


def header(path: Path) -> dict[str, object]:
    """The header of a safetensors file, offsets left out."""
    data = path.read_bytes()
    entries = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return {n: {k: v for k, v in e.items() if k != "data_offsets"} for n, e in entries.items()}


def attention_names(folder: Path) -> set[str]:
    """Names of all attention tensors."""
    return {name for block in specification(folder).attention for name in block.shapes()}


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)


def feedforward_blocks(folder: Path) -> tuple[FeedForward, ...]:
    """The feed-forward blocks of a checkpoint."""
    return specification(folder).feedforwards


def feedforwards(folder: Path) -> list[tuple[FeedForward, FeedForwardWeights]]:
    """Feed-forward block and its weights of every layer of a checkpoint."""
    stored = tensors(folder)
    return [(block, block.read(stored)) for block in feedforward_blocks(folder)]


def feedforward_names(folder: Path) -> set[str]:
    """Names of all feed-forward tensors."""
    return {name for block in feedforward_blocks(folder) for name in block.shapes()}


def assert_feedforwards_preserved(a: Path, b: Path, tolerance: float = 1e-9) -> None:
    """Every layer's plain feed-forward block in float64, at random hidden states."""
    generator = torch.Generator().manual_seed(7)
    for (block, one), (other_block, other) in zip(feedforwards(a), feedforwards(b), strict=True):
        assert (block.group, block.activation) == (other_block.group, other_block.activation)
        hidden = torch.randn(50, block.width, generator=generator, dtype=torch.float64)
        activation, multiplied = activation_functions(block.activation)
        outputs = [feed_forward(weights, activation, hidden, multiplied) for weights in (one, other)]
        found = relative_difference(*outputs)
        assert found <= tolerance, f"layer {block.layer}: feed-forward block differs by {found:.3g}"


def feedforward_distance(a: Path, b: Path) -> float:
    """The largest `||A - B|| / ||A||` of any weight or bias that moves with units."""
    pairs = zip(feedforwards(a), feedforwards(b), strict=True)
    parts = [(t, getattr(y, n)) for (_, x), (_, y) in pairs for n, t in x.tensors().items() if n != "down_bias"]
    return max(float((t - other).norm() / t.norm()) for t, other in parts)


def assert_tensors_equal(a: Path, b: Path, names: set[str], tolerance: float) -> None:
    """Every one of these stored tensors is the same up to a relative distance."""
    old, new = tensors(a), tensors(b)
    for name in names:
        found = float((new[name].double() - old[name].double()).norm() / old[name].double().norm())
        assert found <= tolerance, f"{name} is {found:.3g} from the original"


def assert_same_apart_from_attention(original: Path, moved: Path) -> None:
    """Shards, keys, dtypes, shapes, metadata and all other tensors and files are what they were, to the bit."""
    assert_same_apart_from(attention_names(original), original, moved)


def assert_same_apart_from(names: set[str], original: Path, moved: Path) -> None:
    """The same, apart from these tensors."""
    assert [p.name for p in weight_files(original)] == [p.name for p in weight_files(moved)]
    for path in weight_files(original):
        assert header(path) == header(moved / path.name)
        assert list(header(path)) == list(header(moved / path.name))
    old, new = tensors(original), tensors(moved)
    for name in old.keys() - names:
        assert torch.equal(bits(old[name]), bits(new[name])), name
    weights = {path.name for path in weight_files(original)}
    others = {str(p.relative_to(original)) for p in original.rglob("*") if p.is_file()} - weights
    own = {ALIGNMENT, CARD, RECIPE}
    others -= own
    for name in others:
        assert (original / name).read_bytes() == (moved / name).read_bytes(), name
    kept = {str(p.relative_to(moved)) for p in moved.rglob("*") if p.is_file()} - weights - own
    assert kept == others
