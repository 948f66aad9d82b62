"""Prompts and conversations from a file: ShareGPT, `messages` of the OpenAI API, or plain prompts.

A file is read once, checked record by record, and known by its content. Every record becomes turns: what a user says
(the first with the system message before it), and how long the answer was, where the file tells.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_inferperf.engines.interface import Message
from pytest_inferperf.errors import SettingsError, choices
from pytest_inferperf.measure.recorded.files import Place, label_of, parse_line, read_file, state_of_file

__all__ = ["SHAPES", "Dataset", "Turn", "read_dataset"]

SHAPES = (
    '{"prompt": "…", "output_tokens": 64}, {"messages": [{"role": "user", "content": "…"}, …]} or '
    '{"conversations": [{"from": "human", "value": "…"}, …]}'
)
"""What a record may look like; `output_tokens` may be left out."""

_SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
"""Who speaks in a ShareGPT record, and which role that is."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a user says, and the answer that the file has."""

    messages: tuple[Message, ...]
    """Since the last answer; the first turn has the system message too."""

    answer: str = ""
    """The recorded answer; "" for none."""

    output_tokens: int = 0
    """How long the answer is to be, where the file says it; 0 where it does not."""

    @property
    def has_length(self) -> bool:
        """Whether the file tells, one way or the other, how long the answer is."""
        return bool(self.output_tokens or self.answer.strip())


@dataclass(frozen=True)
class Dataset:
    """The records of a file."""

    path: Path
    label: str
    records: tuple[tuple[Turn, ...], ...]
    """Of each record its turns, at least one."""

    skipped: int
    """Records that say nothing to answer: empty conversations, or such that do not begin with a user."""

    def usable(self, *, needs_length: bool, turns: int = 1) -> list[tuple[Turn, ...]]:
        """Return the records to send, each cut to its first turns: at most so many, at least one.

        With `needs_length` only those turns whose answer has a length in the file.
        """
        cut = [
            tuple(itertools.takewhile(lambda turn: turn.has_length or not needs_length, record[:turns]))
            for record in self.records
        ]
        return [record for record in cut if record]


def read_dataset(path: Path) -> Dataset:
    """Read a file; one that has not changed is read once. Raises `SettingsError` that names the file, the place, the value."""
    return _read(path, state_of_file(path))


@functools.lru_cache(maxsize=4)
def _read(path: Path, _state: tuple[int, ...]) -> Dataset:
    raw, text = read_file(path)
    found: list[tuple[Turn, ...]] = []
    skipped = 0
    for place, item in _items(path, text):
        turns = _turns(place, item)
        if turns:
            found.append(turns)
        else:
            skipped += 1
    if not found:
        raise SettingsError(
            f"{path}: no usable record: {skipped} of {skipped} conversations are empty or do not begin with a user. A "
            f"record is {SHAPES}."
        )
    return Dataset(path, label_of(path, raw), tuple(found), skipped)


def _items(path: Path, text: str) -> list[tuple[Place, dict[str, Any]]]:
    """Split a file into its records: a JSON array, or an object in each line."""
    if not text.lstrip().startswith("["):
        # Not `splitlines`, which also splits at characters that JSON strings may hold.
        lines = [(Place(path, "line", number), line) for number, line in enumerate(text.split("\n"), start=1)]
        return [(place, parse_line(place, line)) for place, line in lines if line.strip()]
    try:
        array: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Place(path, "line", getattr(error, "lineno", 1)).wrong(f"not JSON ({error})") from None
    if not array:
        raise SettingsError(f"{path}: the array is empty. A record is {SHAPES}.")
    found = []
    for number, item in enumerate(array, start=1):
        place = Place(path, "record", number)
        if not isinstance(item, dict):
            raise place.wrong("a record is an object", item)
        found.append((place, item))
    return found


def _turns(place: Place, item: dict[str, Any]) -> tuple[Turn, ...]:
    kinds = [name for name in _READERS if name in item]
    if len(kinds) != 1:
        found = f"has {' and '.join(kinds)}" if kinds else f"has none of {', '.join(_READERS)}"
        raise place.wrong(f"a record is {SHAPES}; this one {found}", item)
    return _READERS[kinds[0]](place, item)


def _plain(place: Place, item: dict[str, Any]) -> tuple[Turn, ...]:
    prompt, tokens = item["prompt"], item.get("output_tokens", 0)
    if not isinstance(prompt, str) or not prompt.strip():
        raise place.wrong('"prompt" is a text that is not empty', prompt)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or ("output_tokens" in item and tokens < 1):
        raise place.wrong('"output_tokens" is a whole number of at least 1', tokens)
    return (Turn(messages=(("user", prompt),), output_tokens=tokens),)


def _conversation(
    items: str, who: str, what: str, names: dict[str, str]
) -> Callable[[Place, dict[str, Any]], tuple[Turn, ...]]:
    def read(place: Place, item: dict[str, Any]) -> tuple[Turn, ...]:
        said = item[items]
        if not isinstance(said, list):
            raise place.wrong(f'"{items}" is a list', said)
        messages = []
        for message in said:
            if not isinstance(message, dict) or who not in message or what not in message:
                raise place.wrong(f'each of "{items}" has "{who}" and "{what}"', message)
            role = message[who]
            if not isinstance(role, str) or role not in names:
                raise place.wrong(f'"{who}" {role!r} is unknown. {choices(role, names, what="Known")[:-1]}')
            messages.append((names[role], _content(place, what, message[what])))
        return _split(messages)

    return read


def _content(place: Place, name: str, value: object) -> str:
    """Return the text of a message: a string, or the API's list of parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in value):
        return "".join(part["text"] for part in value)
    raise place.wrong(f'"{name}" is text', value)


def _split(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """Cut a conversation into turns; none where it does not begin with a user who says something."""
    turns: list[Turn] = []
    said: list[Message] = []
    for role, content in messages:
        if role != "assistant":
            said.append((role, content))
        elif any(who == "user" and text.strip() for who, text in said):
            turns.append(Turn(messages=tuple(said), answer=content))
            said = []
        else:
            # An answer to nothing: what follows would answer something that is not there.
            return tuple(turns)
    if any(who == "user" and text.strip() for who, text in said):
        turns.append(Turn(messages=tuple(said)))
    return tuple(turns)


_READERS: dict[str, Callable[[Place, dict[str, Any]], tuple[Turn, ...]]] = {
    "prompt": _plain,
    "messages": _conversation("messages", "role", "content", _ROLES),
    "conversations": _conversation("conversations", "from", "value", _SPEAKERS),
}
"""The kinds of records, by the field that tells them."""
