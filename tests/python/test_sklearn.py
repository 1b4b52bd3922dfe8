"""The selector for scikit-learn: its own checks, and the same columns as the function."""

import numpy as np
import pytest
from scipy import sparse

import convbasis as cb

pytest.importorskip("sklearn", minversion="1.6")
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import _safe_indexing, estimator_checks
from sklearn.utils.validation import validate_data

from convbasis.sklearn import AttentionColumnSelector

TALL = "has fewer columns than rows"


def wide(n=8, d=300, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


class FirstRows(AttentionColumnSelector):
    """Fitted to as many samples as there are features: scikit-learn's checks have more of them."""

    def fit(self, X, y=None):
        checked = validate_data(self, X, accept_sparse=("csr", "csc"))
        named = X if hasattr(X, "columns") else checked
        return super().fit(_safe_indexing(named, np.arange(min(checked.shape))), y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.parametrize(("kind", "passing"), [(AttentionColumnSelector, 15), (FirstRows, 40)])
def test_the_checks_of_scikit_learn(kind, passing):
    """Most fit more samples than features, which is refused: those do not count."""
    results = estimator_checks.check_estimator(kind(random_state=0), on_skip=None, on_fail=None)
    failed = [
        (result["check_name"], messages(result["exception"]))
        for result in results
        if result["status"] == "failed" and TALL not in messages(result["exception"])
    ]
    assert failed == []
    assert sum(result["status"] == "passed" for result in results) >= passing


def messages(error):
    """Of an exception and of those that it was raised from."""
    return "" if error is None else f"{error} {messages(error.__cause__ or error.__context__)}"


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array, sparse.csc_matrix])
@pytest.mark.parametrize("method", ["leverage", "bss"])
def test_the_same_columns_as_the_function(make, method):
    x = make(wide())
    selector = AttentionColumnSelector(method, num_columns=40, random_state=3).fit(x)
    few = selector.sparsified_
    assert few.num_columns == 40
    assert few.epsilon <= few.epsilon_promised
    np.testing.assert_array_equal(selector.get_support(indices=True), few.indices)
    assert selector.get_support().sum() == len(few.indices)
    out = selector.transform(x)
    assert type(out) is type(few.features)
    want = wide()[:, few.indices] * selector.weights_
    np.testing.assert_allclose(out.toarray() if sparse.issparse(out) else out, want)
    back = selector.inverse_transform(out)
    back = back.toarray() if sparse.issparse(back) else back
    np.testing.assert_allclose(back, np.where(selector.get_support(), wide(), 0.0))
    again = clone(selector).fit(x)
    np.testing.assert_array_equal(again.weights_, selector.weights_)


def test_names_types_and_other_samples():
    selector = AttentionColumnSelector(num_columns=20, random_state=0)
    x = wide().astype(np.float32)
    out = selector.fit_transform(x)
    assert out.dtype == np.float32
    names = selector.get_feature_names_out()
    np.testing.assert_array_equal(names, [f"x{i}" for i in selector.get_support(indices=True)])
    assert selector.transform(wide(3, seed=1)).shape == (3, len(names))
    with pytest.raises(ValueError, match="300 features"):
        selector.transform(wide(3, 299))


def test_in_a_pipeline():
    pipeline = make_pipeline(FunctionTransformer(), AttentionColumnSelector(num_columns=20))
    pipeline.set_params(attentioncolumnselector__num_columns=30)
    assert pipeline.fit_transform(wide()).shape[1] <= 30
    assert pipeline[-1].sparsified_.num_columns == 30


def test_what_the_function_refuses_is_refused():
    with pytest.raises(ValueError, match=TALL):
        AttentionColumnSelector().fit(wide(9, 8))
    with pytest.raises(ValueError, match="method is unknown"):
        AttentionColumnSelector("svd").fit(wide())


def test_it_is_imported_when_it_is_first_used():
    assert cb.sklearn.AttentionColumnSelector is AttentionColumnSelector
