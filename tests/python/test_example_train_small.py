"""examples/train_small.py: the command, what it measures, and the task. Some of it needs torch."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = ["--n", "192", "--steps", "4", "--sizes", "64,128", "--seed", "3"]


@pytest.fixture(scope="module")
def example():
    """The command's module; it imports without torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module("train_small")
    for name in ("train_small", "train_small_model"):
        sys.modules.pop(name, None)


@pytest.fixture
def torch(monkeypatch):
    """torch, with settings that other tests do not notice."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: None)
    threads = torch.get_num_threads()
    yield torch
    torch.set_num_threads(threads)


@pytest.fixture
def model(example, torch):
    """The part of the example that needs torch."""
    return importlib.import_module("train_small_model")


# --- without torch ------------------------------------------------------------------------------
def test_help_says_what_it_does(example, capsys):
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("--n", "--steps", "--sizes", "--seed", "--threads", "--quick", "--json", "--plot"):
        assert f"{word} " in text
    assert "periodic sequences" in text
    assert "default: 4096" in text
    assert "Exit status" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", "63"], "n is out of range; expected 64 to 131,072; got 63"),
        (["--sizes", "64,1000000"], "n is out of range; expected 64 to 131,072; got 1,000,000"),
        (["--steps", "0"], "steps is out of range; expected 1 to 1,000,000; got 0"),
        (["--seed", "-1"], "seed is out of range"),
        (["--threads", "0"], "threads is out of range; expected 1 to "),
        (["--json", "nowhere/x.json"], "expected a file in a folder that exists"),
        (["--plot", "."], "expected a file in a folder that exists"),
        (["--plot", "x.txt"], "expected one of .png, .pdf, .svg; got x.txt"),
    ],
)
def test_what_cannot_run_ends_with_status_2_before_the_work(
    example, tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example, "measure", None)
    assert example.main(options) == 2
    said = capsys.readouterr()
    assert said.err.startswith("[train_small] ")
    assert message in said.err
    assert said.out == ""


@pytest.mark.parametrize("option", ["--n", "--steps", "--seed", "--threads", "--sizes"])
def test_numbers_must_be_integers(example, capsys, option):
    for value in ("x", "1.5", ""):
        with pytest.raises(SystemExit) as stop:
            example.main([option, value])
        assert stop.value.code == 2
        assert f"argument {option}" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["torch", "convbasis", "matplotlib"])
def test_a_missing_package_says_what_to_install(example, monkeypatch, capsys, module):
    if module != "torch":
        monkeypatch.setitem(sys.modules, "torch", sys)
    monkeypatch.setitem(sys.modules, module, None)
    assert example.main(["--quick", "--plot", "x.png"]) == 2
    error = capsys.readouterr().err
    assert f"module {module} is missing" in error
    assert "pip install" in error


def test_quick_changes_defaults_only(example, monkeypatch):
    seen = []
    monkeypatch.setattr(example, "check_early", seen.append)
    monkeypatch.setattr(example, "measure", lambda args: {"agree": True})
    monkeypatch.setattr(example, "format_result", str)
    for options in ([], ["--quick"], ["--quick", "--n", "99"]):
        assert example.main(options) == 0
    assert [args.n for args in seen] == [4096, 512, 99]
    assert [args.steps for args in seen] == [100, 10, 10]
    assert [max(args.sizes) for args in seen] == [16384, 1024, 1024]


@pytest.mark.parametrize(
    ("conv", "found"),
    [
        ([2.0, 2.0, 2.0], 100.0),
        ([0.5, 0.5, 1.0], None),
        ([2.0, 2.0, 0.9], None),
        ([0.5, 2.0, 4.0], 200.0),
        ([2.0, 0.25, 2.0], 400.0 * 4 ** (2 / 3)),
        ([0.5, 1.0, 4.0], 400.0),
    ],
)
def test_crossover_is_where_strips_stay_faster(example, conv, found):
    got = example.crossover([100, 400, 1600], conv, [1.0, 1.0, 1.0])
    assert got is None if found is None else math.isclose(got, found)


def test_sizes_are_sorted_and_unlike(example):
    assert example.sizes("512,64,512") == [64, 512]


# --- the task -----------------------------------------------------------------------------------
def test_sequences_repeat_but_for_one_token_in_ten(model, torch):
    generator = torch.Generator().manual_seed(0)
    first, second = (model.draw_tokens(9600, generator)[0] for _ in range(2))
    assert first.shape == (9601,)
    assert 0 <= first.min() < first.max() == model.VOCABULARY - 1
    share = (first[48:] == first[:-48]).double().mean().item()
    kept = 1 - 0.1 * 15 / 16
    assert abs(share - kept**2) < 0.02
    assert (first == second).double().mean() < 0.2


def test_least_loss_is_that_of_who_knows_the_pattern(model, torch):
    tokens = model.draw_tokens(48 * 2000 - 1, torch.Generator().manual_seed(1)).view(2000, 48)
    counts = torch.stack([(tokens == token).sum(0) for token in range(16)])
    hit = (tokens == counts.argmax(0)).double()
    loss = -torch.log(hit * (0.9 + 0.1 / 16) + (1 - hit) * 0.1 / 16).mean().item()
    assert math.isclose(loss, model.least_loss(10**9), abs_tol=0.02)
    assert model.least_loss(48) > 0.9 * math.log(16)


def test_both_models_are_the_same_function(model, torch):
    pair = model.learners(seed=2)
    tokens = model.draw_tokens(300, torch.Generator().manual_seed(0))[:, :-1]
    names = [list(learner.model.state_dict()) for learner in pair.values()]
    assert names[0] == names[1]
    with torch.no_grad():
        conv, exact = (learner.model(tokens) for learner in pair.values())
    assert conv.shape == (1, 300, model.VOCABULARY)
    assert torch.allclose(conv, exact, rtol=1e-4, atol=1e-4)


# --- the whole command --------------------------------------------------------------------------
def test_both_learn_alike_and_files_are_written(example, model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    files = [str(tmp_path / name) for name in ("train.json", "train.png")]
    assert example.main([*TINY, "--threads", "1", "--json", files[0], "--plot", files[1]]) == 0
    said = capsys.readouterr()
    assert "step 4 of 4: loss conv " in said.err
    assert "the same within rounding" in said.out
    assert "on strips: 8 of 8 heads" in said.out
    measured = json.loads(Path(files[0]).read_text(encoding="utf-8"))
    conv, exact = (measured["losses"][name] for name in ("conv", "exact"))
    assert len(conv) == len(exact) == 4
    assert conv == pytest.approx(exact, abs=1e-4)
    assert conv[0] != conv[1]
    assert measured["settings"]["threads"] == 1
    assert measured["settings"]["sizes"] == [64, 128]
    assert [len(rates) for rates in measured["speed"].values()] == [2, 2]
    assert min(*measured["training_speed"].values(), *measured["speed"]["conv"]) > 0
    assert Path(files[1]).read_bytes().startswith(b"\x89PNG")


def test_the_seed_decides(model):
    first, again, other = (model.train(128, 2, seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_training_lowers_the_loss(model):
    losses, _, _ = model.train(128, 40, seed=0)
    for values in losses.values():
        assert sum(values[-5:]) < 0.97 * sum(values[:5])


def test_subnormal_weights_do_not_slow_the_baseline(example, model, torch, monkeypatch):
    flushed = []
    monkeypatch.setattr(torch, "set_flush_denormal", flushed.append)
    monkeypatch.setattr(model, "train", lambda *_: ({"conv": [1.0], "exact": [1.0]}, {}, 8))
    monkeypatch.setattr(model, "compare_speed", lambda *_: {"conv": [2.0], "exact": [1.0]})
    assert example.main(["--steps", "1", "--sizes", "64"]) == 0
    assert flushed == [True]


def test_curves_that_differ_end_with_status_1(example, model, monkeypatch, capsys):
    class Wrong(model.ExactAttention):
        def attend(self, query, key, value, is_causal):
            return 0.5 * super().attend(query, key, value, is_causal)

    monkeypatch.setitem(model.ATTENTIONS, "exact", Wrong)
    assert example.main(TINY) == 1
    assert "NOT THE SAME" in capsys.readouterr().out
