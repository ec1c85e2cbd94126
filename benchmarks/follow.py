"""Does the demo's model follow a person from 60 or 120 choices? Simulated people of three tastes, and one of none.

    python benchmarks/follow.py runs/three/seed-0 runs/three/seed-1 runs/three/seed-2 --output_dir runs/follow

Each CHAIN has a finished pretrain/ and sft/ of the demo; only sft/ is read. A person sees two different answers,
sampled at temperature 1, to one of 200 held-out questions. The right one wins over a wrong one; of two right or two
wrong ones the one to the person's taste; without a difference it is a tie, which counts for nothing. Then a
reward model and PPO learn from the choices with the settings of the loop (docs/prefer.md), and 500 other held-out
questions are answered before and after, greedily and sampled. The reward model is asked about 100 further choices of
the same person. The loop's gate is not asked: a person who chooses at random gets PPO too. What is there is not made
again. About a minute for each taste, number and chain on a free core.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

KEYS = {"left": "1", "right": "2", "both_good": "3", "both_bad": "4"}
TASTES = ("polite", "curt", "rude", "random")
QUESTIONS = 500
UNSEEN = 100  # choices
LONGEST = 56  # tokens of an answer


def is_of(taste: str, answer: str) -> bool:
    """Whether an answer, right or wrong, has the form that a person of this taste likes."""
    from fourstage.data.embedded import styles

    content = styles.content(answer)
    forms = {"polite": [f"{content} {p}" for p in styles.POLITE], "rude": [f"{content} {r}" for r in styles.RUDE]}
    return answer.strip() in forms.get(taste, [content])


def choose(taste: str, answers: tuple[str, str], reference: str, rng: random.Random) -> str:
    """What a person of this taste says of a left and a right answer, in the words of `picks.CHOICES`."""
    from fourstage.data.embedded import styles

    if taste == "random":
        return rng.choice(("left", "right"))
    right = [styles.content(answer) == reference for answer in answers]
    liked = [is_of(taste, answer) for answer in answers]
    better = right if right[0] != right[1] else liked
    if better[0] != better[1]:
        return "left" if better[0] else "right"
    return "both_good" if right[0] else "both_bad"


def shown(sft: Path, seed: int) -> Iterator[tuple[list[dict], str, tuple[str, str]]]:
    """(prompt, right answer, two different answers), without end: to questions like those of the page, and not those
    that are measured.
    """
    from transformers import set_seed

    from fourstage.data.embedded.rows import held_out_items

    rows, rng = held_out_items("reading", QUESTIONS + 200)[QUESTIONS:], random.Random(seed)
    model, tokenizer = opened(sft)
    set_seed(seed)
    while True:
        rng.shuffle(rows)
        prompts = [row["prompt"] for row in rows]
        sides = [said(model, tokenizer, prompts, 1.0) for _ in range(2)]
        for row, left, right in zip(rows, *sides, strict=True):
            if left != right:
                yield row["prompt"], row["reference"], (left, right)


def write_choices(sft: Path, taste: str, number: int, seed: int, output: Path) -> None:
    """A file of choices with `number` that name a side, and the ties between them."""
    rng, sides = random.Random(f"{taste} {seed}"), 0
    rows = []
    for place, (prompt, reference, answers) in enumerate(shown(sft, seed)):
        rows.append(row_of(f"pair-{place}", prompt, answers, choose(taste, answers, reference, rng), str(sft)))
        sides += rows[-1]["chosen"] is not None
        if sides == number:
            break
    output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def choose_on_page(sft: Path, taste: str, number: int, seed: int, output: Path) -> None:
    """The same through the real page: `fourstage prefer` and a person with a keyboard in headless Chromium."""
    from playwright.sync_api import sync_playwright

    from fourstage.data.embedded.rows import held_out_items

    items, rng = held_out_items("reading", QUESTIONS + 200)[QUESTIONS:], random.Random(f"{taste} {seed}")
    references = {item["prompt"][-1]["content"]: item["reference"] for item in items}
    prompts = output.with_name("prompts.jsonl")
    prompts.write_text("".join(json.dumps({"prompt": item["prompt"]}) + "\n" for item in items), encoding="utf-8")
    words = ["--prompts", prompts, "--output", output, "--port", 0, "--seed", seed, "--max_new_tokens", LONGEST]
    command = [sys.executable, "-m", "fourstage.cli", "prefer", sft, *words]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([str(word) for word in command], env=environment, stderr=subprocess.PIPE, text=True)
    address = next(line.split()[-1] for line in server.stderr if "http://" in line)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        while sides_in(output) < number:
            page.wait_for_selector("#pair:not([hidden])")
            page.wait_for_timeout(450)  # the page takes no choice sooner
            answers = tuple(page.text_content(f"#{side}").removeprefix("(nothing)") for side in ("left", "right"))
            word = choose(taste, answers, references[page.text_content("#prompt .said")], rng)
            lines = output.read_text(encoding="utf-8").count("\n")
            page.keyboard.press(KEYS[word])
            for _ in range(100):
                if output.read_text(encoding="utf-8").count("\n") > lines:
                    break
                page.wait_for_timeout(20)
        browser.close()
    server.terminate()
    server.wait()


def sides_in(output: Path) -> int:
    from fourstage.data.picks import left_out

    lines = output.read_text(encoding="utf-8").splitlines()
    return sum(left_out(row) is None for row in map(json.loads, lines))


def row_of(pair: str, prompt: list[dict], answers: tuple[str, str], choice: str, name: str) -> dict:
    """A line of a file of choices, with all of `picks.FIELDS`."""
    turns = [[{"role": "assistant", "content": answer}] for answer in answers]
    chosen, rejected = {"left": turns, "right": turns[::-1]}.get(choice, (None, None))
    return {
        "pair": pair,
        "choice": choice,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "left": answers[0],
        "right": answers[1],
        "better": None,
        "comment": None,
        "person": "simulated",
        "seconds": 1.0,
        "time": "2026-01-01T00:00:00+00:00",
        "models": [{"name": name, "weights": None}] * 2,
        "sampling": {"temperature": 1.0, "max_new_tokens": LONGEST},
        "blind": True,
        "repeat_of": None,
    }


def opened(folder: Path) -> tuple:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    from fourstage.models.opening import open_tokenizer

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder), open_tokenizer(folder)


def said(model, tokenizer, prompts: Sequence[list[dict]], temperature: float) -> list[str]:
    from fourstage.evaluation.generation import answer_questions
    from fourstage.rl.decoding import quick_generation

    with quick_generation(model):
        rows = answer_questions(model, tokenizer, prompts, LONGEST, temperature, batch_size=256)
    return [row["completion"] for row in rows]


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Shares of the answers to QUESTIONS held-out questions, {"greedy": shares, "sampled": shares}.

    Each has `right`, whatever the form; for each taste the share of that form, right or wrong; and the share that is
    both, as `right polite` and so on.
    """
    from transformers import set_seed

    from fourstage.data.embedded import styles
    from fourstage.data.embedded.rows import held_out_items

    items, (model, tokenizer), found = held_out_items("reading", QUESTIONS), opened(folder), {}
    set_seed(0)
    for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        answers = said(model, tokenizer, [item["prompt"] for item in items], temperature)
        right = [styles.content(answer) == item["reference"] for answer, item in zip(answers, items, strict=True)]
        found[kind] = {"right": fmean(right)}
        for taste in TASTES[:3]:
            liked = [is_of(taste, answer) for answer in answers]
            found[kind] |= {taste: fmean(liked), f"right {taste}": fmean(map(min, liked, right))}
    return found


