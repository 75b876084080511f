"""Tied tensors stored apart: the same function, of the same class, in every family that transformers lets be untied."""

from __future__ import annotations

import json

import pytest
import torch

import isobasin
from contracts.checks import mostly_long, tensors
from isobasin.architectures.examples import EXAMPLES, tiny
from isobasin.canonical import open_canonical
from isobasin.checkpoints import write_checkpoint
from isobasin.errors import ArchitectureError, IsobasinWarning
from isobasin.loading import load
from isobasin.model import open_model
from isobasin.symmetries.stream import Basis
from isobasin.testing.assertions import assert_function_preserved

TIED = tuple(m.but({"tie_word_embeddings": True}, "tied") for m in EXAMPLES if not m.variant)
# Towers and encoders of images have no words.
WORDLESS = {
    *("vit", "deit", "dinov2", "dinov3_vit", "beit", "swin", "isobasin_vit", "clip", "siglip"),
    *("clip_text_model", "clip_vision_model", "siglip_text_model", "siglip_vision_model"),
}
# What normalises embeddings, what blocks return, or the sum holds the stream by itself; without gains nothing does.
HELD = {
    *("bloom", "modernbert", "gemma2", "gemma3_text", "olmo2", "olmo"),
    *("bert", "roberta", "xlm-roberta", "distilbert", "electra", "albert", "roformer", "mpnet", "isobasin_bert"),
}
# One for every kind of stream, names in another form, several pairs, and two sides.
QUICK = ("gpt2-tied", "llama-tied", "bert-tied", "bart-tied", "t5-tied", "vit-tied", "bloom-tied", "gemma3-tied")


@mostly_long(TIED, QUICK)
def test_a_tied_model_is_the_same_with_its_tensors_apart(model, saved, tmp_path):
    folder, out = saved(model), tmp_path / "apart"
    if model.model_type == "t5":
        with pytest.raises(ArchitectureError, match=r"ties its head whatever config.json says"):
            open_canonical(folder, untie=True).__enter__()
        return
    with open_canonical(folder) as tied, open_canonical(folder, untie=True) as opened:
        if model.model_type in WORDLESS:
            assert opened.checkpoint.original is None
            return
        assert set(tied.view.ties) <= set(opened.view.tensors)
        for name, own in tied.view.ties.items():
            assert torch.equal(opened.read([name])[name], tied.read([own])[own])
        write_checkpoint(opened.checkpoint, out, [])
    assert_function_preserved(folder, out, 0.0)
    assert '"tie_word_embeddings": true' not in (out / "config.json").read_text()  # nor in one nested there
    loaded = load(out, torch.float64)
    assert loaded.config.tie_word_embeddings is False
    loaded.save_pretrained(tmp_path / "again")
    assert tensors(tmp_path / "again").keys() == tensors(out).keys() > tensors(folder).keys()


@mostly_long([m for m in TIED if m.model_type not in WORDLESS], QUICK)
def test_what_a_tied_head_holds_is_free_without_it(model, saved, recwarn, tmp_path):
    folder = saved(model)
    try:
        with open_model(folder) as tied:
            before = tied.stream().group
    except ArchitectureError:
        return  # nothing is known of its stream
    with open_model(folder, untie=True) as opened:
        after = opened.stream().group
    freed, frees = {Basis.permutation: Basis.centred, Basis.signed: Basis.orthogonal}, model.model_type not in HELD
    assert after.basis is (freed[before.basis] if frees else before.basis)
    isobasin.align(folder, folder, scope="model", verify=False)
    said = [str(w.message) for w in recwarn if issubclass(w.category, IsobasinWarning)]
    assert [str(after) in line and str(before) in line for line in said] == [True] * frees


DECODERS = (tiny("gpt2", "apart"), tiny("llama", "apart", config={"tie_word_embeddings": True}), tiny("bert", "apart"))


@pytest.mark.parametrize("model", DECODERS, ids=str)
def test_a_scrambled_untied_model_is_found_again(model, saved, tmp_path):
    """From the tied file: the reference is read as it is, and the result is of its function and gauge."""
    folder, far, out, again = saved(model), tmp_path / "far", tmp_path / "out", tmp_path / "again"
    moved = isobasin.scramble(folder, far, scope="model", untie=True, seed=3, condition=4.0)
    assert moved.verified.equal
    assert moved.verified.max_rel > 0
    assert_function_preserved(folder, far, 1e-6, hidden=False)
    found = isobasin.align(folder, far, out, scope="model", untie=True)
    statistics = found.stream.statistics
    assert statistics.distance_after < 1e-7 * statistics.distance_before
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    # The same move made on the tied file.
    moved.alignment.apply(folder, again)
    assert all(torch.equal(x, tensors(far)[name]) for name, x in tensors(again).items())
    assert tensors(again).keys() == tensors(far).keys()
    isobasin.Alignment.load(far).inverse().apply(far, tmp_path / "back")
    with open_canonical(folder, untie=True) as opened:
        for name, x in opened.read(opened.view.tensors).items():
            stored = opened.view.stored(name)
            torch.testing.assert_close(tensors(tmp_path / "back")[stored], x, rtol=0, atol=1e-10)
