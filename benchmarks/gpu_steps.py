"""Where the wall time of a PPO and of a GRPO step goes, as the recipes ship them, and the peak memory of the device.

    python benchmarks/gpu_steps.py grpo ppo --size 124M
    python benchmarks/gpu_steps.py grpo --size 124M --not_recorded        without CUDA graphs in generation

A step: 64 completions of nearly 256 tokens each, for prompts of about 64, random weights, the
recipe's precision. GRPO: 8 completions a prompt, one pass. PPO: 4 passes over each rollout, so that 4 steps make an
update; the critic and the reward model have the policy's size. Seconds are of the device: every part ends with a
synchronisation, which a run does not have. Parts do not include what they call of each other.
"""

import argparse
import random
import tempfile
import time

import torch
from datasets import Dataset
from grpo_rollouts import instrument
from transformers import AutoModelForSequenceClassification, set_seed

from fourstage.arguments import ModelArguments
from fourstage.grpo import GRPOConfig, GRPOTrainer
from fourstage.models.random_init import random_causal_lm
from fourstage.models.tokenizer import train_tokenizer
from fourstage.ppo import PPOConfig, PPOTrainer
from fourstage.rl import decoding
from fourstage.speed import fill_precision, speed_up

ROWS, MICRO, CAP, PROMPT, LENGTH = 64, 16, 256, 64, 512
PARTS = {
    "_generate_single_turn": "generation",
    "_get_per_token_logps_and_entropies": "log-probabilities",
    "_ref_logps": "reference",
    "_values": "values",
    "_calculate_rewards": "rewards",
    "_step_critic": "critic's step",
}


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def coin_flips(completions: list, **kwargs) -> list[float]:
    return [random.random() for _ in completions]


def build(size: str) -> tuple:
    words = ["".join(random.choices("abcdefghij", k=5)) for _ in range(20_000)]
    tokenizer = train_tokenizer([" ".join(words)], 4096, LENGTH)
    set_seed(0)
    model = random_causal_lm(ModelArguments(num_parameters=size), tokenizer, LENGTH)
    prompts = [" ".join(random.choices(words, k=PROMPT // 3)) for _ in range(256)]
    rows = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
    return tokenizer, model, Dataset.from_list(rows)


def trainer_of(stage: str, size: str, steps: int, out: str):
    tokenizer, model, rows = build(size)
    config = {"grpo": GRPOConfig, "ppo": PPOConfig}[stage](
        **{"output_dir": out, "max_steps": steps, "max_completion_length": CAP, "learning_rate": 1e-9},
        **{"per_device_train_batch_size": MICRO, "gradient_accumulation_steps": ROWS // MICRO},
        **{"report_to": "none", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True},
        **({"num_generations": 8} if stage == "grpo" else {}),
    )
    fill_precision(config, ModelArguments(), model.num_parameters())
    options = {"train_dataset": rows, "processing_class": tokenizer}
    if stage == "grpo":
        trainer = GRPOTrainer(
            model, [lambda completions, **_: [random.random() for _ in completions]], config, **options
        )
        speed_up(trainer, ModelArguments())
        return trainer
    model.save_pretrained(f"{out}/policy")
    scorer = AutoModelForSequenceClassification.from_pretrained(f"{out}/policy", num_labels=1)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    trainer = PPOTrainer(model, scorer, config, reward_processing_classes=tokenizer, **options)
    speed_up(trainer, ModelArguments(), trainer.value_model, trainer.ref_model, *trainer.reward_funcs)
    return trainer


def measure(stage: str, size: str, steps: int) -> str:
    """A row of the table: seconds of a step, of each part, and the peak memory in GiB."""
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(stage, size, 4, out)
        trainer.train()  # warms up, and compiles
        trainer.args.max_steps = steps
        spent, start = instrument(trainer, PARTS, now), now()
        trainer.train()
        total = now() - start
    peak = f"; peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if torch.cuda.is_available() else ""
    spent["other"] = total - sum(spent.values())
    parts = ", ".join(f"{part} {seconds / total:.0%}" for part, seconds in sorted(spent.items(), key=lambda x: -x[1]))
    return f"{stage} {size}: {total / steps:.3f} seconds a step ({parts}){peak}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("grpo", "ppo"))
    parser.add_argument("--size", default="124M")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--not_recorded", action="store_true", help="run each step of generation as written")
    args = parser.parse_args()
    if args.not_recorded:
        decoding.recordable = lambda model, limit: False
    for stage in args.stages:
        print(measure(stage, args.size, args.steps), flush=True)


if __name__ == "__main__":
    main()
