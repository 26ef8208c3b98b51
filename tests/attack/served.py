"""A small web server inside a machine: tells what it was asked, redirects where it is told, upgrades to WebSocket.
``served.py ADDRESS PORT``.
"""

import base64
import hashlib
import http.server
import json
import sys
from urllib.parse import parse_qs, urlsplit


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        if self.headers.get("upgrade", "").lower() == "websocket":
            told = (
                self.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            )  # RFC 6455
            accept = base64.b64encode(hashlib.sha1(told.encode()).digest()).decode()
            self.send_response(101)
            self.send_header("upgrade", "websocket")
            self.send_header("connection", "upgrade")
            self.send_header("sec-websocket-accept", accept)
            self.end_headers()
            self.close_connection = True
            return
        if parts.path.endswith("/redirect"):
            self.send_response(302)
            self.send_header("location", query["to"])
            self.send_header("content-length", "0")
            self.end_headers()
            return
        said = {"port": self.server.server_port, "path": self.path, "headers": dict(self.headers)}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.send_header("set-cookie", "theirs=1; Domain=localhost; Path=/")
        self.send_header("set-cookie", "roost_preview=stolen; Path=/")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
