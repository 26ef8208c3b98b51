"""An HTTP/2 server that says again what it was sent; runs in the boundary's environment, which has ``h2``.

PYTHON h2_server.py PEM   (prints its port)
"""

import socket
import ssl
import sys
import threading

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived


def talk(sock: ssl.SSLSocket) -> None:
    connection = H2Connection(H2Configuration(client_side=False))
    connection.initiate_connection()
    sock.sendall(connection.data_to_send())
    while data := sock.recv(65536):
        for event in connection.receive_data(data):
            if isinstance(event, RequestReceived):
                connection.send_headers(event.stream_id, [(":status", "200")])
                said = repr(event.headers).encode()
                connection.send_data(event.stream_id, said, end_stream=True)
        sock.sendall(connection.data_to_send())


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1])
context.set_alpn_protocols(["h2"])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    raw, _ = listener.accept()
    threading.Thread(
        target=lambda raw=raw: talk(context.wrap_socket(raw, server_side=True)), daemon=True
    ).start()
