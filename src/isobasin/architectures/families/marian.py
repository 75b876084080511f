"""Marian: the blocks of BART; its two sides may have embeddings of their own."""

from dataclasses import replace

from isobasin.architectures.configuration import Config
from isobasin.architectures.families import bart


def ties(config: Config) -> dict[str, str]:
    """What is tied where both sides and the head have one table."""
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    return dict.fromkeys(tied, "shared.weight") if config.share_encoder_decoder_embeddings else {}


FAMILY = replace(bart.FAMILY, model_type="marian", ties=ties)
