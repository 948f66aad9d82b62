"""What is taken for a secret and what is not, and that hiding one changes nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import sys
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest

from pytest_inferperf.hiding import HIDDEN, finder, hidden_output, hide_in, hider

pytestmark = pytest.mark.newest

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-" + "a1B2" * 6,
        "sk-ant-api03-" + "a1B2" * 6 + "-x_Y",
        "hf_" + "x" * 30,
        "ghp_" + "x" * 36,
        "gho_" + "x" * 36,
        "github_pat_" + "x_" * 20,
        "glpat-" + "x" * 20,
        "nvapi-" + "x-" * 30,
        "xoxb-" + "1234567890-abc",
        "AKIA" + "A1" * 8,
        "eyJhbGciOiJIUzI1" + ".eyJzdWIiOiIxMjM0" + ".c2lnbmF0dXJl",
        "Bearer abcdefgh12345",
        "Authorization: Basic dXNlcjpwYXNz",
        "api_key=abcdef123456",
        'token": "abcdef123456',
        "HF_TOKEN=abcdef",
        "password: 12345678",
        "aws_secret_access_key = abc/def+ghi",
        "X-Amz-Signature=0123456789abcdef",
        PEM,
    ],
)
def test_what_looks_like_a_key_is_hidden(secret: str) -> None:
    text = hider({})(f"before {secret} after")
    assert secret not in text
    assert HIDDEN in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert finder({})(secret) == "holds what looks like a key, a token or a password"


@pytest.mark.parametrize(
    "text",
    [
        "120 tok/s, 99 tokens, ttft_ms.p99",
        "hf-internal-testing/tiny-random-LlamaForCausalLM",
        "sk-hynix-tuned-llama-instruct",
        "first token: 123.456 ms, max_token=100000, eos_token_id=128009",
        "pad_token=<|endoftext|>",
        "vllm serve m --max-token 100000 --token-limit 100000",
        "sh -c 'vllm serve m --api-key $VLLM_API_KEY'",
        "http://127.0.0.1:8000/v1/completions",
        "sha256:" + "0a1b2c3d" * 8,
        "speculative.json, keyword=value, monkey: business",
    ],
)
def test_other_words_stay(text: str) -> None:
    assert hider({})(text) == text
    assert finder({})(text) == ""


def test_password_in_an_address_is_hidden() -> None:
    hide = hider({})
    assert hide("http://user:secret1@host/v1") == f"http://{HIDDEN}@host/v1"
    assert hide("http:/user:secret1@host/v1") == f"http:/{HIDDEN}@host/v1"
    assert hide("http://:p@ss@host:80/v1") == f"http://{HIDDEN}@host:80/v1"


def test_a_key_on_a_command_line_is_hidden() -> None:
    assert hider({})("vllm serve m --api-key abc12345 --port 8000") == "vllm serve m [hidden] --port 8000"


def test_values_of_variables_that_are_named_like_secrets_are_hidden() -> None:
    hide = hider({"MY_TOKEN": "swordfish", "DB_PASSWORD": "swordfish-two", "HOME": "/home/u", "A_KEY": "abc"})
    assert hide("swordfish-two and swordfish in /home/u abc") == f"{HIDDEN} and {HIDDEN} in /home/u abc"


@pytest.mark.parametrize(
    "name", ["KEY", "API_KEY", "HF_TOKEN", "TOKENS", "CLIENT_SECRET", "DB_PASS", "AWS_CREDENTIALS", "KEY2", "my_apikey"]
)
def test_names_of_secrets(name: str) -> None:
    assert hider({name: "plain-words"})("say plain-words") == f"say {HIDDEN}"
    assert finder({name: "plain-words"})("say plain-words") == f"holds the value of the environment variable {name}"


@pytest.mark.parametrize(
    "name",
    [
        "SSH_AUTH_SOCK",
        "GIT_AUTHOR_NAME",
        "TOKENIZERS_PARALLELISM",
        "HF_TOKEN_PATH",
        "KEYBOARD",
        "TOKEN_TYPE",
        "COMPASS",
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert hider({name: "plain-words"})("say plain-words") == "say plain-words"


def test_variable_that_a_mark_names_is_a_secret_whatever_it_is_called() -> None:
    assert hider({"SERVICE": "plain-words"}, also=["SERVICE"])("plain-words") == HIDDEN


def test_secret_is_found_as_an_address_and_a_json_text_write_it() -> None:
    hide = hider({"DB_PASSWORD": 'p/ä "x"'})
    assert hide("p%2F%C3%A4%20%22x%22 or p/%C3%A4%20%22x%22") == f"{HIDDEN} or {HIDDEN}"
    assert hide('{"a": "p/\\u00e4 \\"x\\""}') == '{"a": "[hidden]"}'


SECRET = "n0 word/that <one> knows?~~"


@pytest.mark.parametrize(
    "write",
    [
        quote_plus,
        lambda secret: (
            quote(secret, safe="")
            .replace("%2F", "%2f")
            .replace("%3C", "%3c")
            .replace("%3E", "%3e")
            .replace("%3F", "%3f")
        ),
        html.escape,
        lambda secret: json.dumps(secret).replace("/", "\\/"),
        lambda secret: base64.b64encode(secret.encode()).decode(),
        *(
            lambda secret, user=user: base64.b64encode(f"{user}:{secret}".encode()).decode()
            for user in ("me", "him", "them")
        ),
        lambda secret: base64.urlsafe_b64encode(f"me:{secret}.".encode()).decode(),
    ],
    ids=["form", "small-letters", "html", "json-of-php", "base64", "login-2", "login-3", "login-4", "for-addresses"],
)
def test_secret_is_found_as_others_write_it(write: Callable[[str], str]) -> None:
    written = write(SECRET)
    assert SECRET not in written
    shown = hider({"OUR_TOKEN": SECRET})(f"cannot log in with {written}, sorry")
    assert shown.startswith("cannot log in with ")
    assert HIDDEN in shown
    assert len(shown) < len("cannot log in with , sorry") + len(HIDDEN) + 10
    assert "OUR_TOKEN" in finder({"OUR_TOKEN": SECRET})(written)


def test_a_secret_that_is_no_utf8_is_hidden() -> None:
    """So are bytes of a variable that cannot be decoded."""
    secret = b"correct \xff battery".decode(errors="surrogateescape")
    assert hider({"OUR_TOKEN": secret})(f"no {secret}, but correct%20%FF%20battery") == f"no {HIDDEN}, but {HIDDEN}"


def test_every_line_of_a_secret_of_many_is_one() -> None:
    hide = hider({"SSH_KEY": "first line of a key\nx\nsecond line of a key\n"})
    assert hide("second line of a key, x") == f"{HIDDEN}, x"


def test_data_keeps_its_shape_its_figures_and_what_is_packed() -> None:
    """A value of the environment may stand in base64, and a word of the schema may be one."""
    hide = hider({"A_KEY": "AAAAAA", "B_KEY": "performance"})
    data = {
        "outcomes": {"encoding": "bits", "count": 48, "data": "AAAAAAAA"},
        "rows": {"sent": "AAAAAAAA"},
        "type": "performance",
        "performance": 1.5,
        "context": {"AAAAAA": "AAAAAA", "type": "AAAAAA"},
        "notes": ["AAAAAA", None, True],
        "pairs": [("a", "AAAAAA")],
    }
    assert hide_in(data, hide) == {
        **data,
        "context": {HIDDEN: HIDDEN, "type": HIDDEN},
        "notes": [HIDDEN, None, True],
        "pairs": [("a", HIDDEN)],
    }


def test_output_is_hidden_also_where_it_is_printed_in_pieces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "swordfish")
    with hidden_output():
        print("sword", end="")
        print("fish", "and", sep=" ")
        print("swordfish", end="", flush=True)
        print(" at the end: swordfish", end="")
        print("swordfish", file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == f"{HIDDEN} and\n{HIDDEN} at the end: {HIDDEN}"
    assert err == f"{HIDDEN}\n"
    print("swordfish")
    assert capsys.readouterr().out == "swordfish\n"


def test_output_that_is_hidden_is_a_stream_like_the_one_it_goes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with hidden_output():
        assert sys.stdout.isatty() is stream.isatty()
        assert sys.stdout.write("four") == 4
    assert stream.getvalue() == "four"


def test_a_count_of_tokens_is_no_secret() -> None:
    counts = {"VLLM_MAX_NUM_BATCHED_TOKENS": "131072", "MAX_TOKENS": "1048576"}
    assert hider(counts)("vllm --max-model-len 131072") == "vllm --max-model-len 131072"
    assert hider({"API_TOKENS": "open-sesame"})("open-sesame") == HIDDEN
    assert hider({"API_TOKENS": "12345678"}, also=["API_TOKENS"])("12345678") == HIDDEN, "a mark says what it is"
