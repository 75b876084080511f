"""RoBERTa: the blocks of BERT."""

from isobasin.architectures.families import bert
from isobasin.architectures.family import Family

FAMILY = Family("roberta", ("roberta.",), bert.blocks, feedforwards=bert.feedforwards)
