"""Model folders -> ONNX graphs with their description and tokenizer, each graph compared with its network."""

import shutil
from pathlib import Path

from sfumato.checkpoint import write_text
from sfumato.conditioning.table import stored_tokenizer
from sfumato.interop.onnx.description import FILE, describe
from sfumato.interop.onnx.graphs import graphs_of
from sfumato.interop.onnx.write import check_graph, require_onnx, write_graph
from sfumato.interop.text_encoders import TOKENIZER_FOLDER
from sfumato.model import TOKENIZER_FILE
from sfumato.model_folder import load
from sfumato.plain_json import to_json


def export_onnx(folder: Path, out: Path) -> tuple[str, ...]:
    """Writes the graphs of a model folder into an existing folder; returns notes on what is left out.

    `encoder.onnx` and `decoder.onnx` convert raw latents; `conditioner.onnx` and `denoiser.onnx` are those of a second
    stage; `tiny_decoder.onnx` where the model has one. Batch and size vary. `model.json` describes them.

    Raises UserError where a package is missing, a part cannot be traced, or a graph computes something else than its
    network: more than 1e-4 of the output's largest number.
    """
    require_onnx()
    model = load(folder)
    digest = model.digest  # of the weights as they are stored
    for part in model.parts().values():
        part.float()
    if model.tiny is not None:
        model.tiny.network.float()
    graphs = graphs_of(model)
    for graph in graphs:
        check_graph(graph, write_graph(graph, out, {"sfumato.model": digest}))
    lines = [f"{to_json(name)}: {to_json(value)}" for name, value in describe(model, graphs).items()]
    write_text(out / FILE, "{\n" + ",\n".join(lines) + "\n}\n")
    conditioner = None if model.second is None else model.second.conditioner
    tokenizer = stored_tokenizer(conditioner)
    if tokenizer is not None:
        write_text(out / TOKENIZER_FILE, tokenizer)
    if (folder / TOKENIZER_FOLDER).is_dir():
        shutil.copytree(folder / TOKENIZER_FOLDER, out / TOKENIZER_FOLDER)
    if model.config.autoencoder.bottleneck.kind == "pixels":
        return ("the model is in pixel space: there is no encoder and no decoder",)
    return ()
