"""Address of a model on the Hugging Face hub: repository, revision, and a file or a subfolder of it."""

import re
from dataclasses import dataclass

from vlm.errors import InputError

_PART = r"[\w.-]+"
_ADDRESS = re.compile(
    rf"(?P<name>{_PART}/{_PART})(?://(?P<subfolder>{_PART}(?:/{_PART})*)|/(?P<file>{_PART}(?:/{_PART})*))?"
    rf"(?:@(?P<revision>{_PART}(?:/{_PART})*))?"
)


@dataclass(frozen=True)
class HubAddress:
    """A repository on the hub, and which part of it."""

    name: str  # "org/name"; tokenizers of other libraries may be called "name" alone
    revision: str | None = None  # a branch, tag or commit; None is the main branch
    subfolder: str = ""  # "" is the top of the repository
    file: str | None = None  # the weights that the user named


def parse_address(text: str) -> HubAddress:
    """Read "ORG/NAME", "ORG/NAME/FILE" or "ORG/NAME//SUBFOLDER", each with or without "@REVISION" at its end.

    Raises:
        InputError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or ".." in text.split("@")[0].split("/"):
        raise InputError(
            f"'{text}' is no hub name; wanted hf:ORG/NAME, hf:ORG/NAME@REVISION, hf:ORG/NAME/FILE or "
            "hf:ORG/NAME//SUBFOLDER."
        )
    file, folder = match["file"], match["subfolder"] or ""
    if file is not None and "/" in file:
        folder, _, file = file.rpartition("/")
    return HubAddress(match["name"], match["revision"], folder, file)
