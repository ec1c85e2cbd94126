"""Measures one stage of a chain in a process of its own, and puts what was measured together.

    python -m fourstage.demo CHAIN STAGE --seed 0 --items 500

writes CHAIN/measured/STAGE.json; what is there and still holds is not measured again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel, set_seed
from transformers.utils import logging

from fourstage.arguments import ModelArguments, keep_memory, restored
from fourstage.artifact.record import git_sha
from fourstage.atomic import write_atomically
from fourstage.demo import measure
from fourstage.demo.table import PARENTS, TUNED, gains, table_row, uniform_bits
from fourstage.evaluation.reward_model import score_conversations
from fourstage.models.opening import open_tokenizer
from fourstage.models.random_init import random_causal_lm
from fourstage.parent import read_record, weights_hash
from fourstage.ranges import whole_number


def measure_stage(chain: Path, stage: str, seed: int, number: int) -> dict[str, Any]:
    """{"row", "outcomes", "sampled", "key"} of a finished stage, of the weights it begins with (`random`), or of the
    reward model.

    Args:
        chain: a folder with a folder for each stage. seed: of the sampled answers. number: of items of each kind.
    """
    tokenizer, record = open_tokenizer(chain / "pretrain"), read_record(chain / stage) or {}
    if stage == "reward":
        scorer = AutoModelForSequenceClassification.from_pretrained(chain / stage)
        measures = measure.measure_reward_model(scorer, tokenizer, max(number // 2, 1))
        row = table_row(stage, measures, record, scorer.num_parameters())
        return {"row": row, "key": part_key(chain, stage, number)}
    model, parent = _model(chain, stage), PARENTS.get(stage)
    items = measure.items_to_measure(number)
    measures = measure.measure_model(model, tokenizer, items, _model(chain, parent) if parent else None, seed)
    row = table_row(stage, measures, record, model.num_parameters())
    row["answers"] = measure.answers_to(model, tokenizer, stage not in ("random", "pretrain")) + measures.answers
    return {
        "row": row,
        "outcomes": measures.outcomes,
        "sampled": measures.sampled,
        "key": part_key(chain, stage, number),
    }


def part_key(chain: Path, stage: str, number: int) -> list:
    """What a measurement depends on: if it is another, the stage has to be measured again."""
    return [weights_hash(str(chain / ("pretrain" if stage == "random" else stage))), number, git_sha()]


def part_file(chain: Path, stage: str) -> Path:
    return chain / "measured" / f"{stage}.json"


def read_part(chain: Path, stage: str, number: int) -> dict | None:
    """What was measured of a stage, if it still holds."""
    file = part_file(chain, stage)
    part = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    return part if part and part["key"] == part_key(chain, stage, number) else None


def chain_rows(chain: Path, number: int) -> tuple[list[dict], dict | None]:
    """(rows of the table, the reward model's row) of the stages of a chain that were measured.

    Here come what needs several of them: the reward model's scores of all sampled answers, gains over parent and
    control, and the row of chance.
    """
    measured = {stage: read_part(chain, stage, number) for stage in (*TUNED, "reward")}
    parts = {stage: part for stage, part in measured.items() if part}
    scorer = parts.pop("reward", None)
    if scorer:
        _add_scores(chain, parts)
    outcomes = {stage: part["outcomes"] for stage, part in parts.items()}
    for stage, part in parts.items():
        others = {"parent": PARENTS.get(stage), "control": "control" if stage == "grpo" else None}
        part["row"]["metrics"] = {key: measure.summarise_items(values) for key, values in outcomes[stage].items()}
        part["row"]["gains"] = {
            name: gains(outcomes[stage], outcomes[other]) for name, other in others.items() if other in outcomes
        }
    items, tokenizer = measure.items_to_measure(number), open_tokenizer(chain / "pretrain")
    guesses = measure.measure_guesses(items)
    guesses.outcomes["bits_per_byte"] = uniform_bits(tokenizer, items.texts)
    rows = [part["row"] for part in parts.values()] + [table_row("chance", guesses, {}, None)]
    return rows, scorer and scorer["row"]


def _add_scores(chain: Path, parts: dict[str, dict]) -> None:
    """The reward model's scores of the answers that every stage sampled."""
    tokenizer = open_tokenizer(chain / "pretrain")
    scorer = AutoModelForSequenceClassification.from_pretrained(chain / "reward")
    for part in parts.values():
        part["outcomes"]["reward_score"] = score_conversations(scorer, tokenizer, part["sampled"], batch_size=128)


def _model(chain: Path, stage: str) -> PreTrainedModel:
    if stage != "random":
        return AutoModelForCausalLM.from_pretrained(chain / stage)
    return random_model(chain)


def random_model(chain: Path) -> PreTrainedModel:
    """The weights that pre-training began with: the same seed draws them again."""
    record = read_record(chain / "pretrain")
    if record is None:
        raise ValueError(f"{chain / 'pretrain'} has no run.json; pre-train there first")
    arguments = record["arguments"]
    set_seed(record["seed"])
    model_args = restored(ModelArguments, arguments["model"])
    return random_causal_lm(model_args, open_tokenizer(chain / "pretrain"), arguments["training"]["max_length"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chain", type=Path, help="folder with a folder for each stage")
    parser.add_argument("stage", choices=(*TUNED, "reward"))
    parser.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of the sampled answers")
    parser.add_argument("--items", type=whole_number(1), default=500, help="of each kind")
    args = parser.parse_args()
    logging.disable_progress_bar()  # of loading weights
    keep_memory()
    part = measure_stage(args.chain, args.stage, args.seed, args.items)
    file = part_file(args.chain, args.stage)
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(part, ensure_ascii=False) + "\n")
