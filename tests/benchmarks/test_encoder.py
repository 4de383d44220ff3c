"""The oracle's classifier, on a tiny BERT: it never sees the class, and the product's loss reads its answer."""

import math

import pytest
import torch
from transformers import BertConfig

from benchmarks.selection.sweep.encoder import NearestLabel, source_of
from lora_select import models
from lora_select.data.labels.tokens import TokenRow, collate, label_loss
from lora_select.errors import InputError

TEXT = (2, 11, 12, 13, 3)


@pytest.fixture
def model():
    """Three classes of one task and two of another."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, pad_token_id=0
    )
    made = NearestLabel(config, add_pooling_layer=False).eval()
    made.know(torch.nn.functional.normalize(torch.randn(5, 16), dim=1).unbind(), [0, 0, 0, 1, 1])
    return made


@torch.inference_mode()
def losses(model, *rows: TokenRow) -> list[float]:
    return label_loss(model, collate(rows, 0))[0].tolist()


def row(label: int, text=TEXT) -> TokenRow:
    return TokenRow(str(label), (*text, label), (*[False] * len(text), True))


def test_the_answer_does_not_depend_on_the_true_class(model):
    """Losses of the three classes for one text are those of one distribution."""
    found = [losses(model, row(label))[0] for label in (0, 1, 2)]
    assert sum(math.exp(-loss) for loss in found) == pytest.approx(1.0, abs=1e-5)


def test_classes_of_other_tasks_take_no_part(model):
    found = [losses(model, row(label))[0] for label in (3, 4)]
    assert sum(math.exp(-loss) for loss in found) == pytest.approx(1.0, abs=1e-5)


def test_padding_changes_nothing(model):
    longer = row(1, (2, *range(11, 25), 3))
    alone = [losses(model, one)[0] for one in (row(0), longer)]
    assert losses(model, row(0), longer) == pytest.approx(alone, abs=1e-5)


def test_the_encoder_has_a_record_though_the_product_refuses_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is an encoder"):
        models.resolve(str(tmp_path))
    made = source_of(model, tmp_path)
    assert (made.path, made.hidden_size, made.num_hidden_layers) == (str(tmp_path), 16, 2)
    assert made.num_parameters == sum(parameter.numel() for parameter in model.parameters())
