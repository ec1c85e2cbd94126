"""How numbers are written on the page. A dash stands for a number that is missing or not finite."""

import math

DASH = "–"


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def mean_of(row: dict | None, key: str) -> float | None:
    """The mean of a metric in a row of the stage table, or None."""
    metric = (row or {}).get("metrics", {}).get(key)
    return finite(metric.get("mean")) if isinstance(metric, dict) else None


def value(number: object, percent: bool = False) -> str:
    """A share in percent, 0.8812 -> "88.1 %", or a number with one to three decimals: 1.234, 12.34, 123.4."""
    known = finite(number)
    if known is None:
        return DASH
    return f"{_fixed(100 * known, 1)} %" if percent else _fixed(known, _decimals(known))


def points(share: float) -> str:
    """A difference of shares: 0.123 -> "12.3 points"."""
    return f"{_fixed(100 * share, 1)} points"


def with_error(metric: object, percent: bool) -> str:
    """A mean with its standard error: {"mean": 0.8812, "stderr": 0.0123} in percent -> "88.1 % ± 1.2"."""
    if not isinstance(metric, dict):
        return DASH
    mean, stderr = finite(metric.get("mean")), finite(metric.get("stderr"))
    if mean is None or stderr is None:
        return value(mean, percent)
    spread = _fixed(100 * stderr, 1) if percent else _fixed(stderr, _decimals(mean))
    return f"{value(mean, percent)} ± {spread}"


def count(number: object) -> str:
    """1234567 -> "1.23M"; 12345 -> "12,345"."""
    known = finite(number)
    if known is None:
        return DASH
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(known) >= size:
            return f"{known / size:.3g}{letter}"
    return f"{known:,.0f}"


def duration(seconds: object) -> str:
    """45.2 -> "45 s"; 540 -> "9.0 min"; 7200 -> "2.0 h"."""
    known = finite(seconds)
    if known is None:
        return DASH
    if known < 90:
        return f"{known:.0f} s"
    return f"{known / 60:.1f} min" if known < 5400 else f"{known / 3600:.1f} h"


def operations(flops: object) -> str:
    """2.35e13 -> "2.4e13"."""
    known = finite(flops)
    return DASH if not known else f"{known:.1e}".replace("e+", "e")


def short(setting: object) -> str:
    """The value of a setting: 0.0003 -> "0.0003", 1e-05 -> "1e-05", ["a", "b"] -> "a, b"."""
    if isinstance(setting, list):
        return ", ".join(short(item) for item in setting)
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def _decimals(number: float) -> int:
    if abs(number) < 10:
        return 3
    return 2 if abs(number) < 100 else 1


def _fixed(number: float, decimals: int) -> str:
    """The number with a true minus sign, and without one if it rounds to zero."""
    text = f"{number:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")
