"""Recognition of files and sets of keys that cannot be imported as models: one sentence that names them.

Content is recognised by its first bytes, networks by the names of their tensors; the file's name is ignored.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

Shapes = Mapping[str, tuple[int, ...]]
HEAD = 1024
"""Bytes from the start of a file that `unlike_a_checkpoint` looks at."""

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the weights themselves: fetch them with `git lfs pull`"),
    (b"GGUF", "a GGUF file (quantised weights for other programs); give the original .safetensors or .ckpt"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, TensorFlow); give weights of PyTorch"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack it first"),
    (b"\xfd7zXZ\0", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"\x89PNG\r\n\x1a\n", "an image (PNG), not weights"),
    (b"\xff\xd8\xff", "an image (JPEG), not weights"),
    (b"GIF8", "an image (GIF), not weights"),
    (b"%PDF", "a PDF document, not weights"),
    (b"\x93NUMPY", "a NumPy array, not weights by name"),
    (b"\x7fELF", "a program, not weights"),
    (b"MZ", "a program, not weights"),
)
_PAGE = re.compile(
    rb"^(\xef\xbb\xbf)?\s*(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype html|html|head|body|error|!doctype)", re.I | re.S
)


def unlike_a_checkpoint(start: bytes, size: int) -> str | None:
    """The kind of a file that starts with these bytes and cannot be a checkpoint; None where it may be one."""
    if size == 0:
        return "empty: probably an interrupted download; fetch it again"
    what = _content(start, size)
    return None if what is None else f"not a checkpoint but {what}"


def _content(start: bytes, size: int) -> str | None:
    for magic, what in _STARTS:
        if start.startswith(magic):
            return what
    if _PAGE.match(start):
        return "a web page (HTML), not weights: the download returned a page of the site; log in there, or fetch again"
    if start[:1] == b"\x08" and re.search(
        rb"\x12.{1,2}(pytorch|onnx|tf2onnx|keras2onnx|skl2onnx|paddle)", start[:64], re.S
    ):
        return "an ONNX graph; give the weights that it was made from (.safetensors or .ckpt)"
    if start.lstrip()[:1] in (b"{", b"[") and b"\0" not in start:
        return "a text (JSON), not weights"
    if size < 4096 and _is_text(start):
        return "a short text, not weights: " + repr(start[:60].decode("ascii", "replace").split("\n")[0])
    return None


def _is_text(start: bytes) -> bool:
    return not start.translate(None, bytes(range(32, 127)) + b"\t\r\n") and start[:1] not in (b"(", b"c", b"}", b"]")


# -- by keys ----------------------------------------------------------------------------------------------------------

_LORA = re.compile(
    r"(^|[._])(lora_(up|down|mid|A|B|embedding_A|embedding_B)|lora\.(up|down)|lora_(linear|conv2d)_layer|hada_w[12]_[ab]|"
    r"lokr_w[12]|oft_(diag|blocks)|dora_scale|lora_magnitude_vector)([._]|$)|(^|\.)lora_(unet|te\d?|transformer)_|"
    r"_lora\.(up|down)\.weight$|\.processor\.\w*lora"
)
_KEYS: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        _LORA,
        "a LoRA (small changes to the weights of another model), not a complete model: merge it into its base first",
    ),
    (
        re.compile(
            r"(^|\.)control_model\.|(^|\.)input_hint_block\.|(^|\.)zero_convs\.|(^|\.)controlnet_|"
            r"(^|\.)(controlnet_cond_embedding|controlnet_down_blocks|controlnet_mid_block)\."
        ),
        "a ControlNet (it conditions another model), not a complete model; it cannot be imported",
    ),
    (
        re.compile(r"^(ip_adapter|image_proj)\.|^(adapter\.)?body\.\d+\.(block|in_conv|resnets)"),
        "an adapter (T2I- or IP-Adapter) for another model, not a complete model; it cannot be imported",
    ),
    (
        re.compile(r"(^|\.)conditioner\.embedders\.|(^|\.)add_embedding\.linear_1\.|(^|\.)embedders\.1\.model\."),
        "Stable Diffusion XL, which is not supported: it has two text encoders and size conditioning",
    ),
    (
        re.compile(r"(^|\.)joint_blocks\.\d|(^|\.)attn\.add_k_proj\."),
        "Stable Diffusion 3 (a transformer), not supported",
    ),
    (
        re.compile(r"(^|\.)(double_blocks|single_blocks|single_transformer_blocks)\.\d"),
        "Flux or a model of its kind (a transformer), which is not supported",
    ),
    (
        re.compile(r"(^|\.)adaLN_modulation|(^|\.)adaln_single\."),
        "a diffusion transformer of a kind that is not supported (known are DiT and SiT with classes)",
    ),
    (re.compile(r"(^|\.)motion_modules\.|temporal_transformer|(^|\.)time_stack\."), "a video model, not supported"),
    (re.compile(r"(^|\.)RRDB_trunk\.|(^|\.)conv_first\.|^model\.1\.sub\."), "a GAN upscaler (ESRGAN), not supported"),
    (
        re.compile(r"(^|\.)taesd_|^(encoder|decoder)\.layers\.\d+\.conv\.\d"),
        "a tiny autoencoder (TAESD), not supported",
    ),
)
_EMBEDDING = re.compile(r"^(emb_params|string_to_param|string_to_token|clip_[lg]|<[^>]*>|\*)$")
EMBEDDING = "a textual-inversion embedding (one word for another model), not a complete model; it cannot be imported"
TEXT_ENCODER = "a text encoder alone; import the whole model, or the folder of its pipeline"


def no_model_of_ours(shapes: Shapes, others: Iterable[str] = ()) -> str | None:
    """The kind of these keys if they are not a model that can be imported; None where they may be one.

    others: further keys without tensors.
    """
    if any(_EMBEDDING.match(key) for key in [*shapes, *others]) and len(shapes) <= 8:
        return EMBEDDING
    if shapes and len(shapes) <= 2 and all(len(s) <= 2 and s and s[-1] in (768, 1024, 1280) for s in shapes.values()):
        return EMBEDDING
    for pattern, what in _KEYS:
        if any(pattern.search(key) for key in shapes):
            return what
    wide = shapes.get("model.diffusion_model.label_emb.0.0.weight")
    if wide is not None and len(wide) == 2 and wide[1] in (2816, 2560):
        return "Stable Diffusion XL, which is not supported: it has two text encoders and size conditioning"
    if shapes and all(key.startswith(("text_model.", "transformer.text_model.", "vision_model.")) for key in shapes):
        return TEXT_ENCODER
    return None


def unusual_input(channels: int, latent: int, tokens: bool) -> str | None:
    """The name of a published U-Net with text whose input channels besides the latent are not supported here."""
    if not tokens or latent != 4:
        return None
    names = {
        5: "the depth-to-image model of Stable Diffusion 2 (its U-Net takes 5 channels: the latent and a depth map)",
        7: "Stable Diffusion's upscaler (its U-Net takes 7 channels: the latent and a small image)",
        8: "an image-editing model such as InstructPix2Pix (its U-Net takes 8 channels: the latent and an image's)",
    }
    return names.get(channels)


def refuse(path: Path, what: str) -> str:
    """The sentence."""
    return f"{path} is {what}"
