"""Secrets are planted wherever a user, an engine or a server could leave one, and searched for in all that is written."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote

import pytest

from pytest_inferperf import cli
from pytest_inferperf.hiding import HIDDEN
from tests.http_server import serving
from tests.plugin.conftest import PERFORMANCE, TASK, Project
from tests.plugin.servers import ServedProject

PASSWORD = "swörd fish/0451"
SECRETS = (
    PASSWORD,
    "line-one-of-a-key-0123",
    "line-two-of-a-key-0123",
    "hunter2-of-a-url",
    "sk-proj-" + "a1B2" * 6,
    "hf_" + "x" * 30,
    "ghp_" + "g" * 36,
    "gho_" + "o" * 36,
    "github_pat_" + "p" * 40,
    "nvapi-" + "n" * 40,
    "AKIA" + "A1" * 8,
    "xoxb-" + "1234567890-abc",
    "bearer-of-a-header-0451",
)
"""What must be nowhere. The first three are values of the environment."""

LEAK = (
    f"{SECRETS[0]} {SECRETS[1]} {SECRETS[2]} http://user:{SECRETS[3]}@host/v1 {' '.join(SECRETS[4:-1])} "
    f"Bearer {SECRETS[-1]}"
)
KEY = "the-key-of-an-endpoint"


@pytest.fixture
def leaking(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that says every secret wherever a project can say something."""
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("DEPLOY_KEY", f"{SECRETS[1]}\n{SECRETS[2]}\n")
    conftest = project.path / "conftest.py"
    conftest.write_text(
        f"{conftest.read_text()}\n\nLEAK = {LEAK!r}\n\n"
        "_plain = ScriptedEngine.__init__\n\n"
        "def _leaking(self, spec, root):\n"
        "    _plain(self, spec, root)\n"
        "    self.info = replace(self.info, options={'env': {'a': LEAK}, LEAK: [LEAK]}, versions={'server': LEAK})\n\n"
        "ScriptedEngine.__init__ = _leaking\n\n"
        "def pytest_inferperf_environment(config):\n"
        "    return {'cluster': LEAK, LEAK: 'name'}\n"
    )
    project.pytester.makepyfile(
        test_it=f"""
        import logging
        import pytest
        from pytest_inferperf.errors import InvalidRun

        LEAK = {LEAK!r}

        def leak():
            print(LEAK)
            logging.getLogger("server").warning(LEAK)

        @pytest.mark.{PERFORMANCE}
        @pytest.mark.throughput_floor("output_throughput_per_user")
        def test_new(inferperf):
            leak()
            inferperf.measure()

        @pytest.mark.{PERFORMANCE.replace("rounds=3", "rounds=3, seed=2")}
        @pytest.mark.throughput_floor(output_throughput_per_user=1000)
        def test_waived(inferperf):
            inferperf.measure()

        @pytest.mark.{PERFORMANCE.replace("rounds=3", "rounds=3, seed=3")}
        @pytest.mark.throughput_floor(output_throughput_per_user=1000)
        def test_invalid(inferperf):
            inferperf.measure()
            raise InvalidRun("Last lines of server.log:\\n  " + LEAK)

        @pytest.mark.{PERFORMANCE.replace("rounds=3", "rounds=3, seed=4")}
        def test_body(inferperf):
            leak()
            answer = [inferperf.measure(), LEAK][1]
            assert answer == "", LEAK

        @pytest.mark.{TASK}
        def test_answers(inferperf):
            leak()
            assert not inferperf.evaluate(), LEAK
        """
    )
    (project.path / "inferperf.waivers.toml").write_text(
        f'[[waiver]]\ncase = "test_it.py::test_waived*"\ngate = "output_throughput_per_user"\nreason = "{LEAK}"\n'
        f'issue = "https://user:{SECRETS[3]}@host/1"\nexpires = 2999-01-01\n'
    )
    return project


