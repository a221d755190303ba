"""The `saelib` command: a thin layer of click over the functions the notebooks use too.

`saelib --help` is a tour: the commands by what one wants to do. Exit codes: 0 done; 1 failure (with the path of the partial
notebook); 2 bad input or an unusable environment, one line with rule, value and remedy; 130 interrupted. Imports that take time
happen inside the commands.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from saelib import __version__
from saelib.base.errors import UserError

SECTIONS = {
    "Split a feature": ("split",),
    "Reproduce the study": ("reproduce",),
    "Look": ("notebook",),
    "Check the machine": ("doctor",),
}
"""What one wants to do, and the commands for it; a command that is not named here comes last."""


class Tour(click.Group):
    """The commands by what one wants to do; one that does not exist suggests the nearest."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        named = {name for names in SECTIONS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in named)
        for title, names in {**SECTIONS, "Also": others}.items():
            found = [(name, self.commands[name].get_short_help_str(110)) for name in names if name in self.commands]
            if found:
                with formatter.section(title):
                    formatter.write_dl(found)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        if args[0] in self.commands or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], self.commands, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(sorted(self.commands))}."
        raise click.UsageError(f"No such command {args[0]!r}. {remedy}", ctx)


@click.group(cls=Tour, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="saelib")
def cli() -> None:
    """Split one feature of a sparse autoencoder (SAE) into the finer features it is made of.

    \b
    saelib split --sae my-sae --feature 7 --out my-split   what is feature 7 made of?
    saelib reproduce                                       the whole study, into reports/mini
    saelib doctor                                          what is there, and what is missing
    """


_profile = click.option("--profile", default="mini", show_default=True, help="Model, text and sizes to use.")
_reports = click.option(
    "--reports",
    type=click.Path(path_type=Path),
    help="Folder for the pages; they go to a subfolder named after the profile.  [default: reports of the checkout]",
)
_force = click.option("--force", is_flag=True, help="Run again what is finished.")
_device = click.option(
    "--device", help="Where text is read and SAEs are trained: cpu, cuda, or auto.  [default: the profile's]"
)


def _use_device(name: str | None) -> None:
    """Make a device that of every profile, in this process and in those it starts; one that is not there is refused."""
    if name is not None:
        from saelib.base.device import choose_device
        from saelib.study.profiles import DEVICE_VARIABLE

        choose_device(name)
        os.environ[DEVICE_VARIABLE] = name


@cli.command()
@_profile
@click.option("--run", "runs", type=int, multiple=True, help="Only this run and what it needs (repeatable).")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Training runs side by side.  [default: as cores and memory allow]"
)
@click.option("--claims", is_flag=True, help="Also the claims, each with many seeds an arm, and the calibration.")
@click.option("--notebook", "notebooks", multiple=True, help="Only this notebook, such as 13_data_needed (repeatable).")
@_device
@_reports
@_force
def reproduce(
    profile: str, runs: tuple[int, ...], notebooks: tuple[str, ...], reports: Path | None, force: bool, **options: Any
) -> None:
    """Run the whole study and write its report. Started again after an interruption, it resumes."""
    from saelib.report.reproduce import reproduce as run_study
    from saelib.report.reproduce import run_one_notebook

    _use_device(options["device"])
    if notebooks:
        if runs or options["claims"]:
            raise UserError("--notebook stands alone", "--run or --claims beside it", "give one of them")
        for name in notebooks:
            click.echo(f"open {run_one_notebook(profile, name, {}, reports, force)}")
        return
    jobs, claims = options["jobs"], options["claims"]
    run_study(profile, list(runs) or None, jobs, reports, force, claims)


@cli.command()
@click.argument("name")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="KEY VALUE", help="Set a parameter (repeatable).")
@_profile
@_device
@_reports
@_force
def notebook(
    name: str,
    parameters: tuple[tuple[str, str], ...],
    profile: str,
    device: str | None,
    reports: Path | None,
    force: bool,
) -> None:
    """Run one notebook, such as 04_training_run, and render its page."""
    from saelib.report.reproduce import run_one_notebook

    _use_device(device)
    given = dict(parameters)
    if len(given) < len(parameters):
        raise UserError("parameter must be given once", " ".join(key for key, _ in parameters))
    page = run_one_notebook(given.pop("profile", profile), name, given, reports, force)
    click.echo(f"open {page}")


