"""Frames that no client of gRPC sends, against a real server: whatever comes in, a neighbour is answered at once."""

from __future__ import annotations

import asyncio
import gzip
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from served import Served, served

from adapterd import predict_request
from server.api import listener

MIB = 1 << 20
MAX_MESSAGE_BYTES = MIB
HANDSHAKE_TIMEOUT_MS = 500
MAX_GROWTH_BYTES = 64 * MIB
PREDICT = "/adapterd.v1.Inference/Predict"
GOOD = predict_request("intent", "x").SerializeToString()
UNKNOWN = "2"
NUM_FLOOD = 300
WAIT_S = 5.0
SILENCE_S = 0.3


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "HANDSHAKE_TIMEOUT_MS", HANDSHAKE_TIMEOUT_MS)
        with served(tmp_path_factory.mktemp("frames"), max_message_bytes=MAX_MESSAGE_BYTES) as server:
            yield server


@pytest.fixture
def server(module_server: Served) -> Iterator[Served]:
    """Afterwards it answers a neighbour as before, at once, and has not grown."""
    before = resident_bytes()
    yield module_server
    started = time.monotonic()
    assert module_server.ask() == module_server.answer
    assert time.monotonic() - started < WAIT_S
    assert resident_bytes() - before < MAX_GROWTH_BYTES


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def framed(data: bytes, *, is_compressed: int = 0, length: int | None = None) -> bytes:
    """A message of gRPC's, or one whose prefix says something else."""
    return struct.pack(">BI", is_compressed, len(data) if length is None else length) + data


def headers(path: str = PREDICT, **more: str) -> list[tuple[str, str]]:
    plain = {"content-type": "application/grpc", "te": "trailers"} | {key.replace("_", "-"): more[key] for key in more}
    return [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), *plain.items()]


