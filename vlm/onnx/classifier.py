"""A classifier run by ONNX Runtime, with float32 or with 8-bit weights, on the CPU."""

import hashlib
import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm.errors import InputError
from vlm.models.vision import ViTClassifier
from vlm.onnx.backends import Backend, cached_folder, check, open_session, whole_bits, write_rounded
from vlm.onnx.towers import write_classifier

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


class OnnxClassifier(ViTClassifier):
    """A `ViTClassifier` whose `forward` is run by ONNX Runtime: on the CPU, without gradients.

    The weights of the model it was made of are still there; later changes of them do not reach `forward`.
    """

    def __init__(self, model: ViTClassifier, session: "InferenceSession", *, rounding: str = ""):
        """Take over a model.

        Args:
            model: gives labels, preprocessing and thresholds.
            session: computes the outputs.
            rounding: how the outputs differ from those of `model`; empty where they are equal to 1e-5.
        """
        nn.Module.__init__(self)  # that of ViTClassifier would make new weights
        self.labels, self.preprocess = model.labels, model.preprocess
        self.problem, self.thresholds = model.problem, model.thresholds
        self.vision, self.head, self.rounding = model.vision, model.head, rounding
        self._session = session
        self.train(model.training)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits (B, M) of images (B, C, H, W); values for regression."""
        if keep is not None or self.training:
            raise InputError("ONNX Runtime runs whole images and does not train. Load the model with backend torch.")
        (name,) = (given.name for given in self._session.get_inputs())
        found = self._session.run(None, {name: images.float().cpu().numpy()})[0]
        return torch.as_tensor(found, device=images.device)


def run_classifier_by(model: ViTClassifier, backend: Backend) -> ViTClassifier:
    """The same classifier run by a back end; its ONNX files are written once, into the user's cache.

    Args:
        model: on the CPU, in `eval()`.
        backend: "onnx" keeps float32, "int8" rounds the weights.

    Raises:
        InputError: the model is not on the CPU.
        MissingPackageError: the back end is not installed.
    """
    check(backend)
    if backend == "torch":
        return model
    if model.head.weight.device.type != "cpu" or model.head.weight.dtype != torch.float32:
        raise InputError(
            f"backend {backend} runs float32 models on the CPU; this one is {model.head.weight.dtype} on "
            f"{model.head.weight.device}. Use torch."
        )
    key, bits = _fingerprint(model), whole_bits() if backend == "int8" else 0
    folder = floats = cached_folder(
        f"{key}-classifier-1", lambda new: write_classifier(model, new / "image.onnx"), backend
    )
    if bits:
        config = model.vision.config
        folder = cached_folder(
            f"{key}-classifier-int{bits}-1", lambda new: write_rounded(floats, new, bits, config), backend
        )
    return OnnxClassifier(model, open_session(folder / "image.onnx", backend), rounding=f"int{bits}" if bits else "")


def _fingerprint(model: ViTClassifier) -> str:
    """16 hex digits that name the weights and the architecture."""
    digest = hashlib.sha256(json.dumps(model.vision.config.to_dict(), sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
