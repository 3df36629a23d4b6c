"""Errors between this machine and the hub, each as one line that says what to do."""

import errno
import os
from typing import Any

from vlm.errors import HubError
from vlm.free_space import FULL
from vlm.interop.formats.foreign import one_line

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def explain(error: BaseException, name: str, revision: str) -> HubError:
    """The error that the user sees for one of huggingface_hub, of its HTTP library or of the operating system.

    Args:
        error: what was raised.
        name: the repository.
        revision: the revision that was asked for.

    Returns:
        A `HubError`, one line.
    """
    from huggingface_hub import constants, errors

    at = constants.ENDPOINT
    for cause in _chain(error):
        match cause:
            case errors.OfflineModeIsEnabled():
                return HubError(
                    f"HF_HUB_OFFLINE is set, and {name} is not on this machine. Unset it and go online once, or name "
                    "a local folder."
                )
            case errors.GatedRepoError():
                return HubError(
                    f"{name} is gated. Ask for access at {at}/{name}, then log in: hf auth login (or set HF_TOKEN)."
                )
            case errors.RevisionNotFoundError():
                return HubError(f"{name} has no revision '{revision}'. Its revisions: {at}/{name}/tree/main")
            case errors.FileMetadataError():
                return HubError(
                    f"{at} sends no X-Repo-Commit or no ETag with its files: it is a mirror that is not whole. Set "
                    "HF_ENDPOINT to another one, or unset it."
                )
            case errors.HfHubHTTPError():
                return _status(cause, name, at)
            case OSError() if cause.errno in FULL:
                return HubError(
                    f"The disk is full: {name} does not fit into {constants.HF_HUB_CACHE}. Free space, or set HF_HOME "
                    "to a folder on another disk. What has been transferred is kept."
                )
            case OSError() if cause.errno in _REFUSED:
                return HubError(
                    f"Cannot write into the hub's cache: {cause.strerror}: {cause.filename or constants.HF_HUB_CACHE}. "
                    "Set HF_HOME to a folder that you own."
                )
            case _:
                pass
    return _transfer(error, name, at)


def _status(error: Any, name: str, at: str) -> HubError:
    status = error.response.status_code
    said = f"{error.response.headers.get('X-Error-Message') or ''} {error.server_message or ''}"
    token = "you send no token" if not _token() else "your token does not allow it"
    match status:
        case 401 if "credentials" in said.lower() or "token" in said.lower() or "expired" in said.lower():
            return HubError(
                f"{at} refuses your access token: it is wrong or has expired. Log in again: hf auth login, or unset "
                f"HF_TOKEN, which a public model does not need ({name})."
            )
        case 401 | 404:
            return HubError(
                f"{at} has no model {name} for you ({status}; {token}). Check the name; if it is private, ask its "
                "owner for access, then log in: hf auth login"
            )
        case 403:
            return HubError(
                f"{at} refuses {name} (403; {token}). Ask for access at {at}/{name}, then log in: hf auth login"
            )
        case 429:
            return HubError(
                f"{at} is asked too often from here (429). Wait a few minutes, or log in for a higher limit: "
                "hf auth login"
            )
        case _ if status >= 500:
            return HubError(f"{at} has trouble of its own ({status}) while it is asked for {name}. Try again later.")
        case _:
            return HubError(f"{at} answers {status} for {name} ({one_line(error)}). Is HF_ENDPOINT right?")


def _transfer(error: BaseException, name: str, at: str) -> HubError:
    """No answer, a wrong one, or one that broke off."""
    kinds = {kind.__name__ for cause in _chain(error) for kind in type(cause).__mro__}
    said = one_line(error)
    if "Consistency check" in said or {"RemoteProtocolError", "ReadError", "IncompleteRead"} & kinds:
        return HubError(
            f"The transfer of {name} broke off ({said}). Run the command again: large files go on where they stopped."
        )
    if {"TimeoutException", "TimeoutError"} & kinds:
        return HubError(f"{at} does not answer ({said or 'time is up'}). Try again later; is the network all right?")
    if {"JSONDecodeError", "UnicodeDecodeError", "ValidationError"} & kinds:
        return HubError(f"{at} does not answer as a hub does. Is HF_ENDPOINT right? It is {_endpoint()}.")
    if {"ConnectError", "NetworkError", "ConnectionError", "UnsupportedProtocol", "InvalidURL"} & kinds:
        return HubError(
            f"{at} cannot be reached ({said}), and {name} is not on this machine. Go online once, or name a local "
            f"folder. HF_ENDPOINT is {_endpoint()}."
        )
    return HubError(f"{name} cannot be fetched from {at} ({type(error).__name__}: {said}). Try again.")


def _chain(error: BaseException) -> list[BaseException]:
    """The error and its causes, the first cause first: it is the one that says most."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__
    return found[::-1]


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "not set"
