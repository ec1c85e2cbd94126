"""`fourstage prefer`: opens the models, serves the page, and says what came of it."""

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

from fourstage.arguments import DataArguments, restored
from fourstage.data.formats import prompt_row
from fourstage.data.loading import held_out_rows
from fourstage.data.picks import left_out, standing
from fourstage.models.checkpoint import open_classifier
from fourstage.models.opening import open_tokenizer
from fourstage.parent import find_parent, weights_hash
from fourstage.prefer.pairs import Maker
from fourstage.prefer.record import ChoiceFile
from fourstage.prefer.server import Desk, routes
from fourstage.prefer.stock import Stock
from fourstage.speaking import Sampling, Speaker, note, open_speaker
from fourstage.web.serving import listen, serve

_MOST_PROMPTS = 2_000


def run_prefer(arguments: argparse.Namespace) -> int:
    """Serves the page until somebody says that it is enough, or Ctrl-C; the exit status.

    Raises:
        ValueError: for models that cannot be opened or do not chat, no prompts, or files and ports that cannot be used.
    """
    if not 1 <= len(arguments.models) <= 2:
        raise ValueError(f"models={' '.join(arguments.models)!r}: name one model, or two to compare")
    if arguments.pick == "uncertain" and not arguments.reward_model:
        raise ValueError("pick=uncertain needs a reward model that is unsure; name one with --reward_model")
    Sampling(arguments.temperature, 1.0, 0, arguments.max_new_tokens)  # raises for values that no model can sample by
    listen(arguments.host, arguments.port).close()  # said before the models are opened, which may take minutes
    file = ChoiceFile(arguments.output)
    maker = _maker(arguments)
    stock = Stock(arguments.output.with_stem(arguments.output.stem + ".pairs"), maker, arguments.pick)
    desk = Desk(file, stock, lambda: os.kill(os.getpid(), signal.SIGTERM), arguments.trains_next)
    stock.start()
    try:
        what = f"{len(maker.prompts):,} prompts; choose at"
        serve("prefer.html", routes(desk), arguments.host, arguments.port, note, what)
    finally:
        stock.end()
    _say_what_came(file, arguments)
    return 0


def _maker(arguments: argparse.Namespace) -> Maker:
    """What makes the pairs: models, prompts that fit them, and the reward model if there is one."""
    options: dict[str, Any] = {"dtype": arguments.dtype, "trust_remote_code": arguments.trust_remote_code == "true"}
    speakers = [_open(name, options) for name in arguments.models]
    sampling = {"temperature": arguments.temperature, "max_new_tokens": arguments.max_new_tokens}
    hashes = [weights_hash(name) for name in arguments.models]
    scorer = arguments.reward_model and (
        open_classifier(arguments.reward_model, note),
        open_tokenizer(arguments.reward_model),
    )
    maker = Maker(speakers, hashes, [], sampling, arguments.seed, scorer or None)
    if not maker.could_differ():
        raise ValueError(
            f"temperature={arguments.temperature:g} gives the same answer twice; choose a higher one, or two models"
        )
    maker.prompts = _prompts(arguments, maker)
    return maker


def _say_what_came(file: ChoiceFile, arguments: argparse.Namespace) -> None:
    rows = standing(file.rows)
    ready = sum(left_out(row) is None for row in rows)
    note(f"{file.path}: {len(rows):,} choices, {ready:,} of them pairs for a reward model")
    if ready and not arguments.trains_next:
        data = f"--model_name_or_path {arguments.models[0]} --dataset_name {file.path}"
        note(f"next: accelerate launch recipes/reward.py {data}")


def _open(name: str, options: dict[str, Any]) -> Speaker:
    speaker = open_speaker(name, **options)
    if not speaker.chats:
        why = "is a base model" if speaker.stage else "has no chat template"
        raise ValueError(f"{name} {why}, so it does not answer; name a model that is tuned on conversations")
    note(speaker.describe())
    return speaker


def _prompts(arguments: argparse.Namespace, maker: Maker) -> list[list[dict]]:
    """The prompts to answer, all different: of a file, or what the first model's own run held out.

    Those that leave no room for an answer in the context of a model are left out, and counted.
    """
    name = arguments.prompts
    if name and Path(name).suffix == ".txt":
        rows = [{"prompt": [{"role": "user", "content": line}]} for line in _lines(Path(name))]
    else:
        rows = _rows(name, arguments.models[0])
    distinct = {repr(row["prompt"]): row["prompt"] for row in rows}
    fitting = [prompt for prompt in distinct.values() if maker.fits(prompt)]
    where = name or f"the data of {arguments.models[0]}"
    if len(fitting) < len(distinct):
        note(f"{where}: {len(distinct) - len(fitting)} of {len(distinct)} prompts fill the model's context, left out")
    if not fitting:
        raise ValueError(f"{where} has no prompt that can be answered; name a file of prompts with --prompts")
    return fitting


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"prompts={path} cannot be read as UTF-8 text ({error}); name another file") from None


def _rows(name: str | None, model: str) -> list[dict]:
    record = find_parent(model).record
    if not name and (not record or record.get("stage") in ("pretrain", "reward")):
        raise ValueError(f"{model} has no questions of its own data; name a file of prompts with --prompts")
    data_args, seed = DataArguments(), 0
    if not name and record:
        data_args, seed = restored(DataArguments, record["arguments"]["data"]), record["seed"]
    rows = held_out_rows("ppo", name, replace(data_args, unreadable="drop"), seed, prompt_row)
    return list(rows.take(_MOST_PROMPTS))
