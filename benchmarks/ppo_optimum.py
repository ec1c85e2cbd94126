"""PPO against the closed form: how near a trained policy comes to the best one there can be.

    python benchmarks/ppo_optimum.py --seeds 10 11 12 13 14
    python benchmarks/ppo_optimum.py --task letters --seeds 10 11 12

PPO maximises J = E[score] - beta * KL(policy || reference). Whatever the score, the best policy is proportional to
reference * exp(score / beta), and its J is J* = beta * log E_reference[exp(score / beta)].

`tree`: four tokens, one of which ends, and at most six of them. All 1,093 completions are enumerated, so J, KL and J*
are exact numbers, to float64. `letters`: a Llama of half a million parameters, 35 characters, completions of 16, the
score is the share of one letter. J comes from 4,096 samples of the trained policy, J* from the same samples by
importance weighting; given with standard errors. Settings were chosen on seeds 0 to 4.
"""

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from fourstage.ppo import PPOConfig, PPOTrainer

LENGTH = 6
TREE = {"beta": 0.1, "learning_rate": 1e-3, "updates": 400}
LETTERS = {"beta": 0.05, "learning_rate": 1e-3, "updates": 150}


def tokenizer_of(tokens: list[str], pad: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters and the end token; padding may be any token, since masks are never guessed."""
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[-1]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token=pad, bos_token="<eos>")


def train(model, tokenizer, reward, prompts: list[str], settings: dict, **more) -> PPOTrainer:
    with tempfile.TemporaryDirectory() as out:
        config = PPOConfig(
            output_dir=out,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            learning_rate=settings["learning_rate"],
            beta=settings["beta"],
            max_steps=settings["updates"] * 4,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            **more,
        )
        data = Dataset.from_dict({"prompt": prompts})
        trainer = PPOTrainer(model, reward, config, train_dataset=data, processing_class=tokenizer)
        trainer.train()
    return trainer


def all_completions() -> list[tuple[int, ...]]:
    """Every completion: the letters 1 to 3, ended by 0 or cut off at six tokens. 364 + 729."""
    letters = [itertools.product((1, 2, 3), repeat=length) for length in range(LENGTH)]
    ended = [(*word, 0) for words in letters for word in words]
    return ended + list(itertools.product((1, 2, 3), repeat=LENGTH))


@torch.no_grad()
def log_probabilities(model, completions: list[tuple[int, ...]]) -> torch.Tensor:
    """Exact log-probability of every completion after the prompt `a`, in float64."""
    total = torch.empty(len(completions), dtype=torch.float64)
    for length in range(1, LENGTH + 1):
        rows = [i for i, completion in enumerate(completions) if len(completion) == length]
        ids = torch.tensor([(1, *completions[i]) for i in rows])
        logps = type(model).forward(model, input_ids=ids).logits.double().log_softmax(-1)[:, :-1]
        total[rows] = logps.gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
    return total


def tree_score(text: str, ended: bool) -> float:
    """Alternation is good, and so is ending: where the score falls matters."""
    changes = sum(a != b for a, b in itertools.pairwise(text))
    return changes / (LENGTH - 1) - 0.3 * text.count("c") / LENGTH + 0.3 * ended


def tree(seed: int, settings: dict) -> dict:
    set_seed(seed)
    tokens = ["<eos>", "a", "b", "c"]
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=4, max_position_embeddings=16, initializer_range=0.2, **sizes, **ids)
    )
    completions = all_completions()
    texts = ["".join(tokens[i] for i in c if i) for c in completions]
    scores = torch.tensor([tree_score(t, c[-1] == 0) for t, c in zip(texts, completions, strict=True)]).double()
    reference = log_probabilities(model, completions)
    assert abs(reference.exp().sum().item() - 1) < 1e-5

    def reward(completions, completion_ids, **kwargs):
        return [tree_score(t, ids[-1] == 0) for t, ids in zip(completions, completion_ids, strict=True)]

    trainer = train(model, tokenizer_of(tokens, "<eos>"), reward, ["a"] * 64, settings, max_completion_length=LENGTH)
    policy = log_probabilities(trainer.model.eval(), completions)
    beta = settings["beta"]

    def objective(logps):
        p = logps.exp() / logps.exp().sum()
        return (p * (scores - beta * (logps - reference))).sum().item()

    best = beta * torch.logsumexp(reference + scores / beta, dim=0).item()
    row = {"seed": seed, "J_start": objective(reference), "J": objective(policy), "J_star": best}
    kl = (policy.exp() * (policy - reference)).sum().item()
    return row | {"ratio": row["J"] / best, "KL": kl, "score": (policy.exp() * scores).sum().item()}


def letters(seed: int, settings: dict) -> dict:
    set_seed(seed)
    tokens = ["<eos>", "<pad>", *"abcdefghijklmnopqrstuvwxyz .,?!'-"]
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), max_position_embeddings=64, **sizes, **ids))
    chance = random.Random(seed)
    prompts = ["".join(chance.choices(tokens[3:28], k=chance.randint(4, 10))) for _ in range(4096)]

    def reward(completions, **kwargs):
        return [text.count("a") / 8 for text in completions]

    trainer = train(model, tokenizer_of(tokens, "<pad>"), reward, prompts, settings, max_completion_length=16)
    trainer.model.train()
    gains, beta = [], settings["beta"]
    for first in range(0, 4096, 64):
        trainer._buffered_inputs = None
        trainer._step = 0
        trainer._prepare_inputs([{"prompt": prompt} for prompt in prompts[first : first + 64]])
        for batch in trainer._buffered_inputs:
            mask = batch["completion_mask"].bool()
            kl = (batch["old_per_token_logps"] - trainer._ref_logps(batch)).masked_fill(~mask, 0).sum(1)
            gains += (batch["scores"] - beta * kl).double().tolist()
    value = torch.tensor(gains)
    # E_ref[exp(r / beta)] = E_policy[exp((r - beta * log(policy / reference)) / beta)]
    weights = torch.exp((value - value.max()) / beta)
    best = value.max().item() + beta * math.log(weights.mean().item())
    best_error = beta * (weights.std() / weights.mean()).item() / math.sqrt(len(weights))
    row = {"seed": seed, "J": value.mean().item(), "J_error": value.std().item() / math.sqrt(len(value))}
    return row | {"J_star": best, "J_star_error": best_error, "ratio": row["J"] / best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("tree", "letters"), default="tree")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--updates", type=int, help="rollouts of 64 completions (default: the settings in this file)")
    parser.add_argument("--learning_rate", type=float)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run, settings = {"tree": (tree, TREE), "letters": (letters, LETTERS)}[args.task]
    given = {"updates": args.updates, "learning_rate": args.learning_rate}
    settings = settings | {name: value for name, value in given.items() if value is not None}
    rows = []
    for seed in args.seeds:
        rows.append(run(seed, settings))
        print(json.dumps({name: round(value, 6) for name, value in rows[-1].items()}), flush=True)
    print(
        json.dumps(
            {
                "lowest_ratio": min(row["ratio"] for row in rows),
                "mean_ratio": statistics.mean(row["ratio"] for row in rows),
            }
        )
    )


if __name__ == "__main__":
    main()
