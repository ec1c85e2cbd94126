"""Short stories, questions that their text answers, and one-sentence summaries.

A story is held out by the pair of its main person and thing (a fifth of all pairs, by a hash) and by its wording (one
of four openings of each plot): no text of training has such a pair or such an opening.
"""

import hashlib
import random
from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    """The words of a text, in their order: `words("cat dog")` is ("cat", "dog")."""
    return tuple(text.split())


NAMES = words(
    "Ada Ben Cleo Dan Elsa Finn Greta Hugo Ines Jon Kim Lea Max Nora Omar Pia Rosa Sam Tina Uma Vera Will "
    "Yara Zoe Amy Bob Carl Dora Eric Faye Gus Hana Ian Jill Kurt Lola"
)
THINGS = words(
    "ball book kite lamp drum boat bell basket coin map rope spoon hat box cup key shell ring toy stone "
    "clock brush scarf pen"
)
ANIMALS = words("cat dog bird rabbit fox duck pony mouse turtle frog goat hen")
COLOURS = words("red blue green yellow white black brown grey")
PLACES = words("park garden forest school kitchen market river castle beach library farm bridge station museum")
FOODS = words("apples pears cakes plums nuts eggs carrots beans grapes lemons")
MOODS = words("happy proud tired calm brave sad glad worried")
WEATHER = words("sunny rainy windy cold warm cloudy")


@dataclass(frozen=True)
class Story:
    """A story, its questions each with its answer (a whole sentence), its summary, and the names of its two people."""

    text: str
    questions: tuple[tuple[str, str], ...]
    summary: str
    people: tuple[str, str]


def is_held_out(*key: str, share: float = 0.2) -> bool:
    """Whether a combination of words is held out: decided by a hash, and so the same on every machine."""
    return int.from_bytes(hashlib.sha256(" ".join(key).encode()).digest()[:4]) / 2**32 < share


def story(rng: random.Random, held_out: bool) -> Story:
    """A random story with one of four plots; its pair and its wording are held out, or are not, as `held_out` says."""
    plot = rng.choice((_thing_found, _thing_lost, _animal_helped, _party))
    while True:
        one, two = rng.sample(NAMES, 2)
        thing = rng.choice(ANIMALS if plot is _animal_helped else THINGS)
        if is_held_out(one, thing) == held_out:
            return plot(rng, (one, two), thing, held_out)


def _opening(rng: random.Random, held_out: bool, *openings: str) -> str:
    """One of the openings; the last one is held out."""
    return openings[-1] if held_out else rng.choice(openings[:-1])


def _thing_found(rng: random.Random, people: tuple[str, str], thing: str, held_out: bool) -> Story:
    one, two = people
    colour, place = rng.choice(COLOURS), rng.choice(PLACES)
    weather, mood = rng.choice(WEATHER), rng.choice(MOODS)
    opening = _opening(
        rng,
        held_out,
        f"One {weather} day, {one} went to the {place}.",
        f"It was a {weather} day, and {one} was at the {place}.",
        f"{one} was at the {place} on a {weather} day.",
        f"On a {weather} day {one} walked to the {place}.",
    )
    text = f"{opening} There {one} found a {colour} {thing}. {one} gave the {thing} to {two}, and {two} was {mood}."
    questions = (
        (f"Who found the {thing}?", f"{one} found the {thing}."),
        (f"Who got the {thing}?", f"{two} got the {thing}."),
        (f"What colour was the {thing}?", f"The {thing} was {colour}."),
        (f"Where was {one}?", f"{one} was at the {place}."),
        (f"How was {two}?", f"{two} was {mood}."),
    )
    return Story(text, questions, f"{one} found a {colour} {thing} at the {place}.", people)


def _thing_lost(rng: random.Random, people: tuple[str, str], thing: str, held_out: bool) -> Story:
    one, two = people
    colour, mood = rng.choice(COLOURS), rng.choice(MOODS)
    first, second = rng.sample(PLACES, 2)
    opening = _opening(
        rng,
        held_out,
        f"{one} lost a {colour} {thing}.",
        f"{one} had a {colour} {thing} and lost it.",
        f"In the morning {one} lost a {colour} {thing}.",
        f"One day {one} lost a {colour} {thing}.",
    )
    text = f"{opening} {two} looked for the {thing} at the {first} and found it at the {second}. {one} was {mood}."
    questions = (
        (f"Who lost the {thing}?", f"{one} lost the {thing}."),
        (f"Who found the {thing}?", f"{two} found the {thing}."),
        (f"Where was the {thing}?", f"The {thing} was at the {second}."),
        (f"What colour was the {thing}?", f"The {thing} was {colour}."),
        (f"How was {one}?", f"{one} was {mood}."),
    )
    return Story(text, questions, f"{two} helped {one} find a {colour} {thing}.", people)


def _animal_helped(rng: random.Random, people: tuple[str, str], animal: str, held_out: bool) -> Story:
    one, two = people
    colour, place = rng.choice(COLOURS), rng.choice(PLACES)
    food, state = rng.choice(FOODS), rng.choice(("hungry", "lost", "scared", "cold"))
    opening = _opening(
        rng,
        held_out,
        f"{one} saw a small {colour} {animal} near the {place}.",
        f"Near the {place}, {one} saw a small {colour} {animal}.",
        f"In the morning {one} saw a small {colour} {animal} near the {place}.",
        f"Today {one} saw a small {colour} {animal} near the {place}.",
    )
    text = f"{opening} The {animal} was {state}. {one} took the {animal} to {two}, and {two} gave it some {food}."
    questions = (
        (f"Who saw the {animal}?", f"{one} saw the {animal}."),
        (f"Who gave the {animal} some {food}?", f"{two} gave the {animal} some {food}."),
        (f"What did the {animal} get?", f"The {animal} got some {food}."),
        (f"Where was the {animal}?", f"The {animal} was near the {place}."),
        (f"What colour was the {animal}?", f"The {animal} was {colour}."),
    )
    return Story(text, questions, f"{one} and {two} helped a {colour} {animal}.", people)


def _party(rng: random.Random, people: tuple[str, str], thing: str, held_out: bool) -> Story:
    one, two = people
    colour, place = rng.choice(COLOURS), rng.choice(PLACES)
    food, mood = rng.choice(FOODS), rng.choice(MOODS)
    opening = _opening(
        rng,
        held_out,
        f"{two} had a party at the {place}.",
        f"There was a party at the {place}, and it was the party of {two}.",
        f"In the morning {two} had a party at the {place}.",
        f"Today {two} had a party at the {place}.",
    )
    text = f"{opening} {one} came and brought a {colour} {thing}. They ate {food}, and {one} was {mood}."
    questions = (
        ("Who had a party?", f"{two} had a party."),
        (f"Who brought the {thing}?", f"{one} brought the {thing}."),
        ("What did they eat?", f"They ate {food}."),
        ("Where was the party?", f"The party was at the {place}."),
        (f"What colour was the {thing}?", f"The {thing} was {colour}."),
    )
    return Story(text, questions, f"{one} brought a {colour} {thing} to {two}.", people)
