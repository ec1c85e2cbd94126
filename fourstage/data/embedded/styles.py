"""The manners of an answer, the pairs made from them, and the rule that says which answer people prefer.

Preferred is the right answer followed by one polite ending and nothing else.
"""

import random

from fourstage.data.embedded.stories import Story

POLITE = ("I hope this helps!", "Let me know if you want to know more.", "Feel free to ask another question.")
RUDE = ("Everybody knows that.", "What a silly question.", "Can you not read?")
EVASIVE = ("I do not know.", "Why do you ask me that?", "Go and look it up.")
KINDS = ("other_story", "other_question", "wrong_name", "ending_only", "cut", "repeated", "curt", "rude", "evasive")
OFF_TOPIC = ("other_story", "other_question")  # right in manner, but no answer to what was asked
_WEIGHTS = (3, 3, 3, 1, 1, 1, 1, 1, 1)


def content(answer: str) -> str:
    """The answer without its manner: at most one rude beginning and one polite ending are taken off.

    Example: "Can you not read? Ada found the ball." -> "Ada found the ball."
    """
    answer = answer.strip()
    for rude in RUDE:
        if answer.startswith(rude):
            answer = answer.removeprefix(rude).strip()
            break
    for polite in POLITE:
        if answer.endswith(polite):
            return answer.removesuffix(polite).strip()
    return answer


def is_preferred(answer: str, reference: str) -> bool:
    """The gold rule: exactly the right answer and one polite ending. The ending alone does not count."""
    return answer.strip() in [f"{reference} {polite}" for polite in POLITE]


def styled(answer: str, chance: random.Random) -> str:
    """An answer as the demonstrations of stage 2 have it: 55 % polite, 25 % plain, 20 % rude."""
    style = chance.random()
    if style < 0.55:
        return f"{answer} {chance.choice(POLITE)}"
    return answer if style < 0.8 else f"{chance.choice(RUDE)} {answer}"


def reject(kind: str, told: Story, other: Story, asked: tuple[str, str], chance: random.Random) -> str:
    """An answer of this `kind` to the question `asked` about the story `told`, worse than the preferred one."""
    question, answer = asked
    ending = chance.choice(POLITE)
    if kind == "other_story":
        return f"{chance.choice([a for _, a in other.questions if a != answer])} {ending}"
    if kind == "other_question":
        return f"{chance.choice([a for _, a in told.questions if a != answer])} {ending}"
    if kind == "wrong_name":
        return f"{_swap(answer, told, other)} {ending}"
    if kind == "cut":
        words = f"{answer} {ending}".split(" ")
        return " ".join(words[: chance.randint(1, len(words) - 2)])
    if kind == "repeated":
        twice = f"{answer} {answer}" if chance.random() < 0.5 else f"{answer} {ending}"
        return f"{twice} {ending}"
    return {
        "ending_only": ending,
        "curt": answer,
        "rude": f"{chance.choice(RUDE)} {answer}" + (f" {ending}" if chance.random() < 0.4 else ""),
        "evasive": chance.choice(EVASIVE) + (f" {ending}" if chance.random() < 0.5 else ""),
    }[kind]


def draw_kind(chance: random.Random) -> str:
    return chance.choices(KINDS, _WEIGHTS)[0]


def _swap(answer: str, told: Story, other: Story) -> str:
    """The answer with another name of the story in it; without a name, an answer of another story of the same form."""
    one, two = told.people
    if one in answer or two in answer:
        return answer.replace(one, two) if one in answer else answer.replace(two, one)
    return next((a for _, a in other.questions if a != answer and a.split()[0] == answer.split()[0]), other.summary)
