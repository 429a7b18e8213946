"""Models as data: folders and the Hugging Face Hub without pickle (docs/guide/hub.md)."""

from sb3_trmrl.hub.callbacks import PretrainedCheckpointCallback, latest_checkpoint
from sb3_trmrl.hub.errors import (
    DownloadError,
    MalformedFileError,
    MissingFileError,
    NotDescribableError,
    PretrainedError,
    UnknownNameError,
    UnsupportedVersionError,
    UploadError,
    WrongTensorsError,
)
from sb3_trmrl.hub.pretrained import load, save_pretrained
from sb3_trmrl.hub.registry import register_algorithm

__all__ = [
    "DownloadError",
    "MalformedFileError",
    "MissingFileError",
    "NotDescribableError",
    "PretrainedCheckpointCallback",
    "PretrainedError",
    "UnknownNameError",
    "UnsupportedVersionError",
    "UploadError",
    "WrongTensorsError",
    "latest_checkpoint",
    "load",
    "register_algorithm",
    "save_pretrained",
]
