"""What of a conversation still fits into a model's context, as token ids."""

from fourstage.speaking import Speaker, chat_ids, text_ids


def fit_turns(
    speaker: Speaker, system: list[dict], turns: list[dict], longest: int, since: int = 0
) -> tuple[list[int], int]:
    """Ids of a conversation that ends with a question, and from which turn on (at least `since`) they hold it.

    If the context is full, the oldest questions are left out with their answers; room for an answer stays free: a
    quarter of the context, at most `longest` tokens.
    Raises:
        ValueError: if the last question alone does not fit, or the chat template refuses the turns.
    """
    room = speaker.context - _least_room(speaker, longest)
    while True:
        ids = chat_ids(speaker, [*system, *turns[since:]])
        if len(ids) <= room or since >= len(turns) - 1:
            break
        since = min(since + 2, len(turns) - 1)
    if len(ids) >= speaker.context:
        raise ValueError(f"{len(ids)} tokens do not fit into the context of {speaker.context}; shorten the text")
    return ids, since


def fit_text(speaker: Speaker, text: str, longest: int) -> tuple[list[int], int]:
    """Ids of bare text, and how many of its first tokens were left out because the context is full."""
    ids, room = text_ids(speaker, text), speaker.context - _least_room(speaker, longest)
    return ids[-room:], max(len(ids) - room, 0)


def _least_room(speaker: Speaker, longest: int) -> int:
    return min(longest, speaker.context // 4)
