"""isobasin: bring two transformer checkpoints into the same basin with moves that never change what they compute.

The names below are the public API; nothing else is promised. They are loaded on first use, so that importing the
package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real one lies in typing, which takes longer to import than all of this
    from isobasin.alignment import Alignment as Alignment
    from isobasin.architectures.blocks import AttentionSite as AttentionSite
    from isobasin.architectures.feedforwards import ExpertsSite as ExpertsSite
    from isobasin.architectures.feedforwards import FeedForwardSite as FeedForwardSite
    from isobasin.architectures.projection import Layout as Layout
    from isobasin.architectures.projection import Projection as Projection
    from isobasin.architectures.schema import Specification as Specification
    from isobasin.certification.certify import BlockCertificate as BlockCertificate
    from isobasin.certification.certify import Certificate as Certificate
    from isobasin.certification.certify import certify as certify
    from isobasin.errors import IsobasinError as IsobasinError
    from isobasin.matching.attention import Match as Match
    from isobasin.matching.attention import match as match
    from isobasin.refinement.tensors import refine_tensors as refine_tensors
    from isobasin.symmetries.along import Along as Along
    from isobasin.symmetries.along import Role as Role
    from isobasin.symmetries.along import Stream as Stream
    from isobasin.symmetries.feedforward import FeedForwardGroup as FeedForwardGroup
    from isobasin.symmetries.feedforward import FeedForwardWeights as FeedForwardWeights
    from isobasin.symmetries.groups import AttentionGroup as AttentionGroup
    from isobasin.symmetries.groups import BilinearGroup as BilinearGroup
    from isobasin.symmetries.stream import Basis as Basis
    from isobasin.symmetries.stream import StreamGroup as StreamGroup
    from isobasin.symmetries.weights import AttentionWeights as AttentionWeights
    from isobasin.verbs.align import align as align
    from isobasin.verbs.align import align_tensors as align_tensors
    from isobasin.verbs.apply import Moved as Moved
    from isobasin.verbs.apply import apply as apply
    from isobasin.verbs.canonicalize import canonical_alignment as canonical_alignment
    from isobasin.verbs.canonicalize import canonicalize as canonicalize
    from isobasin.verbs.check import Check as Check
    from isobasin.verbs.check import check as check
    from isobasin.verbs.compare import Comparison as Comparison
    from isobasin.verbs.compare import compare as compare
    from isobasin.verbs.equivalent import Equivalence as Equivalence
    from isobasin.verbs.equivalent import equivalent as equivalent
    from isobasin.verbs.fingerprint import Fingerprint as Fingerprint
    from isobasin.verbs.fingerprint import fingerprint as fingerprint
    from isobasin.verbs.interpolate import interpolate as interpolate
    from isobasin.verbs.merge import Merged as Merged
    from isobasin.verbs.merge import merge as merge
    from isobasin.verbs.scramble import random_alignment as random_alignment
    from isobasin.verbs.scramble import scramble as scramble
    from isobasin.verbs.symmetry import Symmetry as Symmetry
    from isobasin.verbs.symmetry import symmetry as symmetry
    from isobasin.verbs.verify import verify as verify
    from isobasin.verification import Verification as Verification

__version__ = "0.1.0"

_HOMES = {
    "alignment": ("Alignment",),
    "architectures.blocks": ("AttentionSite",),
    "architectures.feedforwards": ("ExpertsSite", "FeedForwardSite"),
    "architectures.projection": ("Layout", "Projection"),
    "symmetries.along": ("Along", "Stream", "Role"),
    "architectures.schema": ("Specification",),
    "certification.certify": ("BlockCertificate", "Certificate", "certify"),
    "errors": ("IsobasinError",),
    "matching.attention": ("Match", "match"),
    "verbs.align": ("align", "align_tensors"),
    "verbs.canonicalize": ("canonical_alignment", "canonicalize"),
    "verbs.check": ("Check", "check"),
    "verbs.equivalent": ("Equivalence", "equivalent"),
    "verbs.interpolate": ("interpolate",),
    "verbs.symmetry": ("Symmetry", "symmetry"),
    "verbs.merge": ("Merged", "merge"),
    "verbs.apply": ("Moved", "apply"),
    "verbs.scramble": ("random_alignment", "scramble"),
    "verbs.verify": ("verify",),
    "verbs.compare": ("Comparison", "compare"),
    "verbs.fingerprint": ("Fingerprint", "fingerprint"),
    "refinement.tensors": ("refine_tensors",),
    "symmetries.feedforward": ("FeedForwardGroup", "FeedForwardWeights"),
    "symmetries.groups": ("AttentionGroup", "BilinearGroup"),
    "symmetries.stream": ("Basis", "StreamGroup"),
    "symmetries.weights": ("AttentionWeights",),
    "verification": ("Verification",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Alignment",
    "Along",
    "AttentionGroup",
    "AttentionSite",
    "AttentionWeights",
    "Basis",
    "BilinearGroup",
    "Check",
    "Comparison",
    "Equivalence",
    "ExpertsSite",
    "FeedForwardGroup",
    "FeedForwardSite",
    "FeedForwardWeights",
    "Fingerprint",
    "IsobasinError",
    "Layout",
    "Match",
    "Merged",
    "Moved",
    "Projection",
    "Stream",
    "StreamGroup",
    "Role",
    "Specification",
    "Symmetry",
    "Verification",
    "BlockCertificate",
    "Certificate",
    "__version__",
    "align",
    "align_tensors",
    "apply",
    "canonical_alignment",
    "canonicalize",
    "certify",
    "check",
    "compare",
    "equivalent",
    "fingerprint",
    "interpolate",
    "match",
    "merge",
    "random_alignment",
    "refine_tensors",
    "scramble",
    "symmetry",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'isobasin' has no attribute {name!r}")
    return getattr(import_module(f"isobasin.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
