"""The token without which Ray lets nobody in.

An embedded Ray has a token of its own for as long as it lives: random, in the environment of this process and its
children, and in no file. A cluster has the user's, from where Ray looks for it: RAY_AUTH_TOKEN, the file
RAY_AUTH_TOKEN_PATH, or `~/.ray/auth_token`. RAY_AUTH_MODE=disabled does without.
"""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tpdist.errors import TpdistError

VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class TokenError(TpdistError):
    """There is no token, or not one that can be read."""


def token_file(environment: Mapping[str, str]) -> Path:
    """Where Ray looks for the user's token, unless RAY_AUTH_TOKEN holds it."""
    # not Path.home: that raises for a user without a home, as in a container under a number of its own
    return Path(environment.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token"))


def user_token(say: Callable[[str], None] | None = None) -> str | None:
    """The user's token; None where there is none, or RAY_AUTH_MODE says `disabled`.

    say: told if others on this machine can read the token's file. Raises TokenError where a variable names a file
    without one, or RAY_AUTH_MODE asks for a token and there is none.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
    if token:
        return token
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = token_file(os.environ)
    try:
        token = file.read_text(encoding="utf-8").strip()
        readable = file.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        if given or not isinstance(error, FileNotFoundError):
            what = error.strerror if isinstance(error, OSError) else "no text"
            raise TokenError(
                f"the token {'RAY_AUTH_TOKEN_PATH ' if given else ''}{file}: cannot be read: {what}"
            ) from None
        readable = 0
    if not token and (given or mode == "token"):
        raise TokenError(
            f"no token in {file}; write the cluster's there (mode 0600), set RAY_AUTH_TOKEN, or for a cluster of your "
            "own make one: `(umask 077; ray get-auth-token --generate)`"
        )
    if token and readable and say is not None:
        say(f"warning: others on this machine can read the token: chmod 600 {file}")
    return token or None


@contextmanager
def token_of_its_own() -> Iterator[None]:
    """For what is started meanwhile: a token that nobody else knows."""
    with _environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32)):
        yield


@contextmanager
def token_of_the_user(address: str, say: Callable[[str], None]) -> Iterator[None]:
    """For a connection to the cluster at `address`: the user's token, if there is one."""
    token = user_token(say)
    if token is None:
        say(
            f"warning: connecting to {address} without a token; if that works, so it does for everyone who reaches it. "
            "See Security in the README"
        )
    with _environment(RAY_AUTH_MODE="token" if token else "disabled"):
        yield


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables, and what Ray has read of them, changed for a while."""
    kept = {name: os.environ.get(name) for name in VARIABLES}
    os.environ.update(values)
    _read_again()
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    """Ray reads mode and token once a process. First the mode: without a token, mode `token` ends the process."""
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore[reportAttributeAccessIssue]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
