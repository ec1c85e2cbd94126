"""Measures a model for its row of the stage table: what it does with held-out items, item by item.

No stage was trained on any of the questions (docs/demo.md). Rules decide what is right and what is preferred; nothing
that a model writes is executed.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fourstage import verifiers
from fourstage.data.embedded import programs, styles
from fourstage.data.embedded.glossary import TERMS
from fourstage.data.embedded.rows import document, held_out_items, preference, problems
from fourstage.evaluation.generation import answer_questions, generate, sequence_log_probs, text_nats
from fourstage.evaluation.metrics import standard_error
from fourstage.evaluation.reward_model import hits, score_pairs
from fourstage.models.encoding import conversation_ids
from fourstage.rl.decoding import quick_generation

KINDS = ("reading", "summary", "code", "arithmetic", "glossary")
# The most tokens of an answer: 1.5 times those of the longest right answer in any style.
LONGEST = {"reading": 36, "summary": 36, "code": 36, "arithmetic": 40, "glossary": 56}
LONGEST_TEXT = 64  # tokens
BEGIN = "<think>"  # an answer that begins so has to show its steps
QUESTIONS = ("What is an LLM?", "Please define a reward model.")


@dataclass
class Measures:
    """The measurements of one model: `outcomes` by metric, with one number for each item, some answers to show, and the
    sampled conversations about stories.
    """

    outcomes: dict[str, list[float]] = field(default_factory=dict)
    answers: list[dict] = field(default_factory=list)
    sampled: list[list[dict]] = field(default_factory=list)


@dataclass
class Items:
    """What a model is measured on: held-out items by kind, held-out texts, and the trigrams of many such texts."""

    by_kind: dict[str, list[dict]]
    texts: list[str]
    trigrams: set[tuple[str, ...]]


def items_to_measure(number: int) -> Items:
    """The items that every stage and seed is measured on: about `number` of each kind."""
    by_kind = {kind: held_out_items(kind, number) for kind in KINDS if kind != "arithmetic"}
    sums = problems(held_out=True)[: max(number, 1)]
    by_kind["arithmetic"] = [row | {"kind": "arithmetic", "reference": row["answer"]} for row in sums]
    rng = random.Random("texts measured")
    texts = [document(rng, held_out=True)["text"] for _ in range(4 * number)]
    return Items(by_kind, texts[: number // 5 or 1], {t for text in texts for t in trigrams(text)})


def trigrams(text: str) -> list[tuple[str, ...]]:
    """All sequences of three words. Example: "a b c d" -> [("a", "b", "c"), ("b", "c", "d")]."""
    words = text.split()
    return list(zip(words, words[1:], words[2:], strict=False))


def is_right(item: dict, answer: str) -> bool:
    """Whether an answer, in any style, is the reference. Code is compared by syntax tree, sums by their number."""
    if item["kind"] == "arithmetic":
        return verifiers.number([answer], answer=[item["reference"]])[0] == 1.0
    if item["kind"] == "code":
        return programs.same_code(styles.content(answer), item["reference"])
    return styles.content(answer) == item["reference"]


def measure_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Items,
    parent: PreTrainedModel | None = None,
    seed: int = 0,
) -> Measures:
    """Everything that the table shows of one model, but for the reward model's scores.

    Args:
        parent: the model that this one was tuned from, for the KL divergence.
        seed: of the sampled answers.
    """
    torch.manual_seed(seed)
    measures = Measures()
    with quick_generation(model):
        _measure_texts(model, tokenizer, items, measures)
        for kind in KINDS:
            answers = _ask(model, tokenizer, items.by_kind[kind])
            rights = [is_right(item, a) for item, a in zip(items.by_kind[kind], answers, strict=True)]
            measures.outcomes[kind] = [float(right) for right in rights]
            measures.answers.append(_answer_to_show(items.by_kind[kind][0], answers[0]))
        _measure_style(model, tokenizer, items.by_kind["reading"], parent, measures)
        _measure_reasoning(model, tokenizer, items.by_kind["arithmetic"], measures)
        measures.outcomes["continues"] = continued_questions(model, tokenizer)
    return measures


def _ask(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[dict],
    temperature: float = 0.0,
    begin: str = "",
) -> list[str]:
    prompts = [item["prompt"] for item in items]
    longest = LONGEST[items[0]["kind"]]
    rows = answer_questions(model, tokenizer, prompts, longest, temperature, begin, batch_size=256)
    return [row["completion"] for row in rows]


def _answer_to_show(item: dict, answer: str) -> dict:
    return {
        "prompt": item["prompt"][-1]["content"],
        "kind": item["kind"],
        "completion": answer,
        "reference": item["reference"],
        "right": is_right(item, answer),
    }


def _measure_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Items, measures: Measures
) -> None:
    """Bits per byte, and the share of known trigrams in texts sampled from nothing.

    The mean of the bits of each text over the mean bytes of a text is the bits per byte of all texts together.
    """
    window = model.config.get_text_config().max_position_embeddings
    bits = [text_nats(model, tokenizer, text, window) / math.log(2) for text in items.texts]
    sizes = [len(text.encode()) for text in items.texts]
    mean = sum(sizes) / len(sizes)
    measures.outcomes["bits_per_byte"] = [b / mean for b in bits]
    empty_texts = [[tokenizer.bos_token_id]] * min(len(items.texts), 200)
    completions = generate(model, tokenizer, empty_texts, LONGEST_TEXT, 1.0, batch_size=256)
    sampled = [trigrams(text) for text in tokenizer.batch_decode(completions, skip_special_tokens=True)]
    known = [sum(t in items.trigrams for t in of_text) / len(of_text) for of_text in sampled if of_text]
    measures.outcomes["seen_trigrams"] = known


def _measure_style(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[dict],
    parent: PreTrainedModel | None,
    measures: Measures,
) -> None:
    """Sampled answers to questions about stories: which are preferred, and their divergence from `parent`."""
    prompts = [conversation_ids(tokenizer, item["prompt"], add_generation_prompt=True) for item in items]
    completions = generate(model, tokenizer, prompts, LONGEST["reading"], 1.0, batch_size=256)
    answers = tokenizer.batch_decode(completions, skip_special_tokens=True)
    pairs = list(zip(items, answers, strict=True))
    measures.outcomes["preferred"] = [float(styles.is_preferred(a, item["reference"])) for item, a in pairs]
    measures.sampled = [item["prompt"] + [{"role": "assistant", "content": answer}] for item, answer in pairs]
    if parent is not None:
        logps, parent_logps = (sequence_log_probs(m, prompts, completions) for m in (model, parent))
        measures.outcomes["kl_to_parent"] = [a - b for a, b in zip(logps, parent_logps, strict=True)]


def _measure_reasoning(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[dict], measures: Measures
) -> None:
    """Problems, greedy and sampled, whose answers are made to show their steps: this measures skill, not the form."""
    for name, temperature in (("reasoning_greedy", 0.0), ("reasoning_sampled", 1.0)):
        answers = _ask(model, tokenizer, items, temperature, BEGIN)
        measures.outcomes[name] = [float(is_right(item, a)) for item, a in zip(items, answers, strict=True)]
        if not temperature:
            steps = verifiers.steps(answers, derivation=[item["derivation"] for item in items])
            pairs = zip(measures.outcomes[name], steps, strict=True)
            measures.outcomes["derivations"] = [float(right == 1.0 and step == 1.0) for right, step in pairs]


def answers_to(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: bool, questions: Sequence[str] = QUESTIONS
) -> list[dict]:
    """Greedy answers to questions of the glossary; a model that does not chat continues the bare text instead."""
    items = [_glossary_item(question) for question in questions]
    answers = _ask(model, tokenizer, items) if chats else _continue(model, tokenizer, questions)
    return [_answer_to_show(item, answer) for item, answer in zip(items, answers, strict=True)]


def continued_questions(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """For each term, 1.0 where the model, given "What is TERM?" as bare text, does not go on with the definition."""
    texts = _continue(model, tokenizer, [f"What is {term}?" for term in TERMS])
    return [float(not text.strip().startswith(TERMS[term][0])) for term, text in zip(TERMS, texts, strict=True)]


def _continue(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return tokenizer.batch_decode(generate(model, tokenizer, ids, LONGEST["glossary"]), skip_special_tokens=True)


def _glossary_item(question: str) -> dict:
    term = next(term for term in TERMS if f" {term}" in question.rstrip("?."))
    return {"prompt": [{"role": "user", "content": question}], "kind": "glossary", "reference": TERMS[term][0]}


def measure_guesses(items: Items) -> Measures:
    """The outcomes of chance: every item is answered with the right answer of the next item.

    For `preferred`, these answers have the styles of stage 2. For trigrams, the words of the held-out texts are
    shuffled.
    """
    measures, rng = Measures(), random.Random("chance")
    for kind in KINDS:
        rows = items.by_kind[kind]
        guesses = [row["reference"] for row in rows[1:] + rows[:1]]
        measures.outcomes[kind] = [float(is_right(item, guess)) for item, guess in zip(rows, guesses, strict=True)]
        if kind == "reading":
            pairs = zip(rows, [styles.styled(guess, rng) for guess in guesses], strict=True)
            measures.outcomes["preferred"] = [float(styles.is_preferred(a, row["reference"])) for row, a in pairs]
    for name in ("reasoning_greedy", "reasoning_sampled"):
        measures.outcomes[name] = measures.outcomes["arithmetic"]
    words = [word for text in items.texts for word in text.split()]
    rng.shuffle(words)
    measures.outcomes["seen_trigrams"] = [float(t in items.trigrams) for t in trigrams(" ".join(words))]
    return measures


def measure_reward_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, number: int) -> Measures:
    """For `number` held-out pairs of every kind, whether the chosen answer scores above the rejected one.

    `off_topic` combines the kinds in the preferred style that answer another question; `accuracy` combines all kinds.
    """
    measures, rng = Measures(), random.Random("pairs measured")
    for kind in styles.KINDS:
        rows = [preference(rng, held_out=True, kind=kind) for _ in range(number)]
        measures.outcomes[kind] = hits(*score_pairs(model, tokenizer, rows, batch_size=128))
    off_topic = [hit for kind in styles.OFF_TOPIC for hit in measures.outcomes[kind]]
    all_kinds = [hit for kind in styles.KINDS for hit in measures.outcomes[kind]]
    measures.outcomes |= {"off_topic": off_topic, "accuracy": all_kinds}
    return measures


def summarise_items(values: Sequence[float]) -> dict:
    """{"mean", "stderr", "n", "values"} of one model's outcomes, over its items; `values` has the mean alone."""
    mean = sum(values) / len(values)
    return {"mean": mean, "stderr": standard_error(values), "n": len(values), "values": [mean]}
