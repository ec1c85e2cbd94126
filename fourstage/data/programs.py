"""Rows whose right answer is a program that passes tests: `prompt`, `tests`, and maybe `setup` and `solution`.

What they are for is the reward function `python_tests` (`fourstage.confined`).
"""

from collections.abc import Mapping

from fourstage.data import formats

_TASK = "Write a Python program for this task:\n\n{task}\n\nIt must pass these tests:\n\n```python\n{tests}\n```"
_COMPLETE = "Complete this Python function:\n\n```python\n{start}\n```"


def program_row(row: Mapping) -> dict | None:
    """`{"prompt": [...], "tests": [...], ...}` of a row with tests, as `formats.prompt_row`; None for any other row.

    Reads MBPP (`text` or `prompt`, `code`, `test_list`, `test_setup_code` or `test_imports`), HumanEval (`prompt`,
    `canonical_solution`, `test`, `entry_point`), and rows with a prompt and `tests`, one text or a list, but no
    `answer`.

    Example: {"prompt": "Double x.", "code": "def double(x): return 2 * x", "test_list": ["assert double(2) == 4"]} ->
        a prompt that shows the test, "tests": ["assert double(2) == 4"], "solution": "def double(x): return 2 * x".
    """
    if row.get("tests") is not None and row.get("answer") is None:
        return formats.prompt_row(row)
    if row.get("test_list") is not None and (row.get("text") is not None or row.get("prompt") is not None):
        return _mbpp(row)
    if row.get("test") is not None and row.get("entry_point") is not None:
        return _human_eval(row)
    return None


def _mbpp(row: Mapping) -> dict | None:
    tests = list(row["test_list"])
    task = row["text"] if row.get("text") is not None else row.get("prompt")
    asked = formats.prompt_row({"prompt": _TASK.format(task=str(task).strip(), tests="\n".join(tests))})
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or [])
    return asked and {**asked, "tests": tests, "setup": setup, "solution": row.get("code")}


def _human_eval(row: Mapping) -> dict | None:
    start = row["prompt"]
    asked = formats.prompt_row({"prompt": _COMPLETE.format(start=start.strip())})
    imports = [line for line in start.splitlines() if line.startswith(("import ", "from "))]
    solution = start + row["canonical_solution"] if row.get("canonical_solution") is not None else None
    test = f"{row['test']}\ncheck({row['entry_point']})"
    return asked and {**asked, "tests": [test], "setup": "\n".join(imports), "solution": solution}
