"""Finds, by trying, the form of a conversation that a chat template writes in full; reports or refuses what it drops.

Templates differ: some read a list of parts only (and skip a plain string without a message), some read plain strings.
So each form is first rendered with a unique word in place of every text: a missing word was dropped. A short answer
such as "2" would be found in the markup or the question, too.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from ..utils.logging import get_logger
from .messages import ChatTools, Conversation
from .turns import ROLES, Turn
from .video import Clip

logger = get_logger(__name__)

_END_OF_REASONING = "</think>"  # templates cut what is before it out of earlier turns


def form_for_template(
    processor: Any,
    conversation: Conversation,
    tools: ChatTools = None,
    warn: Callable[[str], None] = logger.warning,
) -> Conversation:
    """Returns the conversation in the form that this chat template renders in full.

    Args:
        processor: whose chat template it is.
        conversation: as `messages.to_conversation` returns it.
        tools: as `messages.tools_of` returns them.
        warn: called with a sentence for whatever else than an answer the template drops.

    Raises:
        ValueError: what an assistant says, or a tool that it calls, would be dropped in every form.
        ProcessorError: the template raises something at every form.
    """
    _check_roles(processor, conversation)
    best: tuple[Conversation, list[_Word], str] | None = None
    failure: ProcessorError | None = None
    for form in (conversation, _plain_strings(conversation)):
        probe, words = _probe(form)
        try:
            rendered = render(processor, probe, tools)
        except ProcessorError as error:  # jinja errors and whatever a template raises by itself
            failure = failure or error
            continue
        if any(f"'text': '{word.text}'" in rendered for word in words):  # it writes the list as Python does
            continue
        missing = [word for word in words if word.text not in rendered]
        if best is None or len(missing) < len(best[1]):
            best = form, missing, rendered
        if not missing:
            break
    if best is None:
        raise failure or ValueError("the chat template writes the parts of a message as Python does: it takes no text")
    form, missing, rendered = best
    _report_dropped(form, missing, warn)
    if tools and not any(_name_of(tool) in rendered for tool in tools):
        warn("the chat template drops the tools")
    _check_answers(form, render(processor, form, tools))
    _check_videos(processor, form, tools)
    return form


class ProcessorError(ValueError):
    """What a processor or its chat template raised: its class, and the error."""

    def __init__(self, processor: Any, error: Exception):
        super().__init__(f"{type(processor).__name__} ({type(error).__name__}: {error})")


def render(processor: Any, form: Conversation, tools: ChatTools = None, **options: Any) -> Any:
    """Renders `form` with the chat template: text, or with `tokenize=True` the processor's output.

    Raises:
        ProcessorError: the processor raised something.
    """
    options = {"add_generation_prompt": False, "tokenize": False, **options}
    clips = [
        part["video"]
        for turn in form
        if isinstance(turn["content"], list)
        for part in turn["content"]
        if isinstance(part.get("video"), Clip)
    ]
    if clips and options["tokenize"]:  # they are sampled already, and a processor cannot know their rate
        options["processor_kwargs"] = {
            "do_sample_frames": False,
            "video_metadata": [clip.metadata() for clip in clips],
        }
    if tools:  # not passed where there are none: a processor of the user's own may not have the argument
        options["tools"] = tools
    try:
        return processor.apply_chat_template(form, **options)
    except Exception as error:  # processors raise every kind
        raise ProcessorError(processor, error) from error


def _check_roles(processor: Any, conversation: Conversation) -> None:
    for turn in conversation:
        if turn["role"] not in ROLES and turn["role"] not in str(processor.chat_template):
            raise ValueError(
                f"a message has the role {turn['role']!r}, which the chat template does not know: "
                f"it should be one of {list(ROLES)}"
            )


def _plain_strings(conversation: Conversation) -> Conversation:
    """Returns messages of text alone with their parts joined to one string."""
    return [
        message
        if any(part["type"] != "text" for part in message["content"])
        else {**message, "content": "\n".join(part["text"] for part in message["content"])}
        for message in conversation
    ]


class _Word(NamedTuple):
    """A word that stands in the probe for something of a turn."""

    text: str
    turn: int
    what: str


def _probe(form: Conversation) -> tuple[Conversation, list[_Word]]:
    """Returns `form` with a unique word in place of each text, each called tool's name and each reasoning."""
    words: list[_Word] = []

    def word(turn: int, what: str) -> str:
        words.append(_Word(f"probe{len(words)}end", turn, what))
        return words[-1].text

    probe = []
    for index, turn in enumerate(form):
        turn = {**turn, "content": _replaced(turn["content"], partial(word, index, "text"))}
        if turn.get("tool_calls"):
            turn["tool_calls"] = [
                {**call, "function": {**call["function"], "name": word(index, "tool call")}}
                for call in turn["tool_calls"]
            ]
        if turn.get("reasoning_content"):
            turn["reasoning_content"] = turn["thinking"] = word(index, "reasoning")
        probe.append(turn)
    return probe, words


