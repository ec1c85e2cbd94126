"""The command `fourstage`: thin, the work is in the modules."""

import argparse
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fourstage.disk import disk_problem
from fourstage.imports import set_waiting
from fourstage.printing import visible
from fourstage.ranges import whole_number
from fourstage.signals import ended_by_signals

_Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers gives


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line `words` (by default the process's own); the exit status, 1 after a wrong input."""
    try:
        arguments = _parser().parse_args(words)
        set_waiting()
        with ended_by_signals("(stopped)") if arguments.command in (_chat, _compare, _prefer) else nullcontext():
            return arguments.command(arguments)
    except ValueError as error:
        print(visible(f"fourstage: {' '.join(str(error).split())}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # as shells say: ended by Ctrl-C
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if not (said := disk_problem(error)):
            raise
        print(visible(f"fourstage: {said}"), file=sys.stderr)
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
    recipes = commands.add_parser("recipes", help="copy the recipes and launch configs to where you work")
    recipes.add_argument("folder", type=Path, metavar="DIR", help="where they go, such as . for here")
    recipes.set_defaults(command=_recipes)
    needs = "what a run of a recipe will need: memory, tokens, time; before it is launched"
    plan = commands.add_parser("plan", help=needs, add_help=False, prefix_chars="\0")  # its flags are the recipe's too
    plan.add_argument("words", nargs="*")
    plan.set_defaults(command=_plan)
    known = "what is wrong with a recipe's settings, a run, a model or data, before the first step"
    doctor = commands.add_parser("doctor", help=known, add_help=False, prefix_chars="\0")  # likewise
    doctor.add_argument("words", nargs="*")
    doctor.set_defaults(command=_doctor)
    _add_chat(commands)
    _add_prefer(commands)
    return parser


def _add_prefer(commands: _Commands) -> None:
    prefer = commands.add_parser("prefer", help="choose the better of two answers, on a page in the browser")
    add = prefer.add_argument
    add("models", nargs="*", metavar="MODEL", help="one model, which answers twice, or two; named as for chat")
    add(
        "--prompts", metavar="FILE", help="rows with prompts, or .txt, a prompt a line (default: what the run held out)"
    )
    add("--output", type=Path, default=Path("prefs.jsonl"), metavar="FILE", help="the choices (default: prefs.jsonl)")
    add("--temperature", type=float, default=1.0, help="of the answers (default: 1)")
    add("--max_new_tokens", type=int, default=256, help="longest answer (default: 256)")
    add("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of the answers and of their sides (default: 0)")
    add("--pick", choices=("random", "uncertain"), default="random", help="which pairs come first (default: random)")
    add(
        "--reward_model", metavar="DIR", help="with --pick uncertain: it is the least sure of them; with --stats: tried"
    )
    add(
        "--host", default="127.0.0.1", help="127.0.0.1 is for this machine alone; others need the token that is printed"
    )
    add("--port", type=int, default=8420, help="0 for any free one (default: 8420)")
    add("--trains_next", action="store_true", help="the page says that a training follows, as `make prefer` has it")
    add("--stats", type=Path, metavar="FILE", help="say what the choices in a file amount to, and exit")
    add(
        "--export",
        type=Path,
        metavar="FILE",
        help="with --stats: write prompt, chosen and rejected alone to a new file",
    )
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: as it was saved")
    code = "run code from the model's repository"
    add("--trust_remote_code", nargs="?", const="true", default="false", choices=("true", "false"), help=code)
    prefer.set_defaults(command=_prefer)


def _add_chat(commands: _Commands) -> None:
    """`chat` and `compare`, with the flags that they share."""
    chat = commands.add_parser("chat", help="talk to a model in the terminal, through pipes, or on a page (--web)")
    stage = "a finished stage, a saved model, a Hub id or a .gguf file; with --web several, or the folder of a chain"
    chat.add_argument("models", nargs="*", metavar="MODEL", help=stage)
    chat.add_argument("--web", action="store_true", help="on a page in the browser (without MODEL: runs/demo)")
    chat.add_argument("--host", default="127.0.0.1", help="with --web: others need the token that is printed")
    chat.add_argument("--port", type=int, default=8421, help="with --web: 0 for any free one (default: 8421)")
    where = "with --web: which of two answers you found better (default: prefs.jsonl)"
    chat.add_argument("--output", type=Path, default=Path("prefs.jsonl"), metavar="FILE", help=where)
    chat.add_argument("--prompt", metavar="TEXT", help="answer this alone, and exit")
    chat.add_argument("--continue", action="store_true", dest="continue_text", help="continue text, whatever the model")
    chat.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), help="seed of the sampling (default: another at every start)"
    )
    _add_speaking(chat, temperature=0.7, max_new_tokens=512)
    chat.set_defaults(command=_chat)
    compare = commands.add_parser("compare", help="what several stages say to the same prompt, side by side")
    compare.add_argument("models", nargs="+", metavar="MODEL", help="as for chat; reward models score all answers")
    compare.add_argument(
        "--prompt", action="append", metavar="TEXT", help='may be repeated (default: "What is an LLM?")'
    )
    compare.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="seed of the sampling, the same for each (default: 0)",
    )
    _add_speaking(compare, temperature=0.0, max_new_tokens=64)
    compare.set_defaults(command=_compare)


