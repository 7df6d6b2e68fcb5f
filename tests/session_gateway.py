"""A gateway that gives out session tokens: a real server behind it knows one lasting pair of keys and no tokens.

Clients sign with keys and a session token of the gateway. A request with the token that is valid now is signed again,
with the server's keys, and passed on; one with a token that has been valid is answered as AWS does: 400 ExpiredToken.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass, field

from tests.faultproxy import FaultProxy


@dataclass
class SessionGateway(FaultProxy):
    """A fault proxy that insists on session tokens.

    Args:
        keys: access key and secret key of the server behind it.
        token: the one that is valid; set another to let it expire.
    """

    keys: tuple[str, str] = ("", "")
    token: str = "first-token"
    tokens_seen: list[str] = field(default_factory=list)

    def refusal(self, head: bytes) -> str:
        """A token that is not the valid one has expired."""
        token = _headers(head).get("x-amz-security-token", "")
        self.tokens_seen.append(token)
        return "" if token == self.token else "expired"

    def rewritten(self, head: bytes) -> bytes:
        """The same request without the token, signed with the server's keys."""
        headers = _headers(head)
        scope, signed = re.findall(r"Credential=[^/]+/(\S+?),\s*SignedHeaders=(\S+?),", headers["authorization"])[0]
        names = [name for name in signed.split(";") if name != "x-amz-security-token"]
        signature = _signature(head, headers, names, scope=scope, secret_key=self.keys[1])
        credential = f"Credential={self.keys[0]}/{scope}"
        line = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
        head = re.sub(rb"(?im)^x-amz-security-token:[^\r]*\r\n", b"", head)
        return re.sub(rb"(?im)^authorization:[^\r]*", f"Authorization: {line}".encode(), head)


def _signature(head: bytes, headers: dict[str, str], names: list[str], *, scope: str, secret_key: str) -> str:
    """Signature Version 4 of a request whose path and query are encoded as S3 wants them."""
    method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
    path, _, query = target.partition("?")
    query = "&".join(sorted(part if "=" in part else f"{part}=" for part in query.split("&") if part))
    signed = "".join(f"{name}:{headers[name]}\n" for name in names)
    canonical = "\n".join([method, path, query, signed, ";".join(names), headers["x-amz-content-sha256"]])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, digest])
    key = f"AWS4{secret_key}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
