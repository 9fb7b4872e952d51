"""The first calibration samples as people see them."""

import base64
import io

import pytest
import torch
from PIL import Image

from transformers_qaig.data.views import LONGEST_WORD, MOST_SAMPLES, MOST_TOKENS, SIDE, SampleViews, thumbnail

PICTURE = 9


class Tokenizer:
    """Knows tokens below 100."""

    def decode(self, ids: list[int]) -> str:
        if ids[0] >= 100:
            raise IndexError("no such token")
        return "word" + "x" * ids[0]


def text(*ids: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([ids])}


def about(image: Image.Image) -> list:
    return [{"role": "user", "content": [{"type": "image", "image": image}]}]


def test_padding_is_not_shown_and_a_pictures_tokens_have_no_words() -> None:
    views = SampleViews([PICTURE])
    sample = {**text(0, PICTURE, 2, 0), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    views.add(4, sample, Tokenizer(), None)
    (view,) = views.views
    assert (view.index, view.tokens, views.lengths) == (4, 3, [3])
    assert view.words == ["word", "", "wordxx"]
    assert view.is_picture == [False, True, False]
    assert (view.pictures, view.grid) == ([], None)


def test_what_a_tokenizer_cannot_decode_is_shown_as_its_number() -> None:
    views = SampleViews()
    views.add(0, text(123), Tokenizer(), None)
    views.add(1, text(5), None, None)
    assert [view.words for view in views.views] == [["123"], ["5"]]


def test_words_tokens_and_samples_are_bounded_but_every_length_counts() -> None:
    views = SampleViews()
    for index in range(MOST_SAMPLES + 2):
        views.add(index, text(*[60] * (MOST_TOKENS + 1)), Tokenizer(), None)
    assert len(views.views) == MOST_SAMPLES
    assert views.lengths == [MOST_TOKENS + 1] * (MOST_SAMPLES + 2)
    assert len(views.views[0].words) == len(views.views[0].is_picture) == MOST_TOKENS
    assert len(views.views[0].words[0]) == LONGEST_WORD


@pytest.mark.parametrize(
    ("tokens", "sizes", "grid"),
    [
        (6, [[1, 4, 6]], (2, 3)),  # merged two by two
        (24, [[1, 4, 6]], (4, 6)),
        (24, [[2, 4, 6]], None),  # two frames
        (9, [[2, 4, 6]], (3, 3)),
        (9, None, (3, 3)),
        (6, None, None),
        (9, [[1, 4, 6], [1, 4, 6]], (3, 3)),
        (5, [[1, 4, 6]], None),
        (0, [[1, 4, 6]], None),
    ],
)
def test_the_grid_is_what_the_sample_says_else_a_square(
    tokens: int, sizes: list | None, grid: tuple[int, int] | None
) -> None:
    views = SampleViews([PICTURE])
    sample = text(1, *[PICTURE] * tokens)
    if sizes is not None:
        sample["image_grid_thw"] = torch.tensor(sizes)
    views.add(0, sample, Tokenizer(), about(Image.new("RGB", (8, 8))))
    assert views.views[0].grid == grid


def test_pictures_are_small_jpegs_and_one_that_cannot_be_drawn_is_left_out() -> None:
    wide = Image.new("RGBA", (4 * SIDE, SIDE))
    with Image.open(io.BytesIO(base64.b64decode(thumbnail(wide)))) as small:
        assert (small.format, small.size) == ("JPEG", (SIDE, SIDE // 4))
    closed = Image.new("RGB", (8, 8))
    closed.close()
    assert thumbnail(closed) == ""
    views = SampleViews([PICTURE])
    views.add(0, text(PICTURE), Tokenizer(), about(closed))
    assert views.views[0].pictures == []
