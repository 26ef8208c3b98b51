"""What happens to a connection that the egress process handed on.

It comes by SOCKS5; the user is ``MACHINE@NAME``, where NAME was proven and the target is an address of it. Nothing but
HTTP goes through, in clear text or in TLS that ends here under the machine's own authority; each request must be for
NAME. What a server says back flows on as it comes, with stars where it says a value.
"""

from __future__ import annotations

import hmac
import re
import weakref
from typing import Any

import rules
from mitmproxy import http
from mitmproxy.connection import Client
from mitmproxy.net.tls import starts_like_tls_record
from mitmproxy.proxy.layers import ClientTLSLayer, HttpLayer, ServerTLSLayer, modes
from mitmproxy.proxy.layers.http import HTTPMode
from redaction import Redactor

MAX_CONNECTIONS = 128  # of a machine
MAX_BODIES = 2**24  # of a machine's requests that are held to look for one
MAX_BODY = 2**20  # of a request in which a placeholder is looked for
# What would let a value through in pieces or in a form that is not looked into.
_NOT_ASKED = {b"accept-encoding", b"range", b"if-range", b"te", b"sec-websocket-extensions"}
_NOT_TOLD = {b"alt-svc"}  # another way to the same host, past this one
_NOT_IN_FIELD = re.compile(rb"[\0\r\n]")
_NOT_IN_LINE = re.compile(rb"[\0\r\n \t]")
_CONNECTION = {b"close", b"keep-alive", b"upgrade"}


class Boundary:
    def __init__(self, password: str) -> None:
        self._password = password.encode()
        self._peers: weakref.WeakKeyDictionary[Client, tuple[str, str]] = (
            weakref.WeakKeyDictionary()
        )
        self._open: dict[str, dict[Client, int]] = {}  # by machine: bytes of a body held for it
        self.machines: dict[str, rules.Machine] = {}

    def load(self, loader: Any) -> None:
        # Its being set is what makes the SOCKS layer ask for a password.
        loader.add_option("proxyauth", str, "boundary", "")

    def peer(self, client: Client) -> tuple[rules.Machine, str]:
        """Raises KeyError for a connection of nobody, or of a machine that has no secrets any more."""
        machine_id, name = self._peers[client]
        return self.machines[machine_id], name

    # --- the connection -------------------------------------------------------------------------

    def socks5_auth(self, data: modes.Socks5AuthData) -> None:
        machine_id, _, name = data.username.partition("@")
        right = hmac.compare_digest(data.password.encode(), self._password)
        if not right or not name or machine_id not in self.machines:
            return
        mine = self._open.setdefault(machine_id, {})
        if len(mine) < MAX_CONNECTIONS:
            mine[data.client_conn] = 0
            self._peers[data.client_conn] = (machine_id, name)
            data.valid = True

    def client_disconnected(self, client: Client) -> None:
        machine_id, _ = self._peers.get(client, ("", ""))
        if (mine := self._open.get(machine_id)) is not None:
            mine.pop(client, None)
            if not mine:
                del self._open[machine_id]

    def next_layer(self, nextlayer: Any) -> None:
        context = nextlayer.context
        if isinstance(context.layers[-1], ClientTLSLayer):
            nextlayer.layer = HttpLayer(context, HTTPMode.transparent)
            return
        data = nextlayer.data_client()
        if len(data) < 3:
            return
        if starts_like_tls_record(data):
            nextlayer.layer = ServerTLSLayer(context)
            nextlayer.layer.child_layer = ClientTLSLayer(context)
        else:
            nextlayer.layer = HttpLayer(context, HTTPMode.transparent)

    # --- a request ------------------------------------------------------------------------------

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        try:
            machine, name = self.peer(flow.client_conn)
        except KeyError:
            flow.kill()
            return
        request = flow.request
        if not _is_plain(request):
            flow.kill()
            return
        port = request.data.port
        if not _is_for(request, name, port):
            _refuse(
                flow,
                421,
                f"This connection is for {name}: a request to another host needs its own.",
            )
            return
        tls = request.scheme == "https"
        secrets = machine.of(name, port, tls)
        request.headers.fields = (
            *rules.headers(_asked(request.headers.fields), secrets),
            (b"accept-encoding", b"identity"),
        )
        request.data.path = rules.target(request.data.path, secrets)
        flow.metadata["needles"] = machine.needles
        flow.metadata["secrets"] = secrets
        length = request.headers.get("content-length", "")
        known = length.isdecimal() and int(length) <= MAX_BODY and request.is_http11
        plain = "content-encoding" not in request.headers
        request.stream = not (rules.wants_body(secrets) and known and plain)
        if not request.stream and not self._hold(flow.client_conn, int(length)):
            flow.kill()

    def _hold(self, client: Client, size: int) -> bool:
        """In place of what it held before: HTTP/1 sends one at a time. Whether there is room."""
        machine_id, _ = self._peers[client]
        mine = self._open.get(machine_id, {})
        if client not in mine:  # it has gone
            return False
        mine[client] = 0
        if sum(mine.values()) + size > MAX_BODIES:
            return False
        mine[client] = size
        return True

    def request(self, flow: http.HTTPFlow) -> None:
        request = flow.request
        request.trailers = None
        if request.stream or flow.response is not None or not request.raw_content:
            return
        kind = request.headers.get("content-type", "").lower()
        request.raw_content = rules.body(request.raw_content, kind, flow.metadata["secrets"])
        request.headers["content-length"] = str(len(request.raw_content))

    # --- what comes back ------------------------------------------------------------------------

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        response, needles = flow.response, flow.metadata.get("needles")
        if response is None or needles is None:  # our own refusal
            return
        if _encoded(response.headers) and _has_body(flow):
            _unreadable(response)
            return
        response.headers.fields = _masked(response.headers.fields, needles)
        response.data.reason = needles.mask(response.data.reason)
        redactor = Redactor(needles)

        def stream(data: bytes) -> list[bytes]:
            shown = redactor.feed(data) if data else redactor.end()
            return [shown] if shown else []  # an empty piece would end a chunked body

        response.stream = stream

    def response(self, flow: http.HTTPFlow) -> None:
        if not flow.request.stream:
            flow.request.raw_content = None
            self._hold(flow.client_conn, 0)
        trailers, needles = flow.response.trailers, flow.metadata.get("needles")
        if trailers and needles is not None:
            trailers.fields = _masked(trailers.fields, needles)

    def websocket_message(self, flow: http.HTTPFlow) -> None:
        messages = flow.websocket.messages
        message = messages[-1]
        if not message.from_client:
            message.content = flow.metadata["needles"].mask(message.content)
        messages.clear()  # it keeps them all; who sends this one has it