@cli.command()
@click.option(
    "--sae",
    required=True,
    metavar="FOLDER|RELEASE/ID",
    help="SAE folder in the SAELens format, or a release of the hub and an id in it (needs sae-lens).",
)
@click.option("--feature", type=int, help="The feature to split.")
@click.option(
    "--all",
    "everything",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="In place of --feature: split every feature that is on for 0.1% to 5% of the tokens; an index in DIR.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the page, its tables and the SAE.")
@click.option(
    "--model", default="mini", show_default=True, help="mini, smollm2, gelu-1l, or a Hugging Face folder or name."
)
@click.option("--text", default="study", show_default=True, help="study, a text file, or a folder of .txt files.")
@click.option(
    "--contexts",
    default="auto",
    show_default=True,
    help="What to tell apart: auto, hyphen, automatic, or a .json of rules.",
)
@click.option(
    "--method",
    default="children",
    show_default=True,
    help="How children are made: children, named-clean, k-means and others (a wrong name lists them), or a function of your own, "
    "file.py:function. For a table beside the rest: all-data, context-filter, token-filter, warm, warm-zeroed (whole wide SAEs), "
    "or sae:FOLDER.",
)
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens a wide method trains on.  [default: 4.1 million]")
@click.option("--d-sae", type=click.IntRange(min=1), help="Features of a wide method.  [default: 4 times the SAE's]")
@click.option("--K", "K", type=click.IntRange(min=1), help="Children that are trained.  [default: chosen on select]")
@click.option("--tau", type=float, help="The parent is on above this.  [default: 2/9.23 of its largest activation]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random choice.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, or auto: a GPU where there is one.")
@click.option("--prompt", "prompts", multiple=True, help="A text on which the children are shown (repeatable).")
@click.option("--jobs", type=click.IntRange(min=1), help="For --all: features side by side.  [default: the cores]")
@click.option("--scheduler", help="For --all: a Dask cluster, tcp://host:port, in place of local processes.")
def split(**options: Any) -> None:
    """Split one feature of an SAE into its children; with --out write a page and the new SAE.

    \b
    saelib split --sae my-sae --feature 7
    saelib split --sae my-sae --feature 7 --text my-texts/ --contexts hyphen --out my-split
    saelib split --sae gpt2-small-res-jb/blocks.8.hook_resid_pre --feature 7 --model gpt2
    """
    from saelib.report.split_command import SplitRequest, run_split

    run_split(SplitRequest(**options), click.echo)


@cli.command()
@click.option("--methods", multiple=True, help="Only this method (repeatable, or separated by commas).")
@click.option("--parents", multiple=True, help="Only this parent, <SAE>:<feature>, or those of this SAE (repeatable).")
@click.option("--quick", is_flag=True, help="Eight made-up parents and five methods; needs neither text nor model.")
@click.option("--suite", type=click.Path(path_type=Path), help="JSON file of SAEs.  [default: suite.json in --out]")
@click.option("--choose", type=click.IntRange(min=1), help="Choose this many parents of each SAE anew.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of tables and page.  [default: reports/splitbench]"
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes side by side.  [default: the cores]")
@click.option("--scheduler", help="A Dask cluster, tcp://host:port, in place of local processes (extra `cluster`).")
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="Where methods run: cpu, on which rows are the same bits everywhere; cuda; or auto, a GPU where there is one.",
)
def bench(methods: tuple[str, ...], parents: tuple[str, ...], out: Path | None, **options: Any) -> None:
    """Run SplitBench: many parents, many methods, one table. Started again, it goes on where it was."""
    from saelib.base.progress import shown_progress
    from saelib.report.bench_report import BenchRequest
    from saelib.report.bench_report import bench as run_bench
    from saelib.report.finish import reports_dir

    out = reports_dir(None, "smoke/splitbench" if options["quick"] else "splitbench") if out is None else out
    names = tuple(name for part in methods for name in part.split(","))
    request = BenchRequest(out, methods=names, parents=parents, **options)
    with shown_progress("bench"):
        page = run_bench(request)
    click.echo(f"open {page}")


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--profile", help="Also the plan of this profile's whole study: tokens, hours, disk, memory.")
@click.option("--tokens-per-second", type=float, help="Rate for the plan.  [default: measured on this processor]")
@click.option("--verify", is_flag=True, help="Also read the whole cache and compare it with its checksums.")
def doctor(as_json: bool, profile: str | None, tokens_per_second: float | None, verify: bool) -> None:
    """Show what this machine has and what each profile lacks: packages, memory, GPU, caches, hub."""
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
