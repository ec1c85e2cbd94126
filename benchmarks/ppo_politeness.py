"""RLHF on real preferences: does an assistant become polite, and does it stay as good at answering?

    python benchmarks/ppo_politeness.py --dataset_name DATA --prompts PAIRS --models runs/sft runs/ppo-0 runs/ppo-1

For every model: the share of polite answers to the prompts, sampled at temperature 1 and greedy, with standard errors;
the share that ends; the nats per token of the reference answers of `--dataset_name` (its held-out part). The pairs are
those of LLMs-from-scratch (polite against rude or plain). `polite` is the judge: words written down from the training
pairs, no model; recipes/ppo.py reports it as `--gold_func benchmarks.ppo_politeness.polite` and never trains on it.
"""

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# Of the 931 training pairs these stand in chosen answers and hardly ever in rejected ones, and the other way round.
POLITE = r"\b(indeed|kindly|may|please|happy to|glad to|i'd be|i would|would be|help|assist|if i|suitable|could be)\b"
RUDE = (
    r"\b(obviously|get it|duh|look|okay|freaking|damn|stupid|ridiculously|anyway|yourself|together|straight|already)\b"
)


def polite(completions, **kwargs) -> list[float]:
    """1.0 for an answer with a polite marker, none of the rude ones, and at least three words; else 0.0."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(is_polite(text.lower())) for text in texts]


def is_polite(text: str) -> bool:
    return bool(re.search(POLITE, text)) and not re.search(RUDE, text) and len(text.split()) >= 3


def answer_nats(model, tokenizer, rows: list[dict]) -> float:
    """Mean nats per token of the assistant's turns, the end token with them, over all rows."""
    import torch

    total, count = 0.0, 0
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"]
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        chosen = logps[range(len(ids) - 1), ids[1:]][len(prompt) - 1 :]
        total, count = total - chosen.sum().item(), count + len(chosen)
    return total / count


def sample(model, tokenizer, prompts: list[list[dict]], temperature: float) -> list[tuple[str, bool]]:
    from fourstage.evaluation.generation import generate
    from fourstage.models.facts import stop_ids

    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    done = generate(model, tokenizer, ids, 64, temperature=temperature)
    texts = tokenizer.batch_decode(done, skip_special_tokens=True)
    return [
        (text, bool(row) and row[-1] in stop_ids(model.generation_config))
        for text, row in zip(texts, done, strict=True)
    ]


def measure(name: str, prompts: list, rows: list) -> dict:
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    from fourstage.evaluation.metrics import standard_error

    model, tokenizer = AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    set_seed(0)
    report: dict = {"model": name, "prompts": len(prompts)}
    for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        answers = sample(model, tokenizer, prompts, temperature)
        judged = polite([text for text, _ in answers])
        report |= {kind: sum(judged) / len(judged), f"{kind}_stderr": standard_error(judged)}
        report[f"{kind}_ended"] = sum(ended for _, ended in answers) / len(answers)
        report[f"{kind}_answers"] = [text for text, _ in answers[:6]]
    return report | {"answer_nats": answer_nats(model, tokenizer, rows), "rows": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="the assistant first, then what PPO made of it")
    parser.add_argument("--prompts", required=True, help="pairs or prompts that no training saw: a file or folder")
    parser.add_argument(
        "--dataset_name", required=True, help="instructions with their answers: the held-out part is read"
    )
    args = parser.parse_args()

    from fourstage.arguments import DataArguments
    from fourstage.data.loading import held_out_rows

    prompts = [row["prompt"] for row in held_out_rows("ppo", args.prompts, DataArguments(), 0)]
    rows = list(held_out_rows("sft", args.dataset_name, DataArguments(), 0))
    first = None
    for name in args.models:
        report = measure(name, prompts, rows)
        first = first or report
        report["answer_nats_change"] = report["answer_nats"] / first["answer_nats"] - 1
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
