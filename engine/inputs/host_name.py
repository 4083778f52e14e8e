"""Whether a host is this machine alone: of an address to listen on, and of a request's Host header.

A page elsewhere can let its own name mean this machine (DNS rebinding); its requests then come from
this machine's browser, and only their Host header tells.
"""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost may not be
    so."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_this_machine(header: str) -> bool:
    """Whether a Host header, with or without a port, names a loopback address."""
    name = header.rpartition(":")[0] if not header.endswith("]") and ":" in header else header
    return is_loopback(name.strip("[]").lower())
