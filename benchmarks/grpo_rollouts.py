"""Where the time of a GRPO step goes, and fourstage's GRPOTrainer against TRL's: seconds of processor time per step.

    python benchmarks/grpo_rollouts.py compare --sizes 1M 10M --workloads quarter full --pairs 7
    python benchmarks/grpo_rollouts.py profile --sizes 1M 10M
    python benchmarks/grpo_rollouts.py levers --sizes 1M --workloads quarter --prompt_tokens 256

A step: 64 completions, 8 a prompt, of at most 128 tokens, in 4 micro-batches; prompts of 24 to 40 tokens; float32, no
gradient checkpointing. Both sides run in this process in turn, from the same weights (the learning rate is 0) and
prompts. Each draws tokens in its own way: `mean_length` says how long they are. `full`: no completion ends before the
cap. `quarter`: they end at a quarter of it on average. The first step of each turn warms up. Ratios are medians over
pairs of turns. `levers`: ours against ours without one of its levers, in the same way. The reward is the verifier
`number`, and the share of even words so that groups differ. `--bf16`: bfloat16 mixed precision on both sides, and on
ours the attention that recipes/grpo.py chooses for it on a CPU.
"""

import argparse
import functools
import json
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed

from fourstage.arguments import ModelArguments
from fourstage.grpo import GRPOTrainer
from fourstage.grpo import trainer as grpo_trainer
from fourstage.rl import decoding
from fourstage.speed import speed_up
from fourstage.verifiers import number

SIZES = {  # vocabulary, width, layers, heads: 1.0M and 10.0M parameters
    "1M": (1024, 128, 4, 4),
    "10M": (4096, 256, 10, 8),
}
ROWS, MICRO, GROUP, CAP, PROMPT = 64, 16, 8, 128, 32
SIDES = {"ours": GRPOTrainer, "trl": trl.GRPOTrainer}
PARTS = {  # methods of a trainer, timed without what they call of each other
    "_generate_single_turn": "generation",
    "_get_per_token_logps_and_entropies": "log-probabilities",
    "_calculate_rewards": "rewards",
}


def read_every_prompt(model, ids, mask, cache):
    """`decoding._read_prompts` without its lever."""
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"attention_mask": mask, "position_ids": places, "past_key_values": cache}
    return model(input_ids=ids, **inputs, use_cache=True, logits_to_keep=1).logits[:, -1]


LEVERS = {  # what stands where without a lever
    "ended rows leave": (decoding, "_DROPPED_SHARE", 1.1),
    "equal prompts read once": (decoding, "_read_prompts", read_every_prompt),
    "micro-batches by length": (GRPOTrainer, "_regrouped", lambda self, batches: batches),
    "plain head": (grpo_trainer, "plain_head_pays", lambda *args: False),
}


