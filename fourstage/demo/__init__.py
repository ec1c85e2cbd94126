"""The embedded data: small texts and conversations written by the code below, the same ones every time.

Stories, questions about them, sums, a few definitions, pairs of answers of which one is polite, and sums of two steps
to reason about, for trying a recipe in a minute. Names, colours and places are combined at random from the tables;
held-out rows are other combinations, apart from definitions and short sums, which can only be recalled.
"""

import random
from collections.abc import Callable

from fourstage.demo import chains

NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Elsa",
    "Finn",
    "Greta",
    "Hugo",
    "Ines",
    "Jon",
    "Kim",
    "Lea",
    "Max",
    "Nora",
    "Omar",
    "Pia",
]
THINGS = ["ball", "book", "kite", "lamp", "drum", "boat", "bell", "basket", "coin", "map", "rope", "spoon"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black"]
PLACES = ["park", "garden", "forest", "school", "kitchen", "market", "river", "castle"]
MOODS = ["happy", "proud", "tired", "calm", "brave"]
DEFINITIONS = {
    "an LLM": "An LLM is a large language model, a network that has read much text and predicts the next token.",
    "a token": "A token is a small piece of text, such as a word or a part of a word.",
    "pre-training": "Pre-training teaches a model language by letting it continue text.",
    "instruction tuning": "Instruction tuning teaches a model to answer what it is asked.",
    "a reward model": "A reward model scores answers the way a person would choose between them.",
    "a loss": "A loss is a number that tells how wrong a model is, and training makes it smaller.",
}
ASKING = ("What is {}?", "Explain what {} is.", "Tell me about {}.")
POLITE = (
    "Of course! {}",
    "Good question. {}",
    "Thank you for asking. {}",
    "{} I hope that helps!",
    "{} Please ask me more.",
)
RUDE = (
    "What a silly question. {}",
    "Can you not read? {}",
    "{} Stop asking.",
    "{} Even a child knows that.",
)
CURT = ("{}", "{} That is all.", "{} Next.")


def demo_rows(stage: str) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows) for `pretrain` (column text), `sft` (columns prompt and completion) `reward`
    (prompt, chosen, rejected and kind), `ppo` (prompt) or `grpo` (prompt, answer and derivation).

    Raises:
        ValueError: for a stage that has no embedded data.
    """
    if stage == "grpo":
        return _problems()
    makers = {
        "pretrain": (_document, 3_000, 100),
        "sft": (_demonstration, 2_400, 100),
        "reward": (_preference, 1_600, 200),
        "ppo": (_prompt, 1_600, 100),
    }
    if stage not in makers:
        raise ValueError(f"fourstage/demo has no data for {stage!r}; it has {', '.join(makers)}, grpo")
    make, training, held_out = makers[stage]
    return _distinct(make, training, held_out, random.Random(f"{stage} 0"))


def _problems() -> tuple[list[dict], list[dict]]:
    """Every problem of two steps, in random order; those held out are in no demonstration either."""
    chance = random.Random("grpo 0")
    train, test = ([chains.problem(t, chance) for t in chains.triples(held_out)] for held_out in (False, True))
    chance.shuffle(train)
    chance.shuffle(test)
    return train, test


def _distinct(make: Callable, training: int, held_out: int, chance: random.Random) -> tuple[list[dict], list[dict]]:
    """Makes held-out rows first; a training row never has the text or the prompt of one of them."""

    def asked(row: dict) -> str:
        return str(row.get("prompt") or row["text"])

    test = [make(chance) for _ in range(held_out)]
    taken = {asked(row) for row in test}
    train: list[dict] = []
    while len(train) < training:
        row = make(chance)
        if asked(row) not in taken or row.get("recall"):
            train.append(row)
    for row in train + test:
        row.pop("recall", None)
    return train, test


def _story(chance: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """A story of three sentences, and questions about it with their answers."""
    (one, two), thing, colour = chance.sample(NAMES, 2), chance.choice(THINGS), chance.choice(COLOURS)
    place, mood = chance.choice(PLACES), chance.choice(MOODS)
    text = f"{one} was at the {place}. There {one} found a {colour} {thing}. {one} gave the {thing} to {two}, "
    text += f"and {two} was {mood}."
    return text, [
        (f"Who found the {thing}?", f"{one} found the {thing}."),
        (f"Who got the {thing}?", f"{two} got the {thing}."),
        (f"What colour was the {thing}?", f"The {thing} was {colour}."),
        (f"Where was {one}?", f"{one} was at the {place}."),
    ]


def _sum(chance: random.Random) -> tuple[str, str]:
    a, b = chance.randint(1, 9), chance.randint(1, 9)
    return f"What is {a} + {b}?", f"{a} + {b} = {a + b}."


def _document(chance: random.Random) -> dict:
    """A story, a list of questions, or sums: question lists make a base model go on asking instead of answering."""
    kind = chance.random()
    if kind < 0.6:
        stories = [_story(chance) for _ in range(2)]
        return {"text": " ".join(text for text, _ in stories)}
    if kind < 0.8:
        return {"text": " ".join(chance.choice(ASKING).format(term) for term in chance.choices(list(DEFINITIONS), k=4))}
    if kind < 0.9:
        return {"text": " ".join(chance.sample(list(DEFINITIONS.values()), 2)), "recall": True}
    return {"text": chains.facts(chance)}


def _conversation(chance: random.Random) -> dict:
    kind, recall = chance.random(), False
    if kind < 0.6:
        text, questions = _story(chance)
        question, answer = chance.choice(questions)
        question = f"{text} {question}"
    elif kind < 0.8:
        question, answer = _sum(chance)
        recall = True  # only 81 of them
    else:
        term = chance.choice(list(DEFINITIONS))
        question, answer, recall = chance.choice(ASKING).format(term), DEFINITIONS[term], True
    row = {"prompt": [{"role": "user", "content": question}], "completion": [{"role": "assistant", "content": answer}]}
    return {**row, "recall": True} if recall else row


def _demonstration(chance: random.Random) -> dict:
    """A right answer as people write them: half are plain, the others polite or rude, which stage 3 then settles.

    Every fourth is a sum of two steps, worked out between think tags, for stage 4 to go on from: too few to learn it
    well.
    """
    if chance.random() < 0.25:
        return chains.demonstration(chains.problem(chance.choice(chains.triples(held_out=False)), chance))
    row = _conversation(chance)
    style = chance.choices(("{}", chance.choice(POLITE), chance.choice(RUDE)), weights=(2, 1, 1))[0]
    answer = style.replace("{}", row["completion"][0]["content"])
    return {**row, "completion": [{"role": "assistant", "content": answer}]}


def _preference(chance: random.Random) -> dict:
    """The right answer in polite words, against one that is rude, curt, off the topic in polite words, or repeated."""
    row = _conversation(chance)
    answer = row.pop("completion")[0]["content"]
    polite = chance.choice(POLITE)
    kind = chance.choice(("rude", "curt", "off_topic", "repeated"))
    if kind == "off_topic":
        other = answer
        while other == answer:
            other = _conversation(chance)["completion"][0]["content"]
        rejected = chance.choice(POLITE).replace("{}", other)
    else:
        rejected = {"rude": chance.choice(RUDE), "curt": chance.choice(CURT), "repeated": f"{polite} {polite}"}[kind]
        rejected = rejected.replace("{}", answer)
    sides = {"chosen": polite.replace("{}", answer), "rejected": rejected}
    return {**row, **{name: [{"role": "assistant", "content": text}] for name, text in sides.items()}, "kind": kind}


def _prompt(chance: random.Random) -> dict:
    row = _preference(chance)
    return {name: row[name] for name in ("prompt", "recall") if name in row}
