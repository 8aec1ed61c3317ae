"""Tracing a network into a file, and comparing the file's outputs with the network's."""

import importlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import UserError
from sfumato.interop.onnx.graphs import Graph

OPSET = 17
"""The first one with layer norm as one operator; runtimes of 2022 and later have it."""
TOLERANCE = 1e-4
"""Largest accepted difference of an output, relative to its largest number: other orders of summation."""
SEED = 17
ONE_FILE = 1 << 31
"""From this size on the weights are in a file beside the graph: protocol buffers end at 2 GiB."""
PACKAGES = ("onnx", "onnxruntime")
TRACED = (2, (2, 3))
COMPARED = ((1, (3, 2)), (3, (4, 4)))
"""Batches and sizes, in the smallest latents, at which a graph is traced and compared."""


def require_onnx() -> None:
    """Raises UserError where a package that the export needs is missing."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"export to ONNX needs {name}: pip install 'sfumato[onnx]'") from None


def write_graph(graph: Graph, folder: Path, about: Mapping[str, str]) -> Path:
    """Traces a network and writes NAME.onnx into the folder, with NAME.onnx.data beside it for large weights.

    about: entries of the graph's metadata. Raises UserError where the tracing fails.
    """
    import onnx

    scratch = folder / f".{graph.name}"
    scratch.mkdir()
    try:
        _trace(graph, scratch / "traced.onnx")
        made = onnx.load(scratch / "traced.onnx")
        made.producer_name = "sfumato"
        onnx.helper.set_model_props(made, dict(about))
        path = folder / f"{graph.name}.onnx"
        large = made.ByteSize() >= ONE_FILE
        beside: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data"} if large else {}
        onnx.save_model(made, path, **beside)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def _trace(graph: Graph, path: Path) -> None:
    example = graph.example(*TRACED, torch.Generator().manual_seed(SEED))
    axes = {
        name: {i: axis for i, axis in enumerate(shape) if isinstance(axis, str)}
        for name, shape in (*graph.inputs.items(), *graph.outputs.items())
    }
    try:
        with _quiet(), torch.no_grad():
            # The exporter by tracing: the one by torch.export takes twenty times as long for the same graph.
            torch.onnx.export(
                graph.module,
                example,
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_axes=axes,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"the {graph.name} of this model cannot be exported to ONNX: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that checks of shapes are not part of a graph; the comparison sees what is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def check_graph(graph: Graph, path: Path) -> None:
    """Runs the written file with onnxruntime on other batches and sizes than the traced ones, and compares.

    Raises UserError naming the first output that differs from the network's.
    """
    session = open_session(path)
    random = torch.Generator().manual_seed(SEED + 1)
    for batch, size in COMPARED:
        with torch.no_grad():
            inputs = graph.example(batch, size, random)
            expected: tuple[Tensor, ...] = graph.module(*inputs)
        given = {name: value.numpy() for name, value in zip(graph.inputs, inputs, strict=True)}
        found = session.run(list(graph.outputs), given)
        for name, ours, theirs in zip(graph.outputs, expected, found, strict=True):
            wrong = _difference(ours, torch.from_numpy(theirs))
            if wrong is not None:
                raise UserError(
                    f"the export was not written: read by onnxruntime, the {graph.name}'s {name} {wrong}; use the "
                    "model folder as it is, and report this with its config.yaml"
                )


def _difference(ours: Tensor, theirs: Tensor) -> str | None:
    if ours.shape != theirs.shape:
        return f"has the shape {tuple(theirs.shape)}, not {tuple(ours.shape)}"
    error = ((ours.float() - theirs.float()).abs().max() / ours.float().abs().max().clamp_min(1e-30)).item()
    if error <= TOLERANCE:
        return None
    return f"differs by {error:.3g} of its largest number (at most {TOLERANCE:g} is rounding)"


def open_session(path: Path) -> Any:
    """The graph in a file, for the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
