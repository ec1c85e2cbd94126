"""Procedural tasks: reasoning-gym (extra `tasks`) generates any number of questions and computes their answers.

Only the generators of reasoning-gym (arXiv 2505.24760) are used. Its scorers are never called, since several of them
execute what a model wrote; `TASKS` names the verifier of each task.

A task is included if its answers agree with a computation of our own (tests/data/test_reasoning_gym.py), and if it has
a single right answer or a verifier that accepts all of them. Left out are, for instance, number_sequence (one question,
two answers), coin_flip, decimal_arithmetic and power_function (rounded), number_format (its candidates are printed
rounded), simple_geometry ("convex", angles over 180), puzzle24 (may never end), yes-or-no questions (half of all
guesses are right) and long grids. In basic_arithmetic, 1 % of the answers with `/` are wrong, and most of those without
parentheses, so both settings are fixed. Making a row takes 0.01 to 1 ms, a row of countdown 20 ms (1 s at the third
level of its curriculum).
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator
from types import ModuleType

TASKS = {
    "base_conversion": "exact",
    "basic_arithmetic": "number",
    "chain_sum": "number",
    "count_bits": "number",
    "count_primes": "number",
    "countdown": "countdown",
    "decimal_chain_sum": "number",
    "dice": "number",
    "gcd": "number",
    "lcm": "number",
    "letter_counting": "number",
    "products": "number",
    "simple_equations": "number",
    "spell_backward": "exact",
    "word_sequence_reversal": "exact",
}
_FIXED = {"basic_arithmetic": {"operators": ("+", "-", "*"), "allow_parentheses": True}}
_NOT_SETTINGS = {"seed", "size", "data_file"}
_TRIES = 50  # questions generated for each row, before the task counts as having too few


def task_rows(
    name: str, size: int, seed: int, levels: int | list[dict] | None = None, **settings: object
) -> list[dict]:
    """Rows with `question` and `answer`, both text; those of countdown also have `nums` and `target`. Rows may repeat.

    Args:
        name: one of `TASKS`.
        size: number of rows.
        seed: the same seed gives the same rows; another gives different ones, as far as the task has any.
        levels: a curriculum, from easy to hard, in equal parts: the settings of each level, or the number of levels to
            take from reasoning-gym's own curriculum. `settings` apply to all levels, but those of a list win.
        settings: fields of the task's own configuration, such as min_terms and max_digits of chain_sum.
    Example: task_rows("chain_sum", 2, 0, max_digits=1, levels=[{"max_terms": 2}, {"min_terms": 3, "max_terms": 3}])
        -> a sum of two digits, and one of three: {"question": "State the final ... problem: 5 + 4 =", "answer": "9"}.
    Raises:
        ValueError: for an unknown task or setting, settings that contradict each other, or no reasoning-gym.
    """
    return _rows(name, size, f"rows {seed}", {"levels": levels, **settings}, set(), distinct=False)


def task_split(name: str, size: int, held_out: int, seed: int, settings: dict | None = None) -> tuple[list, list]:
    """(training rows, held-out rows), made as by `task_rows`; `settings` may contain `levels`.

    Held-out rows are made first, and all differ. No training row has one of their questions; training rows may repeat.

    Raises:
        ValueError: as in `task_rows`, and if the task has too few different questions.
    """
    held_out_questions: set[str] = set()
    test = _rows(name, held_out, f"held out {seed}", settings or {}, held_out_questions, distinct=True)
    return _rows(name, size, f"rows {seed}", settings or {}, held_out_questions, distinct=False), test


def _rows(name: str, size: int, seed: str, settings: dict, excluded: set[str], distinct: bool) -> list[dict]:
    """`size` rows, in equal parts from each level, in the order of the levels."""
    levels = _levels(name, settings.get("levels"), {key: settings[key] for key in settings.keys() - {"levels"}})
    rows: list[dict] = []
    for i, level in enumerate(levels):
        # reasoning-gym makes row i of seed s from s + i: neighbouring seeds would share nearly all of their rows
        start = random.Random(f"{name} {seed} {i}").getrandbits(62)
        part = size // len(levels) + (i < size % len(levels))
        rows += _take(_endless(name, level, start), part, excluded, distinct)
    return rows


def _levels(name: str, levels: int | list[dict] | None, settings: dict) -> list[dict]:
    """The settings of each level."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r} of reasoning-gym here; choose one of {', '.join(TASKS)}")
    if levels is None:
        return [settings]
    if isinstance(levels, list) and levels and all(isinstance(level, dict) for level in levels):
        return [settings | level for level in levels]
    if isinstance(levels, int) and not isinstance(levels, bool) and levels > 0:
        return [level | settings for level in _own_levels(name, levels)]
    raise ValueError(
        f"levels={levels!r} of task {name}: expected a number of levels, or a list with the settings of each"
    )


