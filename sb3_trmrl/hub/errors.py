"""What can be wrong with the files of a model. All of it is a :class:`PretrainedError`, and nothing of it runs code."""


class PretrainedError(ValueError):
    """Base of the errors of saving and loading."""


class NotDescribableError(PretrainedError):
    """Something in the model is code, not data: it can't be saved in a way that loads without running code."""


class MissingFileError(PretrainedError):
    """There is no such folder, or a file of it is missing."""


class MalformedFileError(PretrainedError):
    """A file is truncated, broken, not what its name says, too large or nested too deeply, or holds values that don't fit."""


class UnknownNameError(PretrainedError):
    """A file names a class (algorithm, policy, encoder, activation, ...) that is in no registry."""


class WrongTensorsError(PretrainedError):
    """Names, shapes or types of the tensors are not those of the model that ``config.json`` describes."""


class UnsupportedVersionError(PretrainedError):
    """The folder was written in a format of a later version."""


class DownloadError(PretrainedError):
    """A download broke off; what is in the cache is not taken for the model. What the Hub itself answers (no such repository,
    revision, ...) is one of ``huggingface_hub.errors``."""


class UploadError(PretrainedError):
    """An upload broke off; on the Hub probably nothing has changed, but that the repository may be new and empty."""
