"""Whether somebody listens at an address. Without ray, which `tpdist doctor` does not load."""

import socket


def knock(host: str, port: int, limit_s: float) -> None:
    """Connect and leave again. Raises OSError where that does not come about within `limit_s`."""
    try:
        socket.create_connection((host, port), limit_s).close()
    except (ValueError, OverflowError) as error:  # a name or a port that none can have
        raise OSError(error) from error


def answers(host: str, port: int, limit_s: float) -> bool:
    """Whether somebody listens there."""
    try:
        knock(host, port, limit_s)
    except OSError:
        return False
    return True
