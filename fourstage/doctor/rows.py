"""Checks of rows: what is left out, copied, cut or masked."""

import json
from collections import Counter

from fourstage.data.columns import RESERVED_COLUMNS
from fourstage.data.trained_text import tell_untrained
from fourstage.doctor.encoding import encoded_conversations
from fourstage.doctor.findings import Finding, fail, ok, share, some, unknown, warning
from fourstage.doctor.reading import Part, key_of, prompt_of
from fourstage.doctor.subject import Subject
from fourstage.models.facts import context_of
from fourstage.parent import is_hub_id
from fourstage.ppo.ptx import load_ptx

_COPIES = 0.01  # from this share of rows on they are worth a word
_LONG = 50  # words: shorter documents recur by chance; Lee et al. (2022) count copies of 50 tokens and more


def parts_of(subject: Subject) -> list[Part]:
    """The parts that were read."""
    return [part for part in (subject.train, subject.test) if part is not None]


def readable(subject: Subject) -> list[Finding]:
    """Rows that fit no format, that the chat template refuses, or that say nothing."""
    what, found, parts = "rows", [], parts_of(subject)
    if not parts or subject.settings is None:
        return []
    for part in parts:
        if part.broken:
            level = fail if subject.settings.data.unreadable == "error" else warning
            reason = f"{some(at for at, _ in part.broken)}: {part.broken[0][1].split('; ')[0]}"
            found.append(level(what, reason, "mend them, or leave them out with --unreadable drop"))
        for reason, ats in part.left_out.items():
            if not reason.startswith("equal") and len(ats) > _COPIES * part.read:
                at = f"{share(len(ats), part.read)} left out as {reason}: {some(ats)}"
                found.append(warning(what, at, "take them out, or check the columns"))
        if not part.rows and part.read:
            found.append(fail(what, f"no {part.name} row is left to use", "choose other data"))
    if subject.train is not None and not subject.train.read:
        found.append(fail(what, "there are no rows", "choose other data"))
    read = " and ".join(f"{part.read:,} {part.name}" for part in parts)
    return found or [ok(what, f"{read} rows are read")]


def ptx(subject: Subject) -> list[Finding]:
    """The rows of PPO-ptx can be read, and marked for what is learnt of them."""
    name = getattr(subject.training, "ptx_dataset_name", None)
    if not name or subject.settings is None or subject.tokenizer is None or subject.config is None:
        return []
    if name != "fourstage/demo" and is_hub_id(name):
        return [unknown("ptx rows", "on the Hub, and not fetched for this")]
    rows = load_ptx(subject.training, subject.settings.data, subject.tokenizer, context_of(subject.config))
    assert rows is not None, "they have a name"
    return [ok("ptx rows", f"{len(rows):,} rows are learnt on")]


def reserved_columns(subject: Subject) -> list[Finding]:
    """Columns named like an argument of reward functions, which would not get them."""
    if subject.stage not in ("ppo", "grpo") or subject.train is None:
        return []
    what, clash = "columns", [name for name in subject.train.columns if name in RESERVED_COLUMNS]
    if clash:
        reason = f"{', '.join(clash)}: named like arguments of reward functions, and left out"
        return [warning(what, reason, "rename them, if a reward function needs them")]
    return [ok(what, "none is named like an argument of reward functions")]


def duplicates(subject: Subject) -> list[Finding]:
    """Rows that are there more than once."""
    if subject.train is None or not subject.train.rows:
        return []
    what, rows = "copies", subject.train.rows
    counts: Counter[str] = Counter()
    copies = []
    for row in rows:
        key = key_of(subject.stage, row.row)
        if counts[key]:
            copies.append(row.at)
        counts[key] += 1
    if len(copies) > _COPIES * len(rows):
        return [
            warning(what, f"{share(len(copies), len(rows))} repeat an earlier row: {some(copies)}", "take them out")
        ]
    return [ok(what, f"{share(len(copies), len(rows))} repeat an earlier row")]


