"""Questions with answers to choose from, in the shapes that they are published in: one list of texts, one letter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fourstage.verifiers.letters import LETTERS

# The right answer of a multiple choice, as a letter, a label, an index or the text itself; `label` only where alone.
_RIGHT = ("correct", "answerKey", "answer_idx", "answer", "answer_index", "correct_answer", "cop", "label")
_ONE_EACH = (("sol1", "sol2"), ("opa", "opb", "opc", "opd"))  # PIQA, MedMCQA
_DISTRACTORS = ("distractor1", "distractor2", "distractor3")  # SciQ
_LISTS = ("options", "choices", "endings")
_STEMS = ("question_stem", "goal", "ctx")
_TELLING = frozenset((*_LISTS, *(names[0] for names in _ONE_EACH), _DISTRACTORS[0]))
# The columns that the prompt of a multiple choice and its letter replace.
COLUMNS = (*_RIGHT, *_LISTS, *_STEMS, *_DISTRACTORS, *(name for names in _ONE_EACH for name in names), "labels")


@dataclass
class Choices:
    """The texts to choose from, the label of each as published, and the columns that they came from.

    `listed` are the lines of the prompt: "A) seven", or as published where the texts name their letters themselves.
    """

    texts: list[str]
    labels: list[str]
    listed: list[str]
    column: str


def question_of(row: Mapping) -> Mapping:
    """The row with its question in `question`, whichever of the published names it has there.

    Example: {"question": {"stem": "2 + 2?", "choices": [...]}} -> {"question": "2 + 2?", "choices": [...]}.
    """
    nested = row.get("question")
    if isinstance(nested, Mapping):
        if not isinstance(nested.get("stem"), str):
            raise ValueError(
                f"column 'question' holds a mapping of {sorted(nested)}; expected text, or stem and choices"
            )
        return {**row, "question": nested["stem"], "choices": nested.get("choices", row.get("choices"))}
    if row.get("problem") is not None:
        return {**row, "question": row["problem"]}
    if nested is not None or choices_of(row) is None:
        return row
    return {**row, "question": next((row[name] for name in _STEMS if row.get(name) is not None), None)}


def choices_of(row: Mapping) -> Choices | None:
    """What a row lets one choose from; None where it is no multiple choice.

    Raises:
        ValueError: for a column of choices that is not understood, or more choices than there are letters.
    """
    if row.keys().isdisjoint(_TELLING):
        return None
    for column in _LISTS:
        value = row.get(column)
        if value and any(one is not None for one in (value.values() if isinstance(value, Mapping) else value)):
            texts, labels = _read(value, column)
            return _choices(texts, labels or list(map(str, row.get("labels") or [])), column)
    for names in _ONE_EACH:
        if all(row.get(name) is not None for name in names):
            return _choices([row[name] for name in names], [], names[0])
    if all(row.get(name) for name in (*_DISTRACTORS, "correct_answer")):  # sorted, so that the place tells nothing
        return _choices(sorted(row[name] for name in (*_DISTRACTORS, "correct_answer")), [], "distractor1")
    return None


def _read(value: object, column: str) -> tuple[list, list[str]]:
    """(texts, labels) of a list of texts or of mappings, a mapping of labels to texts, or a mapping of two lists."""
    if isinstance(value, Mapping):
        texts, labels = value.get("text"), value.get("label")
        if isinstance(texts, list) and isinstance(labels, list):
            return texts, list(map(str, labels))
        filled = {key: text for key, text in value.items() if text is not None}  # Arrow gives every row all keys
        if all(isinstance(text, str) for text in filled.values()) and not {"text", "label"} & filled.keys():
            return list(filled.values()), list(filled)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if all(type(one) is str for one in value):
            return list(value), []
        if not any(isinstance(one, Mapping) for one in value):
            return list(value), []
        for label, text in (("label", "text"), ("key", "value")):
            if all(isinstance(one, Mapping) and {label, text} <= one.keys() for one in value):
                return [one[text] for one in value], [str(one[label]) for one in value]
    shown = f"a mapping of {sorted(value)}" if isinstance(value, Mapping) else repr(value)[:80]
    raise ValueError(
        f"column {column!r} holds {shown}; expected a list of texts, a mapping of letters to texts, or text and label"
    )


def _choices(texts: Sequence[object], labels: list[str], column: str) -> Choices:
    if not all(type(text) in (str, int, float) for text in texts):
        raise ValueError(f"column {column!r} holds {list(texts)!r:.80}; expected texts")
    if labels and len(labels) != len(texts):
        raise ValueError(f"column {column!r} has {len(texts)} choices and {len(labels)} labels; each needs one")
    if not 2 <= len(texts) <= len(LETTERS):
        raise ValueError(f"column {column!r} has {len(texts)} choices; expected 2 to {len(LETTERS)}")
    written = [str(text) for text in texts]
    begun = written[0].lstrip(" (").startswith(("A)", "A."))
    lettered = begun and all(text.lstrip(" (")[:1] == x for text, x in zip(written, LETTERS, strict=False))
    listed = written if lettered else [f"{x}) {text}" for text, x in zip(written, LETTERS, strict=False)]
    return Choices(written, [label.strip(" ().") for label in labels], listed, column)


def right_letter(row: Mapping, choices: Choices) -> str | None:
    """The letter of the right choice, A for the first; None where the row does not say.

    A label, whatever it is ("1" to "4" in some rows of ARC), is taken before a text that is one of the choices, that
    before a letter, and an index, from 0, last.
    Raises:
        ValueError: for an answer that is none of the choices, and for two columns that name different ones.
    """
    given = {name: row[name] for name in _RIGHT if row.get(name) is not None and row[name] != ""}
    if len(given) > 1:
        given.pop("label", None)
    found = {name: _place(value, choices, name) for name, value in given.items()}
    if len(set(found.values())) > 1:
        first, second = list(found)[0], next(name for name in found if found[name] != list(found.values())[0])
        raise ValueError(
            f"columns {first!r} and {second!r} name different choices, {given[first]!r} and {given[second]!r}; "
            "remove the wrong one"
        )
    return LETTERS[next(iter(found.values()))] if found else None


def _place(value: object, choices: Choices, column: str) -> int:
    whole = isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    text = (str(int(value)) if whole else str(value)).strip()
    short = text.strip(" ().")
    if choices.labels.count(short) == 1:
        return choices.labels.index(short)
    if not whole and choices.texts.count(text) == 1:
        return choices.texts.index(text)
    if short.upper() in LETTERS[: len(choices.texts)] and len(short) == 1:
        return LETTERS.index(short.upper())
    if short.isdecimal() and not choices.labels and int(short) < len(choices.texts):
        return int(short)
    raise ValueError(
        f"column {column!r} holds {value!r:.80}, which is none of the {len(choices.texts)} choices of "
        f"column {choices.column!r}"
    )
