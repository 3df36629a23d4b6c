"""`python -m demo`: the page on this machine."""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Classification and retrieval in the browser.")
    parser.add_argument("--model", default="mini", help="mini, a folder, or a foreign model such as openclip:ViT-B-32/laion2b_s34b_b79k")
    parser.add_argument("--lang", choices=["auto", "ja", "en"], default="auto", help="first language; auto: the browser's")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free one from 7860 on")
    chosen = parser.parse_args()

    from demo.actions import Actions  # torch and Gradio take seconds to import; --help does not wait for them
    from demo.app import build, launch

    actions = Actions(chosen.model)
    try:
        print(f"loading {chosen.model} ...", file=sys.stderr)
        _ = actions.embedder  # a wrong name is said here, not on the page
        page = build(actions)
        address = launch(page, actions, language=chosen.lang, host=chosen.host, port=chosen.port)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{chosen.model} answers at {address}  (Ctrl+C ends it)", file=sys.stderr)
    page.block_thread()
    return 0


if __name__ == "__main__":
    sys.exit(main())
