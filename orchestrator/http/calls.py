"""The methods of `Engine` as messages: a call's arguments are one JSON object, its result is JSON.

The table is made from the protocol's own signatures, so a method that changes there changes here, on both sides. What is no
plain call is not in it: `subscribe` is a feed, and `resolve` is answered where it is asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

import msgspec

from orchestrator.engine import Engine
from orchestrator.errors import InvalidRequest
from orchestrator.runs import Principal

NOBODY = Principal(tenant="", key_id="gateway")
"""On whose behalf a gateway asks what is nobody's in particular: the models, the state of the backends."""

_encode = msgspec.json.Encoder().encode


class Call:
    """`repeatable`: doing it twice is doing it once, so a call whose answer was lost may be made again."""

    def __init__(self, method: Callable[..., Any], *, repeatable: bool) -> None:
        self.name = method.__name__
        self.path = f"/engine/{self.name}"
        self.repeatable = repeatable
        self._signature = inspect.signature(method)
        hints = get_type_hints(method)
        _, *parameters = self._signature.parameters.values()
        self._on_behalf = any(parameter.name == "principal" for parameter in parameters)
        fields = [
            (p.name, hints[p.name], msgspec.field(default=msgspec.NODEFAULT if p.default is p.empty else p.default))
            for p in parameters
            if p.name != "principal"
        ]
        self._arguments = msgspec.defstruct(f"{self.name}_arguments", fields, frozen=True)
        self._decode_arguments = msgspec.json.Decoder(self._arguments).decode
        self._decode_result = msgspec.json.Decoder(hints["return"]).decode

    def ask(self, *args: Any, **kwargs: Any) -> tuple[Principal, bytes]:
        """The caller and the message, from arguments as the method takes them."""
        arguments = self._signature.bind(None, *args, **kwargs).arguments
        del arguments["self"]
        principal = arguments.pop("principal", NOBODY)
        return principal, _encode(self._arguments(**arguments))

    async def answer(self, engine: Engine, principal: Principal, message: bytes) -> bytes:
        """Make the call that the message describes. Raises what the method raises; InvalidRequest for no such message."""
        try:
            asked = self._decode_arguments(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"{self.name}: {error}") from None
        arguments = {name: getattr(asked, name) for name in asked.__struct_fields__}
        if self._on_behalf:
            arguments["principal"] = principal
        return _encode(await getattr(engine, self.name)(**arguments))

    def result(self, message: bytes) -> Any:
        """What the method returned. Raises msgspec.DecodeError, UnicodeDecodeError."""
        return self._decode_result(message)


CALLS: Mapping[str, Call] = {
    call.name: call
    for call in (
        Call(Engine.submit, repeatable=False),
        Call(Engine.get, repeatable=True),
        Call(Engine.details, repeatable=True),
        Call(Engine.list, repeatable=True),
        Call(Engine.cancel, repeatable=True),
        Call(Engine.pause, repeatable=False),
        Call(Engine.resume, repeatable=False),
        Call(Engine.control_state, repeatable=True),
        Call(Engine.history, repeatable=True),
        Call(Engine.timeline, repeatable=True),
        Call(Engine.publish, repeatable=True),
        Call(Engine.approvals, repeatable=True),
        Call(Engine.decide, repeatable=False),
        Call(Engine.sessions, repeatable=True),
        Call(Engine.session, repeatable=True),
        Call(Engine.title_session, repeatable=True),
        Call(Engine.delete_session, repeatable=False),
        Call(Engine.usage, repeatable=True),
        Call(Engine.create_key, repeatable=True),
        Call(Engine.list_keys, repeatable=True),
        Call(Engine.revoke_key, repeatable=True),
        Call(Engine.rotate_key, repeatable=False),
        Call(Engine.find_keys, repeatable=True),
        Call(Engine.key_states, repeatable=True),
        Call(Engine.touch_keys, repeatable=True),
        Call(Engine.shared_secret, repeatable=True),
        Call(Engine.models, repeatable=True),
        Call(Engine.dependencies, repeatable=True),
    )
}
