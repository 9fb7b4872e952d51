"""What the decoder of an encoder-decoder model reads of a sample."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from transformers_qaig.data import decoder_inputs
from transformers_qaig.data.decoder_inputs import DecoderInputs
from transformers_qaig.data.tensors import NO_ANSWER

MAKE = DecoderInputs(start=1, pad=0)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor([values])


def test_a_conversation_is_cut_before_its_first_answer_and_the_decoder_reads_all_answers() -> None:
    sample = {
        "input_ids": ids(5, 6, 7, 8, 9),
        "attention_mask": ids(1, 1, 1, 1, 1),
        "labels": ids(NO_ANSWER, NO_ANSWER, 7, NO_ANSWER, 9),
        "pixel_values": torch.zeros(1, 3),
    }
    made = MAKE(sample)
    assert made["input_ids"].tolist() == [[5, 6]]
    assert made["attention_mask"].tolist() == [[1, 1]]
    assert made["pixel_values"] is sample["pixel_values"]
    assert made["decoder_input_ids"].tolist() == [[1, 7]]
    assert made.keys().isdisjoint({"labels", "decoder_attention_mask"})


def test_an_answer_at_the_first_token_leaves_the_encoder_one_token() -> None:
    made = MAKE({"input_ids": ids(5, 6), "labels": ids(5, NO_ANSWER)})
    assert made["input_ids"].tolist() == [[5]]


@pytest.mark.parametrize("labels", [ids(7, 8, 9), ids(NO_ANSWER, 3), ids(5, 6)])
def test_labels_of_their_own_leave_the_encoders_text_whole(labels: torch.Tensor) -> None:
    """They have another length, differ from the text, or mark all of it."""
    made = MAKE({"input_ids": ids(5, 6), "labels": labels})
    assert made["input_ids"].tolist() == [[5, 6]]
    assert made["decoder_input_ids"].shape == labels.shape


def test_what_is_no_answer_is_padding_of_the_decoder() -> None:
    made = MAKE({"labels": ids(7, 8, NO_ANSWER, NO_ANSWER)})
    assert made["decoder_input_ids"].tolist() == [[1, 7, 8, 0]]
    assert made["decoder_attention_mask"].tolist() == [[1, 1, 1, 0]]


def test_without_labels_the_decoder_reads_the_encoders_text_without_its_padding() -> None:
    assert MAKE({"input_ids": ids(5, 6)})["decoder_input_ids"].tolist() == [[1, 5]]
    made = MAKE({"input_ids": ids(5, 6, 0), "attention_mask": ids(1, 1, 0)})
    assert made["decoder_input_ids"].tolist() == [[1, 5, 6]]
    assert MAKE({"input_ids": ids(0, 5, 6), "attention_mask": ids(0, 1, 1)})["decoder_attention_mask"].tolist() == [
        [1, 0, 1]
    ]


def test_decoder_ids_that_are_there_stay() -> None:
    sample = {"input_ids": ids(5, 6), "decoder_input_ids": ids(3), "labels": ids(5, NO_ANSWER)}
    assert MAKE(sample) == {name: sample[name] for name in ("input_ids", "decoder_input_ids")}


def test_a_sample_without_text_says_what_to_give() -> None:
    with pytest.raises(ValueError, match=r"it has no text.*'labels' or 'decoder_input_ids'"):
        MAKE({"pixel_values": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    ("named", "generation", "found"),
    [
        ({"decoder_start_token_id": 4, "bos_token_id": 2, "pad_token_id": 3}, {}, DecoderInputs(4, 3)),
        ({"bos_token_id": 2}, {"decoder_start_token_id": 5}, DecoderInputs(5, 0)),
        ({"decoder_start_token_id": None, "bos_token_id": 2}, {}, DecoderInputs(2, 0)),
        ({"pad_token_id": 7}, {}, DecoderInputs(7, 7)),
        ({}, {}, DecoderInputs(0, 0)),
    ],
)
def test_the_start_token_is_the_decoders_else_the_first_else_padding(
    monkeypatch: pytest.MonkeyPatch, named: dict, generation: dict, found: DecoderInputs
) -> None:
    monkeypatch.setattr(decoder_inputs, "is_encoder_decoder", lambda model: True)
    model = nn.Module()
    model.config = SimpleNamespace(get_text_config=lambda decoder=False: SimpleNamespace(), **named)
    model.generation_config = SimpleNamespace(**generation)
    assert DecoderInputs.of(model) == found


def test_a_decoder_alone_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_inputs, "is_encoder_decoder", lambda model: False)
    assert DecoderInputs.of(nn.Module()) is None
