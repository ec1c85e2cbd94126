"""Procedural tasks: questions whose right answers are computed, made without end by reasoning-gym (extra `tasks`).

reasoning-gym (arXiv 2505.24760) only makes them. Its scorers are never called, since several evaluate what a model
wrote; `TASKS` names the verifier of each task.

A task is here if its answers agree with a computation of our own (tests/data/test_reasoning_gym.py) and there is one
right answer, or a verifier that knows them all. Left out, for instance: number_sequence (one question, two answers),
coin_flip, decimal_arithmetic, power_function (rounded), number_format (candidates printed rounded), simple_geometry
("convex", angles over 180), puzzle24 (need not end), yes and no questions (a guess is half right), and long grids. In
basic_arithmetic one answer in 100 with `/` is wrong, and most without parentheses: neither can be chosen. A row takes
0.01 to 1 ms to make, one of countdown 20 (1 s at the third level of its curriculum).
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

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
_TRIES = 50  # questions made for each one wanted, before a task counts as out of questions


def task_rows(name: str, size: int, seed: int, levels: int | list[dict] | None = None, **settings) -> list[dict]:
    """Rows with `question` and `answer`, both text; for countdown also `nums` and `target`. Questions may repeat.

    Args:
        name: one of `TASKS`.
        size: number of rows.
        seed: the same rows each time; rows of another seed are others, as far as the task has others.
        levels: a curriculum, from easy to hard, in equal parts: settings for each level, or how many levels of
            reasoning-gym's own curriculum of that task. `settings` hold at all levels, unless a list says otherwise.
        settings: fields of the task's own configuration, such as min_terms and max_digits of chain_sum.
    Example: task_rows("chain_sum", 2, 0, max_digits=1, levels=[{"max_terms": 2}, {"min_terms": 3, "max_terms": 3}])
        -> a sum of two digits, and one of three: {"question": "State the final ... problem: 5 + 4 =", "answer": "9"}.
    Raises:
        ValueError: for an unknown task or setting, settings that contradict each other, or no reasoning-gym.
    """
    return _rows(name, size, f"rows {seed}", {"levels": levels, **settings}, set(), distinct=False)


def task_split(name: str, size: int, held_out: int, seed: int, settings: dict | None = None) -> tuple[list, list]:
    """(training rows, held-out rows), as `task_rows` makes them; `settings` may have `levels`.

    Held-out rows are made first, each question once. No training row asks one of them; training rows may repeat.

    Raises:
        ValueError: as `task_rows`, and if the task runs out of different questions.
    """
    taken: set[str] = set()
    test = _rows(name, held_out, f"held out {seed}", settings or {}, taken, distinct=True)
    return _rows(name, size, f"rows {seed}", settings or {}, taken, distinct=False), test


def _rows(name: str, size: int, seed: str, settings: dict, taken: set[str], distinct: bool) -> list[dict]:
    """Equal parts of the levels, in their order."""
    levels = _levels(name, settings.get("levels"), {key: settings[key] for key in settings.keys() - {"levels"}})
    found: list[dict] = []
    for i, level in enumerate(levels):
        # reasoning-gym makes row i of seed s from s + i: neighbouring seeds would share nearly all of their rows
        start = random.Random(f"{name} {seed} {i}").getrandbits(62)
        part = size // len(levels) + (i < size % len(levels))
        found += _take(_endless(name, level, start), part, taken, distinct)
    return found


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
    raise ValueError(f"levels={levels!r} of task {name}: want a number of levels, or a list of settings for each")


def _own_levels(name: str, count: int) -> list[dict]:
    """Settings of the first levels of the task's curriculum, each without what the level below asked."""
    factory = _reasoning_gym()
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode

    curriculum, context = factory.create_curriculum(name), DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
    highest = max(len(attribute.levels) for attribute in curriculum.attributes.values())
    if count > highest:
        raise ValueError(f"levels={count}: the curriculum of {name} has {highest}; give as many at most, or a list")
    found = []
    for level in range(count):
        curriculum.set_global_level(level)
        config = curriculum.generate_configuration(context=context)
        found.append({field: getattr(config, field) for field in _fields(name)})
    return found


def _fields(name: str) -> list[str]:
    """The settings of a task."""
    fields = dataclasses.fields(_reasoning_gym().DATASETS[name][1])
    return [field.name for field in fields if field.name not in _NOT_SETTINGS | _FIXED.get(name, {}).keys()]


def _endless(name: str, settings: dict, start: int) -> Iterator[dict]:
    """Rows of one level; some items of reasoning-gym are no use, but if 20 on end are, the settings are at fault."""
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
    """The row of an item; raises ValueError for one that is no use."""
    if item["metadata"].get("decimal_value") == 0:
        raise ValueError("in base_conversion 0 has no digits")
    row = {"question": item["question"].strip(), "answer": item["answer"]}
    if TASKS[name] != "countdown":
        return row
    if item["answer"].startswith("-") or "(-" in item["answer"]:
        raise ValueError("its solution has a sign, as in -4 + 9 * 3, which is no use of + - * /")
    return row | {"nums": item["metadata"]["numbers"], "target": item["metadata"]["target"]}


def _take(rows: Iterator[dict], count: int, taken: set[str], distinct: bool) -> list[dict]:
    """That many rows whose question is not taken; with `distinct`, it then is."""
    found: list[dict] = []
    for row in itertools.islice(rows, _TRIES * count):
        if row["question"] not in taken:
            found.append(row)
            taken |= {row["question"]} if distinct else set()
        if len(found) == count:
            return found
    if count:
        raise ValueError(
            f"the task has too few questions: only {len(found)} of {count} {'different ' if distinct else ''}rows that "
            "are not held out yet; ask for fewer rows, or widen its settings"
        )
    return found


def _reasoning_gym():
    """reasoning_gym.factory; takes seconds to import, since all of its 106 tasks come with it."""
    try:
        from reasoning_gym import factory
    except ImportError as error:
        raise ValueError('tasks need reasoning-gym; try: pip install "fourstage[tasks]"') from error
    return factory
