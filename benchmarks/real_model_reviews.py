"""Sentiment of film reviews against the number of strips, and against tol."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from real_model_inputs import Loaded, Missing
from real_model_methods import Function, Plugged, exact, on_arrays, relative_errors, strips
from real_model_prompts import QUESTIONS, Prompt, answers, encoded, prompts
from transformers import DynamicCache

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
    """Asks the model for the sentiment of reviews that it has read with any attention."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, (self.no, self.yes) = loaded.model, answers(loaded)
        self.questions = {text: torch.tensor([encoded(loaded, text)]) for text in QUESTIONS}
        self.plugged = Plugged("reviews", exact)
        self.model.set_attn_implementation(self.plugged.name)

    def margins(
        self, prompt: Prompt, attention: Callable[..., Any], questions: Iterable[str]
    ) -> dict[str, list[float]]:
        """Of each question how much higher " positive" scores than " negative", by review.

        One prefill with `attention`. Each question then stands right behind its review, with the
        cached keys up to there; its few rows are exact, as all are while text is generated.
        """
        cache = DynamicCache()
        found: dict[str, list[float]] = {question: [] for question in questions}
        with torch.inference_mode():
            self.plugged.function = attention
            self.model.model(torch.tensor([prompt.tokens]), past_key_values=cache, use_cache=True)
            self.plugged.function = exact
            for end in reversed(prompt.ends):
                for question, margins in found.items():
                    if cache.get_seq_length() > end:
                        cache.crop(end - cache.get_seq_length())
                    tokens = self.questions[question]
                    asked = self.model(tokens, past_key_values=cache, logits_to_keep=1)
                    scores = asked.logits[0, -1]
                    margins.insert(0, float(scores[self.yes] - scores[self.no]))
        return found


def check(arguments: Any) -> None:
    """Raise `Missing` for arguments that cannot be met together."""
    if arguments.shortest > arguments.longest:
        raise Missing(
            "--shortest and --longest are lengths of prompts; expected shortest <= longest; got "
            f"{arguments.shortest} and {arguments.longest}"
        )
    if arguments.error_prompts > arguments.prompts:
        raise Missing(
            "--error-prompts are some of the prompts; expected at most "
            f"{arguments.prompts}; got {arguments.error_prompts}"
        )


def stages(arguments: Any) -> int:
    """How many steps `experiment` takes."""
    methods = 1 + len(arguments.num_bases) + len(arguments.tols)
    return arguments.tuning + methods * arguments.prompts


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
    apart, made = prompts(loaded, (arguments.tuning, arguments.prompts), arguments)
    judge = Judge(loaded)
    tuned = tuning(judge, apart, step)
    question = max(tuned, key=lambda name: tuned[name]["accuracy"])
    threads = arguments.num_threads
    calibrated = {f"tol {tol:g}": Calibrated(tol, threads) for tol in arguments.tols}
    functions: dict[str, Function] = {f"k = {k}": strips(k, threads) for k in arguments.num_bases}
    functions |= calibrated
    whole = {EXACT: exact} | {label: on_arrays(each) for label, each in functions.items()}
    observer = Observer(functions)
    margins: dict[str, list[float]] = {label: [] for label in whole}
    result: dict[str, Any] = {"lengths": [], "positive": [], "tuning": tuned, "question": question}
    for number, prompt in enumerate(made):
        result["lengths"].append(len(prompt.tokens))
        result["positive"] += prompt.positive
        for label, attention in whole.items():
            step(f"prompt {number + 1} of {len(made)}, {len(prompt.tokens):,} tokens: {label}")
            if label == EXACT and number < arguments.error_prompts:
                attention = observer
            margins[label] += judge.margins(prompt, attention, [question])[question]
        bias = tuned[question]["bias"]
        methods = {label: summary(margins, label, result["positive"], bias) for label in whole}
        for label, function in calibrated.items():
            methods[label]["exact_share"] = float(np.mean(function.shares))
        for label, errors in observer.squared_errors.items():
            methods[label]["squared_errors"] = np.reshape(
                errors, (-1, loaded.model.config.num_hidden_layers, len(errors[0]))
            )
        keep(result | {"methods": methods})
    return result | {"methods": methods}


def tuning(judge: Judge, apart: list[Prompt], step: Callable[[str], None]) -> dict[str, Any]:
    """Of each question, with exact attention: the median margin, and how many it parts rightly."""
    margins: dict[str, list[float]] = {question: [] for question in QUESTIONS}
    for number, prompt in enumerate(apart):
        step(f"tuning: prompt {number + 1} of {len(apart)}")
        for question, found in judge.margins(prompt, exact, QUESTIONS).items():
            margins[question] += found
    right = np.array([positive for prompt in apart for positive in prompt.positive])
    tuned = {}
    for question, found in margins.items():
        bias = float(np.median(found))
        accuracy = float(((np.array(found) > bias) == right).mean())
        tuned[question] = {"bias": bias, "accuracy": accuracy, "reviews": len(found)}
    return tuned


def summary(
    margins: dict[str, list[float]], label: str, positive: list[bool], bias: float
) -> dict[str, Any]:
    """How good the answers are, and how near to those of exact attention.

    `deviation` is the root mean square difference of the margins in standard deviations of the
    exact ones: 1 is as far as their mean alone. Both are None where margins do not vary.
    """
    want, got, right = np.array(margins[EXACT]), np.array(margins[label]), np.array(positive)
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
