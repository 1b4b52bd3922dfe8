"""Every example in a docstring of the package runs and shows what it says."""

import doctest
import importlib
import pkgutil

import pytest

import convbasis as cb

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(cb.__path__, "convbasis.")
    if not module.name.startswith(
        ("convbasis._core", "convbasis.lib", "convbasis.cli", "convbasis.__main__")
    )  # lib: the BLAS library that an installed package carries
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    for needed in ("sklearn", "torch", "transformers"):
        if name.startswith(f"convbasis.{needed}"):
            pytest.importorskip(needed)
    if name.startswith("convbasis.transformers"):
        pytest.importorskip("torch")
    result = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert result.failed == 0


def test_public_functions_have_examples():
    finder = doctest.DocTestFinder()
    for function in (
        cb.attention_loss,
        cb.bounded_entries,
        cb.conv_attention,
        cb.exact_attention,
        cb.conv_attention_backward,
        cb.exact_attention_backward,
        cb.recover_basis,
        cb.sparsify_features,
        cb.decompose,
        cb.conv_matmul,
        cb.toeplitz_matmul,
        cb.ConvBasis,
        cb.build_info,
    ):
        assert any(test.examples for test in finder.find(function, function.__name__))
