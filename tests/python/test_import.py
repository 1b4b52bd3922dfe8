"""The package as it is found: importable from anywhere, complete, and as its stub says."""

import ast
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import convbasis as cb
from convbasis import _core

PACKAGE = Path(cb.__file__).parent


def test_the_public_names():
    assert set(cb.__all__) == {
        "BackwardReport",
        "BoundedEntries",
        "CalibrateOptions",
        "CalibratedReport",
        "ConvBasis",
        "CostModel",
        "GpuBasis",
        "PolynomialBackwardReport",
        "PolynomialReport",
        "RecoverOptions",
        "Report",
        "Sparsified",
        "ToleranceMissed",
        "__version__",
        "attention_loss",
        "bounded_entries",
        "break_even",
        "build_info",
        "conv_attention",
        "conv_attention_backward",
        "conv_matmul",
        "cost_model",
        "cuda_available",
        "decompose",
        "exact_attention",
        "exact_attention_backward",
        "masks",
        "polynomial_attention",
        "polynomial_attention_backward",
        "problems",
        "recover_basis",
        "reference",
        "set_cost_model",
        "sparsify_features",
        "toeplitz_matmul",
    }
    for name in cb.__all__:
        assert getattr(cb, name) is not None
        assert inspect.getdoc(getattr(cb, name))


def test_public_functions_document_themselves():
    for name in cb.__all__:
        entry = getattr(cb, name)
        if inspect.isfunction(entry) and inspect.signature(entry).parameters:
            for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
                assert f"{section}\n{'-' * len(section)}" in inspect.getdoc(entry), (name, section)
            for parameter in inspect.signature(entry).parameters:
                assert re.search(rf"\b{parameter}\b", inspect.getdoc(entry)), (name, parameter)


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", cb.__version__)
    assert cb.__version__ == cb.build_info()["version"]
    try:
        installed = importlib.metadata.version("convbasis")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed, run from the source tree")
    assert installed == cb.__version__


def test_build_info():
    info = cb.build_info()
    assert {"version", "compiler", "blas", "fft", "cuda"} <= set(info)
    assert cb.cuda_available() is bool(info["cuda"])
    info["version"] = "changed"
    assert cb.build_info()["version"] == cb.__version__


def test_import_from_another_directory(tmp_path):
    script = "import convbasis as cb; print(cb.__version__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == cb.__version__


def test_import_brings_numpy_alone():
    script = (
        "import sys; import convbasis; "
        "print([m for m in ('torch', 'transformers', 'scipy', 'sklearn', 'matplotlib', "
        "'ml_dtypes', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_core_says_what_to_do():
    script = (
        "import sys; sys.modules['convbasis._core'] = None\n"
        "try:\n    import convbasis\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert re.match(
        r"\[convbasis\] .*convbasis\._core.*; expected .*pip install \.'.*; got ", done.stdout
    ), done.stderr


@pytest.mark.parametrize(
    ("module", "missing", "package"),
    [
        ("torch", "torch", "torch"),
        ("transformers", "torch", "transformers"),
        ("sklearn", "sklearn", "scikit-learn"),
    ],
)
def test_what_needs_another_package_is_imported_when_used(module, missing, package):
    script = (
        f"import sys; sys.modules['{missing}'] = None; import convbasis as cb\n"
        f"try:\n    cb.{module}\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    message = rf"\[convbasis\.{module}\] .*; expected .*pip install .*{package}.*; got "
    assert re.match(message, done.stdout), done.stderr
    with pytest.raises(AttributeError, match="no attribute 'tensorflow'"):
        _ = cb.tensorflow


def stub():
    """Functions of the stub with their parameters, methods under the name of their class."""
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not node.bases:
            for method in node.body:
                if method.name.startswith("__"):
                    continue
                method.name = f"{node.name}.{method.name}"
                functions.append(method)
    return {f.name: [arg.arg for arg in f.args.posonlyargs + f.args.args] for f in functions}


def parameters(function):
    """Parameter names, from the signature or from the first line of a binding's docstring."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        first = function.__doc__.splitlines()[0]
        return re.findall(r"[(,]\s*(\w+):", first)


def test_the_stub_describes_the_module():
    public, declared = {}, stub()
    for name, member in vars(_core).items():
        if isinstance(member, type):
            for of, method in vars(member).items():
                if not of.startswith("_") or f"{name}.{of}" in declared:  # __init__
                    public[f"{name}.{of}"] = method
        elif not name.startswith("_") and callable(member):
            public[name] = member
    assert set(declared) == set(public)
    for name, names in declared.items():
        assert parameters(public[name]) == names, name


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
