"""The columns of converted rows and their types, where the data decides about them."""

from datasets import Dataset, Features, IterableDataset, List, Value

from fourstage.data import formats
from fourstage.data.problems import golds_of
from fourstage.data.sources import Rows, numbered, one_line_errors

INSPECTED_ROWS = 1_000  # of a stream
TURNS = List({"role": Value("string"), "content": Value("string")})


# Keywords of TRL's call of a reward function (1.16), which a column of the data must not be named like.
RESERVED_COLUMNS = (
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)


def kept_features(data: Rows, convert: formats.Convert, name: str) -> Features:
    """The columns of prompts and problems: prompts as turns, answers as text, and what rewards may need as it is.

    The columns are those of the first 1,000 converted rows. One that the conversion leaves alone has the type that it
    has in all of the data, where that is known; a stream's column without a value is taken for text. Columns named like
    a keyword of the reward call are left out, and printed, and so is which of several right answers counts.
    """
    with one_line_errors(name):
        pairs = []
        for index, row in enumerate(data.take(INSPECTED_ROWS)):
            with numbered(name, index):
                pairs.append((row, convert(row)))
    _say_which_counts([raw for raw, row in pairs if isinstance(row, dict) and "answer" in row], name)
    read = [(raw, row) for raw, row in pairs if isinstance(row, dict)] or [({}, {"prompt": []})]
    changed = {key for raw, row in read for key, value in row.items() if value is not raw.get(key)}
    names = list(dict.fromkeys(key for _, row in read for key in row))
    reserved = [key for key in names if key in RESERVED_COLUMNS]
    if reserved:
        print(f"{name}: columns {', '.join(reserved)} are named like arguments of reward functions and left out")
    names = [key for key in names if key not in RESERVED_COLUMNS]
    known = {key: kind for key, kind in (data.features or {}).items() if key in names and key not in changed}
    guessed = [key for key in names if key not in known]
    features = Dataset.from_list([{key: row.get(key) for key in guessed} for _, row in read]).features
    if isinstance(data, IterableDataset):
        known |= {key: Value("string") for key, kind in (features | known).items() if kind == Value("null")}
    texts = {key: Value("string") for key in ("answer", "derivation") if key in features}
    return Features({key: {**features, **known, **texts, "prompt": TURNS}[key] for key in names})


def _say_which_counts(rows: list, name: str) -> None:
    """Prints once where right answers are read, if they also stand elsewhere and are not the same there."""
    for row in rows:
        golds = golds_of(row)
        if len(golds) > 1 and len({str(gold).rpartition("####")[2].strip() for gold in golds.values()}) > 1:
            first, *others = golds
            print(f"{name}: right answers are those of {first!r}; other ones in {', '.join(map(repr, others))}")
            return
