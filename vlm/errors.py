"""Errors that a user can put right.

Commands print a `VlmError` as one line and end with exit code 1.  Any other exception is a defect of vlm and keeps its
traceback.  Each message has three parts: what came, what was wanted, what to do.  Every kind is also a `ValueError` or
an `OSError`, so that callers may catch the standard types.
"""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO}
_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}

DISTRIBUTION = "vlm-clip"  # what pip calls this library; on PyPI the name vlm belongs to another project


class VlmError(Exception):
    """Base of all errors that a user can put right."""


class InputError(VlmError, ValueError):
    """An argument or option has a value that cannot be used: an unknown name, an empty list, a wrong range."""


class ConfigError(VlmError, ValueError):
    """A setting of a model, tokenizer or preprocessing config is unknown, missing or out of range."""


class RecipeError(VlmError, ValueError):
    """A training recipe says something that cannot be done."""


class DataError(VlmError, ValueError):
    """A data set, or a part of it, cannot be read as samples."""


class CheckpointError(VlmError, ValueError):
    """A model folder or a weight file is missing, damaged, incomplete or of another kind."""


class RunFolderError(VlmError, ValueError):
    """The output folder of a training run cannot be used: it belongs to someone else, or to another run."""


class IndexFileError(VlmError, ValueError):
    """An embedding index is missing, damaged or of another model."""


class HubError(VlmError, OSError):
    """A model hub cannot be reached, refuses access or sent something incomplete."""


class MissingPackageError(VlmError, ImportError):
    """A package of an extra is not installed; the message names the extra."""


class TrainingError(VlmError, FloatingPointError):
    """A training run cannot go on: its loss or its gradients are not finite."""


class OtherKind(CheckpointError):
    """A CLIP where a classifier was asked for, or the reverse; the message names the function that opens it."""


ImageReason = Literal[
    "missing",
    "not a file",
    "outside the folder",
    "unreadable",
    "empty file",
    "too many bytes",
    "too many pixels",
    "not an image",
    "unsupported format",
    "truncated",
    "damaged",
    "no caption",  # these two: of a sample in a data set
    "bad row",
]


class ImageError(VlmError, ValueError):
    """An image cannot be used.  `str()` is one line that names the file.

    Args:
        name: the file, or a placeholder such as `<bytes>`.
        reason: one of `ImageReason`.
        detail: what was found and what to do, one line.
    """

    def __init__(self, name: str, reason: ImageReason, detail: str) -> None:
        super().__init__(name, reason, detail)  # all three, so that the error survives pickling between processes
        self.name = name if name.isprintable() else ascii(name)
        self.reason: ImageReason = reason
        self.detail = " ".join(detail.split())

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}: {self.detail}"


def machine_error(error: BaseException, files: Iterable[Path]) -> BaseException | None:
    """Find a trouble of the machine behind an error: no space, no memory, no access to a cache.

    Args:
        error: an error, with its causes.
        files: what was read.  No access to one of them is not a trouble of another place.

    Returns:
        The cause that is about the machine, to be raised as it is; None where the error is about `files`.
    """
    own = {str(file) for file in files}
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _MACHINE):
            return cause
        if isinstance(cause, OSError) and cause.errno in _ACCESS and cause.filename is not None:
            return None if os.fsdecode(cause.filename) in own else cause
        cause = cause.__cause__ or cause.__context__
    return None


def missing_package(what: str, package: str, extra: str) -> MissingPackageError:
    """The error for a package that is not installed.

    Args:
        what: the function that needs it, such as "vlm serve".
        package: the missing package.
        extra: the extra of this distribution that brings it.
    """
    return MissingPackageError(f"{what} needs the package {package}. Install it: pip install '{DISTRIBUTION}[{extra}]'")
