"""The stand-in of the process that waits on rank 0 for engines, and has the ranks work for one after another."""

from __future__ import annotations

import socket
import threading


class Leader:
    """Serves one engine at a time. After one that left without a word, its ranks never come back, and it answers nobody."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self.served = 0
        """Engines that began."""

        self.stuck = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self.stuck:
            try:
                engine, _ = self._server.accept()
            except OSError:
                return
            with engine, engine.makefile() as lines:
                words = lines.readline().split()
                if words != ["start", self._key]:
                    engine.sendall(b"wrong key\n")
                    continue
                self.served += 1
                engine.sendall(b"ok\n")
                if lines.readline() == "done\n":
                    engine.sendall(b"ok\n")
                else:
                    self.stuck = True

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
