"""What runs inside a machine that attacks: reads a list of attempts as JSON, makes them all at once, and tells what
came of each as ``{"ok": ..., "said": ...}``. Nothing but Python's own library; what counts is what the other side saw.
"""

import concurrent.futures
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.request

WAIT_S = 2.0
HOME = os.path.expanduser("~")
CA = f"{HOME}/internet-ca.pem"
MAC = bytes.fromhex("027273740002")
GATEWAY_MAC = bytes.fromhex("027273740001")


def everything(sock, most=65536):
    """What is said until it ends or falls silent."""
    said = b""
    try:
        while len(said) < most:
            data = sock.recv(8192)
            if not data:
                break
            said += data
            sock.settimeout(0.5)
    except (TimeoutError, OSError):
        pass
    return said


def tcp(to, port, say="", wait=WAIT_S):
    with socket.create_connection((to, port), wait) as sock:
        sock.sendall(say.encode("latin-1"))
        return everything(sock).decode("latin-1")


def udp(to, port, say="canary", wait=1.0):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(wait)
        sock.connect((to, port))
        for _ in range(3):
            sock.send(say.encode("latin-1"))
        return sock.recv(2048).decode("latin-1")


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(payload=b"canary"):
    head = struct.pack("!BBHHH", 8, 0, 0, 77, 1)
    return struct.pack("!BBHHH", 8, 0, checksum(head + payload), 77, 1) + payload


def icmp(to, wait=1.0):
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    with sock:
        sock.settimeout(wait)
        for _ in range(3):
            sock.sendto(echo_request(), (to, 0))
        end = time.monotonic() + wait
        while time.monotonic() < end:
            data, peer = sock.recvfrom(2048)
            if peer[0] == to and b"canary" in data:
                return "echo reply"
        raise TimeoutError


def protocol(to, number):
    """A packet of another protocol than TCP, UDP and ICMP."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, number) as sock:
        for _ in range(3):
            sock.sendto(b"canary" * 5, (to, 0))
    return "sent"


def datagram(source, to, port, payload=b"canary"):
    """A whole IP packet with UDP in it."""
    head = struct.pack("!HHHH", 4000, port, 8 + len(payload), 0) + payload
    packet = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(head),
        7,
        0,
        64,
        17,
        0,
        socket.inet_aton(source),
        socket.inet_aton(to),
    )
    return packet[:10] + struct.pack("!H", checksum(packet)) + packet[12:] + head


def frame(to, port=9, source="10.0.0.2", mac=None, by=None):
    """The same as a frame of its own making, with whatever sender."""
    packet = datagram(source, to, port)
    mac = bytes.fromhex(mac) if mac else MAC
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((by or interface(), 0))
        for _ in range(3):
            sock.send(GATEWAY_MAC + mac + b"\x08\x00" + packet)
    return "sent"


def frame6(to="20010db8000000000000000000000020"):
    """UDP over IPv6."""
    payload = struct.pack("!HHHH", 4000, 9, 14, 0) + b"canary"
    packet = struct.pack("!IHBB", 6 << 28, len(payload), 17, 64)
    packet += bytes.fromhex("20010db8000000000000000000000002") + bytes.fromhex(to) + payload
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((interface(), 0))
        for _ in range(3):
            sock.send(GATEWAY_MAC + MAC + b"\x86\xdd" + packet)
    return "sent"


def raw(to, source, port=9):
    """As a frame, by a raw socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        for _ in range(3):
            sock.sendto(datagram(source, to, port), (to, 0))
    return "sent"


