"""The embedded data: small texts, conversations, pairs and problems written by the code of this package (docs/demo.md).

The rows are the same ones every time and on every machine. What is held out differs in more than the words: stories
by the pair of person and thing, by their opening and by how they are asked about; functions by their arguments and the
request; problems by their numbers. Definitions can only be recalled: there it is the phrasing alone.
"""

import functools
import random
from collections.abc import Callable

from fourstage.data.embedded import glossary, programs, stories, styles, sums

DEMONSTRATED_PROBLEMS = 600
# Requests, by kind: those of training begin alike across kinds, so that no first word gives the kind away.
_READ = (
    "{story} {question}",
    "Read this story. {story} {question}",
    "{story} Tell me: {question}",
    "Please read this. {story} {question}",
    "Answer a question about this. {story} {question}",
)
_READ_HELD_OUT = ("Here is a short story. {story} Please answer: {question}",)
_SUM_UP = (
    "Summarise: {}",
    "Sum up this story. {}",
    "{} What is this story about?",
    "Please summarise this story. {}",
    "In one sentence: {}",
)
_SUM_UP_HELD_OUT = ("Please sum up: {}",)
_WRITE = (
    "Write a function called {name} that {task}.",
    "Write a Python function {name} that {task}.",
    "I need a function called {name} that {task}.",
    "Please give me a function {name} that {task}.",
    "Define a function called {name} that {task}.",
)
_WRITE_HELD_OUT = ("Please write a function called {name} that {task}.",)
_WORDS = stories.NAMES + stories.THINGS + stories.ANIMALS + stories.COLOURS + stories.PLACES + stories.FOODS
_TRAINING_ROWS = {"pretrain": 30_000, "sft": 9_000, "reward": 6_000, "ppo": 4_000}
_HELD_OUT_ROWS = {"pretrain": 200, "sft": 200, "reward": 400, "ppo": 200}


