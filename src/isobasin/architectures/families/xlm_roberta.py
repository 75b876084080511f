"""XLM-RoBERTa: RoBERTa, names and all."""

from dataclasses import replace

from isobasin.architectures.families import roberta

FAMILY = replace(roberta.FAMILY, model_type="xlm-roberta", computes="roberta")
