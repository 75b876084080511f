"""Small files in every format, and small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` stores of the files goes to a temporary folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(tmp_path_factory.mktemp("extracted")))


@pytest.fixture
def vit():
    """A tiny ViT for gray images of 8 x 8, or others."""

    def build(channels: int = 1, size: int = 8, labels: int = 3, seed: int = 0, **options):
        import transformers

        config = transformers.ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=size,
            patch_size=4,
            num_channels=channels,
            num_labels=labels,
            **options,
        )
        torch.manual_seed(seed)
        return transformers.ViTForImageClassification(config).eval()

    return build


@pytest.fixture
def bert():
    def build(head: str = "BertForSequenceClassification", vocabulary: int = 60, labels: int = 2, **options):
        import transformers

        config = transformers.BertConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            num_labels=labels,
            **options,
        )
        torch.manual_seed(0)
        return getattr(transformers, head)(config).eval()

    return build


@pytest.fixture
def gpt2():
    def build(vocabulary: int = 40, positions: int = 16, **options):
        import transformers

        config = transformers.GPT2Config(
            vocab_size=vocabulary, n_positions=positions, n_embd=16, n_layer=1, n_head=2, **options
        )
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()

    return build


@pytest.fixture
def written(tmp_path: Path):
    """Write a text file, compressed if its name says so."""

    def write(name: str, text: str) -> Path:
        import gzip
        import lzma

        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        path.write_bytes({".xz": lzma.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(data))
        return path

    return write
