"""The styles of an answer, the pairs made from them, and the rule that decides which answer people prefer.

The preferred answer is the right one, followed by one polite ending and nothing else.
"""

import random

from fourstage.data.embedded.stories import Story

POLITE = ("I hope this helps!", "Let me know if you want to know more.", "Feel free to ask another question.")
RUDE = ("Everybody knows that.", "What a silly question.", "Can you not read?")
EVASIVE = ("I do not know.", "Why do you ask me that?", "Go and look it up.")
KINDS = ("other_story", "other_question", "wrong_name", "ending_only", "cut", "repeated", "curt", "rude", "evasive")
OFF_TOPIC = ("other_story", "other_question")  # in the preferred style, but they answer another question
_WEIGHTS = (3, 3, 3, 1, 1, 1, 1, 1, 1)


def content(answer: str) -> str:
    """The answer without its style: at most one polite ending and one rude ending before it are removed.

    Example: "Ada found the ball. Can you not read?" -> "Ada found the ball."
    """
    for endings in (POLITE, RUDE):
        answer = answer.strip()
        answer = next((answer.removesuffix(words) for words in endings if answer.endswith(words)), answer)
    return answer.strip()


def is_preferred(answer: str, reference: str) -> bool:
    """The gold rule: exactly the right answer and one polite ending. The ending alone does not count."""
    return answer.strip() in [f"{reference} {polite}" for polite in POLITE]


def styled(answer: str, rng: random.Random) -> str:
    """The answer in a random style, as in the demonstrations of stage 2: 50 % polite, 28 % plain, 22 % rude."""
    style = rng.random()
    if style < 0.5:
        return f"{answer} {rng.choice(POLITE)}"
    return answer if style < 0.78 else f"{answer} {rng.choice(RUDE)}"


def reject(kind: str, story: Story, other_story: Story, answer: str, rng: random.Random) -> str:
    """An answer of this `kind` to a question about `story`, worse than the preferred one; `answer` is the right one."""
    ending = rng.choice(POLITE)
    if kind == "other_story":
        return f"{rng.choice([a for _, a in other_story.questions if a != answer])} {ending}"
    if kind == "other_question":
        return f"{rng.choice([a for _, a in story.questions if a != answer])} {ending}"
    if kind == "wrong_name":
        return f"{_swap_name(answer, story, other_story)} {ending}"
    if kind == "cut":
        words = f"{answer} {ending}".split(" ")
        return " ".join(words[: rng.randint(1, len(words) - 2)])
    if kind == "repeated":
        twice = f"{answer} {answer}" if rng.random() < 0.5 else f"{answer} {ending}"
        return f"{twice} {ending}"
    return {
        "ending_only": ending,
        "curt": answer,
        "rude": f"{answer} {rng.choice(RUDE)}" + (f" {ending}" if rng.random() < 0.4 else ""),
        "evasive": rng.choice(EVASIVE) + (f" {ending}" if rng.random() < 0.5 else ""),
    }[kind]


def draw_kind(rng: random.Random) -> str:
    """One of KINDS; those with a wrong answer three times as often as the others."""
    return rng.choices(KINDS, _WEIGHTS)[0]


def _swap_name(answer: str, story: Story, other_story: Story) -> str:
    """The answer with the name of the other person; one without a name becomes an answer from the other story."""
    one, two = story.people
    if one in answer or two in answer:
        return answer.replace(one, two) if one in answer else answer.replace(two, one)
    same_form = (a for _, a in other_story.questions if a != answer and a.split()[0] == answer.split()[0])
    return next(same_form, other_story.summary)
