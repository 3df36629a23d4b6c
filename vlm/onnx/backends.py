"""Runs the encoders of a CLIP by ONNX Runtime on the CPU, with float32 or 8-bit weights.

The encoders are exported once for each model, as ONNX files in the user's cache; `OnnxCLIP` then runs them.
"""

import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn

from vlm.config import VisionConfig
from vlm.errors import CheckpointError, InputError, MissingPackageError
from vlm.models.clip import CLIP
from vlm.onnx import towers as onnx_towers
from vlm.user_folders import cache_folder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Backend = Literal["torch", "onnx", "int8"]
_log = logging.getLogger(__name__)


class OnnxCLIP(CLIP):
    """A CLIP whose `encode_image` and `encode_text` run on ONNX Runtime: on the CPU, without gradients.

    The weights of the original model remain, for inspection, saving and export.  A later change of them does not reach
    the encoders.

    Args:
        model: the original.
        images: runs the image encoder.
        texts: runs the text encoder.
        rounding: names the rounding of the weights; empty where the embeddings are those of `model` to 1e-5.
    """

    def __init__(self, model: CLIP, images: "InferenceSession", texts: "InferenceSession", *, rounding: str = ""):
        nn.Module.__init__(self)  # CLIP's would make new weights
        self.config = model.config
        self.vision, self.text = model.vision, model.text
        self.vision_proj, self.text_proj = model.vision_proj, model.text_proj
        self.logit_scale, self.logit_bias = model.logit_scale, model.logit_bias
        self.rounding = rounding
        self._images, self._texts = images, texts
        self.train(model.training)

    def encode_image(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) -> (B, E), unit length; InputError where `keep` is given."""
        if keep is not None:
            raise InputError("ONNX Runtime reads all patches, not those of keep. Load the model with backend torch.")
        return self._run(self._images, images)

    def encode_text(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, E), unit length."""
        return self._run(self._texts, ids)

    def _run(self, session: "InferenceSession", batch: Tensor) -> Tensor:
        if self.training:
            raise InputError("A model that runs on ONNX Runtime cannot be trained. Load it with backend torch.")
        return torch.as_tensor(
            session.run(None, {session.get_inputs()[0].name: batch.cpu().numpy()})[0], device=batch.device
        )


def run_by(model: CLIP, backend: Backend, key: str) -> CLIP:
    """The same model, run by a back end.

    Args:
        model: on the CPU.
        backend: "torch" returns the model itself.
        key: names the weights in the cache (`Embedder.fingerprint`).

    Raises:
        InputError: there is no such back end, an encoder has no ONNX form, the model is on a GPU, or the cache cannot
            be written.
        MissingPackageError: ONNX Runtime is not installed.
    """
    check(backend)
    if backend == "torch":
        return model
    if model.logit_scale.device.type != "cpu":
        raise InputError(f"backend {backend} runs on the CPU, the model is on {model.logit_scale.device}. Use torch.")
    try:
        onnx_towers.check_texts(model.config.text)
    except InputError as error:
        raise InputError(f"backend {backend}: {error} Use backend torch.") from error
    bits = whole_bits() if backend == "int8" else 0
    rounding = f"int{bits}-2" if bits else ""
    floats = cached_folder(f"{key}-onnx-1", lambda new: _write_floats(model, new), backend)
    images = floats
    if rounding:
        images = cached_folder(
            f"{key}-{rounding}", lambda new: write_rounded(floats, new, bits, model.config.vision), backend
        )
    return OnnxCLIP(
        model,
        open_session(images / "image.onnx", backend),
        open_session(floats / "text.onnx", backend),
        rounding=rounding,
    )


def check(backend: str) -> None:
    """Check, before a model is read, that there is such a back end and that its packages are installed.

    Raises:
        InputError: there is no such back end.
        MissingPackageError: ONNX Runtime is not installed.
    """
    if backend not in get_args(Backend):
        raise InputError(f"There is no backend '{backend}'; it must be one of {', '.join(get_args(Backend))}.")
    if backend != "torch":
        _onnxruntime(backend)


def whole_bits() -> int:
    """Bits of a weight, 8 or 7, such that this processor adds products of two bytes without clipping their sum.

    x86 without VNNI adds pairs in 16 bits: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    able = torch.cpu.get_capabilities()
    return 8 if able["architecture"] != "x86_64" or able.get("avx512_vnni") or able.get("avx_vnni") else 7


def cached_folder(name: str, write: Callable[[Path], None], backend: str) -> Path:
    """A folder of the cache.

    Args:
        name: of the folder.
        write: fills an empty folder, which then gets the name: it is complete or absent.
        backend: for messages.

    Raises:
        InputError: the cache cannot be written.
        MissingPackageError: a package of the export is not installed.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    _log.warning("backend %s: exporting this model to %s; later starts use it", backend, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as beside:
            new = Path(beside) / name
            new.mkdir()
            write(new)
            try:
                new.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    except ModuleNotFoundError as error:
        raise _missing(backend, error) from error
    except OSError as error:
        raise InputError(
            f"backend {backend}: cannot write {folder}: {error}. Set XDG_CACHE_HOME to a folder that can be written."
        ) from error
    return folder


def _write_floats(model: CLIP, folder: Path) -> None:
    onnx_towers.write_images(model, folder / "image.onnx")
    onnx_towers.write_texts(model, folder / "text.onnx")


def write_rounded(floats: Path, folder: Path, bits: int, vision: VisionConfig) -> None:
    """Quantise the image encoder to 8 bits: weights with a scale for each column, activations dynamically.

    The text encoder stays float32: it is a small part of the work, and with two quantised encoders fewer images get the
    same label as before.  The second matrix of the first block's MLP stays float32 too: its inputs have the longest
    tail (in `mini`).

    Args:
        floats: folder with image.onnx in float32.
        folder: where image.onnx is written.
        bits: of a weight, from `whole_bits`.
        vision: the encoder's config.
    """
    import onnx
    from onnxruntime import quantization

    source = floats / "image.onnx"
    large = sum(file.stat().st_size for file in floats.glob("image.onnx*")) > onnx_towers.ONE_FILE
    model = onnx.load(source)
    # Without this property quantize_dynamic advises preparation, and configures the caller's logging to say so.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    matrices = {
        weight.name for weight in model.graph.initializer if list(weight.dims) == [vision.mlp_dim, vision.width]
    }
    ends = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    quantization.quantize_dynamic(
        model,
        folder / "image.onnx",
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        reduce_range=bits == 7,
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=ends[:1],
        use_external_data_format=large,
    )


def _onnxruntime(backend: str) -> Any:
    """The module without its telemetry: since 1.29 it reports its use to Microsoft unless told not to."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, by the import
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise _missing(backend, error) from error
    onnxruntime.disable_telemetry_events()  # Windows, and where others have imported it before
    return onnxruntime


def open_session(path: Path, backend: str) -> "InferenceSession":
    """Open an ONNX file on the CPU, with as many threads as torch has."""
    onnxruntime = _onnxruntime(backend)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # between batches others decode images
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have only this class in common
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"backend {backend} cannot open {path}: {reason}. Delete {path.parent}.") from error


def _missing(backend: str, error: ModuleNotFoundError) -> MissingPackageError:
    return MissingPackageError(
        f"backend {backend} needs {error.name}. Install vlm's extra interop: pip install onnx onnxscript onnxruntime"
    )
