"""A proxy that stands between an S3 client and a real server and breaks answers on order.

It speaks just enough HTTP/1.1 to find the ends of requests and answers. Signatures survive, since the Host header is
passed on as it came. Faults are set from the test: `proxy.inject(Fault("truncate", times=2, match=".tar"))`.
"""

import asyncio
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field

STATUS = {
    "503": (503, "SlowDown", "Service Unavailable"),
    "500": (500, "InternalError", "Internal Server Error"),
    "429": (429, "TooManyRequests", "Too Many Requests"),
    "404": (404, "NoSuchKey", "Not Found"),
    "expired": (400, "ExpiredToken", "Bad Request"),
    "skewed": (403, "RequestTimeTooSkewed", "Forbidden"),
}
IN_BODY = ("truncate", "stall", "hold", "bitflip")
KINDS = (*STATUS, *IN_BODY, "reset", "latency", "throttle")
ALWAYS = 10**9


@dataclass
class Fault:
    """What to do to the next requests that match.

    Args:
        kind: one of KINDS. IN_BODY strike in the middle of the answer's body; a stalled PUT gets no answer at all.
            hold stops there, sets `FaultProxy.holding`, and goes on when `FaultProxy.go_on` is set.
        times: how many requests are struck.
        match: substring of the request's path; a "$" at its end stands for the path's end.
        method: of the request.
        value: seconds of latency, or bytes per second of throttle.
    """

    kind: str
    times: int = 1
    match: str = ""
    method: str = "GET"
    value: float = 0.0

    def __post_init__(self):
        assert self.kind in KINDS, self.kind