def demo_rows(stage: str) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows) for `pretrain` (column text), `sft` (prompt and completion), `reward` (prompt,
    chosen, rejected and kind), `ppo` (prompt) or `grpo` (prompt, answer and derivation).

    Raises:
        ValueError: for a stage that has no embedded data.
    """
    if stage == "grpo":
        return problems(held_out=False), problems(held_out=True)
    makers = {"pretrain": document, "sft": _conversation, "reward": preference, "ppo": _prompt}
    if stage not in makers:
        raise ValueError(f"fourstage/demo has no data for {stage!r}; it has {', '.join(makers)}, grpo")
    train = _distinct(makers[stage], _TRAINING_ROWS[stage], f"{stage} 0", held_out=False)
    return train, _distinct(makers[stage], _HELD_OUT_ROWS[stage], f"{stage} held out", held_out=True)


def held_out_items(kind: str, number: int) -> list[dict]:
    """Items of one `kind` (reading, summary, code, glossary) to measure on, each once: `prompt`, `reference`, `kind`.

    Of the glossary there are fewer: every term in every held-out phrasing.
    """
    if kind == "glossary":
        pairs = [(term, phrase) for phrase in glossary.HELD_OUT for term in glossary.TERMS]
        return [_item(phrase.format(term), glossary.TERMS[term][0], kind) for term, phrase in pairs]
    makers = {"reading": _reading, "summary": _summary, "code": _code}
    return _distinct(makers[kind], number, f"{kind} measured", held_out=True)


def problems(held_out: bool) -> list[dict]:
    """Every problem of two steps of one side, in random order."""
    chance = random.Random(f"grpo {held_out}")
    rows = [sums.problem(triple, chance) for triple in sums.triples(held_out)]
    chance.shuffle(rows)
    return rows


def document(chance: random.Random, held_out: bool) -> dict:
    """A text of stage 1. Lists of questions make a base model go on asking; repeated words teach it to copy."""
    kinds = (_told, _article, _quiz, _repeat, _program, _facts)
    kind = chance.choices(kinds, weights=(38, 12, 8, 20, 8, 14))[0]
    return {"text": kind(chance, held_out)}


def preference(chance: random.Random, held_out: bool, kind: str | None = None) -> dict:
    """The right answer with a polite ending, against one that is worse: in what way says `kind`, of styles.KINDS."""
    told, other = stories.story(chance, held_out), stories.story(chance, held_out)
    asked = chance.choice(told.questions)
    kind = kind or styles.draw_kind(chance)
    chosen = f"{asked[1]} {chance.choice(styles.POLITE)}"
    sides = {"chosen": chosen, "rejected": styles.reject(kind, told, other, asked, chance)}
    turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": _asked_about(told, asked[0], chance, held_out), **turns, "kind": kind}


def _distinct(make: Callable[[random.Random, bool], dict], number: int, seed: str, held_out: bool) -> list[dict]:
    chance, rows = random.Random(seed), {}
    while len(rows) < number:
        row = make(chance, held_out)
        rows.setdefault(repr(row), row)
    return list(rows.values())


def _item(question: str, reference: str, kind: str) -> dict:
    return {"prompt": [{"role": "user", "content": question}], "reference": reference, "kind": kind}


def _asked_about(told: stories.Story, question: str, chance: random.Random, held_out: bool) -> list[dict]:
    phrase = chance.choice(_READ_HELD_OUT if held_out else _READ)
    return [{"role": "user", "content": phrase.format(story=told.text, question=question)}]


def _reading(chance: random.Random, held_out: bool) -> dict:
    told = stories.story(chance, held_out)
    question, answer = chance.choice(told.questions)
    return {"prompt": _asked_about(told, question, chance, held_out), "reference": answer, "kind": "reading"}


def _summary(chance: random.Random, held_out: bool) -> dict:
    told = stories.story(chance, held_out)
    return _item(chance.choice(_SUM_UP_HELD_OUT if held_out else _SUM_UP).format(told.text), told.summary, "summary")


def _code(chance: random.Random, held_out: bool) -> dict:
    wanted = programs.program(chance, held_out)
    phrase = chance.choice(_WRITE_HELD_OUT if held_out else _WRITE)
    return _item(phrase.format(name=wanted.name, task=wanted.task), wanted.code, "code")


def _definition(chance: random.Random, held_out: bool) -> dict:
    term = chance.choice(list(glossary.TERMS))
    phrase = chance.choice(glossary.HELD_OUT if held_out else glossary.TRAINING)
    return _item(phrase.format(term), glossary.TERMS[term][0], "glossary")


def _sum(chance: random.Random, held_out: bool) -> dict:
    """Of stage 2: one of few problems, so that it is not learned well and stage 4 has something to do."""
    row = chance.choice(_demonstrated(held_out))
    answer = sums.demonstration(row)["completion"][0]["content"]
    return {"prompt": row["prompt"], "reference": answer, "kind": "arithmetic"}


@functools.cache
def _demonstrated(held_out: bool) -> list[dict]:
    return problems(held_out)[:DEMONSTRATED_PROBLEMS]


def _conversation(chance: random.Random, held_out: bool) -> dict:
    """A demonstration of stage 2. Answers to questions about stories and terms come in several manners."""
    make = chance.choices((_reading, _summary, _code, _definition, _sum), weights=(36, 16, 12, 20, 16))[0]
    row = make(chance, held_out)
    answer = row["reference"]
    if row["kind"] in ("reading", "glossary"):
        answer = styles.styled(answer, chance)
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}]}


def _prompt(chance: random.Random, held_out: bool) -> dict:
    return {"prompt": _reading(chance, held_out)["prompt"]}


def _told(chance: random.Random, held_out: bool) -> str:
    """A story; mostly two questions about it follow with their answers, or its summary."""
    told, end = stories.story(chance, held_out), chance.random()
    if end < 0.6:
        return f"{told.text} {' '.join(' '.join(pair) for pair in chance.sample(told.questions, 2))}"
    return f"{told.text} In short: {told.summary}" if end < 0.8 else told.text


def _article(chance: random.Random, held_out: bool) -> str:
    return " ".join(" ".join(entry) for entry in chance.sample(list(glossary.TERMS.values()), 2))


def _quiz(chance: random.Random, held_out: bool) -> str:
    asking = ("What is {}?",) * 3 + ("What does {} mean?",) + glossary.MORE
    terms = chance.sample(list(glossary.TERMS), chance.randint(3, 6))
    return " ".join(chance.choice(asking).format(term) for term in terms)


def _repeat(chance: random.Random, held_out: bool) -> str:
    """Words, numbers, or numbers with signs between them, three times over."""
    number, kind = chance.randint(4, 7), chance.random()
    if kind < 0.5:
        return " ".join(chance.sample(_WORDS, number) * 3)
    parts = [str(chance.randint(0, 42)) for _ in range(number)]
    if kind < 0.75:
        return " ".join(parts * 3)
    term = parts[0] + "".join(f" {chance.choice('+-')} {part}" for part in parts[1:])
    return f"{term}. {term}. {term}."


def _program(chance: random.Random, held_out: bool) -> str:
    written = programs.program(chance, held_out)
    return f"# {written.name}: {written.task}\n{written.code}"


def _facts(chance: random.Random, held_out: bool) -> str:
    return sums.facts(chance)
