"""Cuts patches from the free photographs that scikit-image and scikit-learn ship, for a first super-resolution model.

    pip install scikit-image scikit-learn
    python recipes/photographs.py photos --held-out held-out

writes photos/NAME-NUMBER.png, 64 x 64, and the photographs that no patch is from to held-out/NAME.png. In photos:
Eileen Collins (NASA, public domain), a rocket (SpaceX, public domain), two by danielbuechele and vultilion
(CC BY 2.0); held out: a cat (Stefan van der Walt, CC0) and a cup of coffee (Rachel Michetti, CC0).
"""

import argparse
import random
from pathlib import Path

from PIL import Image

TRAINED = (
    "skimage/data/astronaut.png",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
)
HELD_OUT = ("skimage/data/chelsea.png", "skimage/data/coffee.png")
SCALES = (1.0, 0.7, 0.5)
"""Every patch is from a photograph reduced to one of these: the same texture at several sizes."""


def cut(photograph: Image.Image, count: int, side: int, generator: random.Random) -> list[Image.Image]:
    """`count` patches of side x side at random places and scales."""
    patches = []
    for _ in range(count):
        scale = generator.choice(SCALES)
        size = (round(photograph.width * scale), round(photograph.height * scale))
        reduced = photograph.resize(size, Image.Resampling.LANCZOS)
        left, top = generator.randint(0, size[0] - side), generator.randint(0, size[1] - side)
        patches.append(reduced.crop((left, top, left + side, top + side)))
    return patches


def read(name: str, packages: Path) -> Image.Image:
    return Image.open(packages / name).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the new folder of patches")
    parser.add_argument("--held-out", type=Path, required=True, help="the new folder of whole photographs")
    parser.add_argument("--count", type=int, default=500, help="patches of each photograph")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--packages", type=Path, help="where the two packages are; by default those that are installed")
    options = parser.parse_args()
    packages = options.packages
    if packages is None:
        import skimage

        packages = Path(skimage.__file__).parents[1]
    generator = random.Random(0)
    for folder in (options.out, options.held_out):
        folder.mkdir(parents=True)
    for name in TRAINED:
        for i, patch in enumerate(cut(read(name, packages), options.count, options.side, generator)):
            patch.save(options.out / f"{Path(name).stem}-{i:04}.png")
    for name in HELD_OUT:
        read(name, packages).save(options.held_out / f"{Path(name).stem}.png")


if __name__ == "__main__":
    main()