@dataclass
class FaultProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`upstream_port`; a context manager that runs in a thread of its own.

    Args:
        without_checksums: takes the store's checksums out of its answers, as from a store that keeps none.
        date: takes the place of the Date of the server's answers; None leaves it.
    """

    upstream_port: int
    port: int = 0
    without_checksums: bool = False
    date: str | None = None
    faults: list[Fault] = field(default_factory=list)
    struck: list[str] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    holding: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def inject(self, *faults: Fault) -> None:
        """Replaces the pending faults and forgets what was seen so far."""
        self.faults, self.struck, self.requests = list(faults), [], []

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FaultProxy":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._thread.start()
        serving = asyncio.run_coroutine_threadsafe(self._serve(), self._loop)
        self.port = serving.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> int:
        self._closing, self._streams = asyncio.Event(), set[asyncio.StreamWriter]()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())
        return self._listener.getsockname()[1]

    async def _accept(self) -> None:
        # not asyncio's own server: one that is closed drops what it has just accepted, with a warning later
        handlers = set()
        while not self._closing.is_set():
            connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            handlers.add(task := asyncio.create_task(self._handle(connection)))
            task.add_done_callback(handlers.discard)
        self._listener.close()
        while handlers:
            for stream in self._streams:
                stream.transport.abort()
            await asyncio.sleep(0.005)
        for _ in range(3):  # transports close in the next turns of the loop
            await asyncio.sleep(0)

    async def _close(self) -> None:
        """Ends all connections and sees them closed."""
        self._closing.set()
        self.go_on.set()
        with socket.create_connection(("127.0.0.1", self.port)):  # the last one to be accepted
            await self._accepting

    async def _pause(self, seconds: float) -> None:
        """Waits; ends the connection when the proxy is closed meanwhile."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
            raise ConnectionError("the proxy closes")

    def _take(self, method: str, path: str) -> Fault | None:
        self.requests.append((method, path))
        for fault in self.faults:
            ends = (f"{path}$", f"{path.partition('?')[0]}$")
            if fault.times > 0 and fault.method == method and any(fault.match in end for end in ends):
                fault.times -= 1
                self.struck.append(fault.kind)
                return fault
        return None

    def refusal(self, head: bytes) -> str:
        """Returns the key of STATUS with which this request is refused, "" if it is not; for gateways."""
        return ""

    def rewritten(self, head: bytes) -> bytes:
        """Returns the head of a request as it goes to the server; for gateways."""
        return head

    async def _handle(self, connection: socket.socket) -> None:
        client_in, client_out = await asyncio.open_connection(sock=connection, limit=1 << 20)
        streams = [client_out]
        self._streams.add(client_out)
        try:
            server_in, server_out = await self._open_upstream()
            streams.append(server_out)
            self._streams.add(server_out)
            while await self._exchange(client_in, client_out, server_in, server_out):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # there is no server, one side has left, or the proxy closes
        finally:
            for stream in streams:
                stream.close()
                with suppress(ConnectionError):
                    await stream.wait_closed()
                self._streams.discard(stream)

    async def _open_upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        upstream = socket.socket()
        # kernels keep up to tens of MiB otherwise, and a body would be here as a whole before its server is killed
        upstream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        upstream.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(upstream, ("127.0.0.1", self.upstream_port))
            return await asyncio.open_connection(sock=upstream, limit=1 << 20)
        except OSError:
            upstream.close()
            raise

    async def _exchange(self, client_in, client_out, server_in, server_out) -> bool:
        """Passes one request and its answer; False ends the connection."""
        head = await client_in.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        length = _content_length(head) or 0
        fault = self._take(method, path)
        kind = fault.kind if fault else self.refusal(head)
        head = self.rewritten(head)
        waits_for_leave = b"100-continue" in head.lower()
        if kind in STATUS:
            # a client that asks first sends no body after a refusal
            await client_in.readexactly(0 if waits_for_leave else length)
            status, code, reason = STATUS[kind]
            body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            if method == "HEAD":
                body = b""
            client_out.write(f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await client_out.drain()
            return not waits_for_leave
        if kind == "reset":
            client_out.transport.abort()
            return False
        if fault is not None and fault.kind == "latency":
            await self._pause(fault.value)
        server_out.write(head)
        if kind == "stall" and method == "PUT":
            await self._pause(3600)
        if waits_for_leave:
            client_out.write(await server_in.readuntil(b"\r\n\r\n"))
        await _copy(client_in, server_out, length)
        return await self._answer(method, fault, client_out, server_in)

    async def _answer(self, method: str, fault: Fault | None, client_out, server_in) -> bool:
        head = await server_in.readuntil(b"\r\n\r\n")
        if self.without_checksums:
            head = re.sub(rb"(?im)^(x-amz-checksum-|content-md5)[^\r]*\r\n", b"", head)
        if self.date is not None:
            head = re.sub(rb"(?im)^date:[^\r]*", b"Date: " + self.date.encode(), head)
        client_out.write(head)
        length = _content_length(head)
        if method == "HEAD" or head.split(b" ", 2)[1] in (b"204", b"304"):
            await client_out.drain()
            return True
        if length is None:
            await _copy_chunked(server_in, client_out)
            return True
        if fault is None or fault.kind not in IN_BODY:
            speed = fault.value if fault is not None and fault.kind == "throttle" else 0.0
            await _copy(server_in, client_out, length, bytes_per_s=speed)
            return True
        await _copy(server_in, client_out, length // 2)
        if fault.kind == "truncate":
            return False
        if fault.kind == "stall":
            await self._pause(3600)
        if fault.kind == "hold":
            self.holding.set()
            await asyncio.to_thread(self.go_on.wait, 120)
            await _copy(server_in, client_out, length - length // 2)
            return True
        flipped = await server_in.readexactly(1)
        client_out.write(bytes([flipped[0] ^ 1]))
        await _copy(server_in, client_out, length - length // 2 - 1)
        return True


async def _copy(source, sink, length: int, *, bytes_per_s: float = 0.0) -> None:
    # a throttled body comes in twentieths of a second, not in bursts
    most = max(1, int(bytes_per_s / 20)) if bytes_per_s else 1 << 16
    while length:
        piece = await source.read(min(length, most, 1 << 16))
        if not piece:
            raise ConnectionError("the other side ended early")
        sink.write(piece)
        await sink.drain()
        length -= len(piece)
        if bytes_per_s:
            await asyncio.sleep(len(piece) / bytes_per_s)


async def _copy_chunked(source, sink) -> None:
    while True:
        line = await source.readuntil(b"\r\n")
        sink.write(line)
        size = int(line.split(b";")[0], 16)
        sink.write(await source.readexactly(size + 2))
        await sink.drain()
        if size == 0:
            return


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return None
