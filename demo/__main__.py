"""`python -m demo`: the page on this machine."""

import argparse
import sys


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Classification and retrieval in the browser.")
    parser.add_argument("--model", default="mini", help="mini, a model folder, or a foreign model such as openclip:...")
    parser.add_argument("--lang", choices=["auto", "ja", "en"], default="auto", help="auto: the browser's language")
    parser.add_argument("--host", help="default: GRADIO_SERVER_NAME, or 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: GRADIO_SERVER_PORT, or the first free one from 7860 on")
    chosen = parser.parse_args()

    from demo.actions import Actions  # torch, and below Gradio, take seconds to import: --help does not wait for them

    print(f"loading {chosen.model} ...", file=sys.stderr)
    try:
        actions = Actions(chosen.model)
        _ = actions.embedder  # a wrong name is said here, not on the page

        from demo.app import build, launch

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
