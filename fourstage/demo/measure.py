"""One stage's row of the table: what a model does with held-out items, item by item.

Every question is one that no stage was trained on (docs/demo.md). Rewards and checks are rules; nothing that a model
writes is executed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fourstage import verifiers
from fourstage.data.embedded import programs, styles
from fourstage.data.embedded.glossary import TERMS
from fourstage.data.embedded.rows import document, held_out_items, preference, problems
from fourstage.evaluation.generation import answer_questions, generate, sequence_log_probs, text_nats
from fourstage.evaluation.metrics import standard_error
from fourstage.evaluation.reward_model import score_conversations
from fourstage.rl.decoding import quick_generation

KINDS = ("reading", "summary", "code", "arithmetic", "glossary")
# Tokens: half as many again as the longest right answer with a manner has.
LONGEST = {"reading": 36, "summary": 36, "code": 36, "arithmetic": 40, "glossary": 56}
LONGEST_TEXT = 64
BEGIN = "<think>"  # forces the form of a worked answer
QUESTIONS = ("What is an LLM?", "Please define a reward model.")


@dataclass
class Measures:
    """What was seen of one model: `outcomes` by metric name, one number an item, and answers to show."""

    outcomes: dict[str, list[float]] = field(default_factory=dict)
    answers: list[dict] = field(default_factory=list)


@dataclass
class Items:
    """The held-out items of every kind, `number` of each that is generated; texts for bits per byte and trigrams."""

    by_kind: dict[str, list[dict]]
    texts: list[str]
    trigrams: set[tuple[str, ...]]


def held_out(number: int) -> Items:
    """The items that every stage is measured on; the same ones for every seed."""
    kinds = {kind: held_out_items(kind, number) for kind in KINDS if kind != "arithmetic"}
    kinds["arithmetic"] = [row | {"kind": "arithmetic", "reference": row["answer"]} for row in problems(True)]
    kinds["arithmetic"] = kinds["arithmetic"][: max(number, 1)]
    chance = random.Random("texts measured")
    texts = [document(chance, held_out=True)["text"] for _ in range(4 * number)]
    return Items(kinds, texts[: number // 5 or 1], {t for text in texts for t in trigrams(text)})


def trigrams(text: str) -> list[tuple[str, ...]]:
    """Three words in a row, as often as they occur. Example: "a b c d" -> (a, b, c), (b, c, d)."""
    words = text.split()
    return list(zip(words, words[1:], words[2:], strict=False))


def is_right(item: dict, answer: str) -> bool:
    """Whether an answer says what the reference says, in whatever manner; code by its syntax tree, sums by number."""
    if item["kind"] == "arithmetic":
        return verifiers.number([answer], answer=[item["reference"]])[0] == 1.0
    if item["kind"] == "code":
        return programs.same_code(styles.content(answer), item["reference"])
    return styles.content(answer) == item["reference"]


def measure(model, tokenizer, items: Items, parent=None, scorer=None, seed: int = 0) -> Measures:
    """Everything that the table shows of one model.

    Args:
        parent: the model that this one was tuned from, for the KL. scorer: the reward model, for its score.
        seed: of the sampled answers.
    """
    torch.manual_seed(seed)
    seen = Measures()
    with quick_generation(model):
        _measure_texts(model, tokenizer, items, seen)
        for kind in KINDS:
            answers = _ask(model, tokenizer, items.by_kind[kind])
            rights = [is_right(item, a) for item, a in zip(items.by_kind[kind], answers, strict=True)]
            seen.outcomes[kind] = [float(right) for right in rights]
            seen.answers.append(_shown(items.by_kind[kind][0], answers[0]))
        _measure_manner(model, tokenizer, items.by_kind["reading"], parent, scorer, seen)
        _measure_reasoning(model, tokenizer, items.by_kind["arithmetic"], seen)
        seen.outcomes["continues"] = share_continued(model, tokenizer)
    return seen


def _ask(model, tokenizer, items: Sequence[dict], temperature: float = 0.0, begin: str = "") -> list[str]:
    prompts = [item["prompt"] for item in items]
    longest = LONGEST[items[0]["kind"]]
    rows = answer_questions(model, tokenizer, prompts, longest, temperature, begin, batch_size=256)
    return [row["completion"] for row in rows]


def _shown(item: dict, answer: str) -> dict:
    asked, right = item["prompt"][-1]["content"], is_right(item, answer)
    return {"prompt": asked, "kind": item["kind"], "completion": answer, "reference": item["reference"], "right": right}


def _measure_texts(model, tokenizer, items: Items, seen: Measures) -> None:
    """Bits per byte as one ratio a text, weighted by its bytes; trigrams of texts sampled from nothing."""
    window = model.config.get_text_config().max_position_embeddings
    bits = [text_nats(model, tokenizer, text, window) / 0.6931471805599453 for text in items.texts]
    sizes = [len(text.encode()) for text in items.texts]
    mean = sum(sizes) / len(sizes)
    seen.outcomes["bits_per_byte"] = [b / mean for b in bits]
    begun = [[tokenizer.bos_token_id]] * min(len(items.texts), 200)
    written = tokenizer.batch_decode(
        generate(model, tokenizer, begun, LONGEST_TEXT, 1.0, batch_size=256), skip_special_tokens=True
    )
    found = [trigrams(text) for text in written]
    seen.outcomes["seen_trigrams"] = [sum(t in items.trigrams for t in some) / len(some) for some in found if some]


def _measure_manner(model, tokenizer, items: Sequence[dict], parent, scorer, seen: Measures) -> None:
    """Sampled answers to questions about stories: preferred or not, their score, their distance from the parent's."""
    prompts = [item["prompt"] for item in items]
    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=True)["input_ids"] for p in prompts]
    done = generate(model, tokenizer, ids, LONGEST["reading"], 1.0, batch_size=256)
    answers = tokenizer.batch_decode(done, skip_special_tokens=True)
    pairs = list(zip(items, answers, strict=True))
    seen.outcomes["preferred"] = [float(styles.is_preferred(a, item["reference"])) for item, a in pairs]
    if scorer is not None:
        turns = [item["prompt"] + [{"role": "assistant", "content": answer}] for item, answer in pairs]
        seen.outcomes["reward_score"] = score_conversations(scorer, tokenizer, turns, batch_size=128)
    if parent is not None:
        ours, theirs = (sequence_log_probs(m, ids, done) for m in (model, parent))
        seen.outcomes["kl_to_parent"] = [a - b for a, b in zip(ours, theirs, strict=True)]


