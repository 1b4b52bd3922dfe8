"""Sentiment of film reviews against the number of strips, and against tol."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from real_model_inputs import Loaded, Missing
from real_model_methods import Function, Plugged, exact, on_arrays, relative_errors, strips
from real_model_prompts import QUESTIONS, Prompt, answers, parts, prompts

import convbasis as cb

EXACT = "exact"


class Calibrated:
    """`conv_attention` with a tolerance, on arrays, and the shares of the logits it computed."""

    def __init__(self, tol: float, threads: int) -> None:
        self.settings: dict[str, Any] = {"tol": tol, "num_threads": threads}
        self.shares: list[float] = []

    def __call__(
        self, query: np.ndarray, key: np.ndarray, value: np.ndarray, scale: float
    ) -> np.ndarray:
        out, report = cb.conv_attention(
            query,
            key,
            value,
            is_causal=True,
            scale=scale,
            enable_gqa=True,
            options=cb.CalibrateOptions(),
            return_report=True,
            **self.settings,
        )
        self.shares.append(float(np.mean(report.exact_share)))
        return out


class Observer:
    """Exact attention that notes how far the other functions are from it, given its inputs."""

    def __init__(self, functions: dict[str, Function]) -> None:
        self.functions = functions
        self.squared_errors: dict[str, list[np.ndarray]] = {label: [] for label in functions}

    def __call__(self, layer: int, query: Any, key: Any, value: Any, scale: float) -> Any:
        want = exact(layer, query, key, value, scale)
        arrays = [tensor.numpy() for tensor in (query, key, value)]
        for label, function in self.functions.items():
            error = relative_errors(function(*arrays, scale), want.numpy())[0] ** 2
            self.squared_errors[label].append(error)
        return want


class Judge:
    """Asks the model for the sentiment, with any attention."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, (self.no, self.yes) = loaded.model, answers(loaded)
        self.plugged = Plugged("reviews", exact)
        self.model.set_attn_implementation(self.plugged.name)

    def margin(self, prompt: Prompt, attention: Callable[..., Any]) -> float:
        """How much higher " positive" scores than " negative" as the next token."""
        self.plugged.function = attention
        with torch.inference_mode():
            scores = self.model(prompt.tokens, use_cache=False, logits_to_keep=1).logits[0, -1]
        return float(scores[self.yes] - scores[self.no])


def check(arguments: Any) -> None:
    """Raise `Missing` for arguments that cannot be met together."""
    if arguments.shortest > arguments.longest:
        raise Missing(
            "--shortest and --longest are lengths of prompts; expected shortest <= longest; got "
            f"{arguments.shortest} and {arguments.longest}"
        )
    if arguments.error_reviews > arguments.reviews:
        raise Missing(
            "--error-reviews are some of the reviews; expected at most "
            f"{arguments.reviews}; got {arguments.error_reviews}"
        )


def stages(arguments: Any) -> int:
    """How many steps `experiment` takes."""
    methods = 1 + len(arguments.num_bases) + len(arguments.tols)
    return len(QUESTIONS) * arguments.tuning + methods * arguments.reviews


def experiment(
    loaded: Loaded, arguments: Any, step: Callable[[str], None], keep: Callable[[Any], None]
) -> dict[str, Any]:
    """Choose question and bias on reviews apart, then judge; `keep` gets all so far each time."""
    context = loaded.model.config.max_position_embeddings
    if arguments.longest > context:
        raise Missing(
            f"--longest is a length of prompts; expected at most the model's context, {context:,}; "
            f"got {arguments.longest}"
        )
    longest = 2 * arguments.longest // (arguments.shots + 1)
    found = parts(loaded, arguments.tuning, arguments.reviews, longest, arguments.seed)
    judge = Judge(loaded)
    tuned = {}
    for question in QUESTIONS:
        made = prompts(loaded, question, found.tuning, found.examples, arguments)
        tuned[question] = tuning(judge, made, step)
    question = max(tuned, key=lambda name: tuned[name]["accuracy"])
    made = prompts(loaded, question, found.judged, found.examples, arguments)
    threads = arguments.num_threads
    calibrated = {f"tol {tol:g}": Calibrated(tol, threads) for tol in arguments.tols}
    functions: dict[str, Function] = {f"k = {k}": strips(k, threads) for k in arguments.num_bases}
    functions |= calibrated
    whole = {EXACT: exact} | {label: on_arrays(each) for label, each in functions.items()}
    observer = Observer(functions)
    margins: dict[str, list[float]] = {label: [] for label in whole}
    result: dict[str, Any] = {}
    for number, prompt in enumerate(made):
        n = prompt.tokens.shape[1]
        for label, attention in whole.items():
            step(f"review {number + 1} of {len(made)}, {n:,} tokens: {label}")
            observed = label == EXACT and number < arguments.error_reviews
            margins[label].append(judge.margin(prompt, observer if observed else attention))
        judged = made[: number + 1]
        result = {
            "lengths": [int(prompt.tokens.shape[1]) for prompt in judged],
            "positive": [prompt.positive for prompt in judged],
            "tuning": tuned,
            "question": question,
            "methods": {
                label: summary(margins, label, judged, tuned[question]["bias"]) for label in whole
            },
        }
        for label, function in calibrated.items():
            result["methods"][label]["exact_share"] = float(np.mean(function.shares))
        for label, errors in observer.squared_errors.items():
            result["methods"][label]["squared_errors"] = np.reshape(
                errors, (-1, loaded.model.config.num_hidden_layers, len(errors[0]))
            )
        keep(result)
    return result


def tuning(judge: Judge, made: list[Prompt], step: Callable[[str], None]) -> dict[str, Any]:
    """With exact attention: the median margin, and how many it parts rightly."""
    margins = []
    for number, prompt in enumerate(made):
        step(f"tuning: review {number + 1} of {len(made)}")
        margins.append(judge.margin(prompt, exact))
    bias = float(np.median(margins))
    right = [
        (margin > bias) == prompt.positive for margin, prompt in zip(margins, made, strict=True)
    ]
    return {"bias": bias, "accuracy": float(np.mean(right)), "reviews": len(made)}


def summary(
    margins: dict[str, list[float]], label: str, judged: list[Prompt], bias: float
) -> dict[str, Any]:
    """How good the answers are, and how near to those of exact attention.

    `deviation` is the root mean square difference of the margins in standard deviations of the
    exact ones: 1 is as far as their mean alone. Both are None where margins do not vary.
    """
    want, got = np.array(margins[EXACT]), np.array(margins[label])
    right = np.array([prompt.positive for prompt in judged])
    spread, own = want.std(), got.std()
    found: dict[str, Any] = {
        "margins": margins[label],
        "deviation": float(np.sqrt(np.mean((got - want) ** 2)) / spread) if spread > 0 else None,
        "correlation": float(np.corrcoef(got, want)[0, 1]) if spread > 0 and own > 0 else None,
    }
    for name, hits in (
        ("accuracy", (got > bias) == right),
        ("agreement", (got > bias) == (want > bias)),
    ):
        found[name] = float(hits.mean())
        found[f"{name}_interval"] = binomial_interval(found[name], len(hits))
    return found


def binomial_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's, 95 %."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half = z * reach / (1 + z * z / count)
    return middle - half, middle + half
