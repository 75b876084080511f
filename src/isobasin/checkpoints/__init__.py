"""Reading and writing Hugging Face checkpoint folders, streaming and atomic; no model knowledge."""

from isobasin.checkpoints.adapters import Adapter
from isobasin.checkpoints.apart import extended
from isobasin.checkpoints.companions import reads_hidden_states, unlike_modules
from isobasin.checkpoints.files import regular_file
from isobasin.checkpoints.layout import write_tensors
from isobasin.checkpoints.output import check_output, write_file_atomically
from isobasin.checkpoints.reader import Checkpoint, TensorInfo, check_finite
from isobasin.checkpoints.source import described, headers_on_hub, resolve
from isobasin.checkpoints.stand_in import stand_in
from isobasin.checkpoints.temporary import calling, temporary_folder
from isobasin.checkpoints.writer import InRows, Value, write_checkpoint

__all__ = [
    "Adapter",
    "Checkpoint",
    "InRows",
    "TensorInfo",
    "Value",
    "calling",
    "check_finite",
    "check_output",
    "described",
    "extended",
    "headers_on_hub",
    "reads_hidden_states",
    "regular_file",
    "resolve",
    "stand_in",
    "temporary_folder",
    "unlike_modules",
    "write_checkpoint",
    "write_file_atomically",
    "write_tensors",
]
