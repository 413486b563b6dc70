"""The one error tree. Knows no HTTP: a dialect maps `code` to its own status and body.

DanqingError
├── RequestError            the request cannot be honoured as written; `param` names the field
│   ├── InvalidBody         not JSON, not UTF-8, too deep, not an object
│   ├── BodyTooLarge
│   ├── BodyTooSlow         it did not come in in time, or not fast enough
│   ├── MissingField
│   ├── InvalidField        wrong type, malformed, off the list, out of range
│   │   ├── PromptTooLong
│   │   ├── TooManyImages
│   │   ├── ExclusiveFields two fields of which only one may be there
│   │   └── InvalidImage    a picture from the client that is none, too large, or cannot be fetched
│   ├── UnknownField        no such parameter in this dialect
│   ├── UnsupportedField    a parameter this model or this server cannot honour
│   ├── ModelNotFound
│   ├── NotFound            no such route, task or file
│   ├── MethodNotAllowed
│   ├── IdempotencyConflict the key came before with another body
│   └── DuplicateRequestId  the client's own request id came before
├── AuthError
│   ├── MissingToken  ├── InvalidToken  └── ExpiredToken (revoked counts)
├── PermissionDenied        the token is good, the deed is not allowed
│   ├── WaiverRequired      the AI label may be dropped only after a signed waiver
│   ├── AccountSuspended
│   ├── EndUserBlocked      the person behind the account's request is blocked
│   └── ModelNotAllowed     the token may not use this model
├── QuotaExceeded           the balance does not cover the hold
│   └── TokenBudgetExceeded the token's own budget does not
├── ContentRefused          moderation said no; never retried elsewhere
├── Busy                    queue full; `retry_after_s` says when to come back
├── RateLimited             the caller's own limit is used up; `retry_after_s` likewise
│   └── ConcurrencyExceeded too many of the token's requests at once
├── Cancelled               the client hung up or deleted the task
└── ServerFault             our own failure
    ├── EngineFailed
    │   └── ProviderFailed  the provider that a model is relayed to failed, or answered nonsense
    └── Unavailable
"""

from __future__ import annotations

from typing import ClassVar, Literal


class DanqingError(Exception):
    """Root. `str(error)` is a safe message: it may be shown to the client as it is."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(DanqingError):
    """The request cannot be honoured as written. `param` is the field's path on the wire."""

    code = "bad_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidBody(RequestError):
    code = "invalid_body"


class BodyTooLarge(RequestError):
    code = "body_too_large"


class BodyTooSlow(RequestError):
    code = "body_too_slow"
    retryable = True

    def __init__(self, message: str = "The request body did not arrive in time.") -> None:
        super().__init__(message)


class MissingField(RequestError):
    code = "missing_field"

    def __init__(self, param: str) -> None:
        super().__init__(f"Missing required parameter: '{param}'.", param)


class InvalidField(RequestError):
    code = "invalid_field"


class PromptTooLong(InvalidField):
    code = "prompt_too_long"

    def __init__(self, param: str, chars: int, chars_max: int, unit: str = "characters") -> None:
        super().__init__(
            f"'{param}' is too long: {chars} {unit}, at most {chars_max} are allowed.", param
        )


class TooManyImages(InvalidField):
    """More images than the model gives in one call. The message for one is the wire's own."""

    code = "too_many_images"

    def __init__(self, param: str, n_max: int) -> None:
        self.n_max = n_max
        one = "You must provide n=1 for this model."
        super().__init__(one if n_max == 1 else f"'{param}' must be between 1 and {n_max}.", param)


class ExclusiveFields(InvalidField):
    """`param` may not stand beside `other`."""

    code = "exclusive_fields"

    def __init__(self, param: str, other: str) -> None:
        super().__init__(f"'{param}' and '{other}' exclude each other.", param)


class InvalidImage(InvalidField):
    """A picture from the client that is none, is too large or small, or cannot be fetched.

    `fault` tells apart what a dialect has codes for: no address at all, none that is one, one that
    leads to nothing, and bytes that are no picture.
    """

    code = "invalid_image"

    def __init__(
        self,
        message: str,
        param: str | None = None,
        fault: Literal["empty", "address", "fetch", "format"] | None = None,
    ) -> None:
        super().__init__(message, param)
        self.fault = fault


class UnknownField(RequestError):
    code = "unknown_field"

    def __init__(self, param: str, meant: str | None = None) -> None:
        hint = f" Did you mean '{meant}'?" if meant else ""
        super().__init__(f"Unknown parameter: '{param}'.{hint}", param)


class UnsupportedField(RequestError):
    code = "unsupported_field"


class ModelNotFound(RequestError):
    code = "model_not_found"

    def __init__(self, name: str, param: str = "model", meant: str | None = None) -> None:
        hint = f" Did you mean '{meant}'?" if meant else ""
        super().__init__(
            f"The model '{name[:100]}' does not exist: GET /v1/models lists those that do.{hint}",
            param,
        )
        self.meant = meant


