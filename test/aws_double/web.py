"""Listening sockets: HTTP/1.1 with connections that stay open, a thread for
each, over TLS or without."""

import socket
import ssl
import threading

from .basics import Request, Response

MAX_HEAD = 65536
MAX_BODY = 1 << 20


class BadRequest(Exception):
    pass


def read_head(stream):
    line = stream.readline(MAX_HEAD)
    if not line:
        return None
    words = line.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest("not a request of HTTP/1.1")
    headers = {}
    for _ in range(200):
        line = stream.readline(MAX_HEAD).decode("latin-1").rstrip("\r\n")
        if not line:
            return words[0], words[1], headers
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest("not a header")
        headers[name.strip().lower()] = value.strip()
    raise BadRequest("too many headers")


def read_request(stream, connection):
    head = read_head(stream)
    if head is None:
        return None
    method, target, headers = head
    length = int(headers.get("content-length", "0"))
    if "transfer-encoding" in headers or not 0 <= length <= MAX_BODY:
        raise BadRequest("a body that is not understood")
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = stream.read(length)
    return Request(method, target, headers, body) if len(body) == length else None


class Listener:
    """One port of loopback.  "answer" turns a Request into a Response;
    "context" gives the TLS context for a new connection, or None; "now" is
    what the time is there."""

    def __init__(self, port, answer, now, context=lambda: None):
        self.answer = answer
        self.now = now
        self.context = context
        self.down = False
        self.connections = set()
        self.lock = threading.Lock()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.socket.listen(512)
        self.port = self.socket.getsockname()[1]

    def start(self):
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.socket.accept()
            if self.down:
                connection.close()
                continue
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def drop(self):
        """End every connection that is open."""
        with self.lock:
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = self.secured(connection)
        except (OSError, ssl.SSLError):
            connection.close()
            return
        with self.lock:
            self.connections.add(connection)
        try:
            with connection, connection.makefile("rb") as stream:
                self.converse(connection, stream)
        except (OSError, ssl.SSLError, ValueError, BadRequest):
            pass
        finally:
            with self.lock:
                self.connections.discard(connection)

    def secured(self, connection):
        context = self.context()
        if context is None:
            return connection
        connection.settimeout(30)
        connection = context.wrap_socket(connection, server_side=True)
        connection.settimeout(None)
        return connection

    def converse(self, connection, stream):
        while True:
            request = read_request(stream, connection)
            if request is None:
                return
            response = self.answer(request)
            response.time = self.now()
            if response.send is not None:
                response.send(connection, response)
                return
            connection.sendall(response.head() + response.body)
            if request.header("connection", "").lower() == "close":
                return


def not_found():
    return Response(404, b"not here\n")
