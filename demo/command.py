"""Serve the page until it is stopped, as `vlm demo` does."""

import logging
import os
import sys
from collections.abc import Sequence

from vlm.demo.server.signals import cleaned_up_on_signals
from vlm.demo.server.uploads import private_upload_folder


def serve_demo(
    model: str,
    *,
    trust_remote_code: bool = False,
    folder: str | None = None,
    classifier: str | None = None,
    models: str = "runs",
    any_model: bool = False,
    language: str = "auto",
    host: str | None = None,
    port: int | None = None,
    hosts: Sequence[str] = (),
    proxies: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Load the model, serve the page, and return when it is stopped.

    Args:
        model: what `vlm.load` opens.
        trust_remote_code: run Python code that comes with `model`; never that of a model chosen on the page.
        folder: images to search instead of the samples.
        classifier: source of a trained ViT for the Classifier tab.
        models: the models in this folder are listed.
        any_model: whether visitors on other machines may name paths and models on a hub.
        language: "ja", "en", or "auto" for the browser's language.
        host: address to bind to; default: GRADIO_SERVER_NAME, else 127.0.0.1.
        port: default: GRADIO_SERVER_PORT, else the first free port from 7860 on.
        hosts: names by which the page may be called, besides those of this machine.
        proxies: addresses of proxies whose X-Forwarded-For is believed.
        device, dtype: of the models, as `vlm.load` has them.

    Raises:
        VlmError: a model or a folder cannot be used.
    """
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a refused upload is one line of vlm.demo
    with cleaned_up_on_signals(), private_upload_folder():
        # Gradio makes its folders when it is imported: in the private one
        from vlm.demo.actions import PageActions
        from vlm.demo.app import build, launch
        from vlm.demo.models.registry import ModelRegistry
        from vlm.demo.server.security import is_loopback

        print(f"loading {model} ...", file=sys.stderr)
        bound_to = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
        local = is_loopback(bound_to) and not (hosts or proxies)  # else a proxy may open it to others
        registry = ModelRegistry([models], model=model, classifier=classifier, any_source=local or any_model)
        actions = PageActions(
            model, registry, folder=folder, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        _ = actions.embedder  # a wrong name is an error at the start, not on the page
        registry.check()
        page = build(actions)
        running = launch(page, actions, language=language, host=host, port=port, hosts=hosts, proxies=proxies)
        print(f"{model} answers at {running.address} (Ctrl-C ends it)", file=sys.stderr)
        try:
            running.wait()
        finally:
            running.close()
