"""LoRA adapters as peft writes them: which weights they add to, and how much, in two factors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor

from isobasin.checkpoints.companions import companions, copy
from isobasin.checkpoints.files import WatchedFile, entries, inside, read_object
from isobasin.checkpoints.kinds import ADAPTER, MERGE
from isobasin.checkpoints.output import check_output, write_folder
from isobasin.checkpoints.reader import CONFIG, check_finite
from isobasin.checkpoints.shards import SafetensorsShard
from isobasin.errors import CheckpointError, TensorError, about

T = TypeVar("T")

WEIGHTS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"

# With tables of embeddings peft writes what they are without the adapter.
_COPY = re.compile(r"base_model\.model\.(.+)\.base_layer\.weight")
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(?:(embedding)_)?([AB])(?:\.weight)?")
# What makes an adapter another function of its base than a sum, or changes the base itself.
_OTHERWISE = (
    *("use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices"),
    *("target_parameters", "layer_replication", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("monteclora_config", "velora_config", "megatron_config"),
)
# Those that put learned states before a text's, which no weight of the base can hold.
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "CPT", "ADAPTION_PROMPT")
_NO_WEIGHTS = "what it learned is no change of weights and can't be merged: give its base"
_ALPHA = ("alpha_pattern", "lora_alpha")
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, eq=False)
class Factors:
    """What an adapter adds to one weight: `scale * B A`.

    Attributes:
        module: The module's path, as the model in memory has it.
        keys: Under which A and B lie in the file.
        a: Reads the inputs, `(rank, inputs)`.
        b: Writes the outputs, `(outputs, rank)`.
        scale: What their product is multiplied by.
        turned: Whether the weight may be stored with its inputs first; of an embedding it is.
    """

    module: str
    keys: tuple[str, str]
    a: Tensor
    b: Tensor
    scale: float
    turned: bool

    def product(self, shape: Sequence[int]) -> Tensor:
        """What is added to a weight of this shape, in float64.

        Raises:
            TensorError: It is one of another shape.
        """
        whole = self.scale * (self.b.double() @ self.a.double())
        found = whole.mT if self._inputs_first(shape) else whole
        if tuple(found.shape) != tuple(shape):
            sizes = f"{tuple(whole.shape)}, and the base's weight is {tuple(shape)}"
            raise TensorError(f"the adapter's {self.module!r} adds a matrix of {sizes}: give its own base")
        return found

    def _inputs_first(self, shape: Sequence[int]) -> bool:
        return self.turned and tuple(shape) == (self.a.shape[1], self.b.shape[0])

    def adding(self, change: Tensor) -> Factors:
        """Factors that add this instead, at the same scale; of equal size, in the types that they are stored in.

        Raises:
            TensorError: It takes more than their rank.
        """
        wanted = (change.mT if self._inputs_first(change.shape) else change).double() / self.scale
        rank = len(self.a)
        if not bool(wanted.any()):
            return replace(self, b=torch.zeros_like(self.b))
        # Some more random directions than the rank span all that it writes; what they leave shows if it takes more.
        draws = torch.randn(wanted.shape[1], rank + 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        basis = torch.linalg.qr(wanted @ draws)[0]
        left, sizes, right = torch.linalg.svd(basis.mT @ wanted, full_matrices=False)
        roots = sizes[:rank].sqrt()
        b, a = basis @ left[:, :rank] * roots, roots[:, None] * right[:rank]
        if float((b @ a - wanted).norm()) > 1e-8 * float(wanted.norm()):
            raise TensorError(f"what moves {self.module!r} takes more than the adapter's rank of {rank}")
        short = rank - len(a)  # of a weight with fewer inputs or outputs than that
        b, a = torch.nn.functional.pad(b, (0, short)), torch.nn.functional.pad(a, (0, 0, 0, short))
        return replace(self, a=a.to(self.a), b=b.to(self.b))


@dataclass(frozen=True, eq=False)
class Adapter:
    """A folder with a LoRA adapter.

    Attributes:
        folder: The folder.
        config: Its adapter_config.json.
        factors: What is added to every weight, by the path of its module.
        copies: Weights of the base that lie in the file too, likewise; they aren't written again.
        files: Those that were read.
    """

    folder: Path
    config: dict[str, Any]
    factors: Mapping[str, Factors]
    copies: Mapping[str, Tensor]
    files: tuple[WatchedFile, ...]

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether a folder has an adapter and no model of its own."""
        return (folder / ADAPTER).is_file() and not os.path.lexists(folder / CONFIG)

    @classmethod
    def open(cls, folder: Path) -> Adapter:
        """Read an adapter.

        Raises:
            CheckpointError: It can't be read, or is of a kind that adds something else than a product of two factors.
            TensorError: Its factors aren't finite, or don't fit each other.
        """
        if WEIGHTS not in entries(folder):
            advice = "save it as safetensors, as peft does by default"
            raise CheckpointError(f"{folder}: has {ADAPTER} and no {WEIGHTS}: {advice}")
        files = tuple(WatchedFile.of(inside(folder, folder / name)) for name in (ADAPTER, WEIGHTS))
        config, shard = read_object(files[0]), SafetensorsShard.open(files[1])
        for problem in _problems(config, shard.header.slots):
            advice = _NO_WEIGHTS if config.get("peft_type") in _PROMPTS else MERGE.format(folder=os.fspath(folder))
            raise CheckpointError(f"{folder}: a PEFT adapter {problem}: {advice}")
        tensors = shard.read(shard.header.slots)
        check_finite(tensors, folder)
        copies = {found[1]: x for name, x in tensors.items() if (found := _COPY.fullmatch(name))}
        return cls(folder, config, _factors(folder, config, tensors), copies, files)

    @property
    def base(self) -> str:
        """The model that it adds to: a folder or hub id."""
        return self.config[BASE]

    @property
    def size(self) -> int:
        """Bytes of its factors."""
        return sum(x.nbytes for found in self.factors.values() for x in (found.a, found.b))

    def having(self, factors: Mapping[str, Factors], base: str) -> Adapter:
        """The same adapter with other factors, for another base."""
        return replace(self, factors={**self.factors, **factors}, config={**self.config, BASE: base})

    def write(
        self,
        out: Path,
        *,
        force: bool,
        extra: Callable[[Path], None],
        check: Callable[[Path], T],
    ) -> T:
        """Write it with the files that lie beside it: all of it or nothing, and only if `check` lets it pass.

        Raises:
            OutputError: As `check_output`, or it can't be written.
        """
        check_output(out, [self.folder], force)
        beside = companions(self.folder, frozenset(file.path.name for file in self.files))

        def fill(staging: Path) -> None:
            for path, file in beside.files.items():
                copy(file, staging / path)
            pairs = ((key, x) for f in self.factors.values() for key, x in zip(f.keys, (f.a, f.b), strict=True))
            save_file({key: x.contiguous() for key, x in pairs}, staging / WEIGHTS, {"format": "pt"})
            (staging / ADAPTER).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
            extra(staging)

        needed = self.size + sum(file.size for file in beside.files.values())
        return write_folder(out, self.folder, fill, check, force=force, needed=needed)


