"""ELECTRA: the blocks of BERT. Embeddings of another width are outside the blocks."""

from isobasin.architectures.families import bert
from isobasin.architectures.family import Family

FAMILY = Family("electra", ("electra.",), bert.blocks, feedforwards=bert.feedforwards)
