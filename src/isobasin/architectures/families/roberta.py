"""RoBERTa: the attention of BERT."""

from isobasin.architectures.families import bert
from isobasin.architectures.family import Family

FAMILY = Family("roberta", ("roberta.",), bert.blocks)
