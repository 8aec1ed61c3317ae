"""Encoding and decoding of images of any size within a memory bound, with the same result as for the whole image.

A tile is a band of rows over the full width. Every layer of the autoencoder processes its input band by band, each
with the neighbouring rows in the reach of its kernel, so convolutions have the same inputs as in the whole image. Group
norms need statistics of the whole: they are accumulated while a map is written, before the layer that uses them reads
it. The result therefore equals the whole image's to rounding, unlike that of tiles with separate norms. A feature map
is in memory if it needs at most a quarter of the bound, else in a temporary file. Attention, at the lowest resolutions,
reads its map as a whole.

Plain, fused and packed autoencoders: layers are called, not rewritten.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.autoencoder.bottleneck import gaussian_moments
from sfumato.autoencoder.convnet import Decoder, Encoder, Level, Middle, ResidualBlock
from sfumato.autoencoder.model import Autoencoder
from sfumato.errors import UserError

DEFAULT_MEMORY = 4 * 2**30
"""Largest size of the feature maps in bytes for which images are computed as a whole."""
LEAST_MEMORY = 2**20
MAPS_AT_ONCE = 3
"""A block's input, its normalised input, and its output."""
COPIES = 8
"""Copies of a row, in float32: as read, normalised, in the convolution's layout, its output, and both with a sum."""


def bytes_needed(autoencoder: Autoencoder, size: tuple[int, int]) -> int:
    """Approximate bytes of feature maps of one image (H, W) as a whole, without weights."""
    config = autoencoder.config
    if config.bottleneck.kind == "pixels":
        return 0
    widths = [config.channels * m for m in config.channel_multipliers]
    last = len(widths) - 1
    largest = max(
        widths[min(level + 1, last)] * (size[0] >> level) * (size[1] >> level) for level in range(len(widths))
    )
    return MAPS_AT_ONCE * 4 * largest


@torch.no_grad()
def decode(autoencoder: Autoencoder, z: Tensor, memory: int = DEFAULT_MEMORY, quantize: bool = True) -> Tensor:
    """Raw latents (B, C, h, w) -> images (B, image_channels, f·h, f·w), as `Autoencoder.decode`.

    Uses about `memory` bytes besides weights, latents and images: several images at once, one by one, or each in bands.
    Raises UserError for a bound below LEAST_MEMORY.
    """
    f = autoencoder.factor

    def banded(one: Tensor) -> Tensor:
        if autoencoder.quantize is not None and quantize:
            one = autoencoder.quantize.quantise(one)
        h = autoencoder.post_quant_conv(one.to(autoencoder.post_quant_conv.weight.dtype))
        return _Bands(memory, one.device).decoder(autoencoder.decoder, h).to(one.dtype)

    return _bounded(
        z, bytes_needed(autoencoder, (f * z.shape[2], f * z.shape[3])), memory, _decoder(autoencoder, quantize), banded
    )


@torch.no_grad()
def encode(autoencoder: Autoencoder, image: Tensor, memory: int = DEFAULT_MEMORY) -> Tensor:
    """Images (B, image_channels, H, W) in [-1, 1] -> the `moments` of `Autoencoder.encode`; otherwise as `decode`."""

    def banded(one: Tensor) -> Tensor:
        weight = autoencoder.quant_conv.weight
        features = _Bands(memory, one.device).encoder(autoencoder.encoder, one.to(weight.dtype))
        h = autoencoder.quant_conv(features.to(weight.dtype))
        return gaussian_moments(h) if autoencoder.variational else autoencoder.quantize.prepare(h)  # type: ignore[union-attr]

    size = (image.shape[2], image.shape[3])
    whole: Callable[[Tensor], Tensor] = lambda part: autoencoder.encode(part).moments  # noqa: E731
    if size[0] % autoencoder.factor or size[1] % autoencoder.factor:
        return whole(image)  # raises the error
    return _bounded(image, bytes_needed(autoencoder, size), memory, whole, banded)


def _decoder(autoencoder: Autoencoder, quantize: bool) -> Callable[[Tensor], Tensor]:
    return lambda part: autoencoder.decode(part, quantize)