def overlap(subject: Subject) -> list[Finding]:
    """Held-out rows that are trained on too: then they measure memory."""
    train, test, what = subject.train, subject.test, "held-out rows"
    if train is None or not train.rows:
        return []
    if test is None:
        return [ok(what, "the recipe holds rows out, with their copies")]
    if not test.rows:
        return []
    by_prompt = subject.stage in ("reward", "ppo", "grpo")
    keys = {
        part.name: [prompt_of(row.row) if by_prompt else key_of(subject.stage, row.row) for row in part.rows]
        for part in (train, test)
    }
    seen = {" ".join(key.lower().split()) for key in keys[train.name]}
    both = [(row.at, key) for row, key in zip(test.rows, keys[test.name], strict=True)]
    both = [(at, key) for at, key in both if " ".join(key.lower().split()) in seen]
    short = [at for at, key in both if subject.stage == "pretrain" and len(key.split()) < _LONG]
    counted = [at for at, _ in both if at not in {*short}]
    few = f"; {len(short)} of under {_LONG} words, which recur by chance, do" if short else ""
    if not counted:
        return [ok(what, f"none of {len(test.rows):,} is trained on{few}")]
    level = fail if len(counted) > _COPIES * len(test.rows) else warning
    reason = f"{share(len(counted), len(test.rows))} are trained on too: {some(counted)}"
    return [level(what, reason, "take them out of the training rows, or split anew")]


def truncated(subject: Subject) -> list[Finding]:
    """Rows that are longer than allowed, and so left out or refused."""
    what, training = "lengths", subject.training
    limit = getattr(training, "max_length", None)
    if subject.stage not in ("sft", "reward") or not subject.encoded or not limit:
        return []
    long = list(dict.fromkeys(row.row.at for row in subject.encoded if len(row.ids) > limit))
    longest, rows = max(len(row.ids) for row in subject.encoded), len({row.row.at for row in subject.encoded})
    if not long:
        return [ok(what, f"the longest of {rows:,} rows has {longest:,} tokens, {limit:,} are allowed")]
    level = fail if training.overlong == "error" or len(long) == rows else warning
    reason = f"{share(len(long), rows)} have more than {limit:,} tokens (longest {longest:,}): {some(long)}"
    return [level(what, reason, "raise max_length, shorten them, or know that they are left out")]


def masked(subject: Subject) -> list[Finding]:
    """Rows of which nothing is trained, and what of an answer the template leaves out."""
    if subject.stage != "sft" or subject.train is None or subject.tokenizer is None or not subject.chats:
        return []
    what, looked_at = "labels", subject.train.rows[: subject.looked_at]
    taught = {id(row.row) for row in subject.encoded}
    lost = [row.at for row in looked_at if id(row) not in taught]
    if lost:
        level = fail if len(lost) > len(looked_at) / 2 else warning
        reason = f"nothing is trained of {share(len(lost), len(looked_at))}: {some(lost)}"
        return [level(what, reason, "have the template write and mark the assistant's turns")]
    trained = sum(sum(row.trained) for row in subject.encoded)
    missing = tell_untrained(subject.tokenizer, encoded_conversations(subject, looked_at[:200]), "train")
    if missing:
        parts = ", ".join(f"{part} of {count:,} rows" for part, count in missing.items())
        reason = f"of the first {len(looked_at[:200]):,} rows not trained on: {parts}: the template leaves them out"
        return [warning(what, reason, "take a template that writes them, or know it")]
    whole = sum(len(row.ids) for row in subject.encoded)
    return [ok(what, f"loss on {share(trained, whole)} tokens of {len(subject.encoded):,} rows")] if whole else []


def one_kind_of_answer(subject: Subject) -> list[Finding]:
    """Training rows that all have the same answer teach nothing else."""
    if subject.stage != "sft" or subject.train is None or len(subject.train.rows) < 20:
        return []
    answers = Counter(json.dumps(row.row["completion"], default=str) for row in subject.train.rows)
    (_, often), total = answers.most_common(1)[0], len(subject.train.rows)
    if often > 0.5 * total:
        return [warning("answers", f"{share(often, total)} have the same answer", "check the columns")]
    return []
