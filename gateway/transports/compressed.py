"""An event stream that is compressed as it goes: each write is flushed, so that nothing waits in the compressor."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal

from aiohttp import web

from gateway.transports.sink import EventStreamSink

Coding = Literal["gzip", "deflate"]

_WINDOW = {"gzip": 31, "deflate": 15}
"""zlib's numbers for the two formats (RFC 1952 and RFC 1950)."""


class CompressedSink(EventStreamSink):
    """For streams that somebody asked to be compressed, and for them alone."""

    def __init__(self, request: web.Request, coding: Coding, *, stall_timeout_s: float, headers: Mapping[str, str]) -> None:
        super().__init__(request, stall_timeout_s=stall_timeout_s, headers={**headers, "Content-Encoding": coding})
        self._compressor = zlib.compressobj(wbits=_WINDOW[coding])

    async def write(self, frames: bytes) -> None:
        await super().write(self._compressor.compress(frames) + self._compressor.flush(zlib.Z_SYNC_FLUSH))

    async def finish(self, frames: bytes) -> None:
        if frames:
            await self.write(frames)
        await super().finish(self._compressor.flush(zlib.Z_FINISH))