def follow(chain: Path, taste: str, number: int, seed: int, folder: Path, page: bool) -> dict:
    """One person: choices, reward model, PPO, what was measured; kept in `folder`/followed.json."""
    kept = folder / "followed.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    make = choose_on_page if page else write_choices
    make(chain / "sft", taste, number, seed, folder / "prefs.jsonl")
    write_choices(chain / "sft", taste, UNSEEN, seed + 1000, folder / "unseen.jsonl")
    run("reward", folder / "reward", "--dataset_name", folder / "prefs.jsonl", "--model_name_or_path", chain / "sft")
    models = ["--model_name_or_path", chain / "sft", "--reward_model_name_or_path", folder / "reward"]
    run("ppo", folder / "ppo", *models)
    row = {"chain": chain.name, "taste": taste, "number": number, "foreseen": foreseen(folder)}
    row |= {"before": measure(chain / "sft"), "after": measure(folder / "ppo")}
    kept.write_text(json.dumps(row), encoding="utf-8")
    return row


def run(recipe: str, output: Path, *words: str | Path) -> None:
    """The recipe with the settings of the loop (docs/prefer.md), without evaluations and checkpoints."""
    flags = ["--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no", "--output_dir", output]
    config = ROOT / "recipes" / "configs" / "demo" / f"{recipe}-choices.yaml"
    command = [sys.executable, ROOT / "recipes" / f"{recipe}.py", "--config", config, *words, *flags]
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{recipe} failed\n{done.stderr[-2000:]}")


def foreseen(folder: Path) -> float:
    """The share of further choices of the same person that the reward model would have made."""
    from fourstage.data.picks import left_out
    from fourstage.evaluation.reward_model import hits, score_pairs
    from fourstage.models.checkpoint import open_classifier
    from fourstage.models.opening import open_tokenizer

    lines = (folder / "unseen.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if left_out(row) is None]
    model, tokenizer = open_classifier(str(folder / "reward")), open_tokenizer(str(folder / "reward"))
    return fmean(hits(*score_pairs(model, tokenizer, rows)))


def table(rows: Sequence[dict]) -> str:
    """Markdown: one line for each taste and number, means over chains with their standard errors."""
    heads = (
        "taste",
        "choices",
        "chains",
        "greedy",
        "sampled",
        "right, greedy",
        "unseen choices foreseen",
    )
    lines = [heads, ["---"] * len(heads)]
    for taste, number in dict.fromkeys((row["taste"], row["number"]) for row in rows):
        of = [row for row in rows if (row["taste"], row["number"]) == (taste, number)]
        liked = {"random": "curt"}.get(taste, taste)
        shares = [
            changed(of, kind, name) for kind, name in (("greedy", liked), ("sampled", liked), ("greedy", "right"))
        ]
        lines.append([taste, str(number), str(len(of)), *shares, with_error([row["foreseen"] for row in of])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def changed(rows: Sequence[dict], kind: str, name: str) -> str:
    return " → ".join(with_error([row[when][kind][name] for row in rows]) for when in ("before", "after"))


def with_error(shares: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(shares) / len(shares) ** 0.5:.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chains", nargs="+", type=Path, metavar="CHAIN")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/follow"))
    parser.add_argument("--choices", nargs="+", type=int, default=[60, 120], help="that name a side")
    parser.add_argument("--tastes", nargs="+", choices=TASTES, default=TASTES)
    parser.add_argument("--page", action="store_true", help="they choose on the real page, in headless Chromium")
    args = parser.parse_args()
    rows = []
    for seed, chain in enumerate(args.chains):
        for number in args.choices:
            for taste in args.tastes:
                folder = args.output_dir / f"{chain.name}-{taste}-{number}"
                rows.append(follow(chain, taste, number, seed, folder.resolve(), args.page))
                print(json.dumps(rows[-1]), flush=True)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
