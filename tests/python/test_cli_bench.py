"""`convbasis bench`: its table, JSON and picture on tiny problems; nothing here looks at times."""

import json
import os
import struct
import sys

import numpy as np
import pytest

import convbasis as cb
from convbasis.cli import _bench_cases, _bench_job, _bench_memory, _timing, bench
from convbasis.cli._bench_backward import ATTENTION as ATTENTION_GRADIENT
from convbasis.cli._bench_backward import BASIS, FORWARD
from convbasis.cli._bench_cases import Contest, Grid, Settings, Target
from convbasis.cli._plain import budget

PNG = b"\x89PNG\r\n\x1a\n"
SETTINGS = Settings(16, "float32", 0, 2, 2, False)
ATTENTION = ("conv_attention", "torch SDPA", "exact_attention", "one FFT per strip", "plain NumPy")
TABLE = (
    Contest("product", 200, 3, _bench_cases.PRODUCTS, {"conv_matmul": Target(15)}),
    Contest(
        "attention",
        256,
        3,
        ATTENTION,
        {"conv_attention": Target(12), "exact_attention": Target(1 / 1.2)},
    ),
    Contest("attention", 128, 16, ATTENTION[:3], demands_strips=True),
    Contest(
        "backward",
        256,
        3,
        (FORWARD, BASIS),
        {BASIS: Target(1 / 4)},
        demands_strips=True,
        against=FORWARD,
    ),
    Contest("backward", 256, 3, (ATTENTION_GRADIENT, *ATTENTION[1:3]), demands_strips=True),
)
SMALL = ("bench", "--head-dim", "16", "--repeats", "2", "--num-threads", "2")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A benchmark of small problems, without pauses."""
    growth = tuple(Contest("growth", n, 2, ("conv_attention",)) for n in (128, 256, 512))
    monkeypatch.setattr(_timing, "PAUSE", 0.0)
    monkeypatch.setattr(_timing, "TURN", 0.0)
    monkeypatch.setattr(bench, "TABLE", TABLE)
    monkeypatch.setattr(bench, "QUICK_TABLE", TABLE[:1])
    monkeypatch.setattr(bench, "GROWTH", growth)
    monkeypatch.setattr(bench, "GRID", Grid((128, 256), (1, 4, 16), 256, 4))
    monkeypatch.setattr(_bench_job, "MEMORY", (512, 2))
    monkeypatch.setattr(_bench_job, "memory_growth", lambda *_, **__: 1.5)


@pytest.fixture
def missing(monkeypatch):
    """Make imports of a package fail."""

    def remove(package):
        for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
            monkeypatch.setitem(sys.modules, name, None)
        for name in ("_bench_plot", "_plot_style"):
            monkeypatch.delitem(sys.modules, f"convbasis.cli.{name}", raising=False)

    return remove


def raising(error):
    """A function that only raises."""

    def function(*_, **__):
        raise error

    return function


def table(text):
    """Lines of a Markdown table as dictionaries, after a look at its form."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    names, rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    assert all(set(cell) <= set("-:") and len(cell) >= 3 for cell in rule)
    return [dict(zip(names, row, strict=True)) for row in rows]


def written(path):
    """The content of a JSON file that has no NaN and no infinity."""
    return json.loads(path.read_text(), parse_constant=raising(AssertionError("not JSON")))


@pytest.fixture
def no_torch(missing):
    missing("torch")


# --- the whole command ----------------------------------------------------------------------------
@pytest.mark.usefixtures("no_torch")
def test_table_and_json_agree(run, tmp_path):
    pytest.importorskip("scipy")
    path = tmp_path / "bench.json"
    code, out, err = run(*SMALL, "--json", str(path))
    assert (code, err) == (0, "")
    rows, content = table(out), written(path)
    measured = [
        (contest, name, method)
        for contest in [*content["contests"], *content["growth"]["contests"]]
        for name, method in contest["methods"].items()
    ]
    timed = [row for row in rows if row["error"]]
    assert len(timed) == len(measured) == len(rows) - 3
    for row, (contest, name, method) in zip(timed, measured, strict=True):
        assert (row["problem"], row["n"]) == (contest["problem"], f"{contest['n']:,}")
        assert (row["k"], row["error"]) == (str(contest["num_bases"]), f"{method['error']:.1e}")
        assert row["method"].startswith(name)
        seconds = method["seconds"]
        assert 0.0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert seconds["runs"] == 2
        if contest["problem"] != "growth":
            others = {"product": "one FFT per basis"}
            usual = others.get(contest["problem"], "exact_attention")
            assert contest["baseline"] == (FORWARD if FORWARD in contest["methods"] else usual)
    assert [row["problem"] for row in rows[-3:]] == ["growth", "memory", "memory"]
    assert [row["method"] for row in rows[-2:]] == ["conv_attention", BASIS]
    assert (rows[-1]["n"], rows[-1]["against baseline"]) == ("512", "2 MiB")
    assert [memory["mebibytes"] for memory in content["memory"]] == [1.5, 1.5]
    assert rows[-3]["against baseline"] == f"time ~ n^{content['growth']['exponent']:.2f}"
    assert {path.name} == {entry.name for entry in tmp_path.iterdir()}