def _add_speaking(parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int) -> None:
    add = parser.add_argument
    add("--system", metavar="TEXT", help="the system prompt of a model that chats")
    add("--temperature", type=float, default=temperature, help=f"0: the likeliest token (default: {temperature:g})")
    add("--top_p", type=float, default=1.0, help="draw from the likeliest tokens of this share (default: 1, all)")
    add("--top_k", type=int, default=0, help="draw from that many tokens (default: 0, all)")
    add("--max_new_tokens", type=int, default=max_new_tokens, help=f"longest answer (default: {max_new_tokens})")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="default: as it was saved")
    add("--revision", "--model_revision", metavar="NAME", help="a branch, tag or commit of a Hub id")
    yes_or_no = ("true", "false")
    code = "run code from the model's repository"
    add("--trust_remote_code", nargs="?", const="true", default="false", choices=yes_or_no, help=code)


def _chat(arguments: argparse.Namespace) -> int:
    if arguments.web:
        with _extra_ui("chat --web"):
            from fourstage.chat.web import run_web

        return run_web(arguments)
    if len(arguments.models) != 1:
        raise ValueError(f"models={' '.join(arguments.models)}: name one model to talk to, or several with --web")
    from fourstage.chat.terminal import run_chat

    return run_chat(arguments)


def _compare(arguments: argparse.Namespace) -> int:
    from fourstage.chat.compare import run_compare

    return run_compare(arguments)


def _prefer(arguments: argparse.Namespace) -> int:
    if arguments.stats:
        with _extra_ui("prefer --stats"):
            from fourstage.prefer.statistics import run_statistics

        return run_statistics(arguments)
    if arguments.export:
        raise ValueError(f"export={arguments.export} needs a file of choices; name it with --stats")
    with _extra_ui("prefer"):
        from fourstage.prefer.run import run_prefer

    return run_prefer(arguments)


@contextmanager
def _extra_ui(command: str) -> Generator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        needed = 'pip install -e ".[ui]" -c constraints.txt'
        raise ValueError(f"{command} needs the extra ui, {error.name} is missing: {needed}") from None


def _report(arguments: argparse.Namespace) -> int:
    from fourstage.report import write_report

    print(write_report(arguments.folder, arguments.output))
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from fourstage.shipped import copy_recipes

    copy_recipes(arguments.folder)
    recipes = arguments.folder / "recipes"
    print(f"{recipes}: try accelerate launch {recipes / 'pretrain.py'} --help")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from fourstage.plan.command import run_plan

    return run_plan(arguments.words)


def _doctor(arguments: argparse.Namespace) -> int:
    from fourstage.doctor.command import run_doctor

    return run_doctor(arguments.words)


def _push(arguments: argparse.Namespace) -> int:
    from fourstage.artifact.hub import HubSettings
    from fourstage.artifact.run import push_folder

    push_folder(arguments.folder, HubSettings(arguments.hub_model_id, arguments.private or None, arguments.revision))
    return 0


if __name__ == "__main__":
    sys.exit(main())
