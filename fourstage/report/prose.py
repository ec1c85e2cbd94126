"""What the page says in words: the stages in plain English, and what their numbers do not show."""

from dataclasses import dataclass

from fourstage.report.formatting import DASH, count, mean_of, measured, points, value
from fourstage.report.load import section

_NOTABLE_DROP = 0.03  # a share
_NOTABLE_GAP = 0.03
_GOOD_REWARD_MODEL = 0.9


@dataclass(frozen=True)
class Stage:
    """How the page presents one stage: place, name, a few plain sentences, the columns that it should move."""

    key: str
    place: str
    name: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...]


STAGES = (
    Stage(
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
    Stage(
        "pretrain",
        "Stage 1",
        "Pre-training",
        (
            "The model reads plain text. At every position it predicts the next token, and the real one tells how "
            "wrong it was.",
            "The loss is −log of the probability that it gave to the real next token. Every weight is moved a little "
            "so that the loss falls.",
            "Nobody labels anything: the text is its own answer. That is why this stage can use the most data.",
            "Afterwards it continues a text fluently. Asked a question, it continues that too, and does not answer.",
        ),
        ("bits_per_byte", "seen_trigrams", "reading"),
    ),
    Stage(
        "sft",
        "Stage 2",
        "Instruction tuning (SFT)",
        (
            "Now the texts are conversations: a question, then a good answer. The training is the same as before.",
            "One thing differs: the loss falls on the tokens of the answer only, with the token that ends it.",
            "So the model learns to answer, in the form it was shown, and to stop by itself.",
            "It copies its examples, with their faults: if some of them are rude, so is it.",
        ),
        ("reading", "summary", "code", "glossary"),
    ),
    Stage(
        "reward",
        "Stage 3, first half",
        "The reward model",
        (
            "It is hard to write down what a good answer is. It is easy to say which of two answers is better.",
            "The reward model is a copy of the assistant that ends in one number, a score, where the next token was.",
            "It is trained on pairs: the score of the chosen answer is pushed above the score of the rejected one.",
            "Only the difference counts (the Bradley-Terry model). The scores have no zero and no unit.",
        ),
        (),
    ),
    Stage(
        "ppo",
        "Stage 3, second half",
        "Preference tuning with PPO (RLHF)",
        (
            "The policy is the assistant that is being tuned. It writes an answer, and the reward model scores it.",
            "From the score a penalty is taken: beta times the KL, which is how far its probabilities have moved from "
            "those of its parent. Without it the policy would find odd texts that score well.",
            "The critic guesses beforehand what the result will be. The advantage is what came out minus that guess.",
            "Tokens with a positive advantage become likelier, the others less likely. Clipping keeps each step small.",
        ),
        ("preferred", "reward_score", "kl_to_parent", "reading"),
    ),
    Stage(
        "grpo",
        "Stage 4",
        "Reasoning tuning with GRPO (RLVR)",
        (
            "For some problems the right answer is known. No person and no reward model is needed: a program checks.",
            "The policy answers one problem several times. The checker compares the final number with the right one.",
            "Answers better than the mean of their group become likelier, the others less likely. The group's mean "
            "takes the place of the critic.",
            "With such a reward the steps are neither shown nor checked: only the result counts.",
            "The control is the same run with coin flips as rewards. It shows what drift alone does.",
        ),
        ("reasoning_greedy", "reasoning_sampled", "derivations", "reading"),
    ),
)


def limits(stages: dict) -> list[str]:
    """What the numbers of stages.json (`stages`) do not show, in sentences; nothing where numbers are missing."""
    rows = {row["stage"]: row for row in reversed(stages["rows"])}
    found = [
        *_about_the_run(stages),
        *_about_recall(rows),
        *_about_preferences(rows, stages.get("reward_model")),
        *_about_reasoning(rows),
        *_drops(stages["columns"], rows),
        *_about_size(stages),
    ]
    failed = [str(check.get("name")) for check in stages.get("checks") or [] if not check.get("passed")]
    return [*found, f"These checks failed: {'; '.join(failed)}."] if failed else found


def _about_the_run(stages: dict) -> list[str]:
    found = []
    if stages.get("fast"):
        found.append(
            "This was a fast run, far too short to learn. It shows that every part works; its numbers mean nothing."
        )
    seeds = stages.get("seeds") or []
    if len(seeds) == 1:
        found.append("One seed: the ± is over items and says nothing about how much another training run would differ.")
    elif 1 < len(seeds) < 5:
        found.append(f"{len(seeds)} seeds: the ± over so few training runs is itself a rough guess.")
    return found


def _about_recall(rows: dict[str, dict]) -> list[str]:
    if all(mean_of(row, "glossary") is None for row in rows.values()):
        return []
    return [
        "Glossary answers are recall: every term and its definition were in the training data, and only the phrasing "
        "of the question is held out. Nothing is shown about terms that were never there."
    ]


def _about_preferences(rows: dict[str, dict], reward_model: dict | None) -> list[str]:
    found = []
    kinds = {k: mean_of(reward_model, k) for k in section(reward_model or {}, "metrics") if k != "accuracy"}
    weak = {kind: right for kind, right in kinds.items() if right is not None and right < _GOOD_REWARD_MODEL}
    if weak:
        listed = ", ".join(f"{kind.replace('_', ' ')} {value(right, True)}" for kind, right in weak.items())
        found.append(
            f"The reward model is below {value(_GOOD_REWARD_MODEL, True)} on some kinds of pairs ({listed}). "
            "What it cannot tell apart, PPO cannot teach."
        )
    before, after = _before_and_after(rows, "ppo", "reward_score")
    if after is not None and before is not None and after > before:
        gold_before, gold_after = _before_and_after(rows, "ppo", "preferred")
        if gold_before is None or gold_after is None:
            end = "No independent judge was measured beside it."
        elif gold_after <= gold_before:
            end = (
                f"The independent share of preferred answers did not rise ({value(gold_before, True)} to "
                f"{value(gold_after, True)}): the reward model was gamed."
            )
        else:
            end = "The share of preferred answers, which was never trained on, is the one to quote."
        found.append(
            f"The score rose from {value(before)} to {value(after)}, but PPO was trained on that very score. {end}"
        )
    return found


def _about_reasoning(rows: dict[str, dict]) -> list[str]:
    before, after = _before_and_after(rows, "grpo", "reasoning_greedy")
    if after is None:
        return []
    found = []
    if before is not None:
        found.append(
            f"GRPO did not start from nothing: its parent was already right in {value(before, True)} of the problems "
            f"(temperature 0), and it ended at {value(after, True)}. The gain to quote is {points(after - before)}, "
            "on this one kind of problem."
        )
    found += _about_control(rows, before)
    derivations = mean_of(rows["grpo"], "derivations")
    if derivations is not None and after - derivations > _NOTABLE_GAP:
        found.append(
            f"After GRPO the answer is right in {value(after, True)}, but every step is right in only "
            f"{value(derivations, True)}: some right answers come from wrong steps."
        )
    return found


def _about_control(rows: dict[str, dict], before: float | None) -> list[str]:
    control = mean_of(rows.get("control"), "reasoning_greedy")
    if control is None:
        return ["There is no control with random rewards here, so it is not shown what drift alone does."]
    if before is None:
        return []
    text = f"With coin flips as rewards, accuracy went from {value(before, True)} to {value(control, True)}"
    if control - before > _NOTABLE_GAP:
        return [f"{text}: drift alone explains {points(control - before)} of the gain."]
    if control - before < -_NOTABLE_DROP:
        return [f"{text}: drift alone harms, so the gain over the control says less than the gain over the parent."]
    return [f"{text}: drift alone does little."]


def _drops(columns: list[dict], rows: dict[str, dict]) -> list[str]:
    """Every share that fell by more than three points from a stage to the next. The control is not a stage."""
    shares = [column for column in columns if column.get("percent") and column.get("better") == "higher"]
    found = []
    for stage in STAGES:
        row = rows.get(stage.key)
        parent = rows.get(row.get("parent")) if row else None
        fallen = [text for column in shares if parent and (text := _drop(column, parent, row))]
        if fallen:
            found.append(f"Lost from “{parent['title']}” to “{row['title']}”: {'; '.join(fallen)}.")
    return found


def _drop(column: dict, parent: dict, row: dict) -> str | None:
    before, after = mean_of(parent, column["key"]), mean_of(row, column["key"])
    if before is None or after is None or before - after <= _NOTABLE_DROP:
        return None
    both = [measured(r["metrics"][column["key"]], True) for r in (parent, row)]
    return f"{column['title']} {points(before - after)} ({both[0]} to {both[1]})"


def _about_size(stages: dict) -> list[str]:
    sizes = [row["parameters"] for row in stages["rows"] if row.get("parameters")]
    if not sizes or max(sizes) >= 1e9:
        return []
    demo = stages.get("model") == "demo"
    text = "made-up text from templates, and its “preferences” come from a fixed rule, not from people" if demo else ""
    seen = f" It was trained on {text}." if demo else ""
    return [f"The model has {count(max(sizes))} parameters.{seen} Nothing here says how a large model would behave."]


def _before_and_after(rows: dict[str, dict], stage: str, key: str) -> tuple[float | None, float | None]:
    row = rows.get(stage)
    return (mean_of(rows.get(row.get("parent")), key), mean_of(row, key)) if row else (None, None)


def changes(stage: Stage, columns: list[dict], rows: dict[str, dict]) -> list[dict]:
    """What a stage did to the columns it should move: title, value of its parent's row and of its own, as text."""
    row = rows.get(stage.key)
    if row is None:
        return []
    parent = rows.get(row.get("parent") or ("random" if stage.key == "pretrain" else ""))
    known = {column["key"]: column for column in columns}
    found = []
    for key in stage.columns:
        before, after = ((r or {}).get("metrics", {}).get(key) for r in (parent, row))
        column = known.get(key)
        if column and measured(after, column.get("percent")) != DASH:
            percent = column.get("percent")
            paired = section(row, "gains", "parent").get(key)
            texts = {"before": measured(before, percent), "after": measured(after, percent), "gain": None}
            if column.get("better") is None or texts["before"] == DASH:  # a distance to the parent has no "before"
                texts["before"] = None
            else:
                texts["gain"] = _gain(paired, percent)
            found.append({"title": column["title"], **texts})
    return found


def _gain(paired: object, percent: bool) -> str | None:
    """The change item by item, whose error is smaller than that of two means. Example: "+12.3 ± 1.1 points, paired"."""
    text = measured(paired, percent)
    if text == DASH:
        return None
    sign = "" if text.startswith("−") else "+"
    return f"{sign}{text.replace(' %', '')}{' points' if percent else ''}, paired by item"
