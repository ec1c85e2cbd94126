"""PPOTrainer against the last PPOTrainer that TRL had (1.12.0): time per update, peak memory, reward at equal KL.

    pip install --no-deps --target trl112 trl==1.12.0
    python benchmarks/ppo_vs_trl112.py speed --old trl112 --sizes 1M 10M --pairs 5
    python benchmarks/ppo_vs_trl112.py speed --old trl112 --sizes 1M 10M --pairs 3 --bf16
    python benchmarks/ppo_vs_trl112.py reward --old trl112 --seeds 0 1 2 --updates 100 --learning_rate 3e-4

Both sides run as processes of their own, one after the other, in turn: same model, same reward model and critic, same
prompts, batch, passes and lengths, float32, no gradient checkpointing. An update is 64 completions of at most 64 tokens
in 4 micro-batches, and 4 passes. `full`: no completion ends before the cap. `quarter`: they end at a quarter of it
on average. Memory is the peak of the process above what it held after the imports. Ratios are medians over pairs.
`--bf16`: bfloat16 mixed precision on both sides, and on ours what recipes/ppo.py does beside it on a CPU: its choice of
attention, memory kept between steps, and few of oneDNN's kernels kept.
"""

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = {  # vocabulary, width, layers, heads: 1.0M and 10.0M parameters
    "50K": (64, 32, 2, 4),
    "1M": (1024, 128, 4, 4),
    "10M": (4096, 256, 10, 8),
}
ROWS, MICRO, PASSES, CAP, PROMPT = 64, 16, 4, 64, 16