def _measure_reasoning(model, tokenizer, items: Sequence[dict], seen: Measures) -> None:
    """Problems with the form of a worked answer forced, greedy and sampled: what is left is skill, not the form."""
    for name, temperature in (("reasoning_greedy", 0.0), ("reasoning_sampled", 1.0)):
        answers = _ask(model, tokenizer, items, temperature, BEGIN)
        seen.outcomes[name] = [float(is_right(item, a)) for item, a in zip(items, answers, strict=True)]
        if not temperature:
            steps = verifiers.steps(answers, derivation=[item["derivation"] for item in items])
            rights = zip(seen.outcomes[name], steps, strict=True)
            seen.outcomes["derivations"] = [float(right == 1.0 and step == 1.0) for right, step in rights]


def answers_to(model, tokenizer, chats: bool, questions: Sequence[str] = QUESTIONS) -> list[dict]:
    """The glossary's questions answered greedily; a model that does not chat goes on from the bare text."""
    items = [_question(question) for question in questions]
    answers = _ask(model, tokenizer, items) if chats else _continue(model, tokenizer, questions)
    return [_shown(item, answer) for item, answer in zip(items, answers, strict=True)]


def share_continued(model, tokenizer) -> list[float]:
    """For every term 1.0 where a base model, given "What is TERM?" as bare text, does not go on with its definition."""
    texts = _continue(model, tokenizer, [f"What is {term}?" for term in TERMS])
    return [float(not text.strip().startswith(TERMS[term][0])) for term, text in zip(TERMS, texts, strict=True)]


def _continue(model, tokenizer, texts: Sequence[str]) -> list[str]:
    ids = [tokenizer(text)["input_ids"] for text in texts]
    return tokenizer.batch_decode(generate(model, tokenizer, ids, LONGEST["glossary"]), skip_special_tokens=True)


def _question(question: str) -> dict:
    term = next(term for term in TERMS if f" {term}" in question.rstrip("?."))
    return {"prompt": [{"role": "user", "content": question}], "kind": "glossary", "reference": TERMS[term][0]}


def chance(items: Items) -> Measures:
    """What answers without a look at the question score: each item gets the right answer of the one after it.

    Preferred: such an answer in the manners of stage 2. Trigrams: the words of the held-out texts, shuffled.
    """
    seen, draw = Measures(), random.Random("chance")
    for kind in KINDS:
        rows = items.by_kind[kind]
        others = [row["reference"] for row in rows[1:] + rows[:1]]
        seen.outcomes[kind] = [float(is_right(item, other)) for item, other in zip(rows, others, strict=True)]
        if kind == "reading":
            pairs = zip(rows, [styles.styled(other, draw) for other in others], strict=True)
            seen.outcomes["preferred"] = [float(styles.is_preferred(a, row["reference"])) for row, a in pairs]
    for name in ("reasoning_greedy", "reasoning_sampled"):
        seen.outcomes[name] = seen.outcomes["arithmetic"]
    words = [word for text in items.texts for word in text.split()]
    draw.shuffle(words)
    found = trigrams(" ".join(words))
    seen.outcomes["seen_trigrams"] = [float(t in items.trigrams) for t in found]
    return seen


def measure_reward_model(model, tokenizer, number: int) -> Measures:
    """Held-out pairs of every kind, `number` of each: whether the chosen answer scores above the rejected one.

    `off_topic` takes together the kinds that are well styled and answer another question.
    """
    from fourstage.evaluation.reward_model import hits, score_pairs

    seen, draw = Measures(), random.Random("pairs measured")
    for kind in styles.KINDS:
        rows = [preference(draw, held_out=True, kind=kind) for _ in range(number)]
        seen.outcomes[kind] = hits(*score_pairs(model, tokenizer, rows, batch_size=128))
    off_topic = [hit for kind in styles.OFF_TOPIC for hit in seen.outcomes[kind]]
    everything = [hit for kind in styles.KINDS for hit in seen.outcomes[kind]]
    seen.outcomes |= {"off_topic": off_topic, "accuracy": everything}
    return seen


def summary(values: Sequence[float]) -> dict:
    """{"mean", "stderr", "n", "values"}: of one model, over its items."""
    mean = sum(values) / len(values)
    return {"mean": mean, "stderr": standard_error(values), "n": len(values), "values": [mean]}
