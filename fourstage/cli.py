"""The command `fourstage`: thin, the work is in the modules."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line `words` (by default the process's own); the exit status, 1 after a wrong input."""
    arguments = _parser().parse_args(words)
    try:
        return arguments.command(arguments)
    except ValueError as error:
        print(f"fourstage: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fourstage", description="The four stages of training an LLM.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    report = commands.add_parser("report", help="write an illustrated page on a folder of runs")
    report.add_argument("folder", type=Path, metavar="DIR", help="the folder of a pipeline, or of one stage")
    report.add_argument("--output", type=Path, metavar="FILE", help="the page to write (default: DIR/report.html)")
    report.set_defaults(command=_report)
    push = commands.add_parser("push", help="upload a finished stage to the Hub")
    push.add_argument("folder", type=Path, metavar="DIR", help="the folder of a finished stage")
    push.add_argument("--hub_model_id", metavar="OWNER/NAME", help="default: where it was pushed before, or its name")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument("--revision", metavar="BRANCH", help="the branch, made if it is missing (default: main)")
    push.set_defaults(command=_push)
    return parser


def _report(arguments: argparse.Namespace) -> int:
    from fourstage.report import write_report

    print(write_report(arguments.folder, arguments.output))
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from fourstage.hub import HubSettings
    from fourstage.push import push_folder

    push_folder(arguments.folder, HubSettings(arguments.hub_model_id, arguments.private or None, arguments.revision))
    return 0


if __name__ == "__main__":
    sys.exit(main())
