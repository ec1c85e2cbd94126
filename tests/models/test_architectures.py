"""The published table of architectures is what this machine measures."""

import pytest

from benchmarks.architectures import TABLE, Row, measure_all, parse, render
from fourstage.models.sizing import causal_lm_types

pytestmark = pytest.mark.slow


def test_table_round_trip() -> None:
    rows = [Row("llama", 1_000_000, True, True, False, "fused: x"), Row("blt", note="size: y")]
    assert list(parse(render(rows)).values()) == rows


@pytest.mark.timeout(3000)  # about ten minutes on one free core
def test_committed_table_is_what_is_measured() -> None:
    committed = parse(TABLE.read_text(encoding="utf-8"))
    rows = measure_all(causal_lm_types())
    # Notes quote messages of the libraries and may change with their versions; the verdicts may not.
    facts = {row.type: (row.parameters, row.trains, row.reward, row.fused) for row in rows}
    published = {name: (row.parameters, row.trains, row.reward, row.fused) for name, row in committed.items()}
    changed = {name: (published.get(name), facts.get(name)) for name in facts | published}
    assert {name: pair for name, pair in changed.items() if pair[0] != pair[1]} == {}
    assert sum(row.trains for row in rows) >= 60
