"""`vlm demo`: classification and search in the browser."""

import os
import sys
import tempfile
from argparse import ArgumentParser, Namespace

from vlm.commands.options import MODEL_HELP, Run


def demo(parser: ArgumentParser) -> Run:
    """Open a page that classifies and searches images, in the browser."""
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    parser.add_argument("--folder", help="search the images of this folder; its index goes to your cache folder")
    parser.add_argument("--classifier", metavar="MODEL", help="the trained ViT that the tab Classifier starts with")
    parser.add_argument(
        "--models", default="runs", metavar="FOLDER", help="list the models below this folder; default %(default)s"
    )
    parser.add_argument(
        "--any-model", action="store_true", help="let visitors from other machines name paths and remote models"
    )
    parser.add_argument(
        "--lang", choices=["auto", "ja", "en"], default="auto", help="auto: the browser's language; default %(default)s"
    )
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free port from 7860 on")

    def run(args: Namespace) -> None:
        from vlm.demo.actions import Actions
        from vlm.demo.models import Shelf, is_loopback

        if "GRADIO_TEMP_DIR" not in os.environ:  # uploads: only this user can read them, and they end with the page
            uploads = tempfile.TemporaryDirectory(prefix="vlm-demo-")
            os.environ["GRADIO_TEMP_DIR"] = uploads.name

        print(f"loading {args.model} ...", file=sys.stderr)
        alone = is_loopback(args.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1")
        shelf = Shelf([args.models], model=args.model, classifier=args.classifier, anywhere=alone or args.any_model)
        actions = Actions(args.model, shelf, folder=args.folder)
        _ = actions.embedder  # a wrong name is told here, not on the page
        shelf.check()

        from vlm.demo.app import build, launch

        page = build(actions)
        address = launch(page, actions, language=args.lang, host=args.host, port=args.port)
        print(f"{args.model} answers at {address} (Ctrl-C ends it)", file=sys.stderr)
        page.block_thread()

    return run