def search(name: str, data: bytes) -> None:
    """Fail where a secret stands in some bytes, also as JSON, an address, HTML or Python write it."""
    for secret in (*SECRETS, KEY):
        forms = {secret, json.dumps(secret)[1:-1], quote(secret), quote(secret, safe=""), html.escape(secret)}
        forms |= {secret.encode("unicode_escape").decode("ascii")}
        for form in forms:
            assert form.encode() not in data, f"{form} in {name}"


def written(folder: Path) -> dict[str, bytes]:
    """Return what a run wrote: every file but those that the fixture planted secrets in."""
    planted = {"conftest.py", "test_it.py", "inferperf.waivers.toml"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in planted and "__pycache__" not in path.parts
    }


def test_no_secret_reaches_an_output_of_a_run(leaking: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(leaking.path / "summary.md"))
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("CI_PROJECT_DIR", str(leaking.path))
    result = leaking.run(
        "-rA", "--showlocals", "--junitxml=junit.xml", "--inferperf-json=results.json", "--inferperf-update=new",
        "--inferperf-html=report.html", f"--inferperf-reason={LEAK}",
    )  # fmt: skip
    result.assert_outcomes(failed=4, xfailed=1)
    terminal = "\n".join((*result.outlines, *result.errlines))
    files = written(leaking.path)
    for name in (
        "summary.md", "junit.xml", "results.json", "report.html", "inferperf-code-quality.json",
        "baselines/performance/test-cpu-2x/tiny-llama.json",
    ):  # fmt: skip
        assert b"hidden" in files[name], name
    assert terminal.count(HIDDEN) > 10
    for name, data in {**files, "terminal": terminal.encode()}.items():
        search(name, data)


def test_no_secret_of_a_file_of_others_reaches_an_output_of_a_command(
    leaking: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a release before this one, or another program, wrote them: with every secret in them."""
    leaking.run("--inferperf-json=results.json", "-k", "test_new or test_invalid")
    clean = (leaking.path / "results.json").read_text()
    store = leaking.path / "store"
    store.mkdir()
    leak = json.dumps(LEAK)[1:-1]
    for number in range(12):
        text = json.loads(clean.replace(HIDDEN, leak if number < 6 else f"{leak} then"))
        for record in text["records"]:
            record["result"]["invalid"] = record["result"]["invalid"] and LEAK
            for item in record["result"]["performance"]["sessions"][0]["rounds"]:
                item["metrics"] = {name: (1 + (number >= 6)) * value for name, value in item["metrics"].items()}
        text["created"] = f"2026-01-{number + 1:02}T00:00:00+00:00"
        (store / f"{number}.json").write_text(json.dumps(text, ensure_ascii=False))
    first, last = str(store / "0.json"), str(store / "11.json")
    capsys.readouterr()
    shown = {}
    for arguments in (
        ["report", first],
        ["report", first, "--markdown", str(leaking.path / "report.md")],
        ["report", first, "--html", str(leaking.path / "report.html"), "--results", str(store)],
        ["compare", first, last],
        ["history", str(store)],
        ["trend", str(store)],
        ["bisect-range", str(store)],
        ["query", "SELECT * FROM history", str(store)],
        ["query", "SELECT * FROM runs", str(store), "--csv"],
        ["baseline", "diff", first],
        ["baseline", "update", first, "--reason", LEAK, "--accept-uncalibrated", "--patch", str(leaking.path / "p.patch")],
        ["baseline", "update", first, "--reason", LEAK, "--accept-uncalibrated"],
        ["baseline", "show"],
        ["baseline", "check"],
        ["report", LEAK],
    ):  # fmt: skip
        with_root = arguments + ["--root", str(leaking.path / "baselines")] * (arguments[0] == "baseline")
        assert cli.main(with_root) in (0, 1, 2)
        out = capsys.readouterr()
        shown[" ".join(arguments)] = f"{out.out}{out.err}"
    for name in ("report", "compare", "bisect-range", "query SELECT * FROM history", "baseline show"):
        assert HIDDEN in next(text for words, text in shown.items() if words.startswith(name)), name
    files = {name: data for name, data in written(leaking.path).items() if not name.startswith("store")}
    assert HIDDEN.encode() in files["p.patch"]
    assert HIDDEN.encode() in files["report.html"]
    assert HIDDEN.encode() in files["baselines/performance/test-cpu-2x/tiny-llama.json"]
    for name, data in {**files, **{name: text.encode() for name, text in shown.items()}}.items():
        search(name, data)


@contextmanager
def refusing_server() -> Iterator[str]:
    """A server that answers every request with 401 and what it was sent, as careless ones do."""

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"wrong key: {self.headers['Authorization']} ({self.headers['Authorization'][7:]})".encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with serving(Refuse) as url:
        yield url


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a service whose key is in a variable that is not named like one."""
    monkeypatch.setenv("SERVICE", KEY)
    with refusing_server() as url:
        yield url


def test_key_of_an_endpoint_is_hidden_where_a_server_says_it_again(served: ServedProject, service: str) -> None:
    served.test(f'url="{service}", api_key_env="SERVICE", isl=4, osl=2, concurrency=1')
    result = served.run("-rA", "--junitxml=junit.xml", "--inferperf-json=results.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*401*"])
    for name, data in {**written(served.path), "terminal": str(result.outlines + result.errlines).encode()}.items():
        search(name, data)