def _own_levels(name: str, count: int) -> list[dict]:
    """The settings of the first `count` levels of the task's own curriculum, without the ranges of lower levels."""
    factory = _reasoning_gym()
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode

    curriculum, context = factory.create_curriculum(name), DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
    highest = max(len(attribute.levels) for attribute in curriculum.attributes.values())
    if count > highest:
        raise ValueError(f"levels={count}: the curriculum of {name} has {highest}; give at most as many, or a list")
    levels = []
    for level in range(count):
        curriculum.set_global_level(level)
        config = curriculum.generate_configuration(context=context)
        levels.append({field: getattr(config, field) for field in _fields(name)})
    return levels


def _fields(name: str) -> list[str]:
    """The names of a task's settings."""
    fields = dataclasses.fields(_reasoning_gym().DATASETS[name][1])
    return [field.name for field in fields if field.name not in _NOT_SETTINGS | _FIXED.get(name, {}).keys()]


def _endless(name: str, settings: dict, start: int) -> Iterator[dict]:
    """Rows of one level, without end. Unusable items are skipped; 20 in a row mean that the settings are at fault."""
    unknown = settings.keys() - {*_fields(name)}
    if unknown:
        raise ValueError(f"task {name} has no setting {', '.join(sorted(unknown))}; it has {', '.join(_fields(name))}")
    failures = 0
    try:
        dataset = _reasoning_gym().create_dataset(name, seed=start, size=2**31, **settings, **_FIXED.get(name, {}))
        for index in itertools.count():
            try:
                row = _row(name, dataset[index])
            except ValueError:
                failures += 1
                if failures == 20:
                    raise
            else:
                failures = 0
                yield row
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"settings {settings} of task {name} do not work; change them: {error}") from error


def _row(name: str, item: dict) -> dict:
    """The row of an item; raises ValueError for one that is unusable."""
    if item["metadata"].get("decimal_value") == 0:
        raise ValueError("base_conversion writes 0 without digits")
    row = {"question": item["question"].strip(), "answer": item["answer"]}
    if TASKS[name] != "countdown":
        return row
    if item["answer"].startswith("-") or "(-" in item["answer"]:
        raise ValueError("its solution has a signed number, as in -4 + 9 * 3, which the verifier does not accept")
    return row | {"nums": item["metadata"]["numbers"], "target": item["metadata"]["target"]}


def _take(rows: Iterator[dict], count: int, excluded: set[str], distinct: bool) -> list[dict]:
    """`count` rows without an excluded question; if `distinct`, their questions are added to `excluded`."""
    chosen: list[dict] = []
    for row in itertools.islice(rows, _TRIES * count):
        if row["question"] not in excluded:
            chosen.append(row)
            if distinct:
                excluded.add(row["question"])
        if len(chosen) == count:
            return chosen
    if count:
        kind = "different rows" if distinct else "rows"
        raise ValueError(
            f"the task has too few questions: only {len(chosen)} of {count} {kind} that are not held out yet; "
            "request fewer rows, or widen its settings"
        )
    return chosen


def _reasoning_gym() -> ModuleType:
    """reasoning_gym.factory. Its import takes seconds, since it brings in all of the 106 tasks."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ValueError('tasks need reasoning-gym; try: pip install "fourstage[tasks]"') from error
    return factory
