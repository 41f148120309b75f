"""The section `auth` of the configuration: who may come in."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, Field, PositiveFloat, SecretStr, model_validator

from gateway.settings_section import Section, is_loopback
from orchestrator.keys import ID
from orchestrator.limits.config import LimitsOf
from orchestrator.runs import EVERYDAY, Principal, Scope

NAME = r"^[A-Za-z0-9_.-]{1,64}$"


def _presentable(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("should be printable ASCII without spaces, and not empty: it travels in a header")
    return key


def _own_name(name: str) -> str:
    if ID.fullmatch(name):
        raise ValueError("is how the ids of stored keys look; choose another name")
    return name


class Key(Section):
    """An API key, and on whose behalf its bearer acts."""

    key: Annotated[SecretStr, AfterValidator(_presentable)]
    name: Annotated[str, AfterValidator(_own_name)] = Field(pattern=NAME, description="Stands for the key in logs and metrics.")
    tenant: str = Field(default="default", pattern=NAME, description="Keys of a tenant see each other's runs.")
    scopes: frozenset[Scope] = Field(default=EVERYDAY, description="What its bearer may do; admin is everything.")
    expires: AwareDatetime | None = Field(default=None, description="From when on it is refused.")
    limits: LimitsOf | None = Field(default=None, description="This key's own, each in place of the one in limits.key.")

    def principal(self) -> Principal:
        expires_ms = None if self.expires is None else int(self.expires.timestamp() * 1000)
        limits = None if self.limits is None else self.limits.allowance()
        return Principal(self.tenant, self.name, self.scopes, limits, expires_ms)


_SECRET_CHARS = {"HS256": 32, "HS384": 48, "HS512": 64}
_Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]


class Jwt(Section):
    """Tokens of an issuer, good as keys."""

    issuer: str = Field(min_length=1, description="What a token's `iss` has to be.")
    audience: str = Field(min_length=1, description="What has to be in a token's `aud`.")
    jwks_url: str | None = Field(default=None, description="Where the issuer's public keys are. This, or a secret.")
    secret: SecretStr | None = Field(default=None, description="A secret of the issuer's and ours.")
    algorithms: tuple[_Algorithm, ...] = Field(
        default=(), description="Those that are good. None named: RS256 and ES256, or HS256 with a secret."
    )
    tenant_claim: str = Field(default="tenant", min_length=1, description="The claim that names the bearer's tenant.")
    scopes_claim: str | None = Field(
        default=None, description="The claim that names the bearer's scopes. None: everybody may do everything but admin."
    )
    leeway_s: float = Field(default=30.0, ge=0, le=600, description="How far the issuer's clock may be from ours.")

    @model_validator(mode="before")
    @classmethod
    def _usual_algorithms(cls, data: object) -> object:
        if isinstance(data, dict) and not data.get("algorithms"):
            return {**data, "algorithms": ("HS256",) if data.get("secret") is not None else ("RS256", "ES256")}
        return data

    @model_validator(mode="after")
    def _one_kind_of_key(self) -> Self:
        if (self.jwks_url is None) == (self.secret is None):
            raise ValueError("needs either jwks_url or secret")
        shared = [name for name in self.algorithms if name in _SECRET_CHARS]
        if self.secret is not None:
            if len(shared) < len(self.algorithms):
                raise ValueError("with a secret, algorithms are HS256, HS384 or HS512")
            if len(self.secret.get_secret_value()) < (least := max(_SECRET_CHARS[name] for name in shared)):
                raise ValueError(f"secret should have {least} characters or more")
        elif shared:
            raise ValueError(f"{shared[0]} proves nothing where keys are public: it is for a secret")
        if self.jwks_url is not None:
            url = urlsplit(self.jwks_url)
            if not url.hostname or (url.scheme != "https" and not (url.scheme == "http" and is_loopback(url.hostname))):
                raise ValueError("jwks_url should be https://…: whoever can change what is read there can be anybody here")
        return self


class Auth(Section):
    mode: Literal["off", "keys"] = Field(default="off", description="keys: everybody needs a key, or a token of `jwt`.")
    keys: tuple[Key, ...] = Field(default=(), description="Keys that need no database; `headgate keys` makes others.")
    jwt: Jwt | None = None
    ticket_secret: Annotated[SecretStr, Field(min_length=16)] | None = Field(
        default=None, description="Signs stream tickets; replicas need the same. None: one that they share in PostgreSQL."
    )
    outage_s: PositiveFloat = Field(
        default=3600.0, description="While PostgreSQL is away: how long keys that were used lately go on being good."
    )
