"""The least that a client in Python can do: what the CPU of a real one is compared with.

    python benchmarks/floor_client.py URL [--streams N] [--requests N] [--osl N]

A protocol of asyncio (on uvloop, where it is installed) on each raw socket takes one time per arrival of data, counts events
by their bytes, and sends the next request, always the same one, when the last bytes look like the end. It reads no JSON, no
usage and no token, draws no prompt, checks nothing, and calls the moment at which it looked the arrival: no client to
measure with. Prints its share of a core, from the first request to the last answer, and its figures, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

_END = b"0\r\n\r\n"


@dataclass
class Floor:
    """A closed loop of `streams`, each of which sends `payload` again and again, until `requests` more have ended."""

    payload: bytes
    streams: int
    requests: int
    osl: int
    ttft_ms: list[float] = field(default_factory=list)
    ended: int = 0
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, stream: Stream) -> None:
        """Count an answer, and go on with the next one."""
        self.ended += 1
        if self.ended > self.streams:
            self.ttft_ms.append(1000 * (stream.times[0] - stream.sent))
        if self.ended >= self.streams + self.requests:
            self.done.set()
        else:
            stream.send()


class Stream(asyncio.Protocol):
    """One connection."""

    def __init__(self, load: Floor) -> None:
        self._load = load
        self.sent = 0.0
        self.events = 0
        self.times: list[float] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what is written to."""
        # Those of uvloop are none by class.
        self._transport = cast(asyncio.WriteTransport, transport)

    def send(self) -> None:
        """Send the next request."""
        self.times = []
        self.events = 0
        self.sent = time.perf_counter()
        self._transport.write(self._load.payload)

    def data_received(self, data: bytes) -> None:
        """Take the time, and count."""
        self.times.append(time.perf_counter())
        self.events += data.count(b"data:")
        if data.endswith(_END):
            self._load.end(self)


async def run_floor(url: str, *, streams: int, requests: int, osl: int) -> dict[str, Any]:
    """Send the load to a server, and return the share of a core and the figures."""
    place = urlsplit(url)
    body = json.dumps(
        {
            "model": "simulated",
            "prompt": [7] * 128,
            "max_tokens": osl,
            "min_tokens": osl,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    payload = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    load = Floor(payload=payload, streams=streams, requests=requests, osl=osl)
    loop = asyncio.get_running_loop()
    assert place.hostname is not None
    assert place.port is not None
    opened = [
        (await loop.create_connection(lambda: Stream(load), place.hostname, place.port))[1] for _ in range(streams)
    ]
    gc.disable()
    cpu_s, begin = time.thread_time(), time.perf_counter()
    for stream in opened:
        stream.send()
    await load.done.wait()
    cpu_s, wall_s = time.thread_time() - cpu_s, time.perf_counter() - begin
    tokens = load.ended * osl
    return {
        "loop": type(loop).__module__.partition(".")[0],
        "cores": cpu_s / wall_s,
        "us_per_token": 1e6 * cpu_s / tokens,
        "tokens_per_s": tokens / wall_s,
        "ttft_ms": sum(load.ttft_ms) / len(load.ttft_ms),
    }


def main() -> None:
    """Run one load, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="Of a simulated server: http://127.0.0.1:PORT")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--requests", type=int, default=512, help="Answers after the first one of each stream")
    parser.add_argument("--osl", type=int, default=64)
    given = parser.parse_args()
    load = run_floor(given.url, streams=given.streams, requests=given.requests, osl=given.osl)
    try:
        import uvloop
    except ImportError:
        found = asyncio.run(load)
    else:
        found = uvloop.run(load)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
