"""Colour profiles (ICC): from an image's own colours to sRGB, by Pillow's ImageCms (LittleCMS)."""

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

from sfumato.data.wide import WIDE, white_of

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
"""The image's mode in which each colour space of a profile is converted."""
_FITTING = {
    "RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1", "YCbCr", "HSV"),
    "GRAY": ("L", "LA", "1", "F", *WIDE),
    "CMYK": ("CMYK",),
    "Lab": ("LAB",),
}
_SAME = 2
"""Levels of 255 by which a profile may differ from sRGB and still count as sRGB."""


@dataclass(frozen=True)
class Conversion:
    """The conversion of a profile: none (`transform` None) or a transform from images of `mode` to RGB; a `note`."""

    transform: ImageCms.ImageCmsTransform | None = None
    mode: str = "RGB"
    name: str = ""
    note: str = ""


_NOTHING = Conversion()


def conversion_of(image: Image.Image) -> Conversion:
    """The conversion of an image's colours, from its header alone: pixels are not decoded."""
    stored = image.info.get("icc_profile")
    profile = stored if isinstance(stored, bytes) else b""
    if image.mode == "LAB" and not profile:
        return _lab()
    return _conversion(profile, image.mode) if profile else _NOTHING


@lru_cache(maxsize=64)
def _conversion(data: bytes, mode: str) -> Conversion:
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        space = profile.profile.xcolor_space.strip()
        name = (profile.profile.profile_description or "").strip() or "without a name"
        if mode not in _FITTING.get(space, ()):
            return Conversion(note=f"its colour profile is for {space} and does not fit an image of the mode {mode}")
        transform = _transform(profile, _MODES[space])
    except Exception as error:  # anything that LittleCMS raises for a damaged profile
        return Conversion(note=f"its colour profile is damaged ({str(error) or type(error).__name__})")
    if _is_srgb(transform, _MODES[space]):
        return _NOTHING
    return Conversion(transform, _MODES[space], name, f"its colour profile ({name}) was converted to sRGB")


@lru_cache(maxsize=1)
def _lab() -> Conversion:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    return Conversion(_transform(profile, "LAB"), "LAB", "CIE Lab", "its CIE Lab colours were converted to sRGB")


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    """Relative colorimetric with black point compensation, as browsers and image editors do."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    built = ImageCms.buildTransform(
        profile,
        srgb,
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert isinstance(built, ImageCms.ImageCmsTransform)
    return built


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether colours over the whole range are unchanged."""
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    if mode == "RGB":
        probe = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    elif mode == "L":
        probe = np.arange(256, dtype=np.uint8)[None]
    else:
        return False
    seen = np.asarray(transform.apply(Image.fromarray(probe))).astype(int)
    return bool(np.abs(seen - (probe if mode == "RGB" else probe[..., None])).max() <= _SAME)


def rgb_of(image: Image.Image) -> Image.Image:
    """An image of 8 bits a band, of any mode, in sRGB: RGB, or RGBA where it has transparency.

    Raises what Pillow raises for a mode that cannot become RGB.
    """
    conversion = conversion_of(image)
    if not image.has_transparency_data:
        return _opaque(image, conversion)
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    if conversion.transform is None:
        return layer
    plain = image.getchannel(0) if conversion.mode == "L" and image.mode == "LA" else layer.convert("RGB")
    converted = _opaque(plain, conversion)
    converted.putalpha(layer.getchannel("A"))
    return converted


def _opaque(image: Image.Image, conversion: Conversion) -> Image.Image:
    if conversion.transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    plain = image if image.mode == conversion.mode else image.convert(conversion.mode)
    converted = conversion.transform.apply(plain)
    converted.info.pop("icc_profile", None)  # LittleCMS's own sRGB
    return converted


def in_srgb(image: Image.Image) -> tuple[Image.Image, str]:
    """The image with sRGB colours and no other profile, and a note of what was done; "" if nothing was.

    Mode, palette and transparency stay, but CMYK with a profile and Lab become RGB. The image itself is not changed.
    """
    conversion = conversion_of(image)
    if conversion is _NOTHING:
        return image, ""
    if conversion.transform is None:
        return _without_profile(image.copy(), image), f"{conversion.note}: it is ignored"
    if image.mode == "P":
        made = _palette(image, conversion)
    elif image.mode in WIDE or image.mode == "F":
        made = _wide(image, conversion)
    elif image.mode in ("L", "1"):
        made = _opaque(image, conversion).convert("L").convert(image.mode)
    elif image.mode == "LA":
        made = rgb_of(image).convert("LA")
    else:
        made = rgb_of(image)
    return _without_profile(made, image), conversion.note


def _without_profile(made: Image.Image, image: Image.Image) -> Image.Image:
    made.info.update({name: value for name, value in image.info.items() if name != "icc_profile"})
    made.info.pop("icc_profile", None)
    return made


def _palette(image: Image.Image, conversion: Conversion) -> Image.Image:
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(1, -1, 3)
    made = image.copy()
    made.putpalette(_opaque(Image.fromarray(colours), conversion).tobytes())
    return made


def _wide(image: Image.Image, conversion: Conversion) -> Image.Image:
    """Converted by the curve of 256 greys, interpolated."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    curve = np.asarray(_opaque(ramp, conversion).convert("L"), np.float64)[0]
    values, white = np.asarray(image), white_of(image)
    grey = np.interp(np.nan_to_num(values.astype(np.float64), posinf=white) / white * 255, np.arange(256.0), curve)
    moved = grey / 255 * white
    made = image.copy()
    kept = moved if values.dtype.kind == "f" else np.rint(moved)
    made.frombytes(np.ascontiguousarray(kept.astype(values.dtype)).tobytes())
    return made
