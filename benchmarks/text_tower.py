"""The text tower of ViT-B/32 beside OpenCLIP's and Hugging Face's, same weights, same English captions.

    python -m benchmarks.text_tower > benchmarks/text_tower.md      (--quick: 2 rounds; --device cuda: on a GPU)

All embed the same captions to unit vectors, in float32 and inference mode.  OpenCLIP reads rows padded to 77 ids, as
its tokenizer gives them; Hugging Face reads rows padded to the longest of the batch with an attention mask, as its
processor gives them (padding=True), with PyTorch's attention (sdpa).  Tokenizing is not in the time.  Captions: "a
drawing of", a name of training/picture_words and its first keywords, so many that the mean is 15 ids with both ends.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, pad
from transformers import CLIPConfig, CLIPModel

import vlm.models.linear
from benchmarks.machine import about
from benchmarks.side_by_side import QUICK_ROUNDS, ROUNDS, english_captions, head, in_turns, row
from vlm.config import named_size
from vlm.interop.formats.huggingface import write_clip
from vlm.interop.formats.openclip import write_model
from vlm.models.clip import CLIP
from vlm.tokenizers.clip_bpe import CLIPTokenizer

KEYWORDS = 5
BATCHES = 4  # different ones, over and over
OURS = "`vlm`"


class Models(NamedTuple):
    """The same weights three times."""

    vlm: CLIP
    openclip: Any
    huggingface: Any


def main() -> None:
    parser = argparse.ArgumentParser(description="The text tower beside OpenCLIP's and Hugging Face's.")
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    print("# The text tower of ViT-B/32, float32\n")
    command = "python -m benchmarks.text_tower" + " --quick" * options.quick
    print(about(command, ["torch", "open_clip_torch", "transformers"], options.threads))
    onednn = "oneDNN" if vlm.models.linear.mkl_holds_back() else "MKL"
    print(f"{rounds} rounds, in turns; each round embeds {BATCHES} different batches. Large products here: {onednn}.\n")
    models = three(options.device)
    for size in (64, 1):
        print(table(models, size, rounds, options.device), flush=True)


def three(device: str) -> Models:
    torch.manual_seed(0)
    ours = CLIP(named_size("B/32"))
    model_cfg, tensors = write_model(ours.config, ours.state_dict())
    model_cfg.pop("custom_text")
    theirs: Any = open_clip.model.CLIP(**model_cfg)
    theirs.load_state_dict(tensors, strict=False)  # attn_mask is a buffer
    info, tensors = write_clip(ours.config, ours.state_dict(), 224)
    face: Any = CLIPModel(CLIPConfig(**info))
    face.load_state_dict(tensors)
    return Models(*(model.to(device).eval() for model in (ours, theirs, face)))


@torch.inference_mode()
def table(models: Models, size: int, rounds: int, device: str) -> str:
    captions, tokenizer = english_captions(KEYWORDS), CLIPTokenizer()
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(size)).tolist()
    if size == 1:  # one row says little about the mean: rows of the mean
        order = [at for at in order if len(tokenizer.encode(captions[at])) == 15]
    batches = [tokenizer([captions[at] for at in order[n * size : (n + 1) * size]]) for n in range(BATCHES)]
    lengths = [int(n) for ids in batches for n in models.vlm.text.lengths(ids.to(device))]
    full = [pad(ids, (0, 77 - ids.shape[1])).to(device) for ids in batches]
    masks = [_mask(models.vlm, ids).to(device) for ids in batches]
    batches = [ids.to(device) for ids in batches]

    def huggingface(ids: Tensor, mask: Tensor) -> Tensor:
        features = models.huggingface.get_text_features(input_ids=ids, attention_mask=mask)
        return normalize(features if isinstance(features, Tensor) else features.pooler_output, dim=-1)

    def each(embed: Callable[..., Tensor], *inputs: list[Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            out = torch.cat([embed(*one) for one in zip(*inputs, strict=True)])
            if device == "cuda":
                torch.cuda.synchronize()
            return out

        return run

    variants = {
        "OpenCLIP, 77 ids": each(lambda ids: models.openclip.encode_text(ids, normalize=True), full),
        "Hugging Face, longest of the batch": each(huggingface, batches, masks),
        "`vlm`, all products by MKL": _by_mkl(each(models.vlm.encode_text, batches)),
        OURS: each(models.vlm.encode_text, batches),
    }
    if not vlm.models.linear.mkl_holds_back():
        del variants["`vlm`, all products by MKL"]
    wanted = variants[OURS]()
    apart = {name: float((run() - wanted).abs().max()) for name, run in variants.items()}
    seconds = {name: [t / BATCHES for t in taken] for name, taken in in_turns(variants, rounds).items()}
    about_ids = f"{statistics.mean(lengths):.1f} ids a caption, {max(lengths)} at most"
    lines = [f"## Batch {size}, {about_ids}\n", head("who", "largest difference of a unit vector")]
    lines += [row(name, taken, seconds[OURS], f"{apart[name]:.0e}") for name, taken in seconds.items()]
    return "\n".join(lines) + "\n"


def _mask(model: CLIP, ids: Tensor) -> Tensor:
    return (torch.arange(ids.shape[1]) < model.text.lengths(ids.to(model.logit_scale.device)).cpu()[:, None]).long()


def _by_mkl(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What packing and the last block alone bring."""

    def plain() -> Tensor:
        chosen, vlm.models.linear.linear = vlm.models.linear.linear, linear
        try:
            return run()
        finally:
            vlm.models.linear.linear = chosen

    return plain


if __name__ == "__main__":
    main()
