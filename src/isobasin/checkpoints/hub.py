"""Models on the hub: their files, or only what configuration and headers say of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from isobasin.checkpoints.reader import Checkpoint
from isobasin.checkpoints.temporary import calling, temporary_folder
from isobasin.downloads import bar_for
from isobasin.errors import CheckpointError, first_line
from isobasin.reads import reading

COMPANIONS = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "merges*", "README.md", "LICENSE*")
# a second copy of the weights, or another model's
IGNORED = ("consolidated*", "*/*.safetensors", "*/*.bin", "training_args.bin", "optimizer.bin")


@dataclass(frozen=True)
class HubModel:
    """A model on the hub.

    Attributes:
        id: `name` or `owner/name`.
        revision: A branch, tag or commit; None for the newest.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parsed(cls, text: str) -> HubModel | None:
        """What `ID` or `ID@REVISION` names; None if it can't be one."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        repo_id, at, revision = text.partition("@")
        try:
            validate_repo_id(repo_id)
        except HFValidationError:
            return None
        if not repo_id or repo_id.startswith(".") or (at and not revision):
            return None
        return cls(repo_id, revision or None)

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    def download(self, patterns: list[str], ignored: tuple[str, ...] = IGNORED) -> Path:
        """The folder with its files of these names.

        Raises:
            CheckpointError: The hub doesn't let us have them.
        """
        from huggingface_hub import snapshot_download

        how: dict[str, Any] = {"tqdm_class": bar_for(str(self))}
        how |= {"allow_patterns": patterns, "ignore_patterns": list(ignored)}
        try:
            return Path(snapshot_download(self.id, revision=self.revision, **how))
        except Exception as error:  # the hub's client has no common base class
            raise self._refused(error) from error

    def headers(self) -> Any:
        """What `huggingface_hub` says of its safetensors files, without their values; None if it has none.

        Raises:
            CheckpointError: The hub doesn't let us have them.
        """
        from huggingface_hub import errors, get_safetensors_metadata

        try:
            return get_safetensors_metadata(self.id, revision=self.revision)
        except errors.NotASafetensorsRepoError:
            return None
        except Exception as error:  # likewise
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self}: is not a local folder, {self._reason(error)}")

    def _reason(self, error: Exception) -> str:
        """Why a model can't be had from the hub, and what to do."""
        from huggingface_hub import constants, errors

        at = "" if self.revision is None else f" --revision {self.revision}"
        advice = f"download it first with `hf download {self.id}{at}`, or check the path"
        if isinstance(error, errors.GatedRepoError):
            page = f"https://huggingface.co/{self.id}"
            return f"and the hub's model is gated: accept its terms at {page} and run `hf auth login`"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "and the hub has no such model: check the name, or run `hf auth login` if it is private"
        if isinstance(error, errors.RevisionNotFoundError):
            return "and the hub's model has no such revision: name a branch, a tag or a commit after the @"
        # the client says "not in the cache" both when it is offline and when the hub doesn't answer
        if isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError)):
            why = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
            return f"and the hub can't be reached{why}: {advice}"
        why = f"{type(error).__name__}: {first_line(error)}"
        return f"and its download failed ({why}): {advice}"


@dataclass(frozen=True, eq=False)
class HeadersOnly(Checkpoint):
    """A model on the hub of which headers alone are here: it is fetched when a value is read.

    Attributes:
        home: Where it is.
    """

    home: HubModel = HubModel("")

    def read(self, names: Any) -> dict[str, Tensor]:
        """See `Checkpoint.read`."""
        return self._whole.read(names)

    @cached_property
    def _whole(self) -> Checkpoint:
        return Checkpoint.open(self.home.download([*COMPANIONS, "*.safetensors"]))


@contextmanager
def headers_of(model: HubModel) -> Generator[Checkpoint | None]:
    """A model of which no more is fetched than its configuration and headers; None if it has no safetensors files.

    Raises:
        CheckpointError: The hub doesn't let us have it, or it can't be read.
    """
    here = model.download(["*.json"])
    if any(here.glob("*.safetensors")):  # fetched before
        yield None
        return
    found = model.headers()
    if found is None:
        yield None
        return
    with temporary_folder() as folder, calling(folder, str(model)):
        for path in here.glob("*.json"):
            shutil.copyfile(path, folder / path.name)
        for name, file in found.files_metadata.items():
            _lay_out(folder / name, file)
        with reading(here):
            yield replace(HeadersOnly.open(folder), home=model)


def _lay_out(path: Path, file: Any) -> None:
    """A file with a header, and a hole for the values."""
    listing: dict[str, Any] = {"__metadata__": file.metadata} if file.metadata else {}
    for name, tensor in file.tensors.items():
        listing[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": list(tensor.data_offsets)}
    text = json.dumps(listing).encode()
    end = max((tensor.data_offsets[1] for tensor in file.tensors.values()), default=0)
    with path.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
