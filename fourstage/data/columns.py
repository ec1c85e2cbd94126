"""The columns of converted rows and their types, where the data decides about them."""

from datasets import Dataset, Features, List, Value

from fourstage.data import formats
from fourstage.data.sources import Rows, numbered, one_line_errors

INSPECTED_ROWS = 1_000  # of a stream
TURNS = List({"role": Value("string"), "content": Value("string")})


def prompt_features(data: Rows) -> Features:
    """Prompts as turns; the columns that rewards may need keep their types."""
    types = data.features or Dataset.from_list(list(data.take(INSPECTED_ROWS))).features
    replaced = formats.ASKING_COLUMNS + formats.ANSWERED_COLUMNS
    return Features({"prompt": TURNS, **{name: kind for name, kind in types.items() if name not in replaced}})


def problem_features(data: Rows, convert: formats.Convert, name: str) -> Features:
    """Prompts as turns, answers as text, and every other column with its type in the first 1,000 rows."""
    with one_line_errors(name):
        converted = []
        for index, row in enumerate(data.take(INSPECTED_ROWS)):
            with numbered(name, index):
                converted.append(convert(row))
    problems = [row for row in converted if isinstance(row, dict)] or [{"prompt": []}]
    names = list(dict.fromkeys(key for row in problems for key in row))
    columns = Dataset.from_list([{key: row.get(key) for key in names} for row in problems]).features
    texts = {key: Value("string") for key in ("answer", "derivation") if key in columns}
    return Features({**columns, **texts, "prompt": TURNS})
