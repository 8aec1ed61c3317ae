"""`sfumato sample-codes`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.options import BatchOption, DeviceOption


def sample_codes(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A transformer's run or model folder.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for the images; numbering goes on in one in use.")],
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts, or none.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="A class by name or number.")] = None,
    count: Annotated[int, typer.Option("-n", "--count", help="Images of each prompt or label.")] = 4,
    temperature: Annotated[float, typer.Option("--temperature", help="0 takes the likeliest code each time.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="Choose among so many codes; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Choose among the likeliest that reach this together.")] = 1.0,
    guidance: Annotated[float, typer.Option("--guidance", help="How strongly to follow the prompt; 1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the first image; the next takes the next number.")] = 0,
    batch: BatchOption = 16,
    device: DeviceOption = "auto",
) -> None:
    """Draw with a transformer over codes, the baseline.

    Writes OUT/0000.png ..., each with its prompt, seed and settings inside, and OUT/grid.png.
    """
    import torch

    from sfumato import __version__
    from sfumato.baselines.model import load_code_model
    from sfumato.baselines.sampling import Choice
    from sfumato.cli.numbering import next_number, number_of, numbered, sheets
    from sfumato.cli.options import chosen_device, columns_of, enough_memory, notes, out_folder
    from sfumato.cli.progress import counting
    from sfumato.cli.sample import wanted
    from sfumato.images import image_grid, save_first_free, to_uint8
    from sfumato.pipeline.options import Range, check_number
    from sfumato.pipeline.request import MOST_IMAGES, SCALE
    from sfumato.training.workers import use_all_cores

    asked = wanted(prompts, label, count, seed)
    check_number("--batch", batch, Range(1, MOST_IMAGES, whole=True))
    check_number("--guidance", guidance, SCALE)
    choice = Choice(temperature, top_k, top_p)
    use_all_cores()
    loaded = load_code_model(model, chosen_device(device))
    folder = out_folder(out)
    first = next_number(folder)
    written: list[Path] = []
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
    about: dict[str, Any] = {**settings, "sfumato": __version__}
    n = len(asked.seeds)
    batches = [slice(i, min(i + batch, n)) for i in range(0, n, batch)]
    h, w = loaded.network.size
    sheet = []
    t_start = time.monotonic()
    with enough_memory(min(batch, n)), notes(), counting("writing codes", h * w * len(batches), "positions") as advance:
        for rows in batches:
            texts = None if asked.prompts is None else asked.prompts[rows]
            labels = None if asked.labels is None else asked.labels[rows]
            images = loaded.sample_tensor(
                texts, labels, asked.seeds[rows], choice, guidance, lambda position: advance(1)
            )
            for row, pixels in zip(range(n)[rows], to_uint8(images).cpu(), strict=True):
                prompt = None if asked.prompts is None else asked.prompts[row]
                of_class = None if asked.labels is None else asked.labels[row]
                own = {"prompt": prompt, "label": of_class, "seed": asked.seeds[row]}
                known = {name: value for name, value in own.items() if value is not None}
                names = numbered(folder, number_of(written[-1]) + 1 if written else first)
                written.append(save_first_free(names, pixels, {**known, **about}))
                sheet.append(pixels)
    elapsed = time.monotonic() - t_start
    made = image_grid(torch.stack(sheet), columns_of(len(sheet)))
    name = save_first_free(sheets(folder, number_of(written[0])), made, about)
    typer.echo(f"{n} images in {elapsed:.1f} s, {n / elapsed:.1f} a second; sheet: {name}")
