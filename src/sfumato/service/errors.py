"""Refusals of the service: a status, one sentence, and what programs read of it."""

from sfumato.errors import UserError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "method_not_allowed",
    409: "conflict",
    413: "request_too_large",
    415: "unsupported_media_type",
    429: "too_many_requests",
    500: "server_error",
    503: "unavailable",
    504: "timeout",
}


class RefusedError(UserError):
    """A request that is not carried out: `status` of HTTP, `retry_after` in seconds, `param`: the field meant."""

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.retry_after = status, param, retry_after


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, object]:
    """The JSON of a refusal, in the shape that OpenAI's clients read."""
    sentence = " ".join(message.split())
    return {"error": {"message": sentence, "type": TYPES.get(status, "error"), "param": param, "code": code}}
