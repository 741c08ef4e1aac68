"""Whether somebody listens at an address. Without ray, which `tpdist doctor` does not load."""

import socket


def knock(host: str, port: int, limit_s: float) -> None:
    """Connect and leave again. Raises OSError where that does not come about within `limit_s`."""
    socket.create_connection((host, port), limit_s).close()


def answers(host: str, port: int, limit_s: float) -> bool:
    """Whether somebody listens there."""
    try:
        knock(host, port, limit_s)
    except OSError:
        return False
    return True
