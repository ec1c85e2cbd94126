"""The embedded data: small texts, conversations, pairs and problems written by the code of this package (docs/demo.md).

The rows are the same every time and on every machine. Held-out rows differ from those of training in more than single
words: stories in the pair of person and thing, in their opening and in the request; functions in their arguments and in
the request; problems in their numbers. Definitions can only be memorised, so only the phrasing of the question differs.
"""

import random
from collections.abc import Callable

from fourstage.data.embedded import glossary, programs, stories, styles, sums

# Requests, by kind. In training, all kinds share their first words, so that none of these gives the kind away.
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
    """Held-out items of one `kind` (reading, summary, code or glossary), all different: `prompt`, `reference`, `kind`.

    There are `number` of them; of the glossary every term in every held-out phrasing, whatever `number` is.
    """
    if kind == "glossary":
        pairs = [(term, phrase) for phrase in glossary.HELD_OUT for term in glossary.TERMS]
        return [_item(phrase.format(term), glossary.TERMS[term][0], kind) for term, phrase in pairs]
    makers = {"reading": _reading, "summary": _summary, "code": _code}
    return _distinct(makers[kind], number, f"{kind} measured", held_out=True)


def problems(held_out: bool) -> list[dict]:
    """Every problem, either the held-out ones or those to learn from, in random order."""
    rng = random.Random(f"grpo {held_out}")
    rows = [sums.problem(triple, rng) for triple in sums.triples(held_out)]
    rng.shuffle(rows)
    return rows


def document(rng: random.Random, held_out: bool) -> dict:
    """A text of stage 1. Lists of questions make a base model go on asking; repeated words teach it to copy."""
    kinds = (_story, _article, _quiz, _repeat, _program, _facts)
    kind = rng.choices(kinds, weights=(38, 12, 8, 20, 8, 14))[0]
    return {"text": kind(rng, held_out)}


def preference(rng: random.Random, held_out: bool, kind: str | None = None) -> dict:
    """A pair: the right answer with a polite ending, and an answer that is worse in the way that `kind` names.

    `kind` is one of styles.KINDS, and drawn at random where it is None.
    """
    story, other_story = stories.story(rng, held_out), stories.story(rng, held_out)
    question, answer = rng.choice(story.questions)
    kind = kind or styles.draw_kind(rng)
    chosen = f"{answer} {rng.choice(styles.POLITE)}"
    sides = {"chosen": chosen, "rejected": styles.reject(kind, story, other_story, answer, rng)}
    turns = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
    return {"prompt": _question_about(story, question, rng, held_out), **turns, "kind": kind}


def _distinct(make: Callable[[random.Random, bool], dict], number: int, seed: str, held_out: bool) -> list[dict]:
    """The first `number` different rows that `make` draws."""
    rng = random.Random(seed)
    rows: dict[str, dict] = {}
    while len(rows) < number:
        row = make(rng, held_out)
        rows.setdefault(repr(row), row)
    return list(rows.values())


def _item(question: str, reference: str, kind: str) -> dict:
    return {"prompt": [{"role": "user", "content": question}], "reference": reference, "kind": kind}


def _question_about(story: stories.Story, question: str, rng: random.Random, held_out: bool) -> list[dict]:
    phrase = rng.choice(_READ_HELD_OUT if held_out else _READ)
    return [{"role": "user", "content": phrase.format(story=story.text, question=question)}]


def _reading(rng: random.Random, held_out: bool) -> dict:
    story = stories.story(rng, held_out)
    question, answer = rng.choice(story.questions)
    return {"prompt": _question_about(story, question, rng, held_out), "reference": answer, "kind": "reading"}


def _summary(rng: random.Random, held_out: bool) -> dict:
    story = stories.story(rng, held_out)
    phrase = rng.choice(_SUM_UP_HELD_OUT if held_out else _SUM_UP)
    return _item(phrase.format(story.text), story.summary, "summary")


def _code(rng: random.Random, held_out: bool) -> dict:
    program = programs.program(rng, held_out)
    phrase = rng.choice(_WRITE_HELD_OUT if held_out else _WRITE)
    return _item(phrase.format(name=program.name, task=program.task), program.code, "code")


def _definition(rng: random.Random, held_out: bool) -> dict:
    term = rng.choice(list(glossary.TERMS))
    phrase = rng.choice(glossary.HELD_OUT if held_out else glossary.TRAINING)
    return _item(phrase.format(term), glossary.TERMS[term][0], "glossary")


def _sum(rng: random.Random, held_out: bool) -> dict:
    """A problem of stage 2 as a hasty person works it out: stage 4 has carries to teach."""
    triple = rng.choice(sums.triples(held_out))
    return {
        "prompt": sums.problem(triple, rng)["prompt"],
        "reference": sums.demonstration(triple, rng),
        "kind": "arithmetic",
    }


def _conversation(rng: random.Random, held_out: bool) -> dict:
    """A demonstration of stage 2. Answers to questions about stories and terms come in several styles."""
    make = rng.choices((_reading, _summary, _code, _definition, _sum), weights=(38, 15, 10, 21, 16))[0]
    row = make(rng, held_out)
    answer = row["reference"]
    if row["kind"] in ("reading", "glossary"):
        answer = styles.styled(answer, rng)
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}]}


def _prompt(rng: random.Random, held_out: bool) -> dict:
    return {"prompt": _reading(rng, held_out)["prompt"]}


def _story(rng: random.Random, held_out: bool) -> str:
    """A story: in 60 % two questions about it follow with their answers, in 20 % its summary."""
    story, ending = stories.story(rng, held_out), rng.random()
    if ending < 0.6:
        return f"{story.text} {' '.join(' '.join(pair) for pair in rng.sample(story.questions, 2))}"
    return f"{story.text} In short: {story.summary}" if ending < 0.8 else story.text


def _article(rng: random.Random, held_out: bool) -> str:
    return " ".join(" ".join(entry) for entry in rng.sample(list(glossary.TERMS.values()), 2))


def _quiz(rng: random.Random, held_out: bool) -> str:
    phrases = ("What is {}?",) * 3 + ("What does {} mean?",) + glossary.PRETRAINING_ONLY
    terms = rng.sample(list(glossary.TERMS), rng.randint(3, 6))
    return " ".join(rng.choice(phrases).format(term) for term in terms)


def _repeat(rng: random.Random, held_out: bool) -> str:
    """Words, numbers, or a sum without its result, three times over."""
    number, kind = rng.randint(4, 7), rng.random()
    if kind < 0.5:
        return " ".join(rng.sample(_WORDS, number) * 3)
    parts = [str(rng.randint(0, 42)) for _ in range(number)]
    if kind < 0.75:
        return " ".join(parts * 3)
    expression = parts[0] + "".join(f" {rng.choice('+-')} {part}" for part in parts[1:])
    return f"{expression}. {expression}. {expression}."


def _program(rng: random.Random, held_out: bool) -> str:
    program = programs.program(rng, held_out)
    return f"# {program.name}: {program.task}\n{program.code}"


def _facts(rng: random.Random, held_out: bool) -> str:
    return sums.facts(rng)
