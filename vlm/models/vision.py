"""The Vision Transformer (Dosovitskiy et al. 2021; *Vision Transformer 入門* chapter 2), inside CLIP and alone.

images (B, C, H, W) -> patches (B, Np, C P P) -> tokens z (B, N, D) -> features (B, D) -> logits (B, M).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.config import CosineHeadConfig, Problem, VisionConfig
from vlm.errors import CheckpointError, ConfigError, InputError
from vlm.images.batching import pixel_batches
from vlm.images.open import ImageSource
from vlm.images.preprocess import Preprocess
from vlm.models.labels import unique_labels
from vlm.models.layers import AttentionPool, Block, init_blocks, projection
from vlm.models.linear import linear
from vlm.models.packing import FirstToken


class PatchEmbed(nn.Module):
    """Cuts an image into P x P patches and projects each, (B, C, H, W) -> (B, Np, D).  Book eq. (3).

    The weight has a convolution's shape (D, C, P, P), as every checkpoint keeps it.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.patch_size = config.patch_size
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.width, side, stride=side, bias=config.patch_bias)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, Np, D), or (B, K, D) of the patches `keep` (B, K) alone.  A matrix product is faster than conv2d here."""
        patches = self.cut(images)  # (B, Np, C P P)
        if keep is not None:
            patches = take_tokens(patches, keep)
        return linear(patches, self.proj.weight.flatten(1), self.proj.bias)

    def cut(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, Np, C P P), row by row from the top left."""
        B, C, H, W = images.shape
        P = self.patch_size
        grid = images.view(B, C, H // P, P, W // P, P)
        return grid.permute(0, 2, 4, 1, 3, 5).reshape(B, (H // P) * (W // P), C * P * P)


class ViTFeatures(NamedTuple):
    """The outputs of the encoder for other tasks."""

    pooled: Tensor  # (B, D), what a head reads
    class_token: Tensor | None  # (B, D), None where the model has none
    patches: Tensor  # (B, D, H/P, W/P)
    blocks: list[Tensor]  # tokens after each block asked for, each (B, N, D)


class VisionTransformer(nn.Module):
    """ViT without a head, (B, C, H, W) -> features (B, D).  Book eq. (14)-(16).

    The book has no q/k/v bias, and its last LayerNorm sits in the head.

    `any_size`: images of any sides that patches tile are taken, with positions resized to them; False by default.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.any_size = False
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, config.registers, config.width)) if config.registers else None
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches + config.class_token, config.width))
        self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_eps=config.norm_eps,
                qkv_bias=config.qkv_bias,
                dropout=config.dropout,
                drop_path=config.drop_path * layer / max(1, config.depth - 1),
            )
            for layer in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps) if config.final_norm else nn.Identity()
        self.pool = (
            AttentionPool(
                config.width,
                config.num_heads,
                config.mlp_dim,
                activation=config.activation,
                norm_eps=config.norm_eps,
            )
            if config.pool == "attention"
            else None
        )
        self._initialise()

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Features (B, D); `keep` (B, K) int64: the patches that are computed (FLIP, Li et al. 2023), None: all."""
        z = self.embed(images, keep)  # (B, N, D)
        *blocks, last = self.blocks
        for block in blocks:
            z = block(z)
        if self.config.pool == "class":  # nobody reads the patches of the last block
            return self.norm(last(z, FirstToken()))
        return self._pool(last(z))  # (B, D)

    def embed(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """z_0: patch embeddings + positions, the class token first, (B, N, D).  Book eq. (4)(5)."""
        pos_embed = self._positions(images)  # (1, N, D)
        z = self.patch_embed(images, keep)  # (B, Np, D), or (B, K, D)
        first = int(self.config.class_token)
        positions = pos_embed[:, first:].expand(z.shape[0], -1, -1)
        z = z + (positions if keep is None else take_tokens(positions, keep))
        before = [] if self.cls_token is None else [self.cls_token + pos_embed[:, :1]]
        before += [] if self.reg_token is None else [self.reg_token]
        z = torch.cat([*(token.expand(z.shape[0], -1, -1) for token in before), z], dim=1) if before else z
        return self.norm_pre(z)

    def features(self, images: Tensor, blocks: tuple[int, ...] = ()) -> ViTFeatures:
        """Class token, patch map and the tokens after any of `blocks`: 0 is the first, -1 the last."""
        depth = self.config.depth
        if unknown := [index for index in blocks if not -depth <= index < depth]:
            raise InputError(f"There are no blocks {unknown}: this model has {depth}, numbered 0 to {depth - 1}.")
        z, taken = self.embed(images), {}
        for layer, block in enumerate(self.blocks):
            z = block(z)
            if layer in blocks or layer - depth in blocks:
                taken[layer] = z
        tokens = z if self.config.norm_after_pool else self.norm(z)
        first = self.config.num_prefix_tokens
        grid = (images.shape[2] // self.config.patch_size, images.shape[3] // self.config.patch_size)
        patches = torch.unflatten(tokens[:, first:].transpose(1, 2), 2, grid)  # (B, D, H/P, W/P)
        class_token = tokens[:, 0] if self.config.class_token else None
        return ViTFeatures(self._pool(z), class_token, patches, [taken[index % depth] for index in blocks])

    def _pool(self, z: Tensor) -> Tensor:
        """(B, N, D) -> (B, D): what a head reads.  Book section 2-6: the class token, between eq. (16) and (17)."""
        if self.config.pool == "class":
            return self.norm(z[:, 0])
        if self.pool is not None:
            return self.pool(self.norm(z))
        patches = z[:, self.config.num_prefix_tokens :]
        if self.config.norm_after_pool:
            return self.norm(patches.mean(1))
        return self.norm(patches).mean(1)

    def _positions(self, images: Tensor) -> Tensor:
        wanted = (self.config.in_channels, *self.config.image_shape)
        if tuple(images.shape[1:]) == wanted:
            return self.pos_embed
        if not self.any_size or images.shape[1] != wanted[0]:
            raise InputError(f"images are {tuple(images.shape)}; this model takes (B, {', '.join(map(str, wanted))}).")
        return resize_pos_embed(self.pos_embed, self.config, (images.shape[2], images.shape[3]))

    def _initialise(self) -> None:
        scale = self.config.width**-0.5  # openai/CLIP model.py, VisionTransformer
        nn.init.normal_(self.pos_embed, std=scale)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=scale)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=scale)
        if self.pool is not None:
            nn.init.normal_(self.pool.latent, std=scale)
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)
        init_blocks(self.blocks)


class CosineHead(nn.Linear):
    """A linear head that reads unit vectors, as CLIP does: features (B, D) -> logits (B, M).

    Row m of `weight` is exp(logit_scale) times the unit vector of class m, where `zero_shot.zero_shot_head` starts it
    (Wortsman et al. 2022, section 3); `bias` starts at SigLIP's logit_bias, 0 for CLIP.
    """

    def __init__(self, config: CosineHeadConfig, width: int, num_classes: int):
        super().__init__(config.embed_dim, num_classes)
        if config.proj == "none" and width != config.embed_dim:
            raise ConfigError(f"proj 'none' needs width {width} to equal embed_dim {config.embed_dim}. Use 'linear'.")
        self.config = config
        self.width = width  # D
        self.proj = projection(config.proj, width, config.embed_dim)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (B, M): scaled cosines of features (B, D) with the class vectors."""
        return super().forward(F.normalize(self.proj(input), dim=-1))


class ViTClassifier(nn.Module):
    """A ViT and a linear head, (B, C, H, W) -> outputs (B, M).  Book eq. (17)."""

    # (source, labels, image_size) -> (ViT, its preprocessing); set by vlm/checkpoint/backbone.py, which reads files
    open_backbone: ClassVar[Callable[..., tuple[VisionTransformer, Preprocess | None]] | None] = None

    def __init__(
        self,
        config: VisionConfig,
        num_classes: int,
        *,
        labels: Sequence[str] | None = None,
        preprocess: Preprocess | None = None,
        head: CosineHead | None = None,
        problem: Problem = "single_label",
        thresholds: Sequence[float] | None = None,
    ):
        """Build the model with new weights.

        Args:
            config: of the ViT.
            num_classes: M.
            labels: of the M classes or values; None numbers them.
            preprocess: prepares images for `forward`.
            head: compares unit vectors; None is a linear head that starts at zero.
            problem: what the outputs are: logits of one class ("single_label") or of any number of labels
                ("multi_label") per image, or values ("regression").
            thresholds: of a multi-label model, the probability from which each label counts as present.
        """
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes must be positive, got {num_classes}.")
        self.labels = tuple(labels) if labels is not None else tuple(str(number) for number in range(num_classes))
        if len(self.labels) != num_classes:
            raise ConfigError(f"{len(self.labels)} labels for {num_classes} classes: give one label per class.")
        if problem not in get_args(Problem):
            raise ConfigError(f"problem is {problem!r}; it must be one of {', '.join(get_args(Problem))}.")
        if thresholds is not None and (problem != "multi_label" or len(thresholds) != num_classes):
            raise ConfigError(
                f"{len(thresholds)} thresholds for {num_classes} {problem} outputs: multi_label has one a label."
            )
        if head is not None and (head.width, head.out_features) != (config.width, num_classes):
            raise ConfigError(
                f"head takes width {head.width} to {head.out_features} classes; "
                f"this ViT has width {config.width} and {num_classes} classes."
            )
        self.preprocess, self.problem = preprocess, problem
        self.thresholds = None if thresholds is None else tuple(thresholds)
        self.vision = VisionTransformer(config)
        self.head = head if head is not None else _zero_head(config.width, num_classes)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits (B, M) of images (B, C, H, W); values for regression."""
        return self.head(self.vision(images, keep))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        labels: Sequence[str],
        *,
        problem: Problem = "single_label",
        image_size: int | tuple[int, int] | None = None,
    ) -> Self:
        """A classifier with a new head on the image encoder of a trained model.

        Args:
            source: a CLIP, or a ViT with or without a head, as `vlm.load_backbone` reads it.
            labels: of the M classes or values; a name that occurs twice is an `InputError`.
            problem: what the outputs are.
            image_size: in pixels; other than the source's it resizes the position embeddings.

        Returns:
            The model in `eval()`; the head starts at zero.

        Raises:
            CheckpointError: the source cannot be opened as an image encoder.
        """
        if cls.open_backbone is None:
            raise CheckpointError("No checkpoint reader is loaded. Import vlm, and use vlm.ViTClassifier.")
        vision, preprocess = cls.open_backbone(source)
        return cls.on_backbone(vision, preprocess, unique_labels(labels), problem=problem, image_size=image_size)

    @classmethod
    def on_backbone(
        cls,
        vision: VisionTransformer,
        preprocess: Preprocess | None,
        labels: Sequence[str],
        *,
        problem: Problem = "single_label",
        image_size: int | tuple[int, int] | None = None,
        head: CosineHead | None = None,
        **changes: float,
    ) -> Self:
        """A classifier with a copy of a trained ViT's weights.

        Args:
            vision: the ViT.
            preprocess: of the ViT.
            labels: of the M classes or values.
            problem: what the outputs are.
            image_size: in pixels; None keeps the ViT's.
            head: compares unit vectors; None is a linear head that starts at zero.
            changes: dropout and drop_path, other than the ViT's.
        """
        size = vision.config.image_size if image_size is None else image_size
        config = dataclasses.replace(vision.config, image_size=size, **changes)  # type: ignore[arg-type]
        if preprocess is not None and size != preprocess.config.image_size:
            preprocess = Preprocess(dataclasses.replace(preprocess.config, image_size=size))
        model = cls(config, len(labels), labels=labels, preprocess=preprocess, head=head, problem=problem)
        weights = vision.state_dict()
        weights["pos_embed"] = resize_pos_embed(weights["pos_embed"], vision.config, size)
        model.vision.load_state_dict(weights)
        return model.eval()

    @torch.inference_mode()
    def predict(
        self, images: ImageSource | Iterable[ImageSource], top: int | None = None, *, batch_size: int = 32
    ) -> list[list[tuple[str, float]]]:
        """Classify images.

        Args:
            images: one image or any iterable of images: paths, PIL images, file contents or arrays.
            top: labels for each image, most probable first.  None: five of a single-label model; of a multi-label model
                those that reach their threshold; all values of a regression model, in their order.
            batch_size: images computed at once.

        Returns:
            For each image a list of (label, probability); (label, value) for regression.

        Raises:
            CheckpointError: the model came without preprocessing settings.
            ImageError: an image cannot be used.
        """
        weight, found = self.head.weight, list[list[tuple[str, float]]]()
        for pixels in pixel_batches(images, self.prepare(), batch_size):
            for row in self.scores(self(pixels.to(weight.device, weight.dtype)).float()).cpu():
                found.append(self._ranked(row, top))
        return found

    def prepare(self) -> Preprocess:
        """The preprocessing; raises `CheckpointError` where the model came without it."""
        if self.preprocess is None:
            raise CheckpointError(
                "The model came without preprocessing settings, so it cannot read images. Convert it with its config, "
                "or set classifier.preprocess."
            )
        return self.preprocess

    def scores(self, outputs: Tensor) -> Tensor:
        """Probabilities of logits (B, M): softmax, or sigmoid of a multi-label model; regression keeps its values."""
        if self.problem == "regression":
            return outputs
        return outputs.softmax(-1) if self.problem == "single_label" else outputs.sigmoid()

    def _ranked(self, scores: Tensor, top: int | None) -> list[tuple[str, float]]:
        """(M,) -> (label, score), as `predict` promises."""
        pairs = list(zip(self.labels, scores.tolist(), strict=True))
        if self.problem == "regression" and top is None:
            return pairs
        if self.problem == "multi_label" and top is None:
            limits = self.thresholds or (0.5,) * len(pairs)
            pairs = [pair for pair, limit in zip(pairs, limits, strict=True) if pair[1] >= limit]
        pairs.sort(key=lambda pair: -pair[1])  # stable: equal ones in the order of the labels
        return pairs[: 5 if top is None and self.problem == "single_label" else top]


def _zero_head(width: int, num_classes: int) -> nn.Linear:
    """ViT paper, section 4.1: a new head starts at zero."""
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def resize_pos_embed(
    pos_embed: Tensor,
    config: VisionConfig,
    image_size: int | tuple[int, int],
    *,
    bicubic: bool = True,
    antialias: bool = True,
) -> Tensor:
    """Position embeddings for another image size, (1, N, D) -> (1, N', D); untouched when the size is the same.

    Bicubic with antialiasing as OpenCLIP does; `bicubic=False` is bilinear, as big_vision does.
    """
    new = dataclasses.replace(config, image_size=image_size)
    if new.grid == config.grid:
        return pos_embed
    first = int(config.class_token)
    grid = torch.unflatten(pos_embed[:, first:].transpose(1, 2), 2, config.grid).float()  # (1, D, H/P, W/P)
    mode = "bicubic" if bicubic else "bilinear"
    resized = F.interpolate(grid, size=new.grid, mode=mode, antialias=antialias, align_corners=False)
    return torch.cat([pos_embed[:, :first], resized.flatten(2).transpose(1, 2).to(pos_embed.dtype)], dim=1)


def take_tokens(tokens: Tensor, keep: Tensor) -> Tensor:
    """(B, N, D), (B, K) -> (B, K, D): row by row, the tokens at `keep`."""
    return tokens.gather(1, keep[:, :, None].expand(-1, -1, tokens.shape[2]))
