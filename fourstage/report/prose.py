"""The words of the page: the stages in plain English, and what their numbers do not show."""

from dataclasses import dataclass

from fourstage.report.formatting import DASH, count, mean_of, points, value, with_error
from fourstage.report.load import section

_NOTABLE_DROP = 0.03  # a share
_NOTABLE_GAP = 0.03
_GOOD_REWARD_MODEL = 0.9


@dataclass(frozen=True)
class Chapter:
    """How the page presents one stage: its number, name, a few sentences, and the columns that it should change."""

    stage: str
    number: str
    name: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...]


PTX = (
    "Here it also goes on learning conversations like those of stage 2 (PPO-ptx), so that it forgets less of what the "
    "reward model knows nothing about."
)
CHAPTERS = (
    Chapter(
        "random",
        "Stage 0",
        "Random weights",
        (
            "A language model takes a text and gives a probability to every token that could come next.",
            "At the start its weights are random numbers, so every token is about as likely as any other.",
            "What it writes is gibberish. Everything that the later stages show was learned from here on.",
        ),
        ("bits_per_byte", "seen_trigrams", "reading"),
    ),
    Chapter(
        "pretrain",
        "Stage 1",
        "Pre-training",
        (
            "The model reads plain text. At every position it predicts the next token. The real next token shows how "
            "wrong the prediction was.",
            "The loss is −log of the probability that it gave to the real next token. Every weight is moved a little "
            "so that the loss falls.",
            "Nobody labels anything: the text is its own answer. That is why this stage can use the most data.",
            "Afterwards the model continues a text fluently. It continues a question too, instead of answering it.",
        ),
        ("bits_per_byte", "seen_trigrams", "reading"),
    ),
    Chapter(
        "sft",
        "Stage 2",
        "Instruction tuning (SFT)",
        (
            "Now the texts are conversations: a question, then a good answer. The training is the same as before.",
            "One thing differs: only the tokens of the answer count in the loss, including the token that ends it.",
            "So the model learns to answer in the form of its examples, and to stop by itself.",
            "It copies the faults of its examples too: if some are rude, the model is sometimes rude.",
        ),
        ("reading", "summary", "code", "glossary"),
    ),
    Chapter(
        "reward",
        "Stage 3, first half",
        "The reward model",
        (
            "It is hard to write down what a good answer is. It is easy to say which of two answers is better.",
            "The reward model is a copy of the assistant that gives one number, a score, instead of the next token.",
            "It is trained on pairs: the score of the chosen answer is pushed above the score of the rejected one.",
            "Only the difference counts (the Bradley-Terry model): a single score has neither a zero nor a unit.",
        ),
        (),
    ),
    Chapter(
        "ppo",
        "Stage 3, second half",
        "Preference tuning with PPO (RLHF)",
        (
            "The policy is the assistant that is being tuned. It writes an answer, and the reward model scores it.",
            "A penalty is subtracted from the score: beta times the KL divergence, which measures how far the policy "
            "has moved from its parent. Without the penalty it would find odd texts that score well.",
            "The critic guesses the result beforehand. The advantage is the actual result minus that guess.",
            "Tokens with a positive advantage become likelier, all others less likely. Clipping keeps each step small.",
        ),
        ("preferred", "reward_score", "kl_to_parent", "reading"),
    ),
    Chapter(
        "grpo",
        "Stage 4",
        "Reasoning tuning with GRPO (RLVR)",
        (
            "For some problems the right answer is known, so a program can check answers. This stage needs neither "
            "people nor a reward model.",
            "The policy answers one problem several times. The checker compares the final number with the right one.",
            "Answers better than the mean of their group become likelier, all others less likely. The mean of the "
            "group takes the place of the critic.",
            "The reward depends on the result alone: nobody shows the model the right steps, and nobody checks them.",
            "The control is the same run with coin flips as rewards. It shows what drift alone does.",
        ),
        ("reasoning_greedy", "reasoning_sampled", "derivations", "reading"),
    ),
)


