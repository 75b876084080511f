"""Each of these mistakes, planted in the code, is noticed: by the program's own verification, and by the contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import isobasin
from contracts.checks import assert_blocks_preserved, blocks, recover
from isobasin.architectures.blocks import AttentionBlock
from isobasin.architectures.examples import variant
from isobasin.architectures.families import (
    bert,
    deepseek_v3,
    dinov3_vit,
    gpt_neox,
    gptj,
    llama,
    modernbert,
    roformer,
)
from isobasin.architectures.layouts import half_planes, interleaved_planes
from isobasin.choices import Method
from isobasin.errors import VerificationError
from isobasin.matching import attention as matching, fits, heads, latents
from isobasin.symmetries import attention, permutation
from isobasin.symmetries.factor import Factor
from isobasin.symmetries.groups import AttentionGroup
from isobasin.symmetries.linear import Linear
from isobasin.symmetries.planes import Planes
from isobasin.symmetries.rotation import Rotation
from isobasin.symmetries.scale import GainScaling
from isobasin.symmetries.shift import KeyShift, Shift
from isobasin.symmetries.weights import AttentionWeights
from isobasin.testing.assertions import assert_function_preserved

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def wrong_planes(module: object) -> Plant:
    """Half order where pairs are interleaved, and the other way round."""

    def plant(patch: Patch) -> None:
        for right, wrong in (("half_planes", interleaved_planes), ("interleaved_planes", half_planes)):
            if hasattr(module, right):
                patch.setattr(module, right, wrong)

    return plant


def no_planes(patch: Patch) -> None:
    """Rotary positions forgotten: any invertible map on queries and keys."""
    patch.setattr(llama, "half_planes", lambda rotated: ())


def changed_act(change: Callable[[AttentionGroup, AttentionWeights, AttentionWeights], AttentionWeights]) -> Plant:
    """`act` with its result changed: `change(group, before, after)`."""

    def plant(patch: Patch) -> None:
        act = AttentionGroup.act

        def planted(group, element, weights):
            return change(group, attention.permute(weights, element.outer, element.inner), act(group, element, weights))

        patch.setattr(AttentionGroup, "act", planted)

    return plant


def unmoved(name: str) -> Plant:
    """One tensor forgotten: heads in their new order, but not transformed."""
    return changed_act(lambda group, before, after: replace(after, **{name: getattr(before, name)}))


def dropped(name: str) -> Plant:
    return changed_act(lambda group, before, after: replace(after, **{name: torch.zeros_like(getattr(after, name))}))


def untraded(patch: Patch) -> None:
    """The value bias is shifted, and the output bias isn't told."""
    unmoved("output_bias")(patch)


def traded_twice(patch: Patch) -> None:
    changed_act(lambda g, before, after: replace(after, output_bias=2 * after.output_bias - before.output_bias))(patch)


def traded_with_the_old_output(patch: Patch) -> None:
    def change(group: AttentionGroup, before: AttentionWeights, after: AttentionWeights) -> AttentionWeights:
        shift = torch.einsum("gm,gsdm->d", after.value_bias - before.value_bias, before.output)
        return replace(after, output_bias=before.output_bias - shift)

    changed_act(change)(patch)


def transposed_inverse(patch: Patch) -> None:
    """`R <- R U^{-T}`."""

    plain = Linear.right
    patch.setattr(Linear, "right", lambda self, u, x: plain(self, u.mT, x))


def untransposed_left(patch: Patch) -> None:
    """`L <- L U`."""
    plain = Linear.left
    patch.setattr(Linear, "left", lambda self, u, x: plain(self, u.mT, x))


def unconjugated(patch: Patch) -> None:
    """`r <- r / u` where it must be divided by the conjugate."""
    plain = Planes.right
    patch.setattr(Planes, "right", lambda self, u, x: plain(self, u.conj(), x))


def queries_left_in_place(patch: Patch) -> None:
    """Keys are permuted, the queries that read them are not."""
    plain = permutation.Heads.act
    patch.setattr(permutation.Heads, "act", lambda self, g, w: {**plain(self, g, w), "query": w["query"]})


def rotated_key_bias_shifted(patch: Patch) -> None:
    """A key bias taken as free although it rotates."""

    def change(group: AttentionGroup, before: AttentionWeights, after: AttentionWeights) -> AttentionWeights:
        return replace(after, key_bias=after.key_bias + 0.3)

    changed_act(change)(patch)


def swapped_parts(patch: Patch) -> None:
    """A fused tensor written with keys and values exchanged."""
    write = AttentionBlock.write
    patch.setattr(
        AttentionBlock, "write", lambda self, t, w: write(replace(self, key=self.value, value=self.key), t, w)
    )


def moved_neighbour(patch: Patch) -> None:
    """Elements applied to the wrong layer's tensors."""
    act = AttentionGroup.act

    def planted(group, element, weights):
        return act(group, element, weights.map(lambda t: t.flip(-2) if t.ndim > 1 else t))

    patch.setattr(AttentionGroup, "act", planted)


