"""Checks of pairs and problems: what tells the choice or gives the answer away, and golds that are wrong."""

import re
from itertools import chain

from fourstage.doctor.findings import Finding, fail, ok, share, some, unknown, warning
from fourstage.doctor.reading import Row, answer_of, prompt_of
from fourstage.doctor.rows import parts_of
from fourstage.doctor.subject import Subject
from fourstage.evaluation.reward_model import answer_lengths, hits
from fourstage.verifiers.text import text_of

_TELLS, _FEWEST = 0.9, 20  # length tells the choice in so many of at least so many pairs
_FEW = 0.01  # shares up to this one are left to chance
_LONG_ANSWER = 20  # characters: a shorter answer stands in a prompt by chance


def length_tells(subject: Subject) -> list[Finding]:
    """Pairs in which the longer, or the shorter, answer is chosen nearly always."""
    rows, what = _pairs(subject), "length of answers"
    if len(rows) < _FEWEST:
        return []
    wins = hits(*answer_lengths(row.row for row in rows))
    longer = sum(wins) / len(wins)
    side, right = ("longer", longer) if longer >= 0.5 else ("shorter", 1 - longer)
    if right >= _TELLS:
        reason = (
            f"the {side} answer is the chosen one in {right:.0%} of {len(rows):,} pairs: length alone tells them apart"
        )
        return [warning(what, reason, f"add pairs in which the {side} answer is rejected")]
    return [ok(what, f"the {side} answer is chosen in {right:.0%} of {len(rows):,} pairs")]


def equal_pairs(subject: Subject) -> list[Finding]:
    """Pairs whose answers are the same, or the same but for signs and case."""
    parts = parts_of(subject)
    if subject.stage != "reward" or not parts:
        return []
    what, read = "answers that differ", sum(part.read for part in parts)
    equal = list(chain.from_iterable(ats for part in parts for why, ats in part.left_out.items() if "equal" in why))
    near = [row.at for part in parts for row in part.rows if _bare(row, "chosen") == _bare(row, "rejected")]
    found = []
    if equal:
        reason = f"{share(len(equal), read)} pairs have equal answers: {some(equal)}"
        found.append(warning(what, f"{reason}; they are left out", "take them out"))
    if near:
        reason = f"{share(len(near), read)} pairs differ in signs, spaces or case alone: {some(near)}"
        found.append(warning(what, reason, "take them out, unless that is what is to be learnt"))
    return found or [ok(what, f"no equal or nearly equal answers in {read:,} pairs")]


def contradictions(subject: Subject) -> list[Finding]:
    """The same two answers to the same prompt, chosen once this way and once that way."""
    rows, what = _pairs(subject), "contradictions"
    if not rows:
        return []
    seen: set[tuple] = set()
    turned = []
    for row in rows:
        prompt, chosen, rejected = prompt_of(row.row), answer_of(row.row["chosen"]), answer_of(row.row["rejected"])
        if (prompt, rejected, chosen) in seen:
            turned.append(row.at)
        seen.add((prompt, chosen, rejected))
    if len(turned) > _FEW * len(rows):
        reason = f"{share(len(turned), len(rows))} prefer what an earlier row rejects: {some(turned)}"
        return [warning(what, reason, "check which column is which; people who disagree are no fault")]
    return [ok(what, f"{share(len(turned), len(rows))} prefer what an earlier row rejects")]


def leaks(subject: Subject) -> list[Finding]:
    """Prompts that hold the answer."""
    train, what = subject.train, "answers in prompts"
    if train is None or subject.stage not in ("reward", "grpo") or not train.rows:
        return []
    given = [row.at for row in train.rows if _gives_away(row)]
    if len(given) > _FEW * len(train.rows):
        reason = f"the prompt holds the {'chosen ' if subject.stage == 'reward' else ''}answer in {some(given)}"
        fix = "take the answer out of the prompt: it would be copied"
        return [warning(what, f"{reason}, {share(len(given), len(train.rows))}", fix)]
    return [ok(what, f"the prompt holds the answer in {share(len(given), len(train.rows))}")]


def golds(subject: Subject) -> list[Finding]:
    """Right answers that their own verifier rejects: it would reward nonsense, or nothing."""
    parts, what = parts_of(subject), "golds"
    if subject.stage != "grpo" or not parts or subject.settings is None:
        return []
    names = subject.training.reward_funcs or []
    if not names:
        return [unknown(what, "no verifier was named", "name it with --reward_funcs")]
    rejected = list(chain.from_iterable(part.rejected for part in parts))
    if rejected:
        level = fail if subject.training.unverifiable == "error" else warning
        reason = (
            f"{share(len(rejected), sum(part.read for part in parts))} are rejected: {some(at for at, _ in rejected)}"
        )
        why = rejected[0][1].split("; ")[0]
        fix = "mend the rows, choose other --reward_funcs, or drop them with --unverifiable drop"
        return [level(what, f"{reason}: {why}", fix)]
    rows = sum(len(part.rows) for part in parts)
    return [ok(what, f"{rows:,} right answers pass {', '.join(names)}")]


def _pairs(subject: Subject) -> list[Row]:
    return subject.train.rows if subject.stage == "reward" and subject.train else []


def _bare(row: Row, side: str) -> str:
    return re.sub(r"[\W_]+", "", answer_of(row.row[side]).lower()) or answer_of(row.row[side])


def _gives_away(row: Row) -> bool:
    asked = " ".join(text_of(row.row["prompt"][-1:]).split())
    if "chosen" in row.row:
        answer = answer_of(row.row["chosen"])
        return len(answer) >= _LONG_ANSWER and answer in asked
    answer = " ".join(str(row.row.get("answer") or "").split())
    if not answer:
        return False
    marked = rf"(answer\s*(is|:|=)|####|\\boxed\{{)\s*{re.escape(answer)}(?![\w.,]?\w)"
    return re.search(marked, asked, re.IGNORECASE) is not None or (len(answer) >= _LONG_ANSWER and answer in asked)