def limits(table: dict) -> list[str]:
    """What the numbers of a stage table (stages.json) do not show, in sentences. Missing numbers are passed over."""
    rows = {row["stage"]: row for row in reversed(table["rows"])}
    sentences = [
        *_about_the_run(table),
        *_about_recall(rows),
        *_about_preferences(rows, table.get("reward_model")),
        *_about_reasoning(rows),
        *_drops(table["columns"], rows),
        *_about_size(table),
    ]
    failed = [str(check.get("name")) for check in table.get("checks") or [] if not check.get("passed")]
    return [*sentences, f"These checks failed: {'; '.join(failed)}."] if failed else sentences


def _about_the_run(table: dict) -> list[str]:
    sentences = []
    if table.get("fast"):
        sentences.append(
            "This was a fast run, far too short to learn. It shows that every part works; its numbers mean nothing."
        )
    seeds = table.get("seeds") or []
    if len(seeds) == 1:
        sentences.append("One seed: the ± is over items. It does not show how much another training run would differ.")
    elif 1 < len(seeds) < 5:
        sentences.append(f"{len(seeds)} seeds: the ± over so few training runs is itself a rough guess.")
    return sentences


def _about_recall(rows: dict[str, dict]) -> list[str]:
    if all(mean_of(row, "glossary") is None for row in rows.values()):
        return []
    return [
        "Answers about the glossary are memorised: every term and its definition were in the training data, and only "
        "the wording of the question is new. Nothing here shows what the model does with unknown terms."
    ]


def _about_preferences(rows: dict[str, dict], reward_model: dict | None) -> list[str]:
    sentences = []
    kinds = {k: mean_of(reward_model, k) for k in section(reward_model or {}, "metrics") if k != "accuracy"}
    weak = {kind: right for kind, right in kinds.items() if right is not None and right < _GOOD_REWARD_MODEL}
    if weak:
        listed = ", ".join(f"{kind.replace('_', ' ')} {value(right, True)}" for kind, right in weak.items())
        sentences.append(
            f"The reward model is below {value(_GOOD_REWARD_MODEL, True)} on some kinds of pairs ({listed}). "
            "PPO cannot teach a difference that the reward model does not see."
        )
    before, after = _before_and_after(rows, "ppo", "reward_score")
    if after is not None and before is not None and after > before:
        judge = _about_the_judge(*_before_and_after(rows, "ppo", "preferred"))
        sentences.append(
            f"The score rose from {value(before)} to {value(after)}, but PPO was trained on that very score. {judge}"
        )
    return sentences


def _about_the_judge(before: float | None, after: float | None) -> str:
    """The share of preferred answers, which PPO was not trained on, next to a score that rose."""
    if before is None or after is None:
        return "No independent judge was measured next to it."
    if after <= before:
        return (
            f"The independent share of preferred answers did not rise ({value(before, True)} to "
            f"{value(after, True)}): the reward model was gamed."
        )
    return "Quote the share of preferred answers instead, which was never trained on."


def _about_reasoning(rows: dict[str, dict]) -> list[str]:
    before, after = _before_and_after(rows, "grpo", "reasoning_greedy")
    if after is None:
        return []
    sentences = []
    if before is not None:
        sentences.append(
            f"GRPO did not start from zero: its parent was already right in {value(before, True)} of the problems "
            f"(temperature 0), and it ended at {value(after, True)}. The gain to quote is {points(after - before)}, "
            "on this one kind of problem. The demonstrations of stage 2 forget most carries on purpose: GRPO, which is "
            "shown right results only, has that habit to remove."
        )
    sentences += _about_control(rows, before)
    derivations = mean_of(rows["grpo"], "derivations")
    if derivations is not None and after - derivations > _NOTABLE_GAP:
        sentences.append(
            f"After GRPO the answer is right in {value(after, True)}, but every step is right in only "
            f"{value(derivations, True)}: some right answers come from wrong steps."
        )
    return sentences