class Caller:
    """A connection of HTTP/2 that sends what it is told to.

    greets   wait for the server's settings and acknowledge them: gRPC holds nobody to limits before
    """

    def __init__(self, port: int, *, greets: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        # its own checks would keep it from sending what is tried here
        config = h2.config.H2Configuration(validate_outbound_headers=False, validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.statuses: dict[int, str] = {}  # grpc-status by stream; "http 415" where there was none
        self.reset: set[int] = set()
        self.is_closed = self.is_greeted = False
        self.flush()
        while greets and not self.is_greeted:
            self.receive()

    def flush(self) -> None:
        try:
            self.socket.sendall(self.h2.data_to_send())
        except (BrokenPipeError, ConnectionResetError):
            self.is_closed = True

    def ask(self, sent: Sequence[tuple[str, str]], data: bytes | None = None, *, ends: bool = True) -> int:
        """Begin a stream; give its number."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, sent, end_stream=ends and data is None)
        self.flush()
        if data is not None:
            self.send(stream, data, ends=ends)
        return stream

    def send(self, stream: int, whole: bytes, *, ends: bool = True) -> None:
        """As much as the server's windows take, waiting for more, until it refuses."""
        data = memoryview(whole)
        while data and not self._is_over(stream):
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.receive()
                continue
            piece, data = data[:room], data[room:]
            self.h2.send_data(stream, bytes(piece), end_stream=ends and not data)
            self.flush()

    def _is_over(self, stream: int) -> bool:
        return self.is_closed or stream in self.statuses or stream in self.reset

    def receive(self) -> None:
        """Take what has come, waiting for something."""
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self.is_closed = True
            return
        try:
            events = self.h2.receive_data(data)
        except h2.exceptions.ProtocolError:  # about a stream that it thinks is over
            events = []
        for event in events:
            self._note(event)
        if not self.is_closed:
            self.flush()

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                fields = {_text(key): _text(value) for key, value in event.headers}
                found = fields.get("grpc-status") or _http(fields.get(":status", "200"))
                if found:
                    self.statuses.setdefault(event.stream_id, found)
            case h2.events.RemoteSettingsChanged():
                self.is_greeted = True
            case h2.events.StreamReset():
                self.reset.add(event.stream_id)
            case h2.events.DataReceived():
                with suppress(h2.exceptions.ProtocolError):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.ConnectionTerminated():
                self.is_closed = True

    def outcome(self, stream: int) -> str:
        """The stream's grpc-status; "reset" or "closed" where none came. Fails where nothing comes in time."""
        while not self._is_over(stream):
            self.receive()
        status = self.statuses.get(stream) or ("reset" if stream in self.reset else "closed")
        assert status != UNKNOWN
        return status

    def outcome_if_any(self, stream: int) -> str:
        """As `outcome`, or "silence": gRPC's own answer to a caller who ends a stream without a whole message."""
        self.socket.settimeout(SILENCE_S)
        try:
            return self.outcome(stream)
        except TimeoutError:
            return "silence"

    def drain(self) -> None:
        """Until the server closes the connection."""
        while not self.is_closed:
            self.receive()

    def close(self) -> None:
        self.socket.close()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _http(status: str) -> str:
    return "" if status == "200" else f"http {status}"


@contextmanager
def connected(server: Served, *, greets: bool = True) -> Iterator[Caller]:
    caller = Caller(server.port, greets=greets)
    try:
        yield caller
    finally:
        caller.close()


@contextmanager
def plain_socket(server: Served) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as plain:
        yield plain


def closes(plain: socket.socket) -> bool:
    """Whether the server ends the connection before the time is up."""
    try:
        while plain.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


REFUSED = ("8", "reset", "closed")  # RESOURCE_EXHAUSTED, or cut off


def test_an_honest_frame_is_answered(server: Served) -> None:
    with connected(server) as caller:
        assert caller.outcome(caller.ask(headers(), framed(GOOD))) == "0"


@pytest.mark.parametrize("num_bytes", [MAX_MESSAGE_BYTES + 1, 16 * MIB])
def test_message_beyond_the_limit_is_refused_before_it_is_held(server: Served, num_bytes: int) -> None:
    with connected(server) as caller:
        assert caller.outcome(caller.ask(headers(), framed(bytes(num_bytes)))) in REFUSED


@pytest.mark.parametrize("length", [MAX_MESSAGE_BYTES + 1, (1 << 32) - 1])
def test_prefix_beyond_the_limit_is_refused_at_once(server: Served, length: int) -> None:
    with connected(server) as caller:
        assert caller.outcome(caller.ask(headers(), framed(GOOD, length=length), ends=False)) in REFUSED


def test_few_bytes_that_unpack_to_many_are_refused(server: Served) -> None:
    bomb = gzip.compress(bytes(50 * MIB))
    assert len(bomb) < MAX_MESSAGE_BYTES
    before = resident_bytes()
    with connected(server) as caller:
        stream = caller.ask(headers(grpc_encoding="gzip"), framed(bomb, is_compressed=1))
        assert caller.outcome(stream) in (*REFUSED, "13")  # gRPC's own word for what it cannot unpack
    assert resident_bytes() - before < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    ("flag", "more"),
    [
        (1, {}),
        (1, {"grpc_encoding": "gzip"}),
        (1, {"grpc_encoding": "lzma"}),
        (7, {}),
        (255, {"grpc_encoding": "gzip"}),
    ],
)
def test_message_that_is_not_compressed_as_it_says_fails(server: Served, flag: int, more: dict[str, str]) -> None:
    with connected(server) as caller:
        assert caller.outcome_if_any(caller.ask(headers(**more), framed(GOOD, is_compressed=flag))) != "0"


@pytest.mark.parametrize("length", [0, 1, len(GOOD) - 1, len(GOOD) + 1])
def test_prefix_that_lies_about_its_message_fails(server: Served, length: int) -> None:
    with connected(server) as caller:
        assert caller.outcome_if_any(caller.ask(headers(), framed(GOOD, length=length))) != "0"


@pytest.mark.parametrize("data", [b"", b"\0", b"\0\0\0", b"\0\0\0\0\0", b"\xff" * 50], ids=len)
def test_data_that_is_no_message_fails(server: Served, data: bytes) -> None:
    with connected(server) as caller:
        assert caller.outcome_if_any(caller.ask(headers(), data or None)) != "0"


def test_two_messages_where_one_belongs_do_no_harm(server: Served) -> None:
    with connected(server) as caller:
        caller.outcome(caller.ask(headers(), framed(GOOD) * 2))


@pytest.mark.parametrize(
    "preface",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
        bytes(4096),
        bytes(range(256)) * 16,
    ],
    ids=["http1", "tls", "bad frames", "zeros", "noise"],
)
def test_preface_of_something_else_ends_the_connection(server: Served, preface: bytes) -> None:
    with plain_socket(server) as plain:
        with suppress(ConnectionError):
            plain.sendall(preface)
        assert closes(plain)


def test_those_who_connect_and_say_nothing_are_sent_away(server: Served) -> None:
    started = time.monotonic()
    sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) for _ in range(50)]
    try:
        assert server.ask() == server.answer  # while they sit there
        assert all(closes(plain) for plain in sockets)
        assert time.monotonic() - started < HANDSHAKE_TIMEOUT_MS / 1000 + 2
    finally:
        for plain in sockets:
            plain.close()


def test_one_who_sends_a_byte_at_a_time_is_answered_and_holds_nobody_up(server: Served) -> None:
    with connected(server) as caller:
        stream = caller.ask(headers(), ends=False)
        data = framed(GOOD)
        for index in range(len(data)):
            caller.send(stream, data[index : index + 1], ends=index == len(data) - 1)
            if index == 3:
                assert server.ask() == server.answer
        assert caller.outcome(stream) == "0"


def test_a_preface_of_a_byte_at_a_time_is_cut_off(server: Served) -> None:
    with plain_socket(server) as plain:
        plain.settimeout(0.1)
        started = time.monotonic()
        is_open = True
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" * 4:
            try:
                plain.sendall(bytes([byte]))
                if not plain.recv(1 << 12) and time.monotonic() - started > 0.1:
                    is_open = False
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False
            if not is_open:
                break
        assert not is_open
        assert time.monotonic() - started < WAIT_S


