"""What an outgoing call may come to. Messages are safe: a host at most, no address, path or header."""

from __future__ import annotations

from danqing.domain.errors import ServerFault


class OutboundError(ServerFault):
    """An outgoing call came to nothing."""

    code = "outbound_error"


class OutboundRefused(OutboundError):
    """The policy forbids this URL, where it redirects to, or an address its name resolves to."""

    code = "outbound_refused"
    retryable = False


class OutboundFailed(OutboundError):
    """No answer, or no sound one, in the time allowed."""

    code = "outbound_failed"


class OutboundTooLarge(OutboundError):
    """The body is longer than the caller allows."""

    code = "outbound_too_large"
    retryable = False


class OutboundUnsent(OutboundFailed):
    """Nothing of the request left this machine: no address, no connection, or no room for one."""

    code = "outbound_unsent"