def _is_for(request: http.Request, name: str, port: int) -> bool:
    """Every name that the request says is the proven one. ``Host`` once (RFC 9112, 3.2)."""
    said = [value for key, value in request.headers.fields if key.lower() == b"host"]
    if len(said) > 1:
        return False
    if request.data.authority:
        said.append(request.data.authority)
    if not said:
        return False
    allowed = {name.encode(), f"{name}.".encode(), f"{name}:{port}".encode()}
    return all(each.strip().lower() in allowed for each in said)


def _is_plain(request: http.Request) -> bool:
    """Nothing of it can become another line where it goes on as HTTP/1 (RFC 9113, 8.2.1)."""
    data = request.data
    line = (data.method, data.path, data.authority, data.scheme)
    if any(_NOT_IN_LINE.search(each) for each in line):
        return False
    return not any(
        _NOT_IN_FIELD.search(name) or _NOT_IN_FIELD.search(value)
        for name, value in data.headers.fields
    )


def _asked(fields: rules.Fields) -> list[tuple[bytes, bytes]]:
    kept = []
    for name, value in fields:
        lower = name.lower()
        if lower in _NOT_ASKED:
            continue
        if lower == b"connection":  # it could name one of ours, for whoever comes next to drop
            options = [each.strip().lower() for each in value.split(b",")]
            value = b", ".join(each for each in options if each in _CONNECTION)
            if not value:
                continue
        if lower == b"upgrade" and value.strip().lower() != b"websocket":
            continue
        kept.append((name, value))
    return kept


def _masked(fields: rules.Fields, needles: Any) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (needles.mask(name), needles.mask(value))
        for name, value in fields
        if name.lower() not in _NOT_TOLD
    )


def _has_body(flow: http.HTTPFlow) -> bool:
    status = flow.response.status_code
    return flow.request.method != "HEAD" and status >= 200 and status not in (204, 304)


def _encoded(headers: http.Headers) -> bool:
    contents = headers.get_all("content-encoding")
    transfers = headers.get_all("transfer-encoding")
    return any(each.strip().lower() != "identity" for each in contents) or any(
        each.strip().lower() != "chunked" for each in transfers
    )


def _refuse(flow: http.HTTPFlow, status: int, why: str) -> None:
    """An answer of ours, where no body has to be read for it; else the connection ends."""
    headers = flow.request.headers
    bare = "content-length" not in headers and "transfer-encoding" not in headers
    if flow.request.is_http11 and bare:
        flow.response = http.Response.make(
            status, f"roost: {why}\n", {"content-type": "text/plain"}
        )
    else:
        flow.kill()


def _unreadable(response: http.Response) -> None:
    """What is encoded although ``identity`` was asked for cannot be looked into: nothing of it goes on."""
    why = b"roost: the server answered encoded, which cannot be searched for the secret: nothing is passed on.\n"
    response.status_code, response.reason = 502, "Bad Gateway"
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(why))]
    response.headers.fields = tuple(fields)
    told = iter([why])

    def stream(data: bytes) -> list[bytes]:
        return list(told)

    response.stream = stream
