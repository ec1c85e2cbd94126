"""Verifiable rewards: pure functions with TRL's signature, that never execute what a model wrote.

Each takes `completions`, texts or conversations, and columns of the data as keyword lists, and returns one number a
completion, or None where it cannot be scored. They need nothing else of fourstage.
"""

import unicodedata

__all__ = ["exact", "length"]


def exact(completions: list, answer: list, **kwargs) -> list[float | None]:
    """1.0 where the completion is the row's `answer`, apart from case, outer white space and a final full stop.

    Both are compared in Unicode's NFKC form. None where a row has no answer.

    Example: "Paris. " against "paris" -> 1.0; "Paris, France" against it -> 0.0.
    """
    return [
        None if wanted is None else float(_plain(_text(completion)) == _plain(str(wanted)))
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def length(completions: list, limit: int = 400, margin: int = 100, **kwargs) -> list[float]:
    """0.0 up to `limit - margin` characters, falling to -1.0 at `limit` and beyond (DAPO, arXiv 2503.14476, eq. 13).

    Example: limit 400, margin 100: 300 characters -> 0.0, 350 -> -0.5, 500 -> -1.0.
    """
    return [-min(max(len(_text(c)) - (limit - margin), 0) / margin, 1.0) for c in completions]


def _text(completion: str | list[dict]) -> str:
    """A completion's text: TRL hands over text, or a list of turns."""
    return completion if isinstance(completion, str) else "".join(str(turn.get("content", "")) for turn in completion)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip().lower().removesuffix(".").strip()
