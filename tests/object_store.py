"""A server that speaks S3 on loopback, in this process, for tests of shared storage."""

from __future__ import annotations

import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

BUCKET = "s3://bucket"


@dataclass(frozen=True)
class ObjectStore:
    """A bucket that is there while the test runs."""

    address: str
    endpoint: str


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Serve S3 for all tests of this process."""
    # Before pytester looks at what is loaded: it takes out what a test brings in, and what came in twice is two classes.
    import s3fs  # noqa: F401
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """An empty bucket; the environment says how to reach it, as for any S3."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing-the-store",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    send("PUT", f"{s3_endpoint}/bucket")
    yield ObjectStore(address=BUCKET, endpoint=s3_endpoint)
    send("POST", f"{s3_endpoint}/moto-api/reset")


@pytest.fixture
def lost_s3(s3: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """A bucket whose server does not answer."""
    import s3fs

    # Both try again, and wait in between.
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3
        s3fs.S3FileSystem.clear_instance_cache()


def send(method: str, url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
        answer.read()