def test_key_of_a_measured_endpoint_is_hidden(service: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", "m", "--isl", "4", "--osl", "2", "--concurrency", "1", "--api-key-env", "SERVICE")
    out = tmp_path / "out.json"
    cli.main(["measure", "--url", service, *options, "--json", str(out), "--records", str(tmp_path / "r.jsonl")])
    shown = capsys.readouterr()
    assert "401" in shown.out + shown.err
    for name, data in {**written(tmp_path), "terminal": (shown.out + shown.err).encode()}.items():
        search(name, data)


def test_secret_in_the_log_of_a_server_is_hidden(served: ServedProject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", KEY)
    served.test("serve=\"sh -c 'echo started with $HF_TOKEN; exit 3' {port}\", isl=4, osl=2, concurrency=1")
    result = served.run("-rA", "--junitxml=junit.xml", "--inferperf-json=results.json")
    result.stdout.fnmatch_lines([f"*started with {HIDDEN.replace('[', '[[]')}*"])
    for name, data in {**written(served.path), "terminal": str(result.outlines + result.errlines).encode()}.items():
        search(name, data)


REFUSED = {
    f"url='http://user:{SECRETS[3]}@host'": "URL: user and password are not taken from a URL.*",
    f"serve='vllm serve --api-key {KEY} --port {{port}}'": "serve holds what looks like a key*",
    f"engine_options={{'header': '{SECRETS[4]}'}}": "engine option 'header' holds what looks like a key*",
    f"served_model_name='{PASSWORD}'": "served_model_name holds the value of the environment variable DB_PASSWORD; *",
}


@pytest.mark.parametrize(("keyword", "says"), REFUSED.items())
def test_secret_in_what_identifies_a_case_is_refused_unseen(
    served: ServedProject, monkeypatch: pytest.MonkeyPatch, keyword: str, says: str
) -> None:
    """Hidden, it would be another case on each machine; shown, it would be in git."""
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    served.test(f"{keyword}, isl=4, osl=2, concurrency=1")
    result = served.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_it.py::test_it: inferperf: {says}*"])
    search("terminal", str(result.outlines + result.errlines).encode())


def test_variable_in_a_command_is_no_secret(served: ServedProject) -> None:
    served.test("serve=\"sh -c 'vllm serve m --api-key $VLLM_API_KEY' {port}\", isl=4, osl=2, concurrency=1")
    assert served.run("--collect-only", "-q").ret == pytest.ExitCode.OK


def test_secret_in_an_option_is_refused_unseen(project: Project) -> None:
    project.test(PERFORMANCE)
    result = project.run(f"--inferperf-set=served_model_name={SECRETS[5]}")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result = project.run(f"--inferperf-set={SECRETS[5]}=1")
    assert result.ret != pytest.ExitCode.OK
    search("terminal", str(result.outlines + result.errlines).encode())


def test_secret_is_hidden_before_xdist_carries_it(leaking: Project) -> None:
    result = leaking.pytester.runpytest_inprocess(
        "-n1", "-rA", "--junitxml=junit.xml", "--inferperf-json=results.json", "-k", "test_answers"
    )
    files = written(leaking.path)
    assert HIDDEN.encode() in files["junit.xml"]
    for name, data in {**files, "terminal": str(result.outlines + result.errlines).encode()}.items():
        search(name, data)


def test_a_name_of_a_test_that_would_be_hidden_is_refused(project: Project) -> None:
    """Two such names would become one, and of their results one would be lost."""
    project.pytester.makepyfile(
        test_it=f"""
        import pytest

        @pytest.mark.parametrize("stop", [1, 2], ids=["stop_token=newline", "stop_token=period"])
        @pytest.mark.{PERFORMANCE}
        @pytest.mark.throughput_floor(output_throughput_per_user=1)
        def test_stop(inferperf, stop):
            inferperf.measure()
        """
    )
    result = project.run()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*results are filed under it. Give parametrize other ids=*"])


@pytest.mark.parametrize("fixture", ["inferperf_engine", "inferperf_case"])
def test_a_test_that_asks_for_the_engine_or_the_case_alone_says_no_secret(
    project: Project, monkeypatch: pytest.MonkeyPatch, fixture: str
) -> None:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    project.test(PERFORMANCE, body=f"assert not 'login {PASSWORD}'", fixture=fixture)
    result = project.run("--junitxml=junit.xml")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*login {HIDDEN.replace('[', '[[]')}*"])
    search("the terminal", str(result.stdout).encode())
    search("JUnit", (project.path / "junit.xml").read_bytes())


def test_an_engine_that_closes_after_somebody_elses_test_says_no_secret(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    conftest = project.path / "conftest.py"
    conftest.write_text(
        f"{conftest.read_text()}\n\ndef _close(self):\n    raise RuntimeError('login {PASSWORD}')\n\n"
        "ScriptedEngine.close = _close\n"
    )
    project.test(PERFORMANCE, "throughput_floor(output_throughput_per_user=1)")
    (project.path / "test_plain.py").write_text("def test_plain():\n    pass\n")
    result = project.run("--junitxml=junit.xml", "test_it.py", "test_plain.py")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_plain*", f"*login {HIDDEN.replace('[', '[[]')}*"])
    search("the terminal", str(result.stdout).encode())
    search("JUnit", (project.path / "junit.xml").read_bytes())


def test_the_key_of_a_reference_and_keys_in_a_reason_are_hidden(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_LOGIN", KEY)
    monkeypatch.setenv("REF_LOGIN", SECRETS[3])
    project.test(
        PERFORMANCE.replace(
            "rounds=3", "rounds=3, url='http://127.0.0.1:1/v1', api_key_env='OUR_LOGIN', hardware='NVIDIA B200 x8'"
        ),
        "throughput_floor('output_throughput_per_user')",
        "speedup_floor('output_throughput_per_user', ratio=0.1, over={'url': 'http://127.0.0.1:2/v1', 'api_key_env': 'REF_LOGIN', 'hardware': 'NVIDIA B200 x8'})",
        body=f"print('{KEY} {SECRETS[3]}'); inferperf.measure()",
    )
    result = project.run(
        "-rA", "--inferperf-json=r.json", "--inferperf-update=new", f"--inferperf-reason={KEY} {SECRETS[3]}"
    )
    assert f"{HIDDEN} {HIDDEN}" in str(result.stdout)
    search("the terminal", str(result.stdout).encode())
    for name, data in written(project.path).items():
        if name != "test_it.py":
            search(name, data)
