"""The `saelib` command: a thin layer of click over the functions the notebooks use too.

Exit codes: 0 done; 1 failure (with the path of the partial notebook); 2 bad input or an unusable environment, one line
with rule, value and remedy; 130 interrupted. Imports that take time happen inside the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from saelib import __version__
from saelib.base.errors import UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="saelib")
def cli() -> None:
    """Split one feature of a sparse autoencoder into the finer features it is made of."""


_profile = click.option("--profile", default="mini", show_default=True, help="Model, text and sizes to use.")
_reports = click.option(
    "--reports",
    type=click.Path(path_type=Path),
    help="Folder for the pages; they go to a subfolder named after the profile.  [default: reports of the checkout]",
)
_force = click.option("--force", is_flag=True, help="Run again what is finished.")


@cli.command()
@_profile
@click.option("--run", "runs", type=int, multiple=True, help="Only this run and what it needs (repeatable).")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Training runs side by side.  [default: as cores and memory allow]"
)
@click.option("--claims", is_flag=True, help="Also the claims, each with many seeds an arm, and the calibration.")
@_reports
@_force
def reproduce(
    profile: str, runs: tuple[int, ...], jobs: int | None, claims: bool, reports: Path | None, force: bool
) -> None:
    """Run the whole study and write its report. Started again after an interruption, it resumes."""
    from saelib.report.reproduce import reproduce as run_study

    run_study(profile, list(runs) or None, jobs, reports, force, claims)


@cli.command()
@click.argument("name")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="KEY VALUE", help="Set a parameter (repeatable).")
@_profile
@_reports
@_force
def notebook(
    name: str, parameters: tuple[tuple[str, str], ...], profile: str, reports: Path | None, force: bool
) -> None:
    """Run one notebook, such as 04_training_run, and render its page."""
    from saelib.report.reproduce import run_one_notebook

    given = dict(parameters)
    if len(given) < len(parameters):
        raise UserError("parameter must be given once", " ".join(key for key, _ in parameters))
    page = run_one_notebook(given.pop("profile", profile), name, given, reports, force)
    click.echo(f"open {page}")


@cli.command()
@click.option("--sae", required=True, help="SAE folder in the SAELens format (or the study's .pt file).")
@click.option("--feature", required=True, type=int, help="The feature to split.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the report.")
@click.option("--model", default="mini", show_default=True, help="mini, smollm2, gelu-1l, or a Hugging Face folder.")
@click.option("--text", default="study", show_default=True, help="study, a text file, or a folder of .txt files.")
@click.option("--filter", "filter_by", default="context", show_default=True, help="context or token.")
@click.option("--init", "start", default="random", show_default=True, help="random, or narrow: from the SAE's weights.")
@click.option("--tokens", default=2_000_000, show_default=True, help="Tokens each wide SAE is trained on.")
@click.option("--seeds", default=2, show_default=True, help="Wide SAEs trained on the filtered data.")
@click.option("--width", default=8, show_default=True, help="Features of a wide SAE, as a multiple of d_in.")
@click.option("--classes", default="auto", show_default=True, help="auto, hyphen, previous, next, or a .json of rules.")
@click.option("--n-classes", default=3, show_default=True, help="How many automatic classes.")
@click.option("--tau", type=float, help="The parent is active above this.  [default: 2/9.23 of its largest activation]")
@click.option("--l1", type=float, help="L1 coefficient a token.  [default: the one that gives the SAE's own L0]")
def split(out: Path, **options: Any) -> None:
    """Split one feature of an SAE of yours: train on filtered data, score, write a report. Resumes when started again."""
    from saelib.base.progress import shown_progress
    from saelib.report.reproduce import check_writable
    from saelib.report.split_any import SplitRequest, split_feature, write_report

    request = SplitRequest(**options)
    check_writable(out, "out must be a writable folder", "pass --out with another folder")
    with shown_progress(f"feature {request.feature}"):
        outcome = split_feature(request)
        index = write_report(outcome, out)
    click.echo(outcome.runs.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    click.echo(f"verdict: {outcome.score.verdict}\nopen {index}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--profile", help="Also the plan of this profile's whole study: tokens, hours, disk, memory.")
@click.option("--tokens-per-second", type=float, help="Rate for the plan.  [default: measured on this processor]")
@click.option("--verify", is_flag=True, help="Also read the whole cache and compare it with its checksums.")
def doctor(as_json: bool, profile: str | None, tokens_per_second: float | None, verify: bool) -> None:
    """Show what this machine has: packages, cores, memory, GPU, caches, hub, and what each profile lacks."""
    import json

    from saelib import doctor as machine

    findings = machine.examine(profile, tokens_per_second)
    damaged: list[str] = []
    if verify:
        verified, damaged = machine.verify()
        findings["cache"] |= {"verified": verified, "damaged": damaged}
    click.echo(json.dumps(findings, indent=2) if as_json else machine.format_findings(findings))
    if damaged:
        remedy = "delete what is damaged (for a store or a run its folder); it will be made again"
        raise UserError("cache must be as it was written", f"{len(damaged)} damaged, the first {damaged[0]}", remedy)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        cli.main(args=arguments, prog_name="saelib", standalone_mode=False)
        return 0
    except click.exceptions.Abort:  # click's name for Ctrl-C
        print("\ninterrupted: what is finished is kept; the same command goes on from there", file=sys.stderr)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from saelib.report.jobs import JobFailed
        from saelib.report.notebook_runner import NotebookFailed

        if not isinstance(error, NotebookFailed | JobFailed):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
