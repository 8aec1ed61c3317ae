"""Small hostile inputs at the command line: exit code 2, one sentence, no traceback, nothing left behind, at once."""

import json
import os
import re
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sfumato.cli import main

Maker = Callable[[Path], list[object]]
"""Writes the input into a folder; gives the command's arguments."""
SECONDS = 10  # alone each takes a fraction of one
MEMORY = 300 << 20


def zipped(folder: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    path = folder / "x.ckpt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", program)
        for name, data in records.items():
            archive.writestr(f"a/data/{name}", data)
    return path


def program(data: bytes, compression: int = zipfile.ZIP_STORED) -> Maker:
    return lambda folder: ["import", zipped(folder, data, compression)]


def content(data: bytes, name: str = "x.ckpt") -> Maker:
    def make(folder: Path) -> list[object]:
        (folder / name).write_bytes(data)
        return ["import", folder / name]

    return make


def state(tensors: dict[str, torch.Tensor]) -> Maker:
    def make(folder: Path) -> list[object]:
        save_file(tensors, folder / "x.safetensors")
        return ["import", folder / "x.safetensors"]

    return make


def vae(**options: Any) -> Maker:
    """A diffusers folder of one autoencoder with these options; its weights are one small tensor."""

    def make(folder: Path) -> list[object]:
        source = folder / "vae"
        source.mkdir()
        config = {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [32],
            "down_block_types": ["DownEncoderBlock2D"],
            "up_block_types": ["UpDecoderBlock2D"],
            "layers_per_block": 1,
            "latent_channels": 4,
        }
        text = json.dumps({**config, **options}).replace('"HUGE"', "1" + "0" * 400)
        (source / "config.json").write_text(text)
        save_file({"quant_conv.bias": torch.ones(8)}, source / "diffusion_pytorch_model.safetensors")
        return ["import", source]

    return make


def yaml_beside(text: str) -> Maker:
    def make(folder: Path) -> list[object]:
        save_file({"encoder.conv_in.weight": torch.ones(1)}, folder / "x.safetensors")
        (folder / "given.yaml").write_text(text)
        return ["import", folder / "x.safetensors", "--config", folder / "given.yaml"]

    return make


def original(**ddconfig: Any) -> Maker:
    dd = {"double_z": True, "z_channels": 4, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1]}
    dd |= {"num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0} | ddconfig
    model = {"target": "ldm.AutoencoderKL", "params": {"embed_dim": 4, "lossconfig": {}, "ddconfig": dd}}
    return yaml_beside(json.dumps({"model": model}))


def special(kind: str, name: str) -> Maker:
    def make(folder: Path) -> list[object]:
        path = folder / name
        if kind == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(kind)
        return ["import", path]

    return make


def special_config(kind: str) -> Maker:
    def make(folder: Path) -> list[object]:
        save_file({"encoder.conv_in.weight": torch.ones(1)}, folder / "x.safetensors")
        special(kind, "given.yaml")(folder)
        return ["import", folder / "x.safetensors", "--config", folder / "given.yaml"]

    return make


def tar_of_negative_size(folder: Path) -> list[object]:
    header = tarfile.TarInfo("pickle")
    header.size = -1024
    (folder / "x.ckpt").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1536)
    return ["import", folder / "x.ckpt"]


