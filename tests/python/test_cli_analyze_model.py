"""What `convbasis analyze` captures from a model of transformers."""

from types import SimpleNamespace

import pytest

from convbasis.cli._arguments import CommandError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from convbasis.cli._analyze_model import capture  # noqa: E402


@pytest.fixture
def folder_of(tmp_path, monkeypatch):
    """The folder of a tiny model; its tokenizer numbers whatever it is given."""
    tokens = torch.arange(3, 60)[None].repeat(1, 2)

    def from_pretrained(*_, **__):
        return lambda *_, **__: SimpleNamespace(input_ids=tokens)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)

    def make(**settings):
        config = transformers.MistralConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **settings,
        )
        transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def test_heads_of_the_layers_asked_for(folder_of):
    heads = capture(folder_of(sliding_window=None), None, "text", 64, [1], 1)
    assert heads.layers == [1]
    assert heads.query.shape == (1, 4, 64, 8)
    assert heads.key.shape == heads.value.shape == (1, 2, 64, 8)
    assert heads.scales == pytest.approx([8**-0.5] * len(heads.layers))


def test_a_model_that_sees_a_window_alone_is_refused(folder_of):
    with pytest.raises(CommandError, match=r"has other attention: .*sliding_window is not"):
        capture(folder_of(sliding_window=20), None, "text", 64, None, 1)
