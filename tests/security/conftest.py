"""The attacks are made on the same gateway, over the same sockets, as the tests of the HTTP doors."""

from tests.gateway.http.conftest import engine, nothing_left_behind, serve, witness

__all__ = ["engine", "nothing_left_behind", "serve", "witness"]
