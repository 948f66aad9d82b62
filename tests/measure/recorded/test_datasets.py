"""Files of prompts and conversations: what is read from them, and what is said about those that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_inferperf.errors import SettingsError
from pytest_inferperf.measure.recorded.datasets import Dataset, read_dataset

PLAIN = '{"prompt": "How does a lock work?", "output_tokens": 9}\n'


def written(folder: Path, content: str | bytes, name: str = "mine.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def said(dataset: Dataset) -> list[list[tuple[list[str], str, int]]]:
    """List the turns of every record: what was said, the answer, the length."""
    return [
        [([f"{who}: {what}" for who, what in turn.messages], turn.answer, turn.output_tokens) for turn in turns]
        for turns in dataset.records
    ]


def test_plain_prompts(tmp_path: Path) -> None:
    found = read_dataset(written(tmp_path, "\ufeff" + PLAIN + '\n{"prompt": "And a\u2028tide?", "id": 3}\n'))
    assert said(found) == [[(["user: How does a lock work?"], "", 9)], [(["user: And a\u2028tide?"], "", 0)]]
    assert len(found.usable(needs_length=True)) == 1
    assert len(found.usable(needs_length=False)) == 2


@pytest.mark.parametrize("form", ["openai", "sharegpt", "array"])
def test_conversations_are_cut_into_turns(tmp_path: Path, form: str) -> None:
    talk = [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "First."),
        ("user", "Two?"),
        ("assistant", "Next."),
    ]
    if form == "openai":
        parts = [{"type": "text", "text": "One"}, {"type": "text", "text": "?"}]
        said_ = [{"role": role, "content": parts if text == "One?" else text} for role, text in talk]
        content = json.dumps({"messages": said_})
    else:
        speaker = {"system": "system", "user": "human", "assistant": "gpt"}
        content = json.dumps({"conversations": [{"from": speaker[role], "value": text} for role, text in talk]})
    found = read_dataset(written(tmp_path, f"[{content}]" if form == "array" else content))
    assert said(found) == [[(["system: Be brief.", "user: One?"], "First.", 0), (["user: Two?"], "Next.", 0)]]


def test_conversations_without_a_question_are_left_out_and_counted(tmp_path: Path) -> None:
    talks = [[], [{"from": "gpt", "value": "Hello."}], [{"from": "human", "value": "Who?"}]]
    found = read_dataset(written(tmp_path, json.dumps([{"conversations": talk} for talk in talks])))
    assert said(found) == [[(["user: Who?"], "", 0)]]
    assert found.skipped == 2


def test_label_is_of_the_content_and_not_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here = read_dataset(written(tmp_path, PLAIN, "my file.jsonl")).label
    assert here.startswith("my_file-")
    assert read_dataset(written(tmp_path / "elsewhere", PLAIN, "my file.jsonl")).label == here
    other = read_dataset(written(tmp_path, PLAIN.replace("9", "8"), "my file.jsonl")).label
    assert other.partition("-")[0] == here.partition("-")[0]
    assert other != here


BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty": ("\n \n", "mine.jsonl: the file is empty."),
    "empty array": (" []", 'mine.jsonl: the array is empty. A record is {"prompt": '),
    "cut line": (PLAIN + '{"prompt": "How', "mine.jsonl, line 2: not JSON (Unterminated string"),
    "cut array": ('[\n{"conversations": []},\n', "mine.jsonl, line 3: not JSON ("),
    "no object": (PLAIN + "7\n", "mine.jsonl, line 2: a line is an object, not 7."),
    "no object in array": ("[[1]]", "mine.jsonl, record 1: a record is an object, not [1]."),
    "not UTF-8": (
        PLAIN.encode() + b'{"prompt": "\xe4"}',
        "mine.jsonl, line 2: byte 0xe4 is no UTF-8. Convert the file",
    ),
    "unknown shape": ('{"question": 1}', "this one has none of prompt, messages, conversations, not {"),
    "two shapes": ('{"prompt": "a", "messages": []}', "this one has prompt and messages, not {"),
    "no prompt": ('{"prompt": " "}', 'mine.jsonl, line 1: "prompt" is a text that is not empty, not " ".'),
    "no length": ('{"prompt": "a", "output_tokens": 0}', '"output_tokens" is a whole number of at least 1, not 0.'),
    "true length": (
        '{"prompt": "a", "output_tokens": true}',
        '"output_tokens" is a whole number of at least 1, not true.',
    ),
    "no list": ('{"messages": {}}', 'mine.jsonl, line 1: "messages" is a list, not {}.'),
    "no role": (
        '{"messages": [{"content": "a"}]}',
        'each of "messages" has "role" and "content", not {"content": "a"}.',
    ),
    "unknown role": (
        '{"messages": [{"role": "tool", "content": "a"}]}',
        "\"role\" 'tool' is unknown. Known: assistant, developer, system, user.",
    ),
    "unknown speaker": (
        '{"conversations": [{"from": "humn", "value": "a"}]}',
        "\"from\" 'humn' is unknown. Did you mean 'human'? Known: assistant, gpt, human, system, user.",
    ),
    "picture": (
        '{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        '"content" is text, not [{"type"',
    ),
    "nothing asked": ('{"messages": []}', "mine.jsonl: no usable record: 1 of 1 conversations are empty or do not"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_an_error_with_the_place_and_the_value(tmp_path: Path, name: str) -> None:
    content, says = BROKEN[name]
    with pytest.raises(SettingsError) as caught:
        read_dataset(written(tmp_path, content))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "mine.jsonl"))


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent.jsonl: cannot be read: No such file or directory\."):
        read_dataset(tmp_path / "absent.jsonl")