def segment(to, port, flags, source="10.0.0.2"):
    """A TCP segment of no connection."""
    payload = b"canary"
    head = struct.pack("!HHIIBBHHH", 4001, port, 1, 1, 5 << 4, flags, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(to)
    pseudo += struct.pack("!BBH", 0, 6, len(head) + len(payload))
    total = checksum(pseudo + head + payload)
    head = head[:16] + struct.pack("!H", total) + head[18:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as sock:
        for _ in range(3):
            sock.sendto(head + payload, (to, 0))
    return "sent"


def arp(claim, by=None):
    """Says that an address is this machine's, as a question and as an answer, to everybody."""
    mac = MAC
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((by or interface(), 0))
        for operation in (1, 2):
            said = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
            said += mac + socket.inet_aton(claim) + bytes(6) + socket.inet_aton("10.0.0.1")
            for _ in range(3):
                sock.send(b"\xff" * 6 + mac + b"\x08\x06" + said)
    return "sent"


def interface():
    return next(name for _, name in socket.if_nameindex() if name != "lo")


def tcp6(to, port, say="", wait=WAIT_S):
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(wait)
        sock.connect((to, port))
        sock.sendall(say.encode("latin-1"))
        return everything(sock).decode("latin-1")


def tls(to, port=443, name=None, say="", verify=True, wait=4.0):
    """``name``: the SNI, null for none."""
    context = ssl.create_default_context(cafile=CA)
    if not verify or name is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with socket.create_connection((to, port), wait) as sock:
        with context.wrap_socket(sock, server_hostname=name) as secured:
            secured.sendall(say.encode("latin-1"))
            return everything(secured).decode("latin-1")


def hello(to, port, first, gap=0.0, wait=WAIT_S):
    """Bytes of a handshake, as hex, in pieces."""
    with socket.create_connection((to, port), wait) as sock:
        for piece in first:
            sock.sendall(bytes.fromhex(piece))
            time.sleep(gap)
        return everything(sock).decode("latin-1")


def conversation(to, port, says, wait=WAIT_S):
    """One connection, several requests; each answer is awaited before the next."""
    answers = []
    with socket.create_connection((to, port), wait) as sock:
        for say in says:
            try:
                sock.sendall(say.encode("latin-1"))
            except OSError:
                break
            sock.settimeout(wait)
            answers.append(everything(sock).decode("latin-1"))
    return json.dumps(answers)


def dns(name, kind=1, server="10.0.0.1", over="udp", wait=WAIT_S):
    """What the resolver says, as {"rcode": 0, "answers": [[type, address or hex]]}."""
    question = b"".join(
        bytes([len(label)]) + label for label in name.encode("latin-1").split(b".") if label
    )
    query = struct.pack("!HHHHHH", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0)
    query += question + b"\0" + struct.pack("!HH", kind, 1)
    if over == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(wait)
            sock.sendto(query, (server, 53))
            answer = sock.recv(4096)
    else:
        with socket.create_connection((server, 53), wait) as sock:
            sock.sendall(struct.pack("!H", len(query)) + query)
            answer = everything(sock)[2:]
    return json.dumps(parse(answer))


def skip(answer, at):
    while True:
        length = answer[at]
        if length >= 192:
            return at + 2
        at += 1 + length
        if not length:
            return at


def parse(answer):
    if len(answer) < 12:
        return {"rcode": -1, "answers": []}
    flags, questions, count = struct.unpack("!HHH", answer[2:8])
    at = 12
    for _ in range(questions):
        at = skip(answer, at) + 4
    found = []
    for _ in range(count):
        at = skip(answer, at)
        kind, _, _, size = struct.unpack("!HHIH", answer[at : at + 10])
        data = answer[at + 10 : at + 10 + size]
        at += 10 + size
        found.append([kind, socket.inet_ntoa(data) if kind == 1 else data.hex()])
    return {"rcode": flags & 15, "answers": found}


def url(url, headers=None, wait=4.0):
    """As programs fetch: by the system's resolver, following redirects."""
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}),
        urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=CA)),
    )
    with opener.open(urllib.request.Request(url, headers=headers or {}), timeout=wait) as answer:
        return answer.read(4096).decode("latin-1")


def names(name):
    return json.dumps(sorted({each[4][0] for each in socket.getaddrinfo(name, None)}))


def shell(command, wait=10.0):
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=wait, check=False
    )
    if done.returncode:
        raise OSError(done.stderr[-300:])
    return done.stdout


def attempt(given):
    given = dict(given)
    try:
        return {"ok": True, "said": globals()[given.pop("do")](**given)}
    except Exception as exc:
        return {"ok": False, "said": f"{type(exc).__name__}: {exc}"}


def all_of(attempts):
    with concurrent.futures.ThreadPoolExecutor(max(1, len(attempts))) as pool:
        return json.dumps(list(pool.map(attempt, attempts)))


def main():
    if sys.argv[1:] != ["stay"]:
        print(all_of(json.load(sys.stdin)))
        return
    while True:  # where a start of Python takes seconds
        with open(f"{HOME}/attempts") as pipe:
            attempts = json.load(pipe)
        outcomes = all_of(attempts)
        with open(f"{HOME}/outcomes", "w") as pipe:
            pipe.write(outcomes)


if __name__ == "__main__":
    main()
