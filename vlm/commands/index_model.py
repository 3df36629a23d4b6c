"""Chooses the model for an index: the requested one, else the one recorded in the index."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.commands.options import add_device, add_trust, chosen_backend

if TYPE_CHECKING:
    from vlm.embedder import Embedder


def add_index_model(parser: ArgumentParser) -> None:
    """`--model`, `--trust-remote-code`, `--device` and `--dtype`, of the commands that open an index."""
    parser.add_argument(
        "--model",
        help="a short name of `vlm models`, a folder, openclip:NAME/TAG or hf:ORG/NAME; default: the model of the "
        "index, VLM_MODEL, the config file, mini",
    )
    add_trust(parser)
    add_device(parser)


def load_index_model(args: Namespace, index: Path | None) -> "tuple[Embedder, str]":
    """Load the model for an index.

    Args:
        args: `model`, `backend`, `trust_remote_code`, `device` and `dtype`, as the command line gave them.
        index: folder of the index; None, or one that does not exist: it has no model yet.

    Returns:
        The embedder, and the name that opens it again.
    """
    from vlm.checkpoint.load import load
    from vlm.index.embedding_index import stored_models
    from vlm.interop.names.default_model import is_named, resolve_model

    stored = stored_models(index) if index is not None and args.model is None else []
    remembered = next((model.source for model in stored if model.source), None)
    name = resolve_model(args.model, index_model=remembered).name
    source = name if is_named(name) else os.path.abspath(os.path.expanduser(name))  # found from every folder
    embedder = load(
        name,
        backend=chosen_backend(args, name),
        device=args.device,
        dtype=args.dtype,
        trust_remote_code=args.trust_remote_code,
    )
    return embedder, source