def _replaced(content: str | list[dict[str, Any]], word: Callable[[], str]) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return word() if content.strip() else content
    return [{**part, "text": word()} if part["type"] == "text" and part["text"].strip() else part for part in content]


def texts_of(turn: Turn) -> list[str]:
    """Returns the texts of a turn that are not blank."""
    content = turn["content"]
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return [text for text in texts if text.strip()]


def _report_dropped(form: Conversation, missing: list[_Word], warn: Callable[[str], None]) -> None:
    reasons = [index for index, turn in enumerate(form) if turn.get("reasoning_content")]
    dropped = [word.turn for word in missing if word.what == "reasoning"]
    if reasons and reasons == dropped:  # of earlier turns alone, many templates drop it on purpose
        warn("the chat template drops the assistant's reasoning")
    for word in missing:
        turn = form[word.turn]
        if word.what == "reasoning" and (texts_of(turn) or turn.get("tool_calls")):
            continue
        if turn["role"] == "assistant":
            raise ValueError(
                f"the chat template drops the {word.what} of the assistant in message {word.turn}: leave this sample "
                "out, or set processor.chat_template to one that writes it"
            )
        warn(f"the chat template drops a text of the {turn['role']}")


def _check_answers(form: Conversation, rendered: str) -> None:
    """Checks that the real answers are rendered: some templates drop a text because of its content."""
    written = _squeezed(rendered)
    for index, turn in enumerate(form):
        if turn["role"] != "assistant":
            continue
        for text in texts_of(turn):
            answer = text.rpartition(_END_OF_REASONING)[2]
            answer = answer if answer.strip() else text
            escaped = json.dumps(answer, ensure_ascii=False)[1:-1]
            if _squeezed(answer) not in written and _squeezed(escaped) not in written:
                raise ValueError(
                    f"the chat template drops or changes the text of the assistant in message {index} "
                    f"({answer.strip()!r:.80}): leave this sample out, or set processor.chat_template to one that "
                    "writes it"
                )


def _check_videos(processor: Any, form: Conversation, tools: ChatTools) -> None:
    """Checks that each video is written, by leaving it out."""
    for index, turn in enumerate(form):
        if isinstance(turn["content"], str):
            continue
        for part in turn["content"]:
            if part["type"] != "video":
                continue
            others = [other for other in turn["content"] if other is not part]
            without = [*form[:index], {**turn, "content": others}, *form[index + 1 :]]
            if render(processor, form, tools) == render(processor, without, tools):
                raise ValueError(
                    f"the chat template drops the video in message {index}: give chosen frames as parts of type "
                    "'image', or set processor.chat_template to one that writes videos"
                )


def _name_of(tool: dict[str, Any] | Callable[..., Any]) -> str:
    if not isinstance(tool, dict):
        return tool.__name__
    return str(tool.get("function", tool).get("name"))


def _squeezed(text: str) -> str:
    """Removes white space, which templates strip and join as they like."""
    return "".join(text.split())
