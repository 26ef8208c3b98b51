"""What runs inside a machine that never gives up: to one address, by all ways, many times a second, until it is ended.
Counts its rounds in /dev/shm/rounds.
"""

import os
import socket
import sys
import threading
import time

TO = sys.argv[1]
PACE_S = 0.02


def forever(once):
    def run():
        while True:
            try:
                once()
            except OSError:
                pass
            time.sleep(PACE_S)

    threading.Thread(target=run, daemon=True).start()


def datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"canary", (TO, 9999))


def connection():
    socket.create_connection((TO, 4444), 0.3).close()


def name():
    socket.getaddrinfo("canary.tunnel.test", 80)


def flow():
    """One connection that is kept for as long as it goes."""
    with socket.create_connection((TO, 5555), 0.5) as sock:
        sock.settimeout(0.5)
        while True:
            sock.sendall(b"canary")
            time.sleep(PACE_S)


datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def talk():
    """Datagrams from one port, which are one flow to whoever tracks them."""
    datagrams.sendto(b"canary", (TO, 6666))


for each in (datagram, connection, name, flow, talk):
    forever(each)
rounds = 0
while True:
    rounds += 1
    with open("/dev/shm/.rounds", "w") as file:
        file.write(str(rounds))
    os.rename("/dev/shm/.rounds", "/dev/shm/rounds")
    time.sleep(PACE_S)