def gains_folded_only(patch: Patch) -> None:
    """The gains of latents stay in what reads them."""
    patch.setattr(GainScaling, "stored", lambda self, weights: weights)


def latent_scaled(patch: Patch) -> None:
    """A latent moved by more than its norm lets pass."""
    plain = Rotation.act
    patch.setattr(Rotation, "act", lambda self, g, w: plain(self, {self.part: 1.5 * g[self.part]}, w))


CHANGES_THE_FUNCTION: list[tuple[str, str, Plant]] = [
    ("wrong planes", "deepseek_v3", wrong_planes(deepseek_v3)),
    ("rotary key unmoved", "deepseek_v2", unmoved("rotary_key")),
    ("rotary key's bias unmoved", "deepseek_v3-biases", unmoved("rotary_key_bias")),
    ("latent's bias unmoved", "deepseek_v3-biases", unmoved("key_value_down_bias")),
    ("gains folded only", "deepseek_v2-query-latent", gains_folded_only),
    ("latent scaled", "deepseek_v3", latent_scaled),
    ("wrong planes", "llama", wrong_planes(llama)),
    ("wrong planes", "mistral", wrong_planes(llama)),
    ("wrong planes", "qwen2", wrong_planes(llama)),
    ("wrong planes", "gpt_neox", wrong_planes(gpt_neox)),
    ("wrong planes", "gptj", wrong_planes(gptj)),
    ("wrong planes", "roformer", wrong_planes(roformer)),
    ("wrong planes", "cohere", wrong_planes(llama)),
    ("wrong planes", "glm", wrong_planes(llama)),
    ("wrong planes", "modernbert", wrong_planes(modernbert)),
    ("wrong planes", "dinov3_vit", wrong_planes(dinov3_vit)),
    ("no planes", "llama", no_planes),
    ("no planes", "smollm3", no_planes),
    ("query bias unmoved", "gpt2", unmoved("query_bias")),
    ("query bias dropped", "bert", dropped("query_bias")),
    ("value bias dropped", "vit", dropped("value_bias")),
    ("value bias unmoved", "qwen2", unmoved("value_bias")),
    ("key bias dropped", "qwen2", dropped("key_bias")),
    ("key bias unmoved", "llama-biases", unmoved("key_bias")),
    ("key bias dropped", "gpt_neox", dropped("key_bias")),
    ("output bias dropped", "gpt2", dropped("output_bias")),
    ("value shift not traded", "distilbert", untraded),
    ("value shift not traded", "llama-biases", untraded),
    ("value shift traded twice", "opt", traded_twice),
    ("value shift traded with the old output", "deit", traded_with_the_old_output),
    ("transposed inverse", "gpt2", transposed_inverse),
    ("transposed inverse", "llama", transposed_inverse),
    ("untransposed", "bert", untransposed_left),
    ("no conjugate", "llama", unconjugated),
    ("no conjugate", "gptj", unconjugated),
    ("queries left in place", "vit", queries_left_in_place),
    ("queries left in place", "llama", queries_left_in_place),
    ("rotated key bias shifted", "qwen2", rotated_key_bias_shifted),
    ("keys and values exchanged", "gpt2", swapped_parts),
    ("keys and values exchanged", "gpt_neox", swapped_parts),
    ("keys and values exchanged", "falcon-grouped", swapped_parts),
    ("keys and values exchanged", "phi3", swapped_parts),
    ("rows moved", "roberta", moved_neighbour),
]


@pytest.mark.parametrize(
    ("name", "plant"), [pytest.param(n, p, id=f"{what}-{n}") for what, n, p in CHANGES_THE_FUNCTION]
)
def test_a_mistake_that_changes_the_function_is_refused(name, plant, saved, tmp_path, monkeypatch):
    """By the verb, which then writes nothing; by the whole model's outputs; and by the plain reference."""
    original, model = saved(variant(name)), variant(name)
    sound = blocks(original)
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises(VerificationError):
            isobasin.scramble(original, tmp_path / "out", seed=1, condition=5.0)
        assert not (tmp_path / "out").exists()
        isobasin.scramble(original, tmp_path / "wrong", seed=1, condition=5.0, verify=False)
    with pytest.raises(AssertionError):
        assert_function_preserved(original, tmp_path / "wrong", max(model.single.tolerance, 1e-4))
    with pytest.raises(AssertionError):
        assert_blocks_preserved(sound, blocks(tmp_path / "wrong"), 1e-6)


def inverse_permutation(patch: Patch) -> None:
    """`take` with the inverse: every result is still the same function, but heads end in another order."""
    plain = permutation.take
    patch.setattr(permutation, "take", lambda x, p: plain(x, p.argsort(-1)))


