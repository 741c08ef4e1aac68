"""Ports for servers that tests start."""

import socket


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that are free, outside those that Ray gives to workers."""
    for first in range(21000, 32000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.create_server(("127.0.0.1", port)))
            return first
        except OSError:
            continue
        finally:
            for taken in sockets:
                taken.close()
    raise RuntimeError("no free ports")