@pytest.mark.usefixtures("no_torch")
def test_errors_are_those_of_the_working_precision(run, tmp_path):
    path = tmp_path / "bench.json"
    assert run(*SMALL, "--json", str(path))[0] == 0
    first, attention, strips, *backward = written(path)["contests"]
    plain = attention["methods"]["plain NumPy"]["error"]
    limit = budget(plain, np.float32)
    assert 0.0 < plain < 1e-6
    for contest in (attention, strips):
        for name in ("conv_attention", "exact_attention"):
            assert 0.0 < contest["methods"][name]["error"] <= limit
    # A float32 FFT of length 512 loses at most a few roundings for each of its 9 halvings.
    assert all(0.0 < method["error"] < 9 * 2**-23 * 4 for method in first["methods"].values())
    assert attention["by_strips"]
    assert strips["by_strips"]
    assert attention["rows_exact"] >= 0
    for contest in backward:
        # Three times, as a gradient is a product of more factors than the output.
        assert all(0.0 < method["error"] <= 3 * limit for method in contest["methods"].values())
        assert contest["by_strips"]
    assert run(*SMALL, "--dtype", "float64", "--json", str(path))[0] == 0
    errors = [
        method["error"]
        for contest in written(path)["contests"]
        for name, method in contest["methods"].items()
        if "strip" not in name
    ]
    assert 0.0 < max(errors) < 1e-11


@pytest.mark.usefixtures("no_torch")
def test_targets_are_for_one_type_and_head_dim(run):
    rows = table(run("bench", "--repeats", "1")[1])
    wanted = {row["method"]: (row["target"], row["met"]) for row in rows if row["target"]}
    assert wanted["conv_attention (strips)"][0] == ">= 12x"
    assert wanted["conv_matmul"][0] == ">= 15x"
    assert wanted[f"{BASIS} (strips)"][0] == "<= 4x its time"
    assert wanted["conv_attention"][0] in ("<= n^1.1", "< 1,536 MiB")
    assert BASIS not in wanted  # no target for the memory of the backward pass
    judged = {method: met for method, (_, met) in wanted.items()}
    assert judged.pop("conv_attention (strips)") == ""  # there is no torch to compare with
    assert judged.pop("exact_attention", "") == ""
    assert set(judged.values()) <= {"yes", "no"}
    out = run(*SMALL)[1]
    assert {row["target"] for row in table(out)} == {""}
    assert "Targets are for float32 and head_dim 64 alone." in out


def test_quick_leaves_out_growth_and_memory(run, tmp_path):
    path = tmp_path / "bench.json"
    code, out, _ = run(*SMALL, "--quick", "--json", str(path))
    content = written(path)
    assert code == 0
    assert {row["problem"] for row in table(out)} == {"product"}
    assert (content["growth"], content["memory"], content["grid"]) == (None, [], [])
    assert content["settings"]["quick"]


@pytest.mark.usefixtures("no_torch")
def test_without_torch_exact_attention_is_the_baseline(run):
    rows = table(run(*SMALL)[1])
    assert {row["method"] for row in rows if row["against baseline"] == "baseline"} == {
        "one FFT per basis",
        "exact_attention",
        FORWARD,
    }
    assert not any("torch" in row["method"] for row in rows)


@pytest.mark.usefixtures("no_torch")
def test_what_is_missing_is_said(run, missing):
    missing("scipy")
    code, out, _ = run(*SMALL)
    assert code == 0
    assert "torch cannot be imported: exact_attention is the baseline" in out
    assert "pip install torch" in out
    assert "scipy cannot be imported: conv_matmul has no baseline" in out
    assert "FFT per" not in "".join(row["method"] for row in table(out))
    assert [row["against baseline"] for row in table(out) if row["method"] == "conv_matmul"] == [""]


