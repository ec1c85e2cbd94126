"""The table of chat templates in docs/elsewhere.md is what TRL's SFTTrainer makes of the rows today."""

from pathlib import Path

from benchmarks.chat_templates import SHAPES, TEMPLATES, lines

PAGE = Path(__file__).parents[2] / "docs" / "elsewhere.md"


def test_the_table_is_what_is_trained_on():
    table = lines()
    assert len(table) == 2 + len(TEMPLATES) * len(SHAPES)
    assert "\n".join(table) in PAGE.read_text(encoding="utf-8"), "python benchmarks/chat_templates.py prints it anew"