def _bounded(
    x: Tensor, one: int, memory: int, whole: Callable[[Tensor], Tensor], banded: Callable[[Tensor], Tensor]
) -> Tensor:
    """All rows of a batch; a row needs `one` bytes as a whole."""
    if memory < LEAST_MEMORY:
        raise UserError(f"memory is {memory} bytes: give at least {LEAST_MEMORY}, one MiB")
    if one > memory:
        return torch.cat([banded(part) for part in x.split(1)])
    return torch.cat([whole(part) for part in x.split(max(1, memory // max(1, one)))])


class _Map:
    """A feature map (1, C, H, W) written and read in bands of rows, with statistics per channel."""

    def __init__(self, channels: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.channels, self.height, self.width = channels, height, width
        self.dtype, self.device = dtype, device
        self.rows: Tensor | None = None
        self.file: IO[bytes] | None = None
        self.mean = torch.zeros(channels, dtype=torch.float64)
        self.square = torch.zeros(channels, dtype=torch.float64)
        self.count = 0

    @classmethod
    def of(cls, x: Tensor) -> "_Map":
        """The map of a whole tensor (1, C, H, W)."""
        _, C, H, W = x.shape
        out = cls(C, H, W, x.dtype, x.device)
        out.rows = x[0].permute(1, 2, 0)
        return out

    @property
    def row_bytes(self) -> int:
        return self.width * self.channels * self.dtype.itemsize

    def allocate(self, limit: int) -> "_Map":
        """Allocates the whole map, in memory up to `limit` bytes, else in a temporary file that is deleted when
        closed."""
        if self.height * self.row_bytes <= limit:
            self.rows = torch.empty(self.height, self.width, self.channels, dtype=self.dtype, device=self.device)
        else:
            self.file = tempfile.TemporaryFile(prefix="sfumato-")  # noqa: SIM115  # closed with the map
        return self

    def read(self, start: int, stop: int) -> Tensor:
        """Rows (1, C, stop - start, W), channels-last."""
        if self.rows is not None:
            part = self.rows[start:stop]
        else:
            assert self.file is not None
            data = torch.empty((stop - start) * self.row_bytes, dtype=torch.uint8)
            self.file.seek(start * self.row_bytes)
            self.file.readinto(data.numpy().data)  # type: ignore[attr-defined]
            part = data.view(self.dtype).view(stop - start, self.width, self.channels).to(self.device)
        return part.permute(2, 0, 1)[None]

    def write(self, start: int, x: Tensor) -> None:
        """Writes rows (1, C, n, W) from `start` on; in order and each once, for the statistics."""
        part = x[0].permute(1, 2, 0)
        if self.rows is not None:
            self.rows[start : start + len(part)] = part
        else:
            assert self.file is not None
            data = part.detach().to("cpu").contiguous()
            self.file.seek(start * self.row_bytes)
            self.file.write(data.view(torch.uint8).numpy().data)
        self._add(x)

    def close(self) -> None:
        """Releases memory or file."""
        self.rows = None
        if self.file is not None:
            self.file.close()

    def _add(self, x: Tensor) -> None:
        """Merges means and sums of squares of two parts (Chan et al. 1983)."""
        if self.count + x.shape[2] * x.shape[3] > self.height * self.width:  # the map is being rewritten
            self.mean, self.square, self.count = torch.zeros_like(self.mean), torch.zeros_like(self.square), 0
        n = x.shape[2] * x.shape[3]
        pixels = x[0].permute(1, 2, 0).reshape(n, -1).float()  # summed twice: var_mean takes ten times as long
        mean = pixels.mean(0)
        square = (pixels - mean).square_().sum(0).cpu().double()
        total = self.count + n
        delta = mean.cpu().double() - self.mean
        self.square += square + delta.square() * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    def normaliser(self, layer: nn.Module, silu: bool = True) -> Callable[[Tensor], Tensor]:
        """The function that applies an nn.GroupNorm of the whole map, and SiLU, to any part of it."""
        assert isinstance(layer, nn.GroupNorm)
        means = self.mean.view(layer.num_groups, -1)
        mean = means.mean(1)
        within = (self.square / self.count).view(layer.num_groups, -1).mean(1)
        variance = within + (means - mean[:, None]).square().mean(1)
        each = self.channels // layer.num_groups
        gain = layer.weight.cpu().double() * (variance + layer.eps).rsqrt().repeat_interleave(each)
        offset = layer.bias.cpu().double() - mean.repeat_interleave(each) * gain
        a, b = (value.float().to(self.device)[:, None, None] for value in (gain, offset))

        def normalised(x: Tensor) -> Tensor:
            y = torch.addcmul(b, x.float(), a)
            return (F.silu(y, inplace=True) if silu else y).to(x.dtype)

        return normalised


Layer = Callable[[Tensor], Tensor]


class _Bands:
    """Processes maps in bands; a quarter of the bound is for the current rows, the rest for three maps."""

    def __init__(self, memory: int, device: torch.device) -> None:
        self.quarter = memory // 4
        self.device = device

    # ---- networks

    def encoder(self, network: Encoder, image: Tensor) -> Tensor:
        """One image (1, C, H, W) -> features (1, C', H/f, W/f)."""
        x = self.apply(_Map.of(image), network.conv_in)
        for level in network.down:
            x = self.level(x, cast(Level, level))
        return self.head(self.middle(x, network.mid), network.norm_out, network.conv_out)

    def decoder(self, network: Decoder, h: Tensor) -> Tensor:
        """One latent (1, C, h, w) -> image (1, C', f·h, f·w)."""
        x = self.middle(self.apply(_Map.of(h), network.conv_in), network.mid)
        for level in reversed(cast(Sequence[Level], network.up)):
            x = self.level(x, level)
        return self.head(x, network.norm_out, network.conv_out)

    def level(self, x: _Map, level: Level) -> _Map:
        for i, block in enumerate(level.block):
            x = self.block(x, cast(ResidualBlock, block))
            if len(level.attn) > 0:
                x = self.whole(x, level.attn[i])
        if level.resample == "down":
            return self.halve(x, level.downsample)
        return self.double(x, level.upsample) if level.resample == "up" else x

    def middle(self, x: _Map, mid: Middle) -> _Map:
        x = self.block(x, mid.block_1)
        return self.block(self.whole(x, mid.attn_1), mid.block_2)

    def head(self, x: _Map, norm: nn.Module, conv: nn.Module) -> Tensor:
        """The last norm and convolution; the result is in memory in any case."""
        out = self.apply(x, conv, before=x.normaliser(norm), limit=None)
        assert out.rows is not None
        return out.rows.permute(2, 0, 1)[None]

    # ---- layers

    def block(self, x: _Map, block: ResidualBlock) -> _Map:
        """The second convolution's result overwrites the input if it has the same width."""
        h = self.apply(x, block.conv1, before=x.normaliser(block.norm1), keep=True)
        carry: Layer = block.nin_shortcut if block.widens else _unchanged
        norm = h.normaliser(block.norm2)
        out = self.apply(
            h, block.conv2, before=norm, plus=lambda a, b: carry(x.read(a, b)), into=None if block.widens else x
        )
        if block.widens:
            x.close()
        return out

    def whole(self, x: _Map, layer: nn.Module) -> _Map:
        """Applies a layer to the whole map at once."""
        if isinstance(layer, nn.Identity):
            return x
        y = layer(x.read(0, x.height))
        for a, b in self._parts(x.height, COPIES * x.row_bytes):
            x.write(a, y[:, :, a:b])
        return x

    def apply(
        self,
        x: _Map,
        layer: nn.Module,
        before: Layer | None = None,
        plus: Callable[[int, int], Tensor] | None = None,
        into: _Map | None = None,
        keep: bool = False,
        limit: int | None = -1,
    ) -> _Map:
        """A 3×3 convolution; the layer itself pads the border of the image with zeros, as its input ends there too."""

        def band(a: int, b: int) -> Tensor:
            first = max(a - 1, 0)
            part = x.read(first, min(b + 1, x.height))
            y = layer(part if before is None else before(part))[:, :, a - first : a - first + b - a]
            return y if plus is None else y + plus(a, b)

        bias = getattr(layer, "bias", None)
        widest = max(x.channels, 0 if bias is None else len(bias))
        return self._fill(x, x.height, band, into, keep, limit, widest)

    def double(self, x: _Map, upsample: nn.Module) -> _Map:
        def band(a: int, b: int) -> Tensor:
            """Output rows a to b, both even."""
            first, last = a // 2, b // 2
            above = max(first - 1, 0)
            y: Tensor = upsample(x.read(above, min(last + 1, x.height)))
            return y[:, :, 2 * (first - above) : 2 * (first - above) + b - a]

        return self._fill(x, 2 * x.height, band)

    def halve(self, x: _Map, downsample: nn.Module) -> _Map:
        """The layer pads by one row at the bottom: its result has the requested rows, or half a row more."""

        def band(a: int, b: int) -> Tensor:
            y: Tensor = downsample(x.read(2 * a, min(2 * b + 1, x.height)))
            return y[:, :, : b - a]

        return self._fill(x, x.height // 2, band)

    def _fill(
        self,
        x: _Map,
        height: int,
        band: Callable[[int, int], Tensor],
        into: _Map | None = None,
        keep: bool = False,
        limit: int | None = -1,
        widest: int = 0,
    ) -> _Map:
        """Fills a map of `height` rows band by band; x is released, unless it is the target or `keep`."""
        out = into
        row_bytes = x.width * max(widest, x.channels) * 4 * COPIES * max(1, x.height // height)
        for a, b in self._parts(height, row_bytes):
            y = band(a, b)
            if out is None:
                out = _Map(y.shape[1], height, y.shape[3], y.dtype, self.device)
                out.allocate(self.quarter if limit == -1 else height * out.row_bytes)
            out.write(a, y)
        assert out is not None
        if not keep and into is not x:
            x.close()
        return out

    def _parts(self, height: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of an even number of rows that fit into the quarter for the current rows."""
        rows = max(2, self.quarter // row_bytes // 2 * 2)
        for a in range(0, height, rows):
            yield a, min(a + rows, height)


def _unchanged(x: Tensor) -> Tensor:
    return x