def inverse_assignment(patch: Patch) -> None:
    plain = heads._assigned

    def inverted(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outer, inner, margin = plain(costs)
        return outer.argsort(-1), inner.argsort(-1), margin

    patch.setattr(matching.heads, "_assigned", inverted)


def transposed_costs(patch: Patch) -> None:
    plain = heads._with_scores
    patch.setattr(matching.heads, "_with_scores", lambda *a: plain(*a).transpose(-4, -3).transpose(-2, -1))


def no_assignment(patch: Patch) -> None:
    def unchanged(costs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, s = costs.shape[-4], costs.shape[-2]
        batch = tuple(costs.shape[:-4])
        margin = costs.new_full(batch, torch.inf)
        return permutation.identity(batch, g), permutation.identity((*batch, g), s), margin

    patch.setattr(matching.heads, "_assigned", unchanged)


def no_shifts(patch: Patch) -> None:
    plain = fits.fit.dispatch(Factor)
    patch.setattr(
        matching, "fit", lambda factor, *rest: (plain if isinstance(factor, Shift) else fits.fit)(factor, *rest)
    )


def inverse_map(patch: Patch) -> None:
    """Stage 2's maps inverted."""
    solvers = matching._SOLVERS[Method.gauss_newton]

    def linear(core):
        solution = solvers.linear(core)
        return replace(solution, matrix=torch.linalg.inv(solution.matrix))

    patch.setitem(matching._SOLVERS, Method.gauss_newton, replace(solvers, linear=linear))


def conjugated_planes(patch: Patch) -> None:
    solvers = matching._SOLVERS[Method.gauss_newton]
    planes = solvers.planes
    wrong = replace(solvers, planes=lambda problem: planes(problem).conj())
    patch.setitem(matching._SOLVERS, Method.gauss_newton, wrong)


def latents_unmatched(patch: Patch) -> None:
    plain = latents.fit
    patch.setattr(latents, "fit", lambda group, a, b, readers=False: plain(group, b, b))


SPOILS_RECOVERY: list[tuple[str, str, Plant]] = [
    ("latents unmatched", "deepseek_v3", latents_unmatched),
    ("conjugated planes", "deepseek_v2", conjugated_planes),
    ("inverse permutation", "gpt2", inverse_permutation),
    ("inverse permutation", "llama-multi-head", inverse_permutation),
    ("inverse assignment", "bert", inverse_assignment),
    ("inverse assignment", "llama-multi-head", inverse_assignment),
    ("transposed costs", "gpt_neox", transposed_costs),
    ("no assignment", "vit", no_assignment),
    ("no assignment", "llama", no_assignment),
    ("no bias shifts", "opt", no_shifts),
    ("inverse map", "roberta", inverse_map),
    ("conjugated planes", "roformer", conjugated_planes),
]


@pytest.mark.parametrize(("name", "plant"), [pytest.param(n, p, id=f"{what}-{n}") for what, n, p in SPOILS_RECOVERY])
def test_a_mistake_that_keeps_the_function_spoils_recovery(name, plant, saved, tmp_path, monkeypatch):
    """What no comparison of outputs can see: the result is another member of the same orbit."""
    original = saved(variant(name))
    recover(original, tmp_path / "sound", seed=3, condition=5.0, tolerance=1e-8)
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        recover(original, tmp_path / "planted", seed=3, condition=5.0, tolerance=1e-8)


def test_an_inverse_permutation_breaks_composition(saved, tmp_path, monkeypatch):
    original = saved(variant("gpt2"))
    first, second = (isobasin.random_alignment(original, seed=seed, condition=3.0) for seed in (1, 2))

    def in_turn_and_at_once(folder: Path) -> None:
        isobasin.apply(first, original, folder / "first", verify=False)
        isobasin.apply(second, folder / "first", folder / "in-turn", verify=False)
        isobasin.apply(second.compose(first), original, folder / "at-once", verify=False)
        for (_, x), (_, y) in zip(blocks(folder / "in-turn"), blocks(folder / "at-once"), strict=True):
            for name, tensor in x.tensors().items():
                torch.testing.assert_close(tensor, y.tensors()[name])

    in_turn_and_at_once(tmp_path / "sound")
    inverse_permutation(monkeypatch)
    with pytest.raises(AssertionError):
        in_turn_and_at_once(tmp_path / "planted")


def test_a_dropped_free_key_bias_is_seen_by_recovery_only(saved, tmp_path, monkeypatch):
    """Softmax cancels this bias, so that verification rightly accepts any; only recovery misses it."""
    original = saved(variant("bert"))
    # In the factor, by which `align` moves what it writes as well.
    monkeypatch.setattr(KeyShift, "act", lambda self, g, w: {**w, self.weight: torch.zeros_like(w[self.weight])})
    assert isobasin.scramble(original, tmp_path / "out", seed=1).verified.equal
    with pytest.raises(AssertionError):
        recover(original, tmp_path, seed=1, condition=5.0, tolerance=1e-8)


def test_modules_that_are_patched_here_are_those_in_use():
    """The plants above would do nothing if a name moved."""
    assert matching.heads is heads
    assert not hasattr(bert, "half_planes")
    assert all(hasattr(module, "half_planes") for module in (llama, gpt_neox, modernbert, dinov3_vit))
    assert all(hasattr(module, "interleaved_planes") for module in (gptj, roformer, llama))
