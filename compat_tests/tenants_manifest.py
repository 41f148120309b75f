"""What tenants are promised, for `manifest.py`: at no door is anything of theirs told from what never was."""

from __future__ import annotations

from collections.abc import Mapping

from compat_tests.promised import Promised

TENANTS: Mapping[str, Promised] = {
    "tenants.http": Promised("At every HTTP route another tenant's is, to the letter, what never was.", "design §1"),
    "tenants.covered": Promised("No route and no method of gRPC is left out of that.", "issue 4.2"),
    "tenants.lists": Promised("What lists, counts and usage tell is one's own.", "design §1"),
    "tenants.sdk": Promised(
        "openai-python: another tenant's completion is not found, and its approval cannot be decided.", "design §1"
    ),
    "tenants.ws": Promised("On a WebSocket of one's own, nothing can be done to another's run.", "design §1"),
    "tenants.grpc": Promised("At every method of gRPC another tenant's is what never was.", "design §1"),
    "tenants.tickets": Promised("A ticket opens no more than whoever asked for it may see.", "design §1"),
    "tenants.names": Promised("Sessions and idempotency keys of the same name are two.", "issue 4.2, 4.5"),
    "tenants.cache": Promised("One tenant's answer is never another's, by the same words or by the same session.", "issue 4.6"),
}
