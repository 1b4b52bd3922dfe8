"""The verdicts of the instruction-count guard, on made-up counts: nothing is run under valgrind."""

import importlib.util
from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "guard" / "guard.py"
SPEC = importlib.util.spec_from_file_location("guard", PATH)
guard = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(guard)

BASELINE = guard.State("GNU 12", "avx2", "OpenBLAS 1", {"product": 1_000_000, "row_sums": 2000})


def with_counts(**changed):
    return BASELINE._replace(instructions=BASELINE.instructions | changed)


def test_the_same_counts_pass(capsys):
    assert guard.report(BASELINE, BASELINE) == 0
    assert capsys.readouterr().out.count("ok") == 2


def test_six_per_cent_more_fails(capsys):
    assert guard.report(BASELINE, with_counts(product=1_060_000)) == 1
    output = capsys.readouterr().out
    assert "+6.00%  FAILS" in output
    assert "1 of 2 cases fail" in output


def test_four_per_cent_more_passes():
    assert guard.report(BASELINE, with_counts(product=1_040_000)) == 0


def test_six_per_cent_less_asks_for_a_new_baseline(capsys):
    assert guard.report(BASELINE, with_counts(product=940_000)) == 0
    assert "-6.00%  better: update the baseline" in capsys.readouterr().out


def test_a_case_that_is_missing_fails_on_either_side():
    fewer = BASELINE._replace(instructions={"product": 1_000_000})
    assert guard.report(BASELINE, fewer) == 1
    assert guard.report(fewer, BASELINE) == 1


def test_another_compiler_or_instruction_set_is_not_compared(capsys):
    for other in ({"compiler": "Clang 19"}, {"simd": "baseline"}):
        assert guard.report(BASELINE, with_counts(product=9_000_000)._replace(**other)) == 0
        output = capsys.readouterr().out
        assert "NOT COMPARED" in output
        assert "9,000,000" in output
        assert "ok" not in output


def test_another_blas_is_compared_and_named(capsys):
    other = with_counts(product=1_060_000)._replace(blas="OpenBLAS 2")
    assert guard.report(BASELINE, other) == 1
    assert "note: blas is OpenBLAS 2" in capsys.readouterr().out


def test_the_committed_baseline_has_counts_for_what_it_names():
    baseline = guard.State(**guard.json.loads(guard.BASELINE.read_text()))
    assert baseline.simd == "avx2"
    assert min(baseline.instructions.values()) > 10**6
