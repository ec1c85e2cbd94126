"""Text from anywhere on a terminal: what the terminal would obey is written out instead."""

import re

# C0 and C1 but tab and line feed, marks that turn the direction of text, line separators, lone surrogates.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    """The text with what a terminal would obey written out: ESC becomes `\\x1b`, a carriage return `\\r`."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
