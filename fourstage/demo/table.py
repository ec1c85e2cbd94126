"""The stage table of a chain: its rows and columns, several seeds as one, and the table as Markdown."""

import math
import os
import platform
import re
import resource
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from transformers import PreTrainedTokenizerBase

from fourstage.artifact.record import git_sha
from fourstage.demo import measure
from fourstage.evaluation.metrics import standard_error
from fourstage.stages import STAGES

# The rows of the table beside the stages: the weights that the first one begins with, and guesses.
TITLES = {"random": "0 random weights"} | {name: stage.title for name, stage in STAGES.items()} | {"chance": "chance"}
PARENTS = {name: stage.parent or "random" for name, stage in STAGES.items()}
TUNED = ("random", *(name for name, stage in STAGES.items() if not stage.scores))
# key: (title, whether it is a share, which is better, what it is)
COLUMNS = {
    "bits_per_byte": ("bits per byte", False, "lower", "Cost of held-out texts; lower is better."),
    "seen_trigrams": (
        "known trigrams",
        True,
        "higher",
        "Share of three words in a row, in texts sampled from nothing, that occur in held-out texts.",
    ),
    "reading": (
        "reading",
        True,
        "higher",
        "Questions about stories whose wording and pair of person and thing are held out.",
    ),
    "summary": ("summary", True, "higher", "One-sentence summaries of such stories, word for word."),
    "code": ("code", True, "higher", "One-line Python functions, compared by syntax tree and never executed."),
    "arithmetic": ("arithmetic", True, "higher", "Sums of two steps; the number has to be right."),
    "glossary": ("glossary", True, "higher", "Definitions, which are recalled: only the phrasing is held out."),
    "preferred": (
        "preferred",
        True,
        "higher",
        "Sampled answers about stories that are right and end in one polite sentence; the rule that made the pairs.",
    ),
    "reward_score": ("reward model's score", False, "higher", "Mean score of the same answers."),
    "kl_to_parent": ("KL to parent", False, None, "Nats an answer, over the same answers."),
    "reasoning_greedy": (
        "reasoning, T = 0",
        True,
        "higher",
        "The same sums with the form of a worked answer forced: right answers at temperature 0.",
    ),
    "reasoning_sampled": ("reasoning, T = 1", True, "higher", "The same at temperature 1."),
    "derivations": ("derivations", True, "higher", "The same at temperature 0: the answer and every step are right."),
}


def table_row(stage: str, measures: measure.Measures, record: dict, parameters: int | None) -> dict:
    """A stage's row: what its run.json says it cost, and its measurements."""
    tokens = record.get("tokens")
    # 6 operations for each parameter and token that is trained on, and 2 more where the token was generated first
    # (arXiv 2001.08361, section 2.1).
    operations = 8 if stage in ("ppo", "grpo", "control") else 6
    return {
        "stage": stage,
        "title": TITLES[stage],
        "parent": PARENTS.get(stage),
        "parameters": parameters,
        "tokens": tokens,
        "seconds": record.get("metrics", {}).get("train_runtime"),
        "flops": operations * parameters * tokens if tokens and parameters else None,
        "metrics": {key: measure.summarise_items(values) for key, values in measures.outcomes.items()},
        "answers": measures.answers,
    }


def gains(outcomes: dict[str, list], baseline: dict[str, list]) -> dict:
    """The differences from a baseline, item by item, for the metrics in which both have the same items."""
    keys = [key for key in COLUMNS if key in outcomes and len(outcomes[key]) == len(baseline.get(key, ()))]
    pairs = {key: zip(outcomes[key], baseline[key], strict=True) for key in keys}
    return {key: measure.summarise_items([a - b for a, b in pairs[key]]) for key in keys}


def uniform_bits(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[float]:
    """Bits per byte of a model to which every token is equally likely."""
    sizes = [len(text.encode()) for text in texts]
    bits = [len(tokenizer(text, verbose=False)["input_ids"]) * math.log2(len(tokenizer)) for text in texts]
    return [b / (sum(sizes) / len(sizes)) for b in bits]


def combine(chains: list[list[dict]]) -> list[dict]:
    """The rows of several seeds as those of one table: means over seeds, with the standard error over seeds.

    Tokens, seconds and operations are means too; answers are those of the first seed.
    """
    if len(chains) == 1:
        return chains[0]
    return [_combine_rows([row for chain in chains for row in chain if row["stage"] == s["stage"]]) for s in chains[0]]


def _combine_rows(rows: list[dict]) -> dict:
    combined = dict(rows[0])
    for key in ("tokens", "seconds", "flops"):
        if rows[0][key] is not None:
            combined[key] = sum(row[key] for row in rows) / len(rows)
    combined["metrics"] = _combine_metrics([row["metrics"] for row in rows])
    if "gains" in rows[0]:
        combined["gains"] = {
            other: _combine_metrics([row["gains"][other] for row in rows]) for other in rows[0]["gains"]
        }
    return combined


def _combine_metrics(parts: list[dict]) -> dict:
    combined = {}
    for key in (key for key in parts[0] if all(key in part for part in parts)):
        values = [part[key]["mean"] for part in parts]
        mean, error = sum(values) / len(values), standard_error(values)
        combined[key] = {"mean": mean, "stderr": error, "n": parts[0][key]["n"], "values": values}
    return combined


def columns() -> list[dict]:
    """COLUMNS as stages.json has them: key, title, percent, better and what each is."""
    return [
        {"key": key, "title": title, "percent": percent, "better": better, "what": what}
        for key, (title, percent, better, what) in COLUMNS.items()
    ]


def markdown(table: dict) -> str:
    """The table in Markdown: a line for each stage, shares in percent, mean and standard error."""
    titles = [column["title"] for column in table["columns"]]
    lines = [f"| stage | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for row in table["rows"]:
        cells = [_cell(row["metrics"].get(column["key"]), column["percent"]) for column in table["columns"]]
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    over = "over seeds" if len(table["seeds"]) > 1 else "over items, one seed"
    lines += ["", f"Mean and standard error {over}; seeds {', '.join(map(str, table['seeds']))}. n, items a seed: "]
    counts = {
        column["title"]: row["metrics"][column["key"]]["n"]
        for row in table["rows"]
        for column in table["columns"]
        if column["key"] in row["metrics"]
    }
    lines[-1] += ", ".join(f"{title} {n:,}" for title, n in counts.items()) + "."
    if table["reward_model"]:
        metrics = table["reward_model"]["metrics"]
        lines += ["", "| reward model: chosen above rejected | held-out pairs |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} (n = {m['n']:,}) | {_cell(m, True)} |" for key, m in metrics.items()]
    return "\n".join(lines) + "\n"


def _cell(metric: dict | None, percent: bool) -> str:
    if metric is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    return f"{metric['mean'] * scale:.{digits}f} ± {metric['stderr'] * scale:.{digits}f}"


def machine() -> dict:
    """The machine, library versions, commit and date of the measurements."""
    cpu = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    return {
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "peak_memory_gb": round(max(map(_peak, (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF))) / 2**20, 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "trl")},
        "git_sha": git_sha(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _peak(processes: int) -> int:
    return resource.getrusage(processes).ru_maxrss  # KiB on Linux


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace") if Path(path).is_file() else ""