def build(size: str, workload: str, seed: int) -> tuple:
    """Tokenizer (a word a token), policy, critic, reward model and prompts of equal length, the same on both sides."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
        set_seed,
    )

    vocabulary, width, layers, heads = SIZES[size]
    words = ["<pad>", "<bos>", "<eos>", *(f"w{i}" for i in range(3, vocabulary))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<bos>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece(prefix="##")
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "padding_side": "left"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    set_seed(seed)
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    more = {"num_attention_heads": heads, "max_position_embeddings": 256}
    sizes = {"vocab_size": vocabulary, "tie_word_embeddings": False, **shape, **more, **ids}
    policy = LlamaForCausalLM(LlamaConfig(**sizes))
    chance = random.Random(seed)
    prompts = [" ".join(chance.choices(words[3:], k=PROMPT)) for _ in range(1024)]
    with torch.no_grad():  # a constant direction of the stream sets how likely the end token is, whatever the context
        policy.model.embed_tokens.weight[:, 0] = 0.5
        policy.lm_head.weight[:, 0] = 0.0
        hidden = policy.model(**tokenizer(prompts[:64], return_tensors="pt")).last_hidden_state.flatten(0, 1)
        others = torch.logsumexp(policy.lm_head(hidden)[:, 3:], dim=-1).mean()
        wanted = 1 / (CAP / 4) if workload == "quarter" else 1e-9
        policy.lm_head.weight[2] = 0.0
        policy.lm_head.weight[2, 0] = (others + math.log(wanted / (1 - wanted))) / hidden[:, 0].mean()
    classifiers = []
    for _ in range(2):
        classifiers.append(LlamaForSequenceClassification(LlamaConfig(num_labels=1, **sizes)))
    return tokenizer, policy, *classifiers, prompts


def settings(args: argparse.Namespace, out: str) -> dict:
    return {
        "output_dir": out,
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": ROWS // MICRO,
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": "constant",
        "seed": args.seed,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": args.bf16,
        "use_cpu": True,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "temperature": 1.0,
        "max_grad_norm": 1.0,
    }


def new_trainer(args, parts, out, callbacks):
    from datasets import Dataset

    from fourstage.arguments import ModelArguments, keep_memory
    from fourstage.ppo import PPOConfig, PPOTrainer
    from fourstage.speed import speed_up

    tokenizer, policy, critic, reward, prompts = parts
    # Both trainers fit the critic by one rate, but 1.12 multiplies its loss by vf_coef, which Adam takes out again.
    own = {"max_completion_length": CAP, "num_iterations": PASSES, "max_steps": args.updates * PASSES}
    config = PPOConfig(**settings(args, out), **own, logging_steps=PASSES)
    trainer = PPOTrainer(
        policy,
        reward,
        config,
        value_model=critic,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer if hasattr(reward, "parameters") else None,
        callbacks=callbacks,
    )
    if args.bf16:
        keep_memory()
        speed_up(trainer, ModelArguments(), critic, trainer.ref_model, *trainer.reward_funcs)
    return trainer


def old_trainer(args, parts, out, callbacks):
    import copy

    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer, policy, critic, reward, prompts = parts
    own = {"response_length": CAP, "stop_token": "eos", "num_ppo_epochs": PASSES, "num_mini_batches": 1}
    own |= {"total_episodes": args.updates * ROWS, "kl_coef": 0.05, "num_sample_generations": 0}
    rows = Dataset.from_list([{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in prompts])
    return PPOTrainer(
        args=PPOConfig(**settings(args, out), **own, logging_steps=1),
        processing_class=tokenizer,
        model=policy,
        ref_model=copy.deepcopy(policy),
        reward_model=reward,
        value_model=critic,
        train_dataset=rows,
        eval_dataset=rows.select(range(16)),
        callbacks=callbacks,
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(args: argparse.Namespace) -> None:
    """One side, in this process: prints a line of JSON."""
    import tempfile

    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(args.threads)
    import trl

    builder = {"new": new_trainer, "old": old_trainer}[args.side]
    if args.side == "new":
        from fourstage.ppo import PPOTrainer
    else:
        from trl.experimental.ppo import PPOTrainer  # noqa: F401
    before = peak_bytes()
    parts = list(build(args.size, args.workload, args.seed))
    if args.task == "reward":
        parts[3] = letter_reward(args.side, parts[0])
    times, busy, history = [], [], []

    class Record(TrainerCallback):
        def on_log(self, arguments, state, control, logs=None, **kwargs):
            if logs and "objective/kl" in logs:
                times.append(time.perf_counter())
                busy.append(time.process_time())
                history.append({name: float(logs[f"objective/{name}"]) for name in ("kl", "scores", "rlhf_reward")})

    with tempfile.TemporaryDirectory() as out:
        trainer = builder(args, parts, out, [Record()])
        sys.stdout.flush()
        trainer.train()
    # The first update warms up.
    spans = {name: [b - a for a, b in zip(t, t[1:], strict=False)] for name, t in (("wall", times), ("cpu", busy))}
    print(json.dumps({"trl": trl.__version__, **spans, "peak": peak_bytes() - before, "history": history}))


def letter_reward(side: str, tokenizer):
    """The share of tokens with an even number below 20, on both sides: a function here, a module for TRL 1.12."""
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    wanted = torch.tensor([tokenizer.convert_tokens_to_ids(f"w{i}") for i in range(4, 20, 2)])

    def share(completions, **kwargs):
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in completions]
        return [sum(i in wanted.tolist() for i in row) / 16 for row in ids]

    class Backbone(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None, **kwargs):
            hits = (torch.isin(input_ids, wanted) & attention_mask.bool())[:, PROMPT:].float()
            counts = torch.nn.functional.pad(hits.cumsum(1), (PROMPT, 0)).unsqueeze(-1) / 16
            return BaseModelOutput(hidden_states=(counts,), last_hidden_state=counts)

    class Reward(torch.nn.Module):
        base_model_prefix = "backbone"

        def __init__(self):
            super().__init__()
            self.backbone, self.score = Backbone(), torch.nn.Identity()

    return share if side == "new" else Reward()


def run(side: str, args: argparse.Namespace, size: str, workload: str, seed: int) -> dict:
    command = [sys.executable, __file__, args.task, "--side", side, "--size", size, "--workload", workload]
    command += ["--seed", str(seed), "--updates", str(args.updates), "--threads", str(args.threads)]
    command += ["--learning_rate", str(args.learning_rate), *(["--bf16"] if args.bf16 else [])]
    path = [str(Path(args.old).resolve())] if side == "old" else []
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(args.threads)}
    if args.bf16 and side == "new":
        quiet["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "256"  # as `fourstage.speed.fill_precision` sets it
    env = {**os.environ, **quiet, "PYTHONPATH": os.pathsep.join([*path, str(ROOT)])}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare_speed(args: argparse.Namespace) -> None:
    for size in args.sizes:
        for workload in args.workloads:
            pairs = [[run(side, args, size, workload, seed) for side in ("new", "old")] for seed in range(args.pairs)]
            row: dict = {"size": size, "workload": workload}
            for clock in ("wall", "cpu"):
                sides = [[statistics.median(side[clock]) for side in pair] for pair in pairs]
                row[f"{clock}_ratio"] = statistics.median(new / old for new, old in sides)
                row[f"{clock}_ratios"] = [round(new / old, 3) for new, old in sides]
                row[f"{clock}_seconds"] = [round(statistics.median(s), 3) for s in zip(*sides, strict=True)]
            row["memory_ratio"] = statistics.median(new["peak"] / old["peak"] for new, old in pairs)
            row["megabytes"] = [round(side["peak"] / 2**20) for side in pairs[0]]
            print(json.dumps(row), flush=True)


def compare_reward(args: argparse.Namespace) -> None:
    """Score of both sides at the same KL, the smaller of their last ones, and what they maximise, at the end."""
    for seed in args.seeds:
        curves = {side: run(side, args, "50K", "quarter", seed)["history"] for side in ("new", "old")}
        last = {side: curve[-len(curve) // 5 :] for side, curve in curves.items()}
        mean = {side: {k: statistics.mean(h[k] for h in part) for k in part[0]} for side, part in last.items()}
        kl = min(mean["new"]["kl"], mean["old"]["kl"])
        row = {"seed": seed, "kl": kl, "score_at_kl": {side: score_at(curve, kl) for side, curve in curves.items()}}
        print(json.dumps(row | {"last": mean}), flush=True)


def score_at(history: list[dict], kl: float) -> float:
    """The score at a KL: curves of one run are noisy, so a mean over the nine updates with the nearest KL."""
    nearest = sorted(history, key=lambda h: abs(h["kl"] - kl))[:9]
    return statistics.mean(h["scores"] for h in nearest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("speed", "reward"))
    parser.add_argument("--old", help="folder that trl==1.12.0 was installed into")
    parser.add_argument("--sizes", nargs="+", default=["1M", "10M"], choices=SIZES)
    parser.add_argument("--workloads", nargs="+", default=["full", "quarter"], choices=("full", "quarter"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=1e-6)
    parser.add_argument("--bf16", action="store_true", help="both sides in bfloat16 mixed precision")
    parser.add_argument("--side", choices=("new", "old"), help="run one side here and print its numbers")
    parser.add_argument("--size", default="1M", choices=SIZES)
    parser.add_argument("--workload", default="full")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.side:
        child(args)
    elif not args.old:
        parser.error("--old is missing: pip install --no-deps --target trl112 trl==1.12.0")
    else:
        {"speed": compare_speed, "reward": compare_reward}[args.task](args)


if __name__ == "__main__":
    main()