def missing_shard(folder: Path) -> list[object]:
    vae()(folder)
    whole = folder / "vae" / "diffusion_pytorch_model.safetensors"
    whole.unlink()
    table = {"weight_map": {"quant_conv.bias": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    Path(f"{whole}.index.json").write_text(json.dumps(table))
    return ["import", folder / "vae"]


def tensor_call(shape: tuple[int, ...], stride: tuple[int, ...]) -> Maker:
    """A tensor of four floats rebuilt with this shape and these strides."""

    def make(folder: Path) -> list[object]:
        def number(n: int) -> bytes:
            data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data

        def numbers(values: tuple[int, ...]) -> bytes:
            return b"(" + b"".join(map(number, values)) + b"t"

        storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
        body = b"\x80\x02}X\x16\0\0\0encoder.conv_in.weight" + b"ctorch._utils\n_rebuild_tensor_v2\n("
        return [
            "import",
            zipped(folder, body + storage + b"K\0" + numbers(shape) + numbers(stride) + b"tRs.", **{"0": b"\0" * 16}),
        ]

    return make


SHARED = b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 60))
TENFOLD = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 1}]\n" for i in range(11))
COLLIDING = b"".join(b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(1, 9000))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"
MANY = b"\x80\x02(" + b"]" * 4_000_000 + b"l."
CASES: dict[str, tuple[Maker, str]] = {
    "shared lists": (program(SHARED + b"."), "holds a list"),
    "shared lists as a storage": (
        program(b"\x80\x02(X\x07\0\0\0storage" + SHARED[2:] + b"X\x01\0\0\0aX\x03\0\0\0cpuK\x01tQ."),
        "storage has no proper name|not a plain torch storage",
    ),
    "copies over and over": (
        program(b"\x80\x02]q\0(" + b"K\x01" * 20000 + b"e0]" + b"ctorch\nSize\nh\0\x85Ra" * 2000 + b"."),
        "repeats its own parts",
    ),
    "text over and over": (
        program(
            b"\x80\x02X" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x000]("
            + b"c_codecs\nencode\nh\0X\x06\0\0\0latin1\x86R" * 2000 + b"e."
        ),
        "repeats its own parts",
    ),
    "too many steps": (program(MANY, zipfile.ZIP_DEFLATED), "more than 400000 steps"),
    "colliding keys": (
        program(b"\x80\x02}(" + COLLIDING + b"u."),
        "a dictionary has the key",
    ),
    "code": (program(b"\x80\x02cos\nsystem\nX\x0b\0\0\0touch owned\x85R."), "is a pickled object"),
    "empty archive": (content(b"PK\x05\x06" + b"\0" * 18), "not a checkpoint"),
    "half an archive": (content(b"PK\x03\x04" + b"\0" * 200), "without its end"),
    "half a safetensors": (content(struct.pack("<Q", 1 << 20) + b'{"a":', "x.safetensors"), "complete safetensors"),
    "lying header": (content(struct.pack("<Q", 1 << 62) + b"{" * 50, "x.safetensors"), "not a complete safetensors"),
    "tar of negative size": (tar_of_negative_size, "reaches beyond the end"),
    "empty tensor of 2^63": (tensor_call((0, 2**63), (1, 1)), "is no tensor"),
    "stride of 2^70": (tensor_call((1, 4), (2**70, 1)), "is no tensor"),
    "product of 2^124": (tensor_call((0, 2**62, 2**62), (1, 1, 1)), "is no tensor"),
    "empty file": (content(b""), "is empty"),
    "git-lfs pointer": (content(POINTER), "a git-lfs pointer"),
    "web page": (content(b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"), "a web page"),
    "GGUF": (content(b"GGUF\x03\0\0\0" + b"\0" * 100), "a GGUF file"),
    "ONNX": (content(b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + b"\0" * 100), "an ONNX graph"),
    "JSON": (content(b'{"a": 1}'), "a text"),
    "gzip": (content(b"\x1f\x8b\x08" + b"\0" * 100), "a gzip archive"),
    "LoRA of kohya": (state({"lora_unet_down_blocks_0_to_q.lora_down.weight": torch.ones(4, 8)}), "is a LoRA"),
    "LoRA of peft": (state({"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 8)}), "is a LoRA"),
    "LoRA of diffusers": (state({"unet.mid.attn1.processor.to_q_lora.down.weight": torch.ones(4, 8)}), "is a LoRA"),
    "LoHa": (state({"lora_te_text_model_0.hada_w1_a": torch.ones(4, 8)}), "is a LoRA"),
    "ControlNet": (state({"control_model.input_hint_block.0.weight": torch.ones(4)}), "is a ControlNet"),
    "ControlNet of diffusers": (state({"controlnet_cond_embedding.conv_in.weight": torch.ones(4)}), "is a ControlNet"),
    "SDXL": (state({"conditioner.embedders.1.model.ln_final.weight": torch.ones(4)}), "is Stable Diffusion XL"),
    "SD 3": (state({"model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.bias": torch.ones(4)}), "Stable Diffusion 3"),
    "Flux": (state({"double_blocks.0.img_attn.proj.bias": torch.ones(4)}), "is Flux"),
    "embedding": (state({"emb_params": torch.ones(2, 768)}), "a textual-inversion embedding"),
    "embedding by its word": (state({"<cat>": torch.ones(768)}), "a textual-inversion embedding"),
    "missing shard": (missing_shard, "the shard .* is missing"),
    "no widths": (vae(block_out_channels=[]), "block_out_channels must be a list of 1 to"),
    "widths of nothing": (vae(block_out_channels=[0, 0, 0]), "block_out_channels is 0"),
    "endless widths": (vae(block_out_channels=[10**12]), "block_out_channels is 1000000000000"),
    "texts as widths": (vae(block_out_channels="many"), "block_out_channels must be a list"),
    "endless blocks": (vae(layers_per_block=10**9), "blocks_per_level"),
    "endless latent": (vae(latent_channels=10**12), "latent_channels is 1000000000000"),
    "endless scale": (vae(scaling_factor="HUGE"), "a number of 401 digits"),
    "large scale": (vae(scaling_factor=1e60), "lacks the key|must be finite"),
    "deep JSON": (vae(act_fn="x", extra=json.loads("[" * 200 + "]" * 200)), "nested deeper"),
    "one type of many": (vae(down_block_types=[["x"] * 5]), "has no counterpart"),
    "endless blocks in YAML": (original(num_res_blocks=10**9), "blocks_per_level"),
    "endless channels in YAML": (original(ch=10**12), "channels"),
    "no multipliers": (original(ch_mult=[]), "channel_multipliers"),
    "text as multipliers": (original(ch_mult="abc"), "channel_multipliers|wrong kind"),
    "endless levels": (original(ch_mult=[1] * 1000), "channel_multipliers"),
    "resolution of digits": (yaml_beside(f"model: {{target: x.AutoencoderKL, params: {'9' * 5000}}}"), "5000 digits"),
    "aliases": (yaml_beside(TENFOLD), "200000 values"),
    "YAML in itself": (yaml_beside("model: &m {target: x, params: *m}"), "refers to itself"),
    "deep YAML": (yaml_beside("[" * 20_000), "nested deeper"),
    "empty YAML": (yaml_beside(""), "is empty"),
    "list as YAML": (yaml_beside("data: [1]"), "no target"),
    "key twice": (yaml_beside("model: 1\nmodel: 2\n"), "twice, in lines 1 and 2"),
    "pipe": (special("fifo", "x.ckpt"), "not a regular file"),
    "device": (special("/dev/zero", "x.safetensors"), "not a regular file"),
    "pipe as configuration": (special_config("fifo"), "not a regular file"),
    "device as configuration": (special_config("/dev/zero"), "not a regular file"),
    "link to itself": (special("x.ckpt", "x.ckpt"), "is not a file"),
    "escapes in keys": (state({"a\x1b[31mb": torch.ones(4)}), r"a\\x1b\[31mb"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_is_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = CASES[name]
    arguments = [str(part) for part in make(tmp_path)]
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    start, peak = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(SystemExit) as ended:
        main([*arguments[:2], str(tmp_path / "deep" / "er" / "out"), *arguments[2:]])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("sfumato: ")
    assert err.count("\n") == 1
    assert len(err) < 1500
    assert "\x1b" not in err
    assert re.search(sentence, err), err
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert not Path("owned").exists()
    assert time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MEMORY
