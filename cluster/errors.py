"""One tree of errors. Each has a stable code, an HTTP status, and says where, what, what is allowed, and the mend.

Those marked `elsewhere` are of one replica alone: another may do better.

MorayError
├── ConfigurationError        a file is wrong; nothing was started
├── PlacementError            the family does not fit on the cells
├── CheckpointError           a checkpoint cannot be served
├── RequestError              the caller can mend it (4xx)
│   ├── InvalidRequest        400 invalid_value, or the code given
│   ├── ContextTooLong        400 context_length_exceeded
│   ├── Unauthorized          401 invalid_api_key, or key_expired
│   ├── NotInPlan             403 not_in_plan
│   ├── Forbidden             403 insufficient_scope
│   ├── NotFound              404 model_not_found, or the code given
│   ├── MethodNotAllowed      405 method_not_allowed
│   ├── TooSlow               408 request_timeout
│   ├── Conflict              409 conflict, or the code given
│   ├── BodyTooLarge          413 body_too_large
│   ├── HeadersTooLarge       431 headers_too_large
│   ├── Overloaded            429 overloaded, or the code given, with retry_after_s
│   └── RateLimited           429 rate_limit_exceeded, with retry_after_s
│       └── QuotaExceeded     429 insufficient_quota, with retry_after_s
└── ServiceError              the caller cannot mend it (5xx)
    ├── ReplicaLost           503 replica_lost, elsewhere
    ├── StartTimeout          503 start_timeout
    ├── Unavailable           503 unavailable, with retry_after_s
    └── EngineFailed          500 engine_failed, elsewhere
"""

from typing import Any


class MorayError(Exception):
    """message: `<where>: <given>; <allowed>; <mend>`. `param` names the offending field of a request, if one does."""

    status = 500
    code = "internal_error"
    type = "server_error"
    elsewhere: bool = False  # another replica may do better

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process borders: keyword-only fields do not survive the default protocol.
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(kind: type[MorayError], message: str, fields: dict[str, Any]) -> MorayError:
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(fields)
    return error


class ConfigurationError(MorayError):
    code = "invalid_configuration"


class PlacementError(MorayError):
    code = "does_not_fit"


class CheckpointError(MorayError):
    code = "invalid_checkpoint"


class RequestError(MorayError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    code = "invalid_value"


class ContextTooLong(RequestError):
    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"


class NotInPlan(RequestError):
    status = 403
    code = "not_in_plan"


class Forbidden(RequestError):
    """The key is valid, and lacks the scope."""

    status = 403
    code = "insufficient_scope"


class NotFound(RequestError):
    status = 404
    code = "model_not_found"


class Conflict(RequestError):
    status = 409
    code = "conflict"


class MethodNotAllowed(RequestError):
    """`allowed`: those that are, as the header Allow has them."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class TooSlow(RequestError):
    """A body that did not come in time."""

    status = 408
    code = "request_timeout"


class HeadersTooLarge(RequestError):
    """The address counts with them."""

    status = 431
    code = "headers_too_large"


class BodyTooLarge(RequestError):
    status = 413
    code = "body_too_large"


class Overloaded(RequestError):
    status = 429
    code = "overloaded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class RateLimited(RequestError):
    """A limit of the caller's plan. `retry_after_s`: None where waiting does not help."""

    status = 429
    code = "rate_limit_exceeded"
    type = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float | None, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class QuotaExceeded(RateLimited):
    """What the plan has for a day or a month is spent: nobody is to wait for it with the request in hand."""

    code = "insufficient_quota"
    type = "insufficient_quota"


class ServiceError(MorayError):
    status = 503


class ReplicaLost(ServiceError):
    code = "replica_lost"
    elsewhere = True


class StartTimeout(ServiceError):
    code = "start_timeout"


class Unavailable(ServiceError):
    """A database or a file store does not answer, or has no room."""

    code = "unavailable"
    retry_after_s = 5.0


class EngineFailed(ServiceError):
    status = 500
    code = "engine_failed"
    elsewhere = True
