"""Shortens a conversation to a number of tokens: fewer frames, shorter texts; images stay whole or the sample goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..utils.logging import get_logger
from .images import shrink
from .messages import Conversation, text_of, videos_of
from .video import Clip

logger = get_logger(__name__)

FEWEST_FRAMES = 2
FEWEST_CHARACTERS = 32  # that a text is cut to; a shorter one stays
GAP = " ... "  # where the middle of a text was
_TRIES = 8  # tokens are not quite proportional to characters

CountTokens = Callable[[Conversation], int]


@dataclass
class SampleLimits:
    """How large a sample may be, and what was cut so far.

    Attributes:
        max_pixels: of an image or a frame; None: any number.
        max_length: tokens; None: any number.
        is_context: whether that is what the model can take, and not what the user asked for.
        encoded: samples that are processor outputs, whose pixels no limit reaches.
    """

    max_pixels: int | None = None
    max_length: int | None = None
    is_context: bool = False
    shrunk: int = 0
    encoded: int = 0
    shortened: int = 0
    tokens_cut: int = 0
    left_out: int = 0
    tokens_left_out: int = 0

    def exceeds(self, tokens: int) -> bool:
        """Whether a sample of so many tokens is too long."""
        return self.max_length is not None and tokens > self.max_length

    def shrink(self, conversation: Conversation) -> Conversation:
        """Scales down images and frames that are too large, in place."""
        if self.max_pixels is None:
            return conversation
        for message in conversation:
            for part in message["content"]:
                if part["type"] == "image":
                    size, image = part["image"].size, shrink(part["image"], self.max_pixels)
                    part["image"] = image
                elif part["type"] == "video":
                    clip = part["video"]
                    part["video"] = Clip([shrink(frame, self.max_pixels) for frame in clip], clip.fps)
                    size, image = clip[0].size, part["video"][0]
                else:
                    continue
                self.shrunk += image.size != size
        return conversation

    def shorten(self, conversation: Conversation, tokens: int, count: CountTokens) -> Conversation | None:
        """Returns a conversation that fits, with fewer frames or shorter texts, and counts what was cut.

        What takes more tokens is cut first. A text keeps its beginning and its end, an answer its beginning. Images are
        never cut.

        Args:
            conversation: of `tokens` tokens, more than `max_length`.
            tokens: as `count` says.
            count: returns how many tokens a conversation has.

        Returns:
            None if it cannot be made to fit; it then counts as left out.
        """
        assert self.max_length is not None
        frames = max([len(clip) for clip in videos_of(conversation)], default=0)
        steps: list[tuple[int, int, Callable[[Conversation, int], Conversation]]] = [
            (FEWEST_FRAMES, frames, _with_frames),
            (FEWEST_CHARACTERS, max(map(len, text_of(conversation)), default=0), _with_characters),
        ]
        steps = [step for step in steps if step[0] < step[1]]
        steps.sort(key=lambda step: count(step[2](conversation, step[0])))
        left = tokens
        for fewest, most, cut in steps:
            if left > self.max_length:
                conversation, left = _fitted(conversation, left, self.max_length, count, cut, fewest, most)
        if left > self.max_length:
            self.leave_out(tokens)
            return None
        self.shortened += 1
        self.tokens_cut += tokens - left
        return conversation

    def leave_out(self, tokens: int) -> None:
        """Counts a sample that cannot be used, of so many tokens."""
        self.left_out += 1
        self.tokens_left_out += tokens

    def warn(self, total: int) -> None:
        """Warns once of all that was cut, of `total` samples that were read."""
        said = []
        if self.shrunk:
            said.append(f"{self.shrunk} images and videos were scaled down to max_pixels={self.max_pixels}")
        if self.encoded and self.max_pixels is not None:
            said.append(
                f"max_pixels={self.max_pixels} has no effect on {self.encoded} of {total} samples, which are processor "
                "outputs: scale their images before the processor takes them"
            )
        limit = f"{self.max_length} tokens, {'which the model can take' if self.is_context else '`max_length`'}"
        if self.shortened:
            said.append(
                f"{self.shortened} of {total} samples were longer than {limit}: {self.tokens_cut} tokens of texts and "
                "video frames were cut"
            )
        if self.left_out:
            said.append(
                f"{self.left_out} of {total} samples of {self.tokens_left_out} tokens were left out, because what "
                f"cannot be cut of them is longer than {limit}: give fewer or smaller images"
                + ("" if self.is_context else ", or raise `max_length`")
            )
        if said:
            logger.warning("Calibration data: %s.", "; ".join(said))


def _fitted(
    conversation: Conversation,
    tokens: int,
    max_length: int,
    count: CountTokens,
    cut: Callable[[Conversation, int], Conversation],
    fewest: int,
    most: int,
) -> tuple[Conversation, int]:
    """Cuts a conversation as little as it must be, or to `fewest`; returns it with its tokens.

    The size to cut to is found by the rule of false position, between one that fits and one that does not.
    """
    low, fits = fewest, cut(conversation, fewest)
    least = count(fits)
    high, above = most, tokens
    for _ in range(_TRIES):
        if least > max_length or high - low <= 1 or max_length - least <= max_length // 50:
            break
        share = (max_length - least) / (above - least)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        shorter = cut(conversation, middle)
        reached = count(shorter)
        if reached > max_length:
            high, above = middle, reached
        else:
            low, least, fits = middle, reached, shorter
    return fits, least


def _with_frames(conversation: Conversation, frames: int) -> Conversation:
    """Returns the conversation with at most so many frames in a video."""
    return [
        {
            **turn,
            "content": [
                {**part, "video": part["video"].thinned(frames)}
                if part["type"] == "video" and len(part["video"]) > frames
                else part
                for part in turn["content"]
            ],
        }
        for turn in conversation
    ]


def _with_characters(conversation: Conversation, characters: int) -> Conversation:
    """Returns the conversation with at most so many characters in a text."""

    def cut(text: str, is_answer: bool) -> str:
        if len(text) <= characters:
            return text
        if is_answer:
            return text[:characters]
        half = (characters - len(GAP)) // 2
        return text[:half].rstrip() + GAP + text[len(text) - half :].lstrip()

    return [
        {
            **turn,
            "content": [
                {**part, "text": cut(part["text"], turn["role"] == "assistant")} if part["type"] == "text" else part
                for part in turn["content"]
            ],
        }
        for turn in conversation
    ]
