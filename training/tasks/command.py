"""The command line of every training run: RECIPE.toml --out DIR [--resume auto] [--dry-run] [--push ORG/NAME]."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from vlm.training.engine.distributed import Processes


class Train(Protocol):
    def __call__(
        self, recipe_file: Path, out: Path, processes: "Processes", *, resume: bool = False, push: str | None = None
    ) -> int: ...


class Plan(Protocol):
    def __call__(
        self,
        recipe_file: Path,
        gpus: int,
        gpu: str | None,
        tflops: float | None,
        efficiency: float,
        caption_tokens: int | None,
    ) -> None: ...


class Actions(NamedTuple):
    """What a kind of recipe can be asked for."""

    train: Train
    dry_run: "Callable[[Path, Processes], None]"
    plan: Plan | None = None  # for machines that are not here


def run(name: str, description: str, actions: Callable[[], Actions]) -> int:
    """Parse, do, and turn errors into one line.  `actions` is called late: it imports torch."""
    parser = argparse.ArgumentParser(
        prog=f"python -m training.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="a TOML file, see training/recipes/")
    parser.add_argument("--out", type=Path, help="folder for the model, metrics.jsonl and checkpoints")
    parser.add_argument(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the newest checkpoint in --out, if any",
    )
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="default: cuda where there is one, else cpu")
    parser.add_argument("--dry-run", action="store_true", help="a few steps: memory, samples/s, time of all")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload the finished model to the Hugging Face hub")
    elsewhere = parser.add_argument_group("--dry-run for machines that are not here: arithmetic, nothing is run")
    elsewhere.add_argument("--gpus", type=int, help="how many")
    elsewhere.add_argument("--gpu", choices=["a100", "h100", "h200", "l4"], help="their peak and memory by datasheet")
    elsewhere.add_argument("--tflops", type=float, help="their peak, if it is another one")
    elsewhere.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that is used (0.4)")
    elsewhere.add_argument("--caption-tokens", type=int, help="of a caption, on average; default: the most it can be")
    arguments = parser.parse_args()
    if arguments.gpus is not None and not arguments.dry_run:
        parser.error("--gpus goes with --dry-run; torchrun starts a run on many")
    if arguments.out is None and not arguments.dry_run:
        parser.error("--out is needed: where shall the model go?")
    # Batches of texts have ever new lengths; torch and oneDNN keep a product compiled for each: few, or memory grows.
    os.environ.setdefault("LRU_CACHE_CAPACITY", "128")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    able = actions()
    from vlm.training.engine.distributed import init_from_env, leave

    try:
        if arguments.gpus is not None:
            if able.plan is None:
                raise ValueError("--gpus plans CLIP recipes only. Leave it out: a few steps are run here.")
            machine = (arguments.gpus, arguments.gpu, arguments.tflops, arguments.efficiency)
            able.plan(arguments.recipe, *machine, arguments.caption_tokens)
            return 0
        processes = init_from_env(arguments.device)
        if arguments.dry_run or arguments.out is None:
            able.dry_run(arguments.recipe, processes)
            return 0
        resume = arguments.resume == "auto"
        return able.train(arguments.recipe, arguments.out, processes, resume=resume, push=arguments.push)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1
    finally:
        leave()
