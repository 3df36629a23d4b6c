"""Where uploads are stored: a temporary folder of this process."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def private_upload_folder() -> Iterator[None]:
    """Store uploads in a folder that only this user can read, and delete it at the end.

    GRADIO_TEMP_DIR, if set, is used instead and not deleted.
    """
    if "GRADIO_TEMP_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vlm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        yield
