"""HTTPS without a proxy: the versions that are spoken, what is said of it, and certificates that are none."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from gateway.settings import Settings
from gateway.transports.http_server import listening
from gateway.transports.tls import TlsUnusable, tls_context


def app() -> web.Application:
    async def ok(request: web.Request) -> web.Response:
        return web.Response(text=request.scheme)

    app = web.Application()
    app.router.add_get("/", ok)
    return app


async def test_https_is_spoken_and_http_is_not(pair: tuple[Path, Path]) -> None:
    trusted = ssl.create_default_context(cafile=str(pair[0]))
    async with listening(app(), host="127.0.0.1", port=0, new_request_id=lambda: "id", tls=tls_context(*pair, "1.2")) as url:
        assert url.startswith("https://127.0.0.1:")
        connector = aiohttp.TCPConnector(ssl=trusted)
        async with aiohttp.ClientSession(connector=connector) as http:
            async with http.get(url) as response:
                assert (response.status, await response.text()) == (200, "https")
            with pytest.raises(aiohttp.ClientError):
                await http.get(url.replace("https", "http"))


@pytest.mark.parametrize(("oldest", "spoken"), [("1.2", True), ("1.3", False)])
async def test_the_oldest_version_is_configured(pair: tuple[Path, Path], oldest: str, spoken: bool) -> None:
    old = ssl.create_default_context(cafile=str(pair[0]))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with listening(app(), host="127.0.0.1", port=0, new_request_id=lambda: "id", tls=tls_context(*pair, oldest)) as url:
        port = int(url.rpartition(":")[2])
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=old)
        except (ssl.SSLError, ConnectionError):
            assert not spoken
        else:
            assert spoken
            tls = writer.get_extra_info("ssl_object")
            assert (tls.version(), tls.selected_alpn_protocol()) == ("TLSv1.2", None)
            writer.close()
            await writer.wait_closed()


def test_what_is_no_certificate_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    cert, key = pair
    for wrong in ((tmp_path / "none.pem", key), (cert, tmp_path / "empty.pem"), (key, cert)):
        with pytest.raises(TlsUnusable, match=str(wrong[0])):
            tls_context(*wrong, "1.2")


def test_an_encrypted_key_is_an_error_and_no_question(pair: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    locking = ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", str(pair[1]), "-out", str(locked)]
    subprocess.run(locking, check=True, capture_output=True)
    with pytest.raises(TlsUnusable):
        tls_context(pair[0], locked, "1.2")


def test_how_it_is_configured() -> None:
    settings = Settings.model_validate({"server": {"tls": {"cert": "a.pem", "key": "b.pem"}}})
    assert settings.server.tls is not None
    assert (settings.server.tls.cert, settings.server.tls.min_version) == (Path("a.pem"), "1.2")
