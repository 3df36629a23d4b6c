"""`python -m demo`: the page on this machine."""

import argparse
import os
import sys
import tempfile


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Classification and retrieval in the browser.")
    parser.add_argument("--model", default="mini", help="mini, a model folder, or a foreign model such as openclip:...")
    parser.add_argument("--folder", help="search the images of this folder; its index goes to your cache folder")
    parser.add_argument("--classifier", metavar="MODEL", help="a trained ViT for the tab Classifier, asked first")
    parser.add_argument(
        "--models", default="runs", metavar="PLACE", help="list the models below this folder: %(default)s"
    )
    parser.add_argument(
        "--any-model", action="store_true", help="let visitors from elsewhere name paths and remote models"
    )
    parser.add_argument("--lang", choices=["auto", "ja", "en"], default="auto", help="auto: the browser's language")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free one from 7860 on")
    chosen = parser.parse_args()

    from vlm.demo.actions import (
        Actions,  # torch, and below Gradio, take seconds to import: --help does not wait for them
    )
    from vlm.demo.models import Shelf, is_loopback

    if "GRADIO_TEMP_DIR" not in os.environ:  # uploads: for this user's eyes only, gone with the page
        uploads = tempfile.TemporaryDirectory(prefix="vlm-demo-")
        os.environ["GRADIO_TEMP_DIR"] = uploads.name

    print(f"loading {chosen.model} ...", file=sys.stderr)
    try:
        alone = is_loopback(chosen.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1")
        shelf = Shelf(
            [chosen.models],
            model=chosen.model,
            classifier=chosen.classifier,
            anywhere=alone or chosen.any_model,
        )
        actions = Actions(chosen.model, shelf, folder=chosen.folder)
        _ = actions.embedder  # a wrong name is said here, not on the page
        shelf.check()

        from vlm.demo.app import build, launch

        page = build(actions)
        address = launch(page, actions, language=chosen.lang, host=chosen.host, port=chosen.port)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{chosen.model} answers at {address} (Ctrl+C ends it)", file=sys.stderr)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
