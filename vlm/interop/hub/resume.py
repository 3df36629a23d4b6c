"""Large files that a broken transfer has left half: they go on where they stopped, also in a later run."""

import hashlib
import re
from pathlib import Path
from typing import Any, cast

from vlm.errors import HubError

LARGE = 10_000_000  # bytes; smaller files begin anew


def resume(hub: Any, name: str, commit: str, file: str, blobs: Path, bar: Any) -> None:
    """Fetch a file into the cache's `blobs`, beginning behind what an earlier run has left there.

    `hf_hub_download` then finds it and only makes the link.  Files of the hub's own
    transfer protocol (Xet) are left to it.

    Args:
        hub: the module huggingface_hub.
        name: the repository.
        commit: its commit.
        file: the file in it.
        blobs: the folder of the repository's contents in the cache.
        bar: what huggingface_hub takes for a class of progress bars.

    Raises:
        HubError: what came is not what the hub announced.
    """
    from huggingface_hub import file_download

    url = hub.hf_hub_url(name, file, revision=commit)
    about = hub.get_hf_file_metadata(url, timeout=10)
    if about.etag is None or about.xet_file_data is not None or (blobs / about.etag).exists():
        return
    blobs.mkdir(parents=True, exist_ok=True)
    part = blobs / f"{about.etag}.part"
    with hub.utils.WeakFileLock(part.with_suffix(".lock")):
        with part.open("ab") as target:
            here = target.tell()
            headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
            cast(Any, file_download).http_get(
                url, target, resume_size=here, headers=headers, expected_size=about.size, tqdm_class=bar
            )
        if re.fullmatch(r"[0-9a-f]{64}", about.etag) and _sha256(part) != about.etag:
            part.unlink()
            raise HubError(
                f"{file} of {name} came damaged: its sha256 is not the announced one. Run the command again."
            )
        part.replace(blobs / about.etag)
    part.with_suffix(".lock").unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
