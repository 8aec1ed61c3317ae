"""Writes the tables of docs/configuration.md from the configuration classes, so that they agree with the code.

python docs/configuration_tables.py
"""

import ast
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfumato.data.images_config import ImagesConfig
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.classifier import ClassifierRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.joint_run import JointRun
from sfumato.training.transformer import TransformerRun

PAGE = Path(__file__).with_name("configuration.md")
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
ROOTS = (
    ("Stage 1: `sfumato train autoencoder`", AutoencoderRun),
    ("Stage 2: `sfumato train diffusion`", DiffusionRun),
    ("Both stages at once: `sfumato train joint`", JointRun),
    ("The baseline: `sfumato train transformer`", TransformerRun),
    ("Classifier guidance: `sfumato train classifier`", ClassifierRun),
)
MEANINGS = {  # of keys whose names are clear in the code, but need an explanation on this page
    "AutoencoderConfig.channels": "base width: a level has this times its entry in `channel_multipliers`",
    "AutoencoderConfig.attention": "kind of attention in the middle block and at `attention_levels`",
    "AdversarialConfig.norm": "group: independent of the batch, for small batches",
    "LossConfig.pixel": "absolute or squared difference",
    "LossConfig.kl_weight": "keep it small: it bounds the latent, it does not make it Gaussian",
    "FolderConfig.path": "set by `--data`",
    "ToyWorldConfig.length": "scenes in an epoch",
    "HeldOut.amount": "a fraction below 1, or an integer: a number of examples",
    "HeldOut.by": "keep all examples with the same value of this column on the same side of the split",
    "AutoencoderTraining.batch": "images per process and micro-batch",
    "AutoencoderTraining.preview_images": "number of held-out images for the metrics",
    "DiffusionTraining.batch": "latents per process and micro-batch",
    "JointTraining.batch": "images per process and micro-batch",
    "CodeTransformerConfig.dim": "width",
    "CodeTransformerConfig.depth": "layers",
    "TransformerTraining.batch": "images per process and micro-batch",
    "ClassifierTraining.batch": "latents per process and micro-batch",
    "ClassifierTraining.preview_images": "number of held-out images to classify",
    "EvaluationConfig.features": "a network of `sfumato evaluate`; with another size than 224: efficientnet-lite0@96",
    "OptimiserConfig.clip_norm": "gradients above this norm are scaled down to it",
    "OptimiserConfig.weight_decay": "for matrices and kernels only",
    "OptimiserConfig.tail_fraction": "share of the run in which the rate falls",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def tables() -> str:
    """All sections as Markdown; a section that both stages have is printed once."""
    parts: list[str] = []
    printed: dict[type[BaseModel], str] = {}
    for title, root in ROOTS:
        parts.append(f"## {title}\n")
        for path, model in _sections(root):
            if model not in printed:
                shared = ImagesConfig if issubclass(model, ImagesConfig) else None
                if shared is not None and shared not in printed:
                    printed[shared] = path
                    parts.append(_shared(path, shared))
                printed[model] = path
                parts.append(_table(path, model, shared))
            elif path != printed[model]:
                same = f"### `{path}`\n\nThe same keys as `{printed[model]}`.\n"
                if parts[-1] != same:  # the kinds of a union that was printed before
                    parts.append(same)
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with fresh tables between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def _sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted path, class), a class before those inside it; the top level first."""
    yield path, model
    for name, field in model.model_fields.items():
        for below in _models_in(field.annotation):
            yield from _sections(below, f"{path}.{name}".strip("."))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) is dict:
        return []  # the parts of a composite are of the kinds listed beside it
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]


def _table(path: str, model: type[BaseModel], shared: type[BaseModel] | None) -> str:
    """The section of a class, without the keys of `shared`, which have a table of their own."""
    kind = model.model_fields.get("kind")
    heading = f"### `{path}`" if path else "### The sections"
    text = _first_paragraph(model)
    if kind is not None:
        heading += f", kind `{kind.default}`"
    elsewhere = {"kind"}
    if shared is not None:
        elsewhere |= {name for name, field in shared.model_fields.items() if _same(field, model.model_fields[name])}
        text += " The keys of [all kinds of stored images](#keys-of-all-kinds-of-stored-images) apply, too."
    fields = {name: field for name, field in model.model_fields.items() if name not in elsewhere}
    return "\n".join([heading, "", text, "", *_rows(model, fields)])


def _shared(path: str, model: type[BaseModel]) -> str:
    text = f"They apply wherever `{path}` is not the toy world."
    return "\n".join(["### Keys of all kinds of stored images", "", text, "", *_rows(model, dict(model.model_fields))])


def _same(one: FieldInfo, other: FieldInfo) -> bool:
    return one.annotation == other.annotation and one.default == other.default


def _rows(model: type[BaseModel], fields: dict[str, FieldInfo]) -> list[str]:
    """The lines of a table of fields, nothing where there are none."""
    if not fields:
        return []
    meanings = _meanings(model)
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        meaning = field.description or meanings.get(name) or MEANINGS.get(f"{model.__name__}.{name}", "")
        lines.append(f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(meaning)} |")
    return [*lines, ""]


def _first_paragraph(model: type[BaseModel]) -> str:
    text = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]
    return " ".join(text.split())


def _meanings(model: type[BaseModel]) -> dict[str, str]:
    """The help of each field in the source: a string below it, or a comment behind it."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if not issubclass(owner, BaseModel) or owner is BaseModel:
            continue
        source = textwrap.dedent(inspect.getsource(owner))
        lines = source.splitlines()
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, [*body.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(text, str):
                found[node.target.id] = " ".join(text.split())
            elif (comment := re.search(r"\s# (.*)$", lines[(node.end_lineno or 1) - 1])) is not None:
                found[node.target.id] = comment.group(1)
    return found


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(rule, name):g}"
        for rule in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    kind, null, _ = _annotation(field.annotation).partition(" or `null`")
    return f"{kind} {', '.join(bounds)}".strip() + null


def _annotation(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotation(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        if len(below := [model for argument in arguments for model in _models_in(argument)]) > 1:
            return "section; `kind` selects which"
        if below:
            return "section or `null`"
        return " or ".join("`null`" if argument is type(None) else _annotation(argument) for argument in arguments)
    if origin is tuple:
        inner = _annotation(arguments[0])
        plural = f"{inner}s" if inner in ("integer", "number", "string") else inner
        return f"list of {plural}" if arguments[-1] is ... else f"{len(arguments)} {plural}"
    if origin is dict:
        return f"mapping: name to {_annotation(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {int: "integer", float: "number", bool: "`true`, `false`", str: "string", Path: "path"}.get(
        annotation, str(annotation)
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        changed = value.model_dump(exclude_defaults=True)
        parts = [f"kind {kind}"] if kind else []
        parts += [f"{name} {given}" for name, given in changed.items() if name != "kind"]
        return ", ".join(parts) or "see below"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _cell(text: str) -> str:
    """As YAML spells it, and without what would end a table's cell."""
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
