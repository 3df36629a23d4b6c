"""Events of the page and endpoints for programs.

An error that the visitor can correct becomes one line: on the page where the answer would stand, for programs as
`gr.Error`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr
from gradio.events import api
from gradio_client.utils import is_file_obj_with_meta
from typing_extensions import TypedDict  # which pydantic asks for before Python 3.12

from vlm.demo.page.texts import PageError
from vlm.demo.views.layout import notice

COMPUTE_QUEUE = "compute"  # all events share this queue: one computation at a time


class Upload(TypedDict):
    """An uploaded file as Gradio and `gradio_client.handle_file` send it."""

    path: str
    meta: dict[str, str]


def bind(trigger: Callable[..., Any], action: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> Any:
    """Run an action on a browser event.

    Gradio passes images as its record of the upload (`preprocess=False`): `vlm.open_image` alone decides what an image
    is.  A `PageError` is shown in the last output; all other HTML outputs are cleared.  Of the events that come while
    an answer is awaited, the last one is answered after it.

    Args:
        trigger: the event listener of a component, such as `button.click`.
        action: gets the values of `inputs`, returns the values of `outputs`.
        inputs: components.  Text boxes need `value=""`: one inside a closed accordion sends None otherwise.
        outputs: components; the last one is a `gr.HTML` and takes the error line.

    Returns:
        Gradio's dependency, for `.then`.
    """

    @wraps(action)
    def answer_or_notice(*values: Any) -> Any:
        try:
            return action(*values)
        except PageError as error:
            others = ["" if isinstance(output, gr.HTML) else gr.skip() for output in outputs[:-1]]
            return (*others, notice(error)) if others else notice(error)

    return trigger(
        action if isgeneratorfunction(action) else answer_or_notice,
        inputs,
        outputs,
        preprocess=False,
        concurrency_id=COMPUTE_QUEUE,
        api_visibility="private",
        show_progress="minimal",
        trigger_mode="always_last",
    )


def named_endpoint(action: Callable[..., Any], name: str) -> None:
    """Offer `action` to programs as `/name`, with its types and its docstring."""
    api(action, api_name=name, concurrency_id=COMPUTE_QUEUE)


def upload_path(image: Upload | None) -> str | None:
    """Path of an uploaded file, None without one.

    Gradio has checked that a record of this form names an upload, and checks no other value.

    Raises:
        PageError: the value is no record of an upload.
    """
    if image is None:
        return None
    if not is_file_obj_with_meta(image):
        raise PageError("not an upload")
    return image["path"]


def event_language(event: gr.EventData) -> str:
    """The language of the page that sent the event: "ja" or "en"."""
    return "ja" if str(event.language).startswith("ja") else "en"


@contextmanager
def api_errors() -> Iterator[None]:
    """Turn a `PageError` into one English line for programs."""
    try:
        yield
    except PageError as error:
        raise gr.Error(str(error), print_exception=False) from error
