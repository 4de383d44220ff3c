"""The rows that choose: their losses, and what the adapter as trained expects of another one, against both written out."""

import pytest
import torch

from lora_select import models
from lora_select.data.labels.tokens import TokenRow, collate
from lora_select.retention import form_losses, forms
from lora_select.retention.form_losses import Selection
from lora_select.retention.forms import Update

PAD = 3


def row(name, length, labels, seed):
    ids = tuple(torch.randint(100, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist())
    return TokenRow(name, ids, tuple(place >= length - labels for place in range(length)))


ROWS = [row("a", 9, 3, 0), row("b", 5, 1, 1), row("c", 17, 6, 2), row("d", 12, 2, 3)]


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return models.load_model(str(tiny_model_folder))


@pytest.fixture(scope="module")
def updates(model):
    generator = torch.Generator().manual_seed(5)
    return {
        name: Update(
            torch.randn(2, layer.in_features, generator=generator) * 0.2,
            torch.randn(layer.out_features, 2, generator=generator) * 0.2,
        )
        for name, layer in forms.linear_modules(model).items()
        if name.endswith(("q_proj", "down_proj"))
    }


def halved(updates):
    return {name: Update(one.a / 2, one.b) for name, one in updates.items()}


def distributions(model, updates):
    """Of every label token, row after row, each row alone."""
    found = []
    with torch.inference_mode(), forms.applied(model, updates):
        for one in ROWS:
            logits = model(**{k: v for k, v in collate([one], PAD).items() if k != "labels"}).logits[0, :-1]
            found.append(logits.log_softmax(-1)[torch.tensor(one.label_mask[1:])])
    return found


def divergence(model, updates, every=1):
    """The mean over label tokens in the order of the rows' lengths."""
    before, after = distributions(model, updates), distributions(model, halved(updates))
    order = sorted(range(len(ROWS)), key=lambda index: len(ROWS[index].input_ids))
    each = torch.cat([(before[i].exp() * (before[i] - after[i])).sum(-1) for i in order])
    return float(each[::every].mean())


def test_losses_are_those_of_the_rows_in_their_order_and_the_divergence_is_the_mean_over_labels(model, updates):
    selection = Selection(model, updates, ROWS, PAD)
    found = selection.at(halved(updates))
    assert selection.raw.labels == (3, 1, 6, 2)
    assert selection.raw.losses == pytest.approx(form_losses.losses(model, updates, ROWS, PAD), abs=1e-4)
    assert found.losses == pytest.approx(form_losses.losses(model, halved(updates), ROWS, PAD), abs=1e-4)
    assert found.expected == pytest.approx(divergence(model, updates), abs=1e-6)
    assert found.expected is not None
    assert found.expected > 1e-4
    assert selection.at(updates).expected == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(("most", "every"), [(12, 1), (6, 2), (5, 3), (1, 12)])
def test_of_many_label_tokens_some_are_taken_evenly_over_all_batches(model, updates, monkeypatch, most, every):
    monkeypatch.setattr(form_losses, "EXPECTED_LABELS", most)
    monkeypatch.setattr(form_losses, "LOSS_BATCH", 1)
    found = Selection(model, updates, ROWS, PAD).at(halved(updates))
    assert found.expected == pytest.approx(divergence(model, updates, every), abs=1e-6)
    assert found.losses == pytest.approx(form_losses.losses(model, halved(updates), ROWS, PAD), abs=1e-4)


def test_a_loss_that_is_no_number_is_said(model, updates):
    broken = {name: Update(one.a * float("nan"), one.b) for name, one in updates.items()}
    with pytest.raises(RuntimeError, match="choose the filter's strength"):
        Selection(model, broken, ROWS, PAD)