@pytest.mark.parametrize("num_bytes", [20_000, 200_000])
def test_huge_metadata_is_refused(server: Served, num_bytes: int) -> None:
    with connected(server) as caller:
        pieces = {f"x-{index}": "y" * 8000 for index in range(num_bytes // 8000 + 1)}
        assert caller.outcome(caller.ask(headers(**pieces), framed(GOOD))) in REFUSED


def test_huge_metadata_before_the_greeting_does_no_harm(server: Served) -> None:
    """gRPC takes it: its limit counts from the acknowledgement of its settings on."""
    with connected(server, greets=False) as caller:
        pieces = {f"x-{index}": "y" * 8000 for index in range(60)}
        caller.outcome(caller.ask(headers(**pieces), framed(GOOD)))


def test_metadata_that_is_no_text_does_no_harm(server: Served) -> None:
    with connected(server) as caller:
        odd = [("x-bin", "not base64!"), ("x\0y", "1"), ("Upper", "a\x01b"), ("authorization", "Bearer \xff" * 10)]
        caller.outcome(caller.ask([*headers(), *odd], framed(GOOD)))


@pytest.mark.parametrize("timeout", ["1n", "0S", "99999999H", "-1S", "x", "1" * 100 + "S"])
def test_odd_timeouts_end_in_a_status(server: Served, timeout: str) -> None:
    with connected(server) as caller:
        caller.outcome(caller.ask(headers(grpc_timeout=timeout), framed(GOOD)))


def test_more_streams_than_one_connection_may_have_are_refused(server: Served) -> None:
    with connected(server) as caller:
        caller.h2.remote_settings._settings[3].clear()  # nothing keeps a flood from ignoring what it was told
        caller.h2.remote_settings._settings[3].append(1 << 20)
        streams = [caller.ask(headers(), ends=False) for _ in range(listener.MAX_STREAMS + 50)]
        assert caller.outcome(streams[-1]) in ("reset", "closed")
        assert server.ask() == server.answer


def test_a_flood_of_resets_does_no_harm(server: Served) -> None:
    with connected(server) as caller:
        for _ in range(NUM_FLOOD):
            if caller.is_closed:
                break
            stream = caller.ask(headers(), framed(GOOD), ends=False)
            caller.h2.reset_stream(stream)
            caller.flush()
        assert server.ask() == server.answer
    assert server.run(_idle(server))


async def _idle(server: Served) -> bool:
    """Once nothing is in flight any more."""
    async with asyncio.timeout(WAIT_S):
        while server.app.admission.num_in_flight:
            await asyncio.sleep(0.01)
    return True


def _pings(caller: Caller) -> None:
    caller.h2.ping(b"12345678")


def _settings(caller: Caller) -> None:
    caller.h2.update_settings({4: 1 << 16})


def _windows(caller: Caller) -> None:
    caller.h2.increment_flow_control_window(1)


@pytest.mark.parametrize("flood", [_pings, _settings, _windows])
def test_a_flood_of_control_frames_does_no_harm(server: Served, flood: Callable[[Caller], None]) -> None:
    with connected(server) as caller:
        for _ in range(NUM_FLOOD):
            flood(caller)
            caller.flush()
        assert server.ask() == server.answer


def test_pings_too_often_end_the_connection(server: Served) -> None:
    with connected(server) as caller:
        for _ in range(NUM_FLOOD):
            _pings(caller)
            caller.flush()
        caller.drain()
        assert caller.is_closed


def test_headers_that_never_end_are_cut_off(server: Served) -> None:
    with plain_socket(server) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        plain.sendall(struct.pack(">I", 1)[1:] + b"\x01\x00\x00\x00\x00\x01\x82")  # HEADERS without END_HEADERS
        piece = b"\x00" + b"\x01a" + b"\x7f\x81\x7e" + b"b" * 16_381
        continuation = struct.pack(">I", len(piece))[1:] + b"\x09\x00\x00\x00\x00\x01" + piece
        with suppress(ConnectionError, TimeoutError):
            for _ in range(2000):
                plain.sendall(continuation)
        assert server.ask() == server.answer


@pytest.mark.parametrize(
    "path", ["/", "", "/adapterd.v1.Inference/Nothing", "/x" * 3000, "/../../etc/passwd", "*", "/\xff"]
)
def test_unknown_paths_are_unimplemented(server: Served, path: str) -> None:
    with connected(server) as caller:
        assert caller.outcome(caller.ask(headers(path), framed(GOOD))) in ("12", "reset", "closed", "http 400")


@pytest.mark.parametrize("kind", ["text/html", "", "application/json", "application/grpc+" + "x" * 1000])
def test_other_content_types_do_no_harm(server: Served, kind: str) -> None:
    with connected(server) as caller:
        caller.outcome(caller.ask(headers(content_type=kind), framed(GOOD)))


@pytest.mark.parametrize("method", ["GET", "PUT", "BREW"])
def test_other_methods_than_post_are_refused(server: Served, method: str) -> None:
    with connected(server) as caller:
        sent = [(":method", method), *headers()[1:]]
        assert caller.outcome(caller.ask(sent, framed(GOOD))) != "0"
