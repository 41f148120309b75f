"""Tools that are Python functions: `@headgate.tool` says that a function is made to be called by models.

    @headgate.tool
    async def weather(city: Annotated[str, Field(description="Its name in English.")], days: int = 1) -> str:
        \"\"\"The weather forecast of a city.\"\"\"

The schema comes from the type hints and defaults, the description from the docstring. What the function returns is told to the
model: text as it is, anything else as JSON. A `ToolError` tells the model what went wrong; any other exception is logged, and the
model hears only that the tool failed. Functions that are not `async` run in threads of their own.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, get_type_hints, overload

import msgspec
import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from orchestrator.errors import HeadgateError
from orchestrator.tools.schema import Schema
from orchestrator.tools.threads import Threads
from orchestrator.tools.tool import CallFailed, InvalidArguments, Observation, ToolError, limited

_log = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MARK = "__headgate_tool__"


class ToolNotLoaded(HeadgateError):
    """A tool of the configuration cannot be loaded."""

    code = "tool_not_loaded"


class Declared(msgspec.Struct, frozen=True):
    """What the decorator noted. `arguments` has a field per parameter."""

    arguments: type[BaseModel]
    description: str
    idempotent: bool
    timeout_s: float | None


@overload
def tool(function: _Function, /) -> _Function: ...


@overload
def tool(
    *, idempotent: bool = True, timeout_s: float | None = None, description: str | None = None
) -> Callable[[_Function], _Function]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    idempotent: bool = True,
    timeout_s: float | None = None,
    description: str | None = None,
) -> Any:
    """Declare that models may call this function; it stays what it is. Raises TypeError for one whose schema cannot be told.

    `idempotent=False`: a call is never repeated when the process is lost in the middle of it; the model is told instead.
    `timeout_s` is the longest a call may take (default: the agent's `tool_timeout_s`). `description` replaces the docstring.
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        text = inspect.cleandoc(description or function.__doc__ or "")
        setattr(function, _MARK, Declared(_arguments(function), text, idempotent, timeout_s))
        return function

    return declare if function is None else declare(function)


class FunctionTool:
    """Implements `tool.Tool`."""

    def __init__(
        self, name: str, function: Callable[..., Any], threads: Threads, *, timeout_s: float | None, max_result_bytes: int
    ) -> None:
        declared: Declared = getattr(function, _MARK)
        self.name = name
        self.description = declared.description
        self.schema = Schema(_parameters(declared.arguments))
        self.idempotent = declared.idempotent
        self.timeout_s = timeout_s if timeout_s is not None else declared.timeout_s
        self.max_result_bytes = max_result_bytes
        self._function = function
        self._arguments = declared.arguments
        self._threads = threads

    async def call(self, arguments: dict[str, Any]) -> Observation:
        try:
            given = self._arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "".join(f".{part}" for part in first["loc"])
            raise InvalidArguments(f"arguments{where}: {first['msg']}") from None
        call = partial(self._function, **{name: getattr(given, name) for name in self._arguments.model_fields})
        try:
            if inspect.iscoroutinefunction(self._function):
                return Observation(self._told(await call()))
            return Observation(await self._threads.run(self.name, lambda: self._told(call())))
        except ToolError as error:
            return Observation(limited(str(error), self.max_result_bytes), success=False)
        except HeadgateError:
            raise
        except Exception as error:  # the function's own; the model is not told what may be meant for us
            _log.exception("the function behind the tool %s raised", self.name)
            raise CallFailed(f"The tool failed ({type(error).__name__}).") from error

    def _told(self, result: object) -> str:
        """What the model is told. Made where the function ran: a large result costs the loop nothing."""
        if isinstance(result, str):
            return limited(result, self.max_result_bytes)
        return limited(pydantic_core.to_json(result, fallback=str).decode(), self.max_result_bytes)


def load(name: str, path: str, threads: Threads, *, timeout_s: float | None, max_result_bytes: int) -> FunctionTool:
    """The tool at `package.module:function`; the folder that the server was started in is searched too. Raises ToolNotLoaded."""
    module_name, _, attribute = path.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            function = getattr(function, part)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise ToolNotLoaded(f"tools.{name}.python: {path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(function, _MARK):
        raise ToolNotLoaded(f"tools.{name}.python: {path} is not a tool: decorate it with @headgate.tool.")
    return FunctionTool(name, function, threads, timeout_s=timeout_s, max_result_bytes=max_result_bytes)


def _arguments(function: Callable[..., Any]) -> type[BaseModel]:
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{function.__qualname__}: a tool's parameters have names, '{parameter}' does not")
        if parameter.name not in hints:
            raise TypeError(f"{function.__qualname__}: parameter '{parameter.name}' needs a type hint")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (hints[parameter.name], default)
    model: type[BaseModel] = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)
    return model


def _parameters(arguments: type[BaseModel]) -> dict[str, Any]:
    """As models are used to it: without the titles that only repeat names."""
    parameters: dict[str, Any] = _untitled(arguments.model_json_schema())
    return parameters


def _untitled(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _untitled(item) for name, item in value.items()} if key in ("properties", "$defs") else _untitled(value)
        for key, value in schema.items()
        if key != "title"
    }
