"""convbasis.transformers inside a tiny model with random weights: logits, padding, generation."""

import numpy as np
import pytest

import convbasis as cb

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from convbasis.transformers import register, statistics  # noqa: E402

NAME = "conv_basis_test"
N = 96
#: Every column a strip of its own: the strips are exact attention.
EVERY_COLUMN = cb.RecoverOptions(num_bases=256, window=1)


def tiny(kind="Llama", **settings):
    """A small causal decoder with grouped-query heads."""
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **settings},
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def tokens():
    return torch.randint(3, 61, (2, N), generator=torch.Generator().manual_seed(1))


def logits(model, name, tokens, **call):
    """Logits with an attention implementation."""
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(tokens, **call).logits.double().numpy()


def worst(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def test_a_prefill_has_the_logits_of_torch(model, tokens):
    found = register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=2)
    want = logits(model, "sdpa", tokens)
    assert worst(logits(model, NAME, tokens, use_cache=False), want) < 1e-5
    assert sorted(found.layers) == [0, 1, 2]
    for layer in found.layers.values():
        assert layer.calls == {"prefills": 1, "short": 0, "steps": 0, "holes": 0}
        assert layer.heads["sequences"].tolist() == [2] * 4


def test_what_the_approximation_loses_is_what_its_report_says(model, tokens):
    options = cb.RecoverOptions(num_bases=2, window=1)
    found = register(NAME, tol=None, options=options, min_length=2)
    want = logits(model, "sdpa", tokens)
    got = logits(model, NAME, tokens)
    assert 1e-4 < worst(got, want) < 1.0
    assert all(layer.means()["error_estimate"].min() > 1e-3 for layer in found.layers.values())


def test_the_default_is_the_calibrated_basis():
    """Heads of a random model look everywhere alike, so that they are approximated."""
    model = tiny()
    tokens = torch.randint(3, 61, (1, 2048), generator=torch.Generator().manual_seed(2))
    found = register(NAME, tol=0.3, min_length=2048)
    want = logits(model, "sdpa", tokens)
    got = logits(model, NAME, tokens)
    assert 1e-7 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.1
    for layer in found.layers.values():
        means = layer.means()
        assert means["exact_share"].shape == (4,)
        assert 0.0 < means["error_high"].max() <= 0.3
        assert means["blocks_share"].mean() < 1.0


def test_by_default_what_torch_is_faster_at_is_left_to_it():
    model = tiny()
    tokens = torch.randint(3, 61, (1, 2048), generator=torch.Generator().manual_seed(2))
    found = register(NAME)
    want = logits(model, "sdpa", tokens)
    assert worst(logits(model, NAME, tokens), want) < 1e-5
    assert found.layers[0].calls == {"prefills": 0, "short": 1, "steps": 0, "holes": 0}


def test_a_module_without_a_number(model, tokens):
    found = register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=2)
    attention = model.model.layers[1].self_attn
    attention.layer_idx = None
    try:
        logits(model, NAME, tokens, use_cache=False)
    finally:
        attention.layer_idx = 1
    assert sorted(found.layers) == [-1, 0, 2]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("min_length", [2, 80])
def test_padding(model, tokens, side, min_length):
    """The first row has 30 padded positions; with min_length=80 it alone is computed by torch."""
    found = register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=min_length)
    visible = torch.ones_like(tokens)
    padded = slice(0, 30) if side == "left" else slice(N - 30, N)
    visible[0, padded] = 0
    call = {"attention_mask": visible, "position_ids": (visible.cumsum(1) - 1).clamp(min=0)}
    want, got = (logits(model, name, tokens, **call) for name in ("eager", NAME))
    real = visible.bool().numpy()
    assert worst(got[real], want[real]) < 1e-5
    sequences = found.layers[0].heads["sequences"]
    assert sequences.tolist() == [2 if min_length == 2 else 1] * 4


def test_padding_in_the_middle_is_computed_exactly(model, tokens):
    found = register(NAME, options=EVERY_COLUMN, min_length=2)
    visible = torch.ones_like(tokens)
    visible[1, 40:50] = 0
    visible[0, :2] = 0
    want, got = (logits(model, name, tokens, attention_mask=visible) for name in ("eager", NAME))
    real = visible.bool().numpy()
    assert worst(got[real], want[real]) < 1e-5
    assert found.layers[0].calls["holes"] == 1


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [0, 17])
def test_generation_is_that_of_torch(model, tokens, cache, padding):
    found = register(NAME, tol=1e-6, options=EVERY_COLUMN, min_length=2)
    visible = torch.ones_like(tokens)
    visible[0, :padding] = 0
    outs = []
    for name in ("sdpa", NAME):
        model.set_attn_implementation(name)
        with torch.no_grad():
            outs.append(
                model.generate(
                    tokens,
                    attention_mask=visible,
                    max_new_tokens=12,
                    do_sample=False,
                    cache_implementation=cache,
                    disable_compile=True,
                )
            )
    assert torch.equal(*outs)
    assert found.layers[0].calls["prefills"] == 1
    assert found.layers[0].calls["steps"] >= 1


