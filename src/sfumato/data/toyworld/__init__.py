"""An embedded world of captioned scenes, drawn from a seed, and a reader that says what a picture shows."""

from sfumato.data.toyworld.caption import Description, caption, describe, parse
from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.data.toyworld.draw import MAP_NAMES, boxes, render, semantic_maps
from sfumato.data.toyworld.scene import CLASSES, Scene, Split, Thing, reserved, scene
from sfumato.data.toyworld.vocabulary import Vocabulary

__all__ = [
    "CLASSES",
    "MAP_NAMES",
    "Description",
    "Scene",
    "Split",
    "Thing",
    "ToyWorld",
    "ToyWorldConfig",
    "Vocabulary",
    "boxes",
    "caption",
    "describe",
    "parse",
    "render",
    "reserved",
    "scene",
    "semantic_maps",
]
