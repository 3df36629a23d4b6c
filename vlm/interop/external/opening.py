"""Opens an external model by the library that its files are of."""

from vlm.interop.external.external_clip import ExternalClip
from vlm.interop.external.open_clip_models import open_openclip
from vlm.interop.external.transformers_models import open_transformers
from vlm.interop.sources import Files


def load_external(files: Files, source: str, *, trust_remote_code: bool) -> ExternalClip:
    """Open a dual encoder that another library computes.

    Args:
        files: of the model, on this machine.
        source: for messages.
        trust_remote_code: run code that comes with the model.

    Raises:
        MissingPackageError: the library is not installed.
        CheckpointError: the library cannot open the model.
        InputError: the model needs its own code, and `trust_remote_code` is False.
    """
    if files.family == "openclip":
        return open_openclip(files, source)
    return open_transformers(files, source, trust_remote_code=trust_remote_code)