def _about_control(rows: dict[str, dict], before: float | None) -> list[str]:
    control = mean_of(rows.get("control"), "reasoning_greedy")
    if control is None:
        return ["There is no control with random rewards here, so nothing shows what drift alone does."]
    if before is None:
        return []
    text = f"With coin flips as rewards, accuracy went from {value(before, True)} to {value(control, True)}"
    if control - before > _NOTABLE_GAP:
        return [f"{text}: drift alone explains {points(control - before)} of the gain."]
    if control - before < -_NOTABLE_DROP:
        return [f"{text}: drift alone does harm, so quote the gain over the parent, not the gain over the control."]
    return [f"{text}: drift alone does little."]


def _drops(columns: list[dict], rows: dict[str, dict]) -> list[str]:
    """Every share that fell by more than three points from one stage to the next. The control is not a stage."""
    shares = [column for column in columns if column.get("percent") and column.get("better") == "higher"]
    sentences = []
    for chapter in CHAPTERS:
        row = rows.get(chapter.stage, {})
        parent = rows.get(row.get("parent") or "", {})
        fallen = [text for column in shares if (text := _drop(column, parent, row))]
        if fallen:
            sentences.append(f"Lost from “{parent['title']}” to “{row['title']}”: {'; '.join(fallen)}.")
    return sentences


def _drop(column: dict, parent: dict, row: dict) -> str | None:
    before, after = mean_of(parent, column["key"]), mean_of(row, column["key"])
    if before is None or after is None or before - after <= _NOTABLE_DROP:
        return None
    shares = [with_error(r["metrics"][column["key"]], percent=True) for r in (parent, row)]
    return f"{column['title']} {points(before - after)} ({shares[0]} to {shares[1]})"


def _about_size(table: dict) -> list[str]:
    sizes = [row["parameters"] for row in table["rows"] if row.get("parameters")]
    if not sizes or max(sizes) >= 1e9:
        return []
    data = ""
    if table.get("model") == "demo":
        data = (
            " It was trained on made-up text from templates, and its “preferences” come from a fixed rule, "
            "not from people."
        )
    return [f"The model has {count(max(sizes))} parameters.{data} Nothing here shows how a large model would behave."]


def _before_and_after(rows: dict[str, dict], stage: str, key: str) -> tuple[float | None, float | None]:
    """The mean of a metric in the row of a stage's parent and in its own."""
    row = rows.get(stage)
    return (mean_of(rows.get(row.get("parent") or ""), key), mean_of(row, key)) if row else (None, None)


def changes(chapter: Chapter, columns: list[dict], rows: dict[str, dict]) -> list[dict[str, str | None]]:
    """What a stage did to the columns that it should change, as text.

    Returns:
        For each column that was measured: "title", "before" (its parent's value), "after" and "gain". "before" is None
        where it is unknown or has no meaning, as in a distance to the parent; "gain" is None then too.
    """
    row = rows.get(chapter.stage)
    if row is None:
        return []
    parent = rows.get(row.get("parent") or ("random" if chapter.stage == "pretrain" else ""), {})
    known = {column["key"]: column for column in columns}
    measured = [known[key] for key in chapter.columns if key in known]
    texts = [_change(column, parent, row) for column in measured]
    return [text for text in texts if text["after"] != DASH]


def _change(column: dict, parent: dict, row: dict) -> dict[str, str | None]:
    key, percent = column["key"], bool(column.get("percent"))
    before, after = (with_error(section(r, "metrics").get(key), percent) for r in (parent, row))
    if column.get("better") is None or before == DASH:
        return {"title": column["title"], "before": None, "after": after, "gain": None}
    gain = _gain(section(row, "gains", "parent").get(key), percent)
    return {"title": column["title"], "before": before, "after": after, "gain": gain}


def _gain(paired: object, percent: bool) -> str | None:
    """The mean of the changes of single items, whose error is smaller than that of two means.

    Example: "+12.3 ± 1.1 points, paired by item".
    """
    text = with_error(paired, percent)
    if text == DASH:
        return None
    sign = "" if text.startswith("−") else "+"
    return f"{sign}{text.replace(' %', '')}{' points' if percent else ''}, paired by item"
