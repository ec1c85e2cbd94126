"""Verifiers against answers that were labelled by hand, as a careful person would grade them.

The first set, 306 answers, was written before the verifiers were; they were then mended to agree with it. So it says
what they accept, not how often they err. The second set, 118, was written after that and before they were run on it:
104 of them agreed at once. The third, 150, was written by somebody who had not read the code: 113 agreed at once, and
137 (44, 49 and 44 of 50 for number, math and choice) once the verifiers had been mended without sight of it. All are
harder than what models usually write. Verifiers may move any of these figures: a new disagreement fails here, and so
does one that is gone, until it is written down.
"""

import json
from pathlib import Path

import pytest

from fourstage import verifiers

DATA = Path(__file__).parent
VERIFIERS = ("number", "math", "choice", "exact", "countdown")
# (verifier, right answer, completion): why the two differ, and who is right.
FIRST: dict[tuple[str, str, str], str] = {}
SECOND = {
    ("number", "19", "19 19 19 19 19 19 19 19"): "rewarding a loop would teach loops: verifier",
    ("choice", "B", "B B B B"): "rewarding a loop would teach loops: verifier",
}
THIRD = {
    ("math", "\\text{Tuesday}", "100 = 14 \u00b7 7 + 2, so 100 days after a Sunday it is a **Tuesday**."): (
        "a word in bold at the end of a sentence: label"
    ),
    (
        "choice",
        "C",
        "I would eliminate A and D right away. Between B and C, C fits better because the author's tone is ironic.",
    ): "two are named in the same breath: label",
}
SETS = {
    "labelled_answers.jsonl": FIRST,
    "labelled_answers_second.jsonl": SECOND,
    "labelled_answers_third.jsonl": THIRD,
}


def labelled(file):
    return [json.loads(line) for line in (DATA / file).read_text().splitlines()]


def disagreements(rows):
    """Rows whose reward is not the label's, one batch for each verifier."""
    if not rows:
        return []
    columns = ("nums", "target") if rows[0]["verifier"] == "countdown" else ("answer",)
    function = getattr(verifiers, rows[0]["verifier"])
    rewards = function([row["completion"] for row in rows], **{name: [row[name] for row in rows] for name in columns})
    return [row for row, reward in zip(rows, rewards, strict=True) if reward != float(row["right"])]


def key(row):
    return row["verifier"], row.get("answer", str(row.get("target"))), row["completion"]


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("file", SETS)
def test_disagreements_are_those_written_down(file, verifier):
    if verifier == "math":
        pytest.importorskip("math_verify", reason='pip install "fourstage[math]"')
    rows = [row for row in labelled(file) if row["verifier"] == verifier]
    found = {key(row) for row in disagreements(rows)}
    known = {entry for entry in SETS[file] if entry[0] == verifier}
    assert found - known == set(), "new"
    assert known - found == set(), "gone: take it off the list"
    if file == "labelled_answers.jsonl":
        assert len(found) <= 0.02 * len(rows)


def test_the_labels_are_many_mixed_and_not_twice_the_same():
    rows = labelled("labelled_answers.jsonl")
    assert len(rows) >= 300 and {row["verifier"] for row in rows} == {*VERIFIERS}
    assert 0.4 <= sum(not row["right"] for row in rows) / len(rows) <= 0.5
    everything = [json.dumps({**row, "note": ""}) for file in SETS for row in labelled(file)]
    assert len(set(everything)) == len(everything)
