"""Backends that misbehave on request: `served_model_name` says how. Imported only inside engine processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_inferperf.engines.interface import (
    Engine,
    Generation,
    GenerationRequest,
    LogLikelihood,
    LogLikelihoodRequest,
    Progress,
    TokenChunk,
)
from pytest_inferperf.model.case import EngineSpec
from pytest_inferperf.model.results import EngineInfo, Hardware


def spawn(folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "grandchild").write_text(str(child.pid))


class FakeEngine(Engine):
    prefix_token_id = 1
    eos_token_id = 2
    vocab_size = 100
    special_token_ids = frozenset({1, 2})

    def __init__(self, spec: EngineSpec, *, checkpoint: str, progress: Progress) -> None:
        self.spec = spec
        self.folder = Path(checkpoint)
        with (self.folder / "launches").open("a+") as stream:
            stream.write(f"{os.getpid()}\n")
            stream.seek(0)
            self.launches = len(stream.readlines())
        self.info = EngineInfo(
            backend="fake",
            hardware=Hardware(name="CPU", count=1, kind="cpu"),
            quant_algo=None,
            kv_cache_quant_algo=None,
            compute_dtype="float32",
            simulated=False,
            max_model_len=64,
            checkpoint=checkpoint,
            checkpoint_hash="0",
            options={"launches": self.launches} if spec.served_model_name == "changes" else {},
            load_s=float(self.launches),
        )
        progress("loading the fake")
        if spec.served_model_name == "dies-on-relaunch" and self.launches > 1:
            spawn(self.folder)
            os._exit(4)
        if spec.served_model_name == "dies-loading":
            print("last words", flush=True)
            os._exit(3)
        if spec.served_model_name == "hangs-loading":
            spawn(self.folder)
            time.sleep(600)
        if spec.served_model_name == "babbles-loading":
            while True:
                progress("loading " + "x" * 1000)

    def encode(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[tuple[int, ...]]:
        return [tuple(text.encode()) for text in texts]

    def decode(self, sequences: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        return [bytes(ids).decode() for ids in sequences]

    def generate(self, requests: Sequence[GenerationRequest], *, concurrency: int) -> list[Generation]:
        match self.spec.served_model_name:
            case "crash":
                print("about to crash", flush=True)
                os.kill(os.getpid(), signal.SIGSEGV)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                spawn(self.folder)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(600)
            case "floods":
                for _ in range(200):
                    os.write(1, b"z" * 100_000)
                    os.write(1, b"\rstep\n")
                os._exit(5)
            case "oom":
                raise MemoryError
            case "bug":
                raise ZeroDivisionError("a bug")
            case "noise":
                # The protocol's pipe is the only other pipe this process can write to.
                for descriptor in range(3, 20):
                    try:
                        os.write(descriptor, b"Loading weights: 100%\n")
                    except OSError:
                        continue
            case "chatty":
                print("x" * 100_000)
                os.write(1, b"y" * 100_000)
        return [
            Generation(
                token_ids=request.prompt,
                text="ok",
                finish_reason="length",
                prompt_tokens=len(request.prompt),
                token_times_s=tuple(0.5 for _ in request.prompt),
            )
            for request in requests
        ]

    def stream(self, request: GenerationRequest) -> Iterator[TokenChunk]:
        for index in range(request.max_tokens):
            yield TokenChunk(token_ids=(index,), text=str(index), time_s=float(index))

    def loglikelihood(self, requests: Sequence[LogLikelihoodRequest], *, concurrency: int) -> list[LogLikelihood]:
        return [LogLikelihood(logprob=-float(len(item.continuation)), is_greedy=True) for item in requests]

    def peak_memory_bytes(self) -> int:
        return 12345

    def close(self) -> None:
        (self.folder / "closed").touch()
