"""isobasin: bring two transformer checkpoints into the same basin with moves that never change what they compute.

The names below are the public API; nothing else is promised. They are loaded on first use, so that importing the
package costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module

# Blocks of weights are allocated again and again, and the system hands out small pages at half the speed of copying:
# torch asks for large ones if this is set before its first tensor.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

TYPE_CHECKING = False
if TYPE_CHECKING:  # the real one lies in typing, which takes longer to import than all of this
    from isobasin.alignment.moves import Kind as Kind, Move as Move, Statistics as Statistics
    from isobasin.alignment.stream import Turned as Turned
    from isobasin.architectures.blocks import AttentionBlock as AttentionBlock, Block as Block
    from isobasin.architectures.feedforwards import ExpertsBlock as ExpertsBlock, FeedForwardBlock as FeedForwardBlock
    from isobasin.architectures.projection import Layout as Layout, Projection as Projection
    from isobasin.architectures.schema import Specification as Specification
    from isobasin.certification.certify import (
        BlockCertificate as BlockCertificate,
        Certificate as Certificate,
        certify as certify,
    )
    from isobasin.checkpoints.upload import push_to_hub as push_to_hub
    from isobasin.choices import (
        Costs as Costs,
        HeadCost as HeadCost,
        MergeMethod as MergeMethod,
        Method as Method,
        Objective as Objective,
        Readout as Readout,
        Rounding as Rounding,
        Scope as Scope,
        Space as Space,
        Targets as Targets,
        TaskKind as TaskKind,
        Way as Way,
    )
    from isobasin.diagnosis.findings import Defect as Defect, Finding as Finding
    from isobasin.errors import IsobasinError as IsobasinError
    from isobasin.execution.cluster import Cluster as Cluster
    from isobasin.execution.local import Processes as Processes
    from isobasin.execution.tasks import Engine as Engine, Failure as Failure, Listener as Listener, Task as Task
    from isobasin.lines.ends import Measuring as Measuring
    from isobasin.lines.path import LossCurve as LossCurve
    from isobasin.matching.attention import Match as Match, match as match
    from isobasin.matching.circuits import Degeneracy as Degeneracy
    from isobasin.matching.sides import Sides as Sides
    from isobasin.model import Blocks as Blocks
    from isobasin.quantisation.gauge import Gauged as Gauged, gauge as gauge
    from isobasin.quantisation.objectives import RoundingCost as RoundingCost
    from isobasin.refinement.descent import Refined as Refined
    from isobasin.refinement.recipe import Refining as Refining
    from isobasin.refinement.refine import Refinement as Refinement, refine as refine
    from isobasin.refinement.tensors import refine_tensors as refine_tensors
    from isobasin.reports.barriers import Barriers as Barriers, MeasuredLine as MeasuredLine, barrier as barrier
    from isobasin.symmetries.along import Along as Along, Norm as Norm, Reader as Reader, Role as Role, Stream as Stream
    from isobasin.symmetries.attention import AttentionElement as AttentionElement
    from isobasin.symmetries.bilinear import Bilinear as Bilinear, Roles as Roles
    from isobasin.symmetries.factor import Factor as Factor
    from isobasin.symmetries.feedforward import (
        FeedForwardElement as FeedForwardElement,
        FeedForwardGroup as FeedForwardGroup,
        FeedForwardWeights as FeedForwardWeights,
    )
    from isobasin.symmetries.groups import (
        AttentionGroup as AttentionGroup,
        BilinearGroup as BilinearGroup,
        LatentGroup as LatentGroup,
        QueryKeyNorm as QueryKeyNorm,
    )
    from isobasin.symmetries.loose import Loose as Loose
    from isobasin.symmetries.normed import Normed as Normed
    from isobasin.symmetries.product import Element as Element
    from isobasin.symmetries.scale import Scale as Scale
    from isobasin.symmetries.stream import Basis as Basis, StreamElement as StreamElement, StreamGroup as StreamGroup
    from isobasin.symmetries.weights import AttentionWeights as AttentionWeights
    from isobasin.tasks.examples import Examples as Examples
    from isobasin.tasks.options import DataFacts as DataFacts, DataOptions as DataOptions
    from isobasin.verbs.align import align as align, align_tensors as align_tensors
    from isobasin.verbs.apply import Alignment as Alignment, Moved as Moved, apply as apply
    from isobasin.verbs.canonicalize import canonical_alignment as canonical_alignment, canonicalize as canonicalize
    from isobasin.verbs.check import Check as Check, Matchable as Matchable, PairCheck as PairCheck, check as check
    from isobasin.verbs.compare import (
        BlockScore as BlockScore,
        Comparison as Comparison,
        Verdict as Verdict,
        compare as compare,
    )
    from isobasin.verbs.conflicts import Conflict as Conflict, Option as Option
    from isobasin.verbs.diagnose import Diagnosis as Diagnosis, Judgement as Judgement, diagnose as diagnose
    from isobasin.verbs.equivalent import (
        Equivalence as Equivalence,
        LayerEvidence as LayerEvidence,
        equivalent as equivalent,
    )
    from isobasin.verbs.fingerprint import Fingerprint as Fingerprint, fingerprint as fingerprint
    from isobasin.verbs.interpolate import interpolate as interpolate
    from isobasin.verbs.kinship import StreamScore as StreamScore
    from isobasin.verbs.merge import Merged as Merged, Truncation as Truncation, merge as merge
    from isobasin.verbs.relatedness import Relation as Relation
    from isobasin.verbs.scan import Kin as Kin, LayerPair as LayerPair, Scan as Scan, scan as scan
    from isobasin.verbs.scramble import random_alignment as random_alignment, scramble as scramble
    from isobasin.verbs.settings import (
        Calibration as Calibration,
        Evaluating as Evaluating,
        Matching as Matching,
        Running as Running,
    )
    from isobasin.verbs.symmetry import (
        BlockSymmetry as BlockSymmetry,
        FeedForwardSymmetry as FeedForwardSymmetry,
        LayerSymmetry as LayerSymmetry,
        Symmetry as Symmetry,
        symmetry as symmetry,
    )
    from isobasin.verbs.transport import Transported as Transported, transport as transport
    from isobasin.verbs.verify import verify as verify
    from isobasin.verification import Verification as Verification
    from isobasin.verification.distance import Distance as Distance

__version__ = "0.2.0"

_HOMES = {
    "alignment.moves": "Kind Move Statistics",
    "alignment.stream": "Turned",
    "architectures.blocks": "AttentionBlock Block",
    "architectures.feedforwards": "ExpertsBlock FeedForwardBlock",
    "architectures.projection": "Layout Projection",
    "architectures.schema": "Specification",
    "certification.certify": "BlockCertificate Certificate certify",
    "checkpoints.upload": "push_to_hub",
    "choices": "Costs HeadCost MergeMethod Method Objective Readout Rounding Scope Space Targets TaskKind Way",
    "diagnosis.findings": "Defect Finding",
    "errors": "IsobasinError",
    "execution.cluster": "Cluster",
    "execution.local": "Processes",
    "execution.tasks": "Engine Failure Listener Task",
    "matching.attention": "Match match",
    "matching.circuits": "Degeneracy",
    "matching.sides": "Sides",
    "lines.ends": "Measuring",
    "lines.path": "LossCurve",
    "model": "Blocks",
    "quantisation.gauge": "Gauged gauge",
    "quantisation.objectives": "RoundingCost",
    "refinement.descent": "Refined",
    "refinement.recipe": "Refining",
    "refinement.refine": "Refinement refine",
    "refinement.tensors": "refine_tensors",
    "reports.barriers": "Barriers MeasuredLine barrier",
    "symmetries.along": "Along Norm Reader Role Stream",
    "symmetries.attention": "AttentionElement",
    "symmetries.bilinear": "Bilinear Roles",
    "symmetries.factor": "Factor",
    "symmetries.feedforward": "FeedForwardElement FeedForwardGroup FeedForwardWeights",
    "symmetries.groups": "AttentionGroup BilinearGroup LatentGroup QueryKeyNorm",
    "symmetries.loose": "Loose",
    "symmetries.normed": "Normed",
    "symmetries.product": "Element",
    "symmetries.scale": "Scale",
    "symmetries.stream": "Basis StreamElement StreamGroup",
    "symmetries.weights": "AttentionWeights",
    "tasks.examples": "Examples",
    "tasks.options": "DataFacts DataOptions",
    "verbs.align": "align align_tensors",
    # What gives an alignment its `apply` brings both.
    "verbs.apply": "Alignment Moved apply",
    "verbs.canonicalize": "canonical_alignment canonicalize",
    "verbs.check": "Check Matchable PairCheck check",
    "verbs.compare": "BlockScore Comparison Verdict compare",
    "verbs.conflicts": "Conflict Option",
    "verbs.diagnose": "Diagnosis Judgement diagnose",
    "verbs.equivalent": "Equivalence LayerEvidence equivalent",
    "verbs.fingerprint": "Fingerprint fingerprint",
    "verbs.interpolate": "interpolate",
    "verbs.kinship": "StreamScore",
    "verbs.merge": "Merged Truncation merge",
    "verbs.relatedness": "Relation",
    "verbs.scan": "Kin LayerPair Scan scan",
    "verbs.scramble": "random_alignment scramble",
    "verbs.settings": "Calibration Evaluating Matching Running",
    "verbs.symmetry": "BlockSymmetry FeedForwardSymmetry LayerSymmetry Symmetry symmetry",
    "verbs.transport": "Transported transport",
    "verbs.verify": "verify",
    "verification": "Verification",
    "verification.distance": "Distance",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *_HOME_OF]  # pyright: ignore[reportUnsupportedDunderAll]


if not TYPE_CHECKING:  # for whom a name that isn't above is wrong

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'isobasin' has no attribute {name!r}")
        return getattr(import_module(f"isobasin.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
