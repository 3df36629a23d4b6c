"""`vlm demo`: classification and search in the browser."""

from argparse import ArgumentParser, Namespace

from vlm.commands.options import MODEL_HELP, Run, add_device, add_trust, chosen_model, port


def demo(parser: ArgumentParser) -> Run:
    """Open a page that classifies and searches images, in the browser."""
    parser.add_argument("--model", help=MODEL_HELP)
    add_trust(parser)
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
    parser.add_argument("--port", type=port, help="default: GRADIO_SERVER_PORT, or the first free port from 7860 on")
    parser.add_argument(
        "--allow-host", nargs="+", default=[], metavar="NAME", help="names by which browsers may call the page"
    )
    parser.add_argument(
        "--proxy", nargs="+", default=[], metavar="ADDRESS", help="proxies whose X-Forwarded-For is believed"
    )

    add_device(parser)

    def run(args: Namespace) -> None:
        from vlm.demo.command import serve_demo

        serve_demo(
            chosen_model(args.model),
            trust_remote_code=args.trust_remote_code,
            folder=args.folder,
            classifier=args.classifier,
            models=args.models,
            any_model=args.any_model,
            language=args.lang,
            host=args.host,
            port=args.port,
            hosts=args.allow_host,
            proxies=args.proxy,
            device=args.device,
            dtype=args.dtype,
        )

    return run
