"""Settings as flags of a command, and what flags may be given.

Must not know which commands there are.
"""

import inspect
import math
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from bytelm.errors import InputError

Settings = TypeVar("Settings", bound=BaseSettings)


def finite(value: float | None) -> float | None:
    """A number that a flag gives, where NaN and infinity mean nothing.

    Raises:
        BadParameter: when it is NaN or infinite.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def _variable(name: str, settings: type[BaseSettings]) -> str:
    """A setting in the environment."""
    return f"{settings.model_config['env_prefix']}{name.upper()}"


def _flag(name: str, field: FieldInfo, settings: type[BaseSettings]) -> inspect.Parameter:
    """A setting as a flag, whose absence leaves it to the environment."""
    kind: Any = field.annotation
    if isinstance(kind, types.UnionType):
        kinds = [k for k in get_args(kind) if k is not type(None)]
        metavar = f"{kinds[0].__name__}|none"
        kind = str
    elif get_origin(kind) is Literal:
        metavar = "|".join(get_args(kind))
        kind = str
    else:
        metavar = None
    variable = _variable(name, settings)
    default = "none" if field.default is None else str(field.default).lower()
    help_text = f"{field.description} [{variable}; default: {default}]"
    flag = name.replace("_", "-")
    # What is on has a second flag, so that it can be turned off.
    declared = f"--{flag}/--no-{flag}" if field.default is True else f"--{flag}"
    option = typer.Option(declared, help=help_text, metavar=metavar, show_default=False)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def with_flags(*kinds: type[BaseSettings]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command a flag for every field of the settings; they arrive as keywords."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for kind in kinds:
            parameters += [_flag(name, f, kind) for name, f in kind.model_fields.items()]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def read_settings(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """Settings from flags, where they are given, and the environment.

    Args:
        kind: what settings.
        given: the flags; others and those that are None are left to the environment.

    Raises:
        InputError: one line about the first one that is wrong, with the flag or the variable.
    """
    values = {
        name: None if value == "none" else value
        for name, value in given.items()
        if name in kind.model_fields and value is not None
    }
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        flag = f"--{name.replace('_', '-')}" if name in values else _variable(name, kind)
        raise InputError(f"{flag}: {first['msg']}") from None