def _problems(config: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    """What of an adapter is not the sum of a weight and a product of factors."""
    kind = config.get("peft_type")
    found = [f"of type {kind}"] if kind != "LORA" else [f"with {name}" for name in _OTHERWISE if config.get(name)]
    if config.get("bias", "none") != "none":
        found.append("with biases")
    if config.get("init_lora_weights") not in _STARTS:
        found.append(f"that began from its base's own weights ({config['init_lora_weights']})")
    found += [f"with a tensor {name!r}" for name in names if not (_KEY.fullmatch(name) or _COPY.fullmatch(name))]
    if not isinstance(config.get(BASE), str):
        found.append(f"that doesn't say what it adds to ({BASE})")
    return found


def _factors(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Factors]:
    """The factors of every module."""
    keys: dict[str, dict[str, str]] = {}
    for found in filter(None, map(_KEY.fullmatch, tensors)):
        keys.setdefault(found[1], {})[found[3]] = found[0]
    return {module: _of_module(folder, config, module, found, tensors) for module, found in keys.items()}


def _of_module(
    folder: Path, config: Mapping[str, Any], module: str, keys: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> Factors:
    if len(keys) < 2:
        raise TensorError(f"{folder}: {module!r} has one of two factors: download the adapter again")
    a, b = (tensors[keys[which]] for which in "AB")
    with about(str(folder)):
        rank, alpha = _of_pattern(config, "rank_pattern", "r", module), _of_pattern(config, *_ALPHA, module)
    if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise TensorError(f"{folder}: the factors of {module!r} are {shapes}, and not matrices of rank {rank:g}")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    turned = bool(config.get("fan_in_fan_out")) or "lora_embedding_" in keys["A"]
    return Factors(module, (keys["A"], keys["B"]), a, b, scale, turned)


def _of_pattern(config: Mapping[str, Any], table: str, common: str, module: str) -> float:
    """A module's own number in a table whose keys are ends of paths, or, with ^, whole ones; else what holds for all.

    Raises:
        TensorError: It is no number, or the table's keys are other patterns.
    """
    found, own = config.get(common), config.get(table) or {}
    for key, value in own.items() if isinstance(own, dict) else ():
        whole = key.removeprefix("^")
        if not re.fullmatch(r"[\w.]+", whole):
            raise TensorError(f"{table} has {key!r}, a pattern: name modules by their paths")
        if module == whole or (key == whole and module.endswith(f".{whole}")):
            found = value
            break
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not 0 < found < math.inf:
        raise TensorError(f"{common} of {module!r} is {found!r}, and should be a number above 0: check {ADAPTER}")
    return found