def test_torch_is_the_baseline_where_it_is_installed(run):
    pytest.importorskip("torch")
    rows = [row for row in table(run(*SMALL)[1]) if row["method"] == "torch SDPA"]
    assert [row["against baseline"] for row in rows] == ["baseline"] * 3


def test_memory_that_cannot_be_measured_is_said(run, monkeypatch, tmp_path):
    error = _bench_memory.NotMeasured("no such file: /proc/self/clear_refs")
    monkeypatch.setattr(_bench_job, "memory_growth", raising(error))
    path = tmp_path / "bench.json"
    code, out, _ = run(*SMALL, "--json", str(path))
    memory = written(path)["memory"][-1]
    assert code == 0
    assert table(out)[-1]["against baseline"] == "not measured"
    assert (memory["mebibytes"], memory["not_measured"]) == (None, str(error))


# --- files and options ----------------------------------------------------------------------------
@pytest.mark.usefixtures("no_torch")
def test_plot_writes_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    path, numbers = tmp_path / "bench.png", tmp_path / "bench.json"
    code, _, err = run(*SMALL, "--plot", str(path), "--json", str(numbers))
    assert (code, err) == (0, "")
    picture = path.read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    assert picture.startswith(PNG)
    assert picture.endswith(b"IEND\xaeB`\x82")
    assert width > height > 800
    grid = written(numbers)["grid"]
    assert {(cell["n"], cell["num_bases"]) for cell in grid} == {
        (n, k) for n in (128, 256) for k in (1, 4, 16)
    }
    assert {cell["break_even"] for cell in grid} == {
        cb.break_even(128, 16),
        cb.break_even(256, 16),
    }
    assert {entry.name for entry in tmp_path.iterdir()} == {"bench.png", "bench.json"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--repeats", "0"], "--repeats: expected an integer of at least 1, got '0'"),
        (["--head-dim", "8"], "--head-dim: expected an integer of at least 16, got '8'"),
        (["--num-threads", "none"], "--num-threads: expected an integer of at least 1"),
        (["--seed", "-1"], "--seed: expected an integer of at least 0"),
        (["--dtype", "bfloat16"], "invalid choice: 'bfloat16'"),
        (["--json"], "--json: expected one argument"),
        (["--json", "bench.txt"], "--json makes a .json file"),
        (["--json", "missing/bench.json"], "choose another place with --json"),
        (["--plot", "bench.json"], "--plot makes a .png file"),
        (["--plot", "missing/bench.png"], "choose another place with --plot"),
    ],
)
def test_errors_are_one_line_before_the_work(run, monkeypatch, tmp_path, arguments, told):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "measure", raising(AssertionError("the work has begun")))
    code, out, err = run("bench", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("convbasis: error: ")
    assert err.count("\n") == 1
    assert told in err
    assert list(tmp_path.iterdir()) == []


def test_plot_needs_matplotlib(run, missing, tmp_path):
    missing("matplotlib")
    code, out, err = run(*SMALL, "--plot", str(tmp_path / "bench.png"))
    assert (code, out) == (2, "")
    assert "pip install 'convbasis[cli]', or leave out --plot" in err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interruption_leaves_no_file(run, monkeypatch, tmp_path, error):
    pytest.importorskip("matplotlib")
    paths = {"--json": tmp_path / "bench.json", "--plot": tmp_path / "bench.png"}
    paths["--json"].write_text("something older")
    monkeypatch.setattr(bench, "measure_memory", raising(error))
    options = [str(word) for pair in paths.items() for word in pair]
    assert run(*SMALL, *options)[0] in (130, 2)
    assert paths["--json"].read_text() == "something older"
    assert os.listdir(tmp_path) == ["bench.json"]


def test_help_has_examples(run):
    code, out, err = run("bench", "--help")
    assert (code, err) == (0, "")
    assert "examples:\n  convbasis bench --quick" in out


@pytest.mark.usefixtures("no_torch")
def test_every_stage_is_announced(capsys):
    steps = []

    class Counting(bench.Silent):
        def step(self, text):
            steps.append(text)

    job = bench.Job(SETTINGS, with_grid=True)
    job.run(Counting())
    assert len(steps) == job.stages - 1  # the last one is the picture
    assert steps[0] == "product, n = 200, k = 3: building the problem"
    assert "memory of basis gradient, in a process of its own" in steps
    capsys.readouterr()