def test_a_prefill_in_two_parts(model, tokens):
    register(NAME, tol=1e-6, options=EVERY_COLUMN, min_length=2)
    want = logits(model, "sdpa", tokens)
    model.set_attn_implementation(NAME)
    with torch.no_grad():
        first = model(tokens[:, :50], use_cache=True)
        second = model(tokens[:, 50:], past_key_values=first.past_key_values)
    assert worst(second.logits.double().numpy(), want[:, 50:]) < 1e-5


def test_short_prefills_are_exact(model, tokens):
    found = register(NAME, options=cb.RecoverOptions(num_bases=1), min_length=N + 1)
    assert worst(logits(model, NAME, tokens), logits(model, "sdpa", tokens)) < 1e-6
    assert found.layers[2].calls == {"prefills": 0, "short": 1, "steps": 0, "holes": 0}


def test_half_precision_is_computed_in_float32(model, tokens):
    register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=2)
    want = logits(model, "sdpa", tokens)
    model.to(torch.bfloat16)
    try:
        got = logits(model, NAME, tokens)
    finally:
        model.to(torch.float32)
    assert worst(got, want) < 0.05


def test_a_window_longer_than_the_sequence_is_none(tokens):
    model = tiny("Mistral", sliding_window=200)
    register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=2)
    assert worst(logits(model, NAME, tokens), logits(model, "sdpa", tokens)) < 1e-5


def test_statistics(model, tokens):
    found = register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=2)
    assert statistics(NAME) is found
    assert str(found) == "nothing was computed yet"
    logits(model, NAME, tokens)
    table = str(found).splitlines()
    assert len(table) == 3 + 3
    content = found.to_dict()
    assert [layer["layer"] for layer in content["layers"]] == [0, 1, 2]
    for layer in content["layers"]:
        assert layer["tokens"] == N
        assert layer["seconds"]["prefills"] > 0.0
        assert all(len(column) == 4 for column in layer["heads"].values())
    found.reset()
    assert found.to_json() == '{"name": "conv_basis_test", "layers": []}'


def test_without_statistics(model, tokens):
    found = register(NAME, tol=1e-4, options=EVERY_COLUMN, min_length=2, collect=False)
    assert worst(logits(model, NAME, tokens), logits(model, "sdpa", tokens)) < 1e-5
    assert found.layers == {}


def test_gradients_are_refused(model, tokens):
    register(NAME, options=EVERY_COLUMN, min_length=2)
    model.set_attn_implementation(NAME)
    with pytest.raises(NotImplementedError, match="gradient of query"):
        model(tokens)


def test_dropout_is_refused(tokens):
    model = tiny(attention_dropout=0.1).train()
    register(NAME, options=EVERY_COLUMN, min_length=2)
    with pytest.raises(NotImplementedError, match="dropout"):
        logits(model, NAME, tokens)


def test_a_short_window_is_refused(tokens):
    model = tiny("Mistral", sliding_window=20)
    register(NAME, options=EVERY_COLUMN, min_length=2)
    with pytest.raises(NotImplementedError, match="local window of 20"):
        logits(model, NAME, tokens)


def test_other_masks_are_refused(model, tokens):
    register(NAME, options=EVERY_COLUMN, min_length=2)
    with pytest.raises(NotImplementedError, match="4 dimensions"):
        logits(model, NAME, tokens, attention_mask=torch.ones(2, 1, N, N, dtype=torch.bool))
    packed = torch.cat([torch.arange(50), torch.arange(N - 50)])[None]
    with pytest.raises(NotImplementedError, match="packed sequences"):
        logits(model, NAME, tokens, position_ids=packed, use_cache=False)


def test_attention_weights_are_refused(model, tokens):
    register(NAME, options=EVERY_COLUMN, min_length=2)
    with pytest.raises((NotImplementedError, ValueError), match="output_attentions"):
        logits(model, NAME, tokens, output_attentions=True)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("softcap", 30.0), ("s_aux", torch.ones(4)), ("position_bias", torch.ones(1)), ("new", 1)],
)
def test_unknown_arguments_are_refused(name, entry):
    from convbasis.transformers.refusals import refuse

    tensor = torch.ones(1, 4, N, 8)
    refuse(torch.nn.Module(), tensor, tensor, tensor, None, {name: None, "use_cache": True})
    with pytest.raises(NotImplementedError, match=name):
        refuse(torch.nn.Module(), tensor, tensor, tensor, None, {name: entry})
    with pytest.raises(NotImplementedError, match="is_causal"):
        refuse(torch.nn.Module(), tensor, tensor, tensor, None, {"is_causal": False})
    other = tensor.to("meta")
    with pytest.raises(NotImplementedError, match="CPU"):
        refuse(torch.nn.Module(), other, other, other, None, {})


@pytest.mark.parametrize(
    "call", [{"name": ""}, {"tol": -1.0}, {"min_length": 0}, {"num_threads": 0}, {"collect": 3}]
)
def test_bad_settings(call):
    with pytest.raises((ValueError, TypeError), match=next(iter(call))):
        register(**{"name": NAME, "options": EVERY_COLUMN, **call})
    with pytest.raises(ValueError, match="is not registered"):
        statistics("nobody")
