"""TLS for the HTTP door, whose certificate the gRPC door shares: a certificate, its key, and the oldest version that is spoken.

The process does the encrypting itself; where there is a proxy, let that do it. Both files are read once, at the start.
"""

from __future__ import annotations

import ssl
from pathlib import Path

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class TlsUnusable(OSError):
    """The certificate or its key cannot be used."""


def tls_context(cert: Path, key: Path, min_version: str) -> ssl.SSLContext:
    """For a server that speaks HTTP/1.1. `cert`: PEM, the whole chain. Raises TlsUnusable, which names the files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password instead of a question on the terminal: an encrypted key is then an error like any other.
        context.load_cert_chain(cert, key, password="")
    except OSError as error:
        reason = error.strerror or str(error)
        raise TlsUnusable(f"server.tls: {cert} and {key} are no certificate and its key: {reason}") from error
    return context