class NotFound(RequestError):
    code = "not_found"


class MethodNotAllowed(RequestError):
    code = "method_not_allowed"


class IdempotencyConflict(RequestError):
    code = "idempotency_conflict"

    def __init__(self, param: str = "Idempotency-Key") -> None:
        super().__init__(f"This '{param}' was used before, for another request.", param)


class DuplicateRequestId(RequestError):
    """The message is the wire's own: Zhipu's for its code 1231."""

    code = "duplicate_request_id"

    def __init__(self, request_id: str, param: str = "request_id") -> None:
        super().__init__(f"You already have a request: {request_id[:100]}", param)


class AuthError(DanqingError):
    code = "auth"


class MissingToken(AuthError):
    code = "missing_token"


class InvalidToken(AuthError):
    code = "invalid_token"


class ExpiredToken(AuthError):
    code = "expired_token"


class PermissionDenied(DanqingError):
    code = "permission_denied"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class WaiverRequired(PermissionDenied):
    code = "waiver_required"

    def __init__(self, param: str, message: str | None = None) -> None:
        own = f"'{param}' may be false only for accounts that have signed the label waiver."
        super().__init__(message or own, param)


class AccountSuspended(PermissionDenied):
    code = "account_suspended"


class EndUserBlocked(PermissionDenied):
    """`param` is the wire's name of the end user (`user`, `user_id`) where it is known."""

    code = "end_user_blocked"

    def __init__(self, param: str | None = None) -> None:
        super().__init__("The end user named in this request is blocked.", param)


class ModelNotAllowed(PermissionDenied):
    code = "model_not_allowed"

    def __init__(self, name: str, param: str = "model") -> None:
        super().__init__(f"This token may not use the model '{name[:100]}'.", param)


class QuotaExceeded(DanqingError):
    """The balance does not cover the hold. Amounts are characters."""

    code = "quota_exceeded"

    def __init__(
        self,
        needed: int,
        available: int,
        what: str = "current quota",
        message: str | None = None,
    ) -> None:
        """`message` in place of what a client is told of its own quota."""
        super().__init__(
            message
            or f"You exceeded your {what}: {needed} characters are needed, {available} are left."
        )
        self.needed = needed
        self.available = available


class TokenBudgetExceeded(QuotaExceeded):
    """The token's budget of a `window` (day, month, total) does not cover the hold."""

    code = "token_budget_exceeded"

    def __init__(self, window: str, needed: int, available: int) -> None:
        super().__init__(needed, available, f"token's budget ({window})")
        self.window = window


class ContentRefused(DanqingError):
    """Moderation refused `role` (user, assistant, history) at `level` (0 the worst, 3 the mildest).

    `subject` is what was refused, `source` who said so (lists, api, classifier, provider), `category` in
    its words; the last two are for the operator alone, but where a provider's own API has codes for its causes.
    """

    code = "content_refused"
    subject: Literal["text", "image"] = "text"
    source: str = "provider"
    category: str | None = None

    def __init__(
        self,
        role: str,
        level: int,
        message: str | None = None,
        *,
        subject: Literal["text", "image"] = "text",
        source: str = "provider",
        category: str | None = None,
    ) -> None:
        super().__init__(message or "Your request was rejected as a result of our safety system. ")
        self.role = role
        self.level = level
        self.subject = subject
        self.source = source
        self.category = category


class Busy(DanqingError):
    code = "busy"
    retryable = True

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("The server is busy: its queue is full. Please retry later.")
        self.retry_after_s = retry_after_s


class RateLimited(DanqingError):
    """The caller used up its `limit` (requests per minute); the server itself may be idle."""

    code = "rate_limited"
    retryable = True

    def __init__(self, limit: int, retry_after_s: float, what: str = "requests per minute") -> None:
        super().__init__(f"Rate limit reached: {limit} {what}. Please retry later.")
        self.limit = limit
        self.retry_after_s = retry_after_s


class ConcurrencyExceeded(RateLimited):
    """`limit` requests of the token are running. Nobody knows when one ends: back in a second."""

    code = "concurrency_exceeded"

    def __init__(self, limit: int) -> None:
        super().__init__(limit, 1.0, "requests at once")


class Cancelled(DanqingError):
    code = "cancelled"

    def __init__(self, message: str = "The task was cancelled.") -> None:
        super().__init__(message)


class ServerFault(DanqingError):
    code = "server_fault"
    retryable = True

    def __init__(self, message: str = "The server had an error while processing your request."):
        super().__init__(message)


class EngineFailed(ServerFault):
    code = "engine_failed"


class Unavailable(ServerFault):
    """Something we need (the database, the image store, the engine) is not there just now."""

    code = "unavailable"
    retry_after_s: ClassVar[float] = 5.0


class ProviderFailed(EngineFailed):
    """The provider that a model is relayed to failed, or its answer makes no sense."""

    code = "provider_failed"
