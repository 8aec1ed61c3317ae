"""`sfumato fit`: both stages, from a folder of images, in a given time."""

from sfumato.cli.fit_flags import FitFlags
from sfumato.cli.flags import command


@command(FitFlags)
def fit(flags: FitFlags) -> None:
    """Train a model on a folder of images in a given time.

    Inspects the images, measures this machine, plans sizes and times, trains both stages, and writes OUT/report.html.
    """
    from sfumato.cli.fit_run import run_fit
    from sfumato.errors import UserError

    if flags.out is None and not (flags.dry_run or flags.plan):
        raise UserError("--out is missing: name the folder of the result, or give --dry-run to see the plan alone")
    run_fit(flags)
