"""The folder of a fit: its plan, the facts that the plan was made for, and whether a command resumes it."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sfumato.checkpoint import write_text
from sfumato.data.containers.addresses import addresses_of
from sfumato.data.listing import listing
from sfumato.errors import UserError
from sfumato.fit.plan import FitPlan
from sfumato.outputs import check_folder
from sfumato.training.run import same_place

PLAN = "plan.json"
STEPS = "steps.json"
PAGE, NUMBERS = "report.html", "report.json"
AUTOENCODER, DIFFUSION, CACHE = "autoencoder", "diffusion", "cache"


@dataclass(frozen=True)
class Fit:
    """The request of a fit, and its plan.

    Attributes:
        data: path of the folder of images.
        digest: of names and sizes of its files.
        seconds: for everything.
        settings: `a.b=c`, as typed.
        plan: made when the fit began.
    """

    data: str
    digest: str
    seconds: float
    settings: tuple[str, ...]
    plan: FitPlan


FORM = TypeAdapter(Fit)


def stored_fit(out: Path) -> Fit | None:
    """The fit in a folder; None if there is none, and the folder is new or empty.

    Raises UserError if the folder cannot be written to, or holds something else.
    """
    check_folder(out)
    file = out / PLAN
    if not file.is_file():
        held = sorted(path.name for path in out.iterdir() if path.name != CACHE) if out.is_dir() else []
        if held:
            raise UserError(f"--out {str(out)!r} is in use, it holds {held[0]!r}: give a new folder")
        return None
    try:
        return FORM.validate_json(file.read_bytes())
    except (ValidationError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{str(file)!r} is not the plan of a fit ({reason}): give --out another folder") from None


def store(out: Path, fit: Fit) -> None:
    """Writes the plan: from here on the same command resumes the fit."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / PLAN, FORM.dump_json(fit, indent=1).decode() + "\n")


def check_same(out: Path, fit: Fit, data: Path, seconds: float | None, settings: tuple[str, ...]) -> None:
    """Raises UserError if a command asks for another fit than that in the folder; `seconds` None asks for its own."""
    asked = 0.0 if seconds is None else seconds / 60
    place = str(out)
    another = "give the same to resume it, or another --out"
    if seconds is not None and seconds != fit.seconds:
        raise UserError(
            f"--out {place!r} holds a fit in {fit.seconds / 60:g} minutes, not {asked:g}: omit --minutes to "
            "resume it, or give another --out; the commands on its page train the result for longer"
        )
    if settings != fit.settings:
        there = " ".join(fit.settings) or "no settings"
        raise UserError(f"--out {place!r} holds a fit with {there}, not {' '.join(settings) or 'none'}: {another}")
    if digest_of(data, out) != fit.digest:
        if not same_place(fit.data, str(data)):
            raise UserError(f"--out {place!r} holds a fit of {fit.data!r}, not of {str(data)!r}: {another}")
        raise UserError(
            f"the files of {str(data)!r} have changed since the fit in {str(out)!r} was planned: restore them to "
            "resume it, or give another --out"
        )


def digest_of(data: Path, out: Path | None = None) -> str:
    """A hash of names and sizes of the files of a folder or of a pattern, captions included; no content is read.

    Files in `out` do not count, so that a fit can be kept beside its images.
    """
    digest = blake2b(digest_size=16)
    if not data.is_dir():  # a pattern, or one file
        for address in addresses_of(str(data), ""):
            digest.update(f"{Path(address).name}\0{Path(address).stat().st_size}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()
    found = listing(data)
    if out is not None and out.resolve().is_relative_to(data.resolve()):
        found = found.without([out.resolve().relative_to(data.resolve()).as_posix()])
    for name in found.files:
        try:
            size = (data / name).stat().st_size
        except OSError:
            size = -1
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
