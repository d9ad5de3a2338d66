"""Whoever has a worker's certificate and key can't speak as a server with them, nor for another node, nor once it is removed."""

import base64
import urllib.parse

PEER = "https://192.168.1.1:7420/blixard.peer.v1.Peer"


def pem(kind, der):
    return f"-----BEGIN {kind}-----\n{base64.encodebytes(der).decode()}-----END {kind}-----\n"


def steal(host):
    """A node's certificate and key, as they lie on its disk, into /run/stolen.pem on alpha."""
    kept = base64.b64decode(host.succeed("base64 /var/lib/blixard/raft/certificate"))
    certificates, at = [], 0
    # Each is a DER sequence with a length of two bytes, and the key one with a length of one.
    while (at := kept.find(b"\x30\x82", at)) >= 0:
        end = at + 4 + int.from_bytes(kept[at + 2 : at + 4], "big")
        certificates.append(kept[at:end])
        at = end
    key = kept[kept.index(b"\x30\x81\x87", kept.index(certificates[-1]) + len(certificates[-1])) :][:138]
    stolen = pem("CERTIFICATE", certificates[-1]) + pem("PRIVATE KEY", key)
    alpha.succeed(f"cat > /run/stolen.pem <<'END'\n{stolen}END")


def varint(number):
    head, rest = number & 127, number >> 7
    return bytes([head]) if rest == 0 else bytes([head | 128]) + varint(rest)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def call(method, message):
    """Calls alpha's agent as another agent does; what that answers."""
    frame = base64.b64encode(bytes(1) + len(message).to_bytes(4, "big") + message).decode()
    _, answer = alpha.execute(
        f"echo {frame} | base64 -d | curl --silent --show-error --insecure --cert /run/stolen.pem --max-time 10 --http2 "
        "--header 'content-type: application/grpc' --header 'te: trailers' --data-binary @- --dump-header - "
        f"--output /dev/null {PEER}/{method} 2>&1",
        timeout=20,
    )
    return urllib.parse.unquote(answer)


def say(cluster, sender, raft):
    """A heartbeat of a far term, said to be of this node and raft id."""
    heartbeat = field(1, 8) + field(2, 1) + field(3, raft) + field(4, 1000)
    return call("Raft", field(1, cluster.encode()) + field(2, sender) + field(3, heartbeat))


def heard():
    """What a message of a server that alpha believed would have changed."""
    cluster = status(alpha)["cluster"]
    return {key: cluster.get(key) for key in ["leader", "term"]}


with subtest("a server and a worker, whose certificate is on its disk, and another cluster"):
    start_all()
    cluster = wait_for_cluster([alpha])
    wait_for_cluster([delta])
    ids = wait_for(
        "the worker",
        lambda: {node["name"]: node["id"] for node in status(alpha)["nodes"]},
        lambda ids: set(ids) == {"alpha", "beta"},
    )
    for host in [alpha, delta]:
        host.succeed("blixard cluster rotate-ca", timeout=MAX_WAIT)
    for host in [beta, delta]:
        host.wait_until_succeeds("test -e /var/lib/blixard/raft/certificate", timeout=MAX_WAIT)
        wait_for_health(alpha if host is beta else delta)
    before = heard()

with subtest("a worker's certificate sends no server's messages, whoever they say that they are of"):
    steal(beta)
    for sender, raft, refused in [
        (ids["beta"], 1, f"node {ids['beta']} is no server of this cluster"),
        (ids["alpha"], 1, f"the certificate is node {ids['beta']}'s"),
    ]:
        said = say(cluster["id"], sender, raft)
        assert refused in said, said

with subtest("another cluster's certificate gets no connection"):
    steal(delta)
    said = say(cluster["id"], ids["alpha"], 1)
    assert "curl: (" in said and "HTTP/2" not in said, said

with subtest("a removed node's certificate is told so, whatever it asks for"):
    steal(beta)
    said = call("Beat", b"")
    assert "grpc-status: 0" in said, said
    alpha.succeed("blixard node remove beta", timeout=MAX_WAIT)
    for method in ["Beat", "Forward"]:
        said = call(method, b"")
        assert "was removed from this cluster" in said, said
    say(cluster["id"], ids["beta"], 1)

with subtest("alpha leads in the term in which it led before"):
    assert heard() == before, before
