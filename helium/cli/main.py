"""The command line: subcommands, errors and exit statuses.

0: done; 1: an error, said in one line; 2: wrong usage; 3: done, but rows failed; 130: interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from helium.cli import cache, planning, remote, runs
from helium.cli import options as common
from helium.errors import HeliumError
from helium.explain import FORMATS

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    if getattr(options, "server", None) is not None:
        command = options.remote
    try:
        return command(options)
    except HeliumError as error:
        print(f"helium: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"helium: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="helium", description="Runs agentic workflows on OpenAI-compatible engines."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        description = (command.__doc__ or "").splitlines()[0]
        added = commands.add_parser(name, help=description, description=description)
        added.set_defaults(command=command)
        return added

    run = add("run", runs.run)
    common.add_workflow(run)
    common.add_engines(run)
    common.add_store(run)
    run.add_argument("--id", help="of the run; made up if not given")
    run.add_argument("--name", help="of the workflow, in lists and metrics")
    run.add_argument("--tenant", help="shares no cache with any other tenant")
    run.add_argument("--timeout", type=common.seconds, metavar="S", help="of the whole run")
    run.add_argument("--output", type=Path, metavar="FILE", help="of the result, as JSON")
    common.add_analysis(run)

    submit = add("submit", remote.submit)
    common.add_workflow(submit)
    common.add_server(submit, remote.submit, is_required=True)
    submit.add_argument("--id", help="of the run; one of the same request goes on")
    submit.add_argument("--name", help="of the workflow, in lists and metrics")
    submit.add_argument("--tenant", help="shares no cache with any other tenant")
    submit.add_argument("--timeout", type=common.seconds, metavar="S", help="of the whole run")
    submit.add_argument("--wait", action="store_true", help="until it is over; prints the result")
    submit.add_argument("--output", type=Path, metavar="FILE", help="of the result, with --wait")

    resume = add("resume", runs.resume)
    resume.add_argument("run")
    common.add_import(resume)
    common.add_engines(resume)
    common.add_store(resume)
    resume.add_argument("--output", type=Path, metavar="FILE", help="of the result, as JSON")
    common.add_analysis(resume)

    for name, command, there in (
        ("watch", runs.watch, remote.watch),
        ("cancel", runs.cancel, remote.cancel),
        ("delete", runs.delete, None),
    ):
        one = add(name, command)
        one.add_argument("run")
        common.add_store(one)
        if there is not None:
            common.add_server(one, there)
        if name == "watch":
            one.add_argument(
                "--tokens",
                action="store_true",
                help="with --server: also what calls under way have said since the last time",
            )

    listing = add("list", runs.list_runs)
    common.add_store(listing)
    listing.add_argument("--json", action="store_true")
    common.add_server(listing, remote.list_runs)

    explain = add("explain", planning.explain)
    common.add_workflow(explain)
    explain.add_argument("--engines", type=common.count, default=1, metavar="N", help="to plan for")
    explain.add_argument("--format", choices=list(FORMATS), default="text")
    explain.add_argument("--tokenizer", metavar="NAME", help="the model's; default: an estimate")
    explain.add_argument("--revision", metavar="NAME", help="asks the prompt cache, see run")
    explain.add_argument("--tenant")
    common.add_cache(explain)
    common.add_server(explain, remote.explain, what="the workflow is then the id of a run there")

    profile = add("profile", planning.profile)
    common.add_workflow(profile)
    common.add_engines(profile, is_required=False)
    common.add_store(profile)
    profile.add_argument(
        "--rows", type=common.count, default=8, metavar="N", help="of the sample run"
    )

    caching = commands.add_parser("cache", help="Looks after the prompt cache.")
    actions = caching.add_subparsers(metavar="ACTION", required=True)
    stats = actions.add_parser("stats", help="Prints its totals.")
    stats.set_defaults(command=cache.stats)
    stats.add_argument("--json", action="store_true")
    clear = actions.add_parser("clear", help="Deletes entries.")
    clear.set_defaults(command=cache.clear)
    clear.add_argument("--tenant", help="only this tenant's")
    for action in (stats, clear):
        common.add_cache(action)
    return parser


if __name__ == "__main__":
    sys.exit(main())