def build(size: str, workload: str, prompt_tokens: int) -> tuple:
    """Tokenizer (a number a token), policy with a set probability of the end token, and rows."""
    vocabulary, width, layers, heads = SIZES[size]
    words = ["<pad>", "<bos>", "<eos>", *map(str, range(3, vocabulary))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<bos>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "padding_side": "left"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    set_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    more = {"num_attention_heads": heads, "max_position_embeddings": 2048, "tie_word_embeddings": False}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **shape, **more, **ids))
    chance, lengths = random.Random(0), range(prompt_tokens * 3 // 4, prompt_tokens * 5 // 4 + 1)
    rows = [
        {"prompt": " ".join(chance.choices(words[3:], k=chance.choice(lengths))), "answer": chance.choice(words[3:])}
        for _ in range(1024)
    ]
    with torch.no_grad():  # a constant direction of the stream sets how likely the end token is, whatever the context
        policy.model.embed_tokens.weight[:, 0] = 5.0
        policy.lm_head.weight[:, 0] = 0.0
        shortest = [row["prompt"].split()[: lengths[0]] for row in rows[:64]]  # no padding
        hidden = policy.model(torch.tensor(tokenizer.convert_tokens_to_ids(sum(shortest, []))).view(64, -1))[0]
        policy.lm_head.weight[:3] = 0.0
        policy.lm_head.weight[:2, 0] = -30 / hidden[..., 0].mean()
        wanted = 1 / (CAP / 4) if workload == "quarter" else 1e-9
        low, high = -100.0, 100.0
        for _ in range(60):  # the mean probability of the end token rises with its weight
            policy.lm_head.weight[2, 0] = weight = (low + high) / 2
            much = policy.lm_head(hidden).softmax(dim=-1)[..., 2].mean() > wanted
            low, high = (low, weight) if much else (weight, high)
    return tokenizer, policy, Dataset.from_list(rows)


def evens(completions: list[str], **kwargs) -> list[float]:
    """The share of even numbers."""
    return [sum(int(word) % 2 == 0 for word in text.split()) / CAP for text in completions]


class Record(TrainerCallback):
    """Both clocks at the end of every step, and the lengths of completions."""

    def __init__(self):
        self.times: dict[str, list[float]] = {"cpu": [], "wall": []}
        self.lengths: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times["cpu"].append(time.process_time())
        self.times["wall"].append(time.perf_counter())


def new_trainer(side: str, args: argparse.Namespace, size: str, workload: str, out: str) -> tuple:
    tokenizer, policy, rows = build(size, workload, args.prompt_tokens)
    record = Record()

    def watch(completions, completion_ids, **kwargs):
        record.lengths += map(len, completion_ids)
        return [0.0] * len(completions)

    config = trl.GRPOConfig(
        **{"output_dir": out, "learning_rate": 0.0, "lr_scheduler_type": "constant", "max_steps": args.steps + 1},
        **{"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": ROWS // MICRO},
        **{"num_generations": GROUP, "max_completion_length": CAP, "num_iterations": args.iterations},
        **{"beta": args.beta, "reward_weights": [1.0, 1.0, 0.0], "logging_steps": 1000, "loss_type": args.loss_type},
        **{"bf16": args.bf16, "use_cpu": True, "gradient_checkpointing": False, "disable_dropout": True},
        **{"report_to": "none", "save_strategy": "no", "disable_tqdm": True},
    )
    rewards = [number, evens, watch]
    if side == "trl" and args.beta:  # plain TRL loads its reference from a folder
        policy.save_pretrained(f"{out}/policy")
        policy = LlamaForCausalLM.from_pretrained(f"{out}/policy")
    options = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [record]}
    trainer = SIDES[side](policy, rewards, config, **options)
    if args.bf16 and side == "ours":
        speed_up(trainer, ModelArguments(), trainer.ref_model)
    return trainer, record


def turn(trainer, record: Record, seed: int) -> dict[str, float]:
    """One short training: mean seconds of a step after the first."""
    record.times = {"cpu": [], "wall": []}
    torch.manual_seed(seed)
    trainer.args.seed = seed  # of which ours draws
    trainer._step, trainer._buffered_inputs = 0, None  # a new rollout, also after an odd number of steps
    trainer.train()
    return {clock: (t[-1] - t[0]) / (len(t) - 1) for clock, t in record.times.items()}


def compare(args: argparse.Namespace, size: str, workload: str, out: str) -> dict:
    sides = {side: new_trainer(side, args, size, workload, f"{out}/{side}") for side in SIDES}
    spans: dict[str, list[dict]] = {side: [] for side in SIDES}
    for pair in range(args.pairs):
        for side in sorted(SIDES, reverse=pair % 2 == 1):  # each goes first every other time
            spans[side].append(turn(*sides[side], seed=pair))
    row: dict = {"size": size, "workload": workload}
    for clock in ("cpu", "wall"):
        ratios = [ours[clock] / plain[clock] for ours, plain in zip(spans["ours"], spans["trl"], strict=True)]
        row[f"{clock}_ratio"] = round(statistics.median(ratios), 3)
        row[f"{clock}_ratios"] = [round(ratio, 3) for ratio in ratios]
        row[f"{clock}_seconds"] = {s: round(statistics.median(t[clock] for t in spans[s]), 3) for s in SIDES}
    records = {side: record for side, (_, record) in sides.items()}
    row["mean_length"] = {side: round(statistics.mean(record.lengths), 1) for side, record in records.items()}
    return row


def levers(args: argparse.Namespace, size: str, workload: str, out: str) -> list[dict]:
    trainer, record = new_trainer("ours", args, size, workload, out)
    rows = []
    for name in args.levers:
        (place, attribute, instead), ratios = LEVERS[name], []
        for pair in range(args.pairs):
            spans = {}
            for side in sorted(("with", "without"), reverse=pair % 2 == 1):
                patch = mock.patch.object(place, attribute, instead) if side == "without" else nullcontext()
                with patch:
                    spans[side] = turn(trainer, record, seed=pair)["cpu"]
            ratios.append(1 - spans["with"] / spans["without"])
        row = {"size": size, "workload": workload, "prompt_tokens": args.prompt_tokens, "lever": name}
        rows.append(row | {"saves": f"{statistics.median(ratios):.1%}", "each": [f"{ratio:.1%}" for ratio in ratios]})
    return rows


def instrument(
    trainer, parts: Mapping[str, str] = PARTS, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """Time by part, of the methods that `parts` names, in a dict that fills as the trainer runs."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[float] = []

    def timed(function, part):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            inside.append(0.0)
            start = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - start
                spent[part] += took - inside.pop()
                if inside:
                    inside[-1] += took

        return wrapper

    for name, part in parts.items():
        if hasattr(trainer, name):
            setattr(trainer, name, timed(getattr(trainer, name), part))
    trainer.accelerator.backward = timed(trainer.accelerator.backward, "backward")
    return spent


def profile(args: argparse.Namespace, size: str, workload: str, out: str) -> list[dict]:
    rows = []
    for side in SIDES:
        trainer, record = new_trainer(side, args, size, workload, f"{out}/{side}")
        turn(trainer, record, seed=0)
        spent = instrument(trainer)
        start = time.process_time()
        turn(trainer, record, seed=1)
        total = time.process_time() - start
        shares = {part: spent[part] for part in (*PARTS.values(), "backward")}
        shares["other"] = total - sum(shares.values())
        row = {"size": size, "workload": workload, "side": side, "seconds": round(total / (args.steps + 1), 3)}
        rows.append(row | {part: f"{seconds / total:.1%}" for part, seconds in shares.items()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("compare", "profile", "levers"))
    parser.add_argument("--sizes", nargs="+", default=["1M", "10M"], choices=SIZES)
    parser.add_argument("--workloads", nargs="+", default=["quarter", "full"], choices=("full", "quarter"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn, without the first")
    parser.add_argument("--prompt_tokens", type=int, default=PROMPT)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--beta", type=float, default=0.0)
    parser.add_argument("--loss_type", default="dapo")
    parser.add_argument("--levers", nargs="+", default=list(LEVERS), choices=LEVERS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="both sides in bfloat16 mixed precision")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for size in args.sizes:
        for workload in args.workloads:
            with tempfile.TemporaryDirectory() as out:
                found = {"compare": compare, "profile": profile, "levers": levers}[args.task](args, size, workload, out)
            for row in found if isinstance(found, list) else [found]:
                print(json.dumps(row), flush=True)
                rows.append(row)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
