"""Digits with separators and exponents: how they are found in a text, and what they are worth."""

import re
from fractions import Fraction

DIGITS = 100  # the most digits that a number may have
EXPONENT = 100  # the largest power of ten, positive or negative, as in 1.2e5


# It begins with a digit, so that no text is scanned twice; `lump` decides whether it is a number.
NUMBER = r"(?<![\w.])\.\d+|\d(?:[\d,.:\u2009]*\d)?(?:[eE][+-]?\d{1,3}(?!\w))?"
_LUMP = re.compile(r"(\d{1,3}(?:,\d{3})+|\d{1,3}(?:\u2009\d{3})+|\d+|(?=\.\d))(\.\d+)?(?:[eE]([+-]?\d{1,3}))?")


def lump(text: str) -> Fraction | None:
    """The value of digits with separators and exponent; None where they are not a number, as in 1,23, 2:30 or 1.2.3.

    Commas or thin spaces separate thousands: at most three digits before the first separator, three after each.
    """
    parts = _LUMP.fullmatch(text)
    if not parts or not text or len(text) > 2 * DIGITS or sum(c.isdigit() for c in text) > DIGITS:
        return None
    if parts[3] and abs(int(parts[3])) > EXPONENT:
        return None
    return Fraction(text.replace(",", "").replace("\u2009", ""))
