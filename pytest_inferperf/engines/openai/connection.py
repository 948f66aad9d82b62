"""One keep-alive connection: a non-blocking socket, plain or TLS, driven by whoever polls it.

No event loop stands between the socket and the clock: what is received comes with the kernel's own time of its arrival.
Plain sockets are received from directly; TLS goes through memory buffers, as non-blocking TLS must.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Literal

from pytest_inferperf.engines.openai.endpoint import Address
from pytest_inferperf.polling import TIME_SPACE, keep_times, receive, wall_time_ns

__all__ = ["Connection", "ConnectionFailed"]

_READ_SIZE = 65536


class ConnectionFailed(Exception):
    """A connection that could not be made or broke. `cause` is a key of the counts, `str(error)` the detail."""

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.cause = cause


class Connection:
    """A connection to one address. Starts to connect when made; `advance` on every readiness until it is `ready`.

    Owns its socket: close it.
    """

    __slots__ = ("_incoming", "_outbox", "_outgoing", "_recvmsg", "_tls", "sock", "state")

    def __init__(self, address: Address, *, tls: ssl.SSLContext | None, host: str) -> None:
        self.state: Literal["connecting", "handshake", "ready"] = "connecting"
        self.sock = socket.socket(address.family, socket.SOCK_STREAM)
        self._recvmsg = self.sock.recvmsg
        self._outbox = b""
        self._tls: ssl.SSLObject | None = None
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        try:
            self.sock.setblocking(False)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_times(self.sock)
            code = self.sock.connect_ex(address.sockaddr)
            if code not in (0, errno.EINPROGRESS):
                raise _failed(code)
        except BaseException:
            self.sock.close()
            raise

    @property
    def wants_write(self) -> bool:
        """Whether the socket must be polled for writing too."""
        return self.state == "connecting" or bool(self._outbox)

    def advance(self) -> None:
        """Go on with connecting, the TLS handshake, or sending. Raises `ConnectionFailed`."""
        if self.state == "connecting":
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise _failed(code)
            try:
                self.sock.getpeername()
            except OSError:
                return
            self.state = "ready" if self._tls is None else "handshake"
            if self._tls is not None:
                self._handshake()
        elif self.state == "handshake":
            self._flush()
            self._handshake()
        else:
            self._flush()

    def send(self, data: bytes) -> None:
        """Send, keeping what the socket does not take at once for `advance`. Raises `ConnectionFailed`."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        if self._outbox:
            self._outbox += data
            return
        self._outbox = data[self._send(data) :]

    def receive(self) -> tuple[bytes, int]:
        """Return what has come, b"" at the end of the connection, and when: see `polling.receive`.

        Raises `BlockingIOError` when there is nothing.
        """
        if self._tls is not None:
            return self._receive_tls()
        data, found, _, _ = self._recvmsg(_READ_SIZE, TIME_SPACE)
        return data, wall_time_ns(found)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()

    def _send(self, data: bytes) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _failed(error.errno or 0) from None

    def _flush(self) -> None:
        if self._outbox:
            self._outbox = self._outbox[self._send(self._outbox) :]

    def _handshake(self) -> None:
        assert self._tls is not None
        while True:
            try:
                data = self.sock.recv(_READ_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                raise ConnectionFailed("tls", f"TLS: the handshake broke off ({error.strerror})") from None
            if not data:
                raise ConnectionFailed("tls", "TLS: the server closed the connection during the handshake")
            self._incoming.write(data)
        try:
            self._tls.do_handshake()
            self.state = "ready"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            detail = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else error.reason
            raise ConnectionFailed("tls", f"TLS: {detail or error}") from None
        data = self._outgoing.read()
        if data:
            self._outbox += data
            self._flush()

    def _receive_tls(self) -> tuple[bytes, int]:
        assert self._tls is not None
        ended, wall_ns = False, 0
        try:
            data, wall_ns = receive(self.sock, _READ_SIZE)
            ended = not data
            self._incoming.write(data)
        except BlockingIOError:
            pass
        parts = []
        try:
            while part := self._tls.read(_READ_SIZE):
                parts.append(part)
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError as error:
            raise OSError(errno.EPROTO, f"TLS: {error.reason or error}") from None
        data = self._outgoing.read()
        if data:
            self._outbox += data
            self._flush()
        if not parts and not ended:
            raise BlockingIOError
        return b"".join(parts), wall_ns


_CAUSES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EPROTO: "tls",
}


def _failed(code: int) -> ConnectionFailed:
    return ConnectionFailed(_CAUSES.get(code, "connection"), os.strerror(code))
