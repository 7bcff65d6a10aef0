"""What the API answers when it does not do what was asked: {"error": {code, message, hint}}."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from skerry_protos.errors import ConfigError, RejectedError, SkerryError
from skerry_protos.messages import new_id
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

STATUS = {
    "token-unknown": 403,
    "token-forged": 403,
    "token-expired": 403,
    "token-used": 403,
    "token-revoked": 403,
    "renewal-unproved": 403,
    "unknown-device": 403,
    "revoked": 403,
    "clock": 403,
    "not-found": 404,
    "device-taken": 409,
    "operator-taken": 409,
    "last-admin": 409,
    "model-in-use": 409,
    "model-retired": 409,
    "model-quarantined": 409,
    "rollout-overlap": 409,
    "rollout-state": 409,
    "metadata-version": 409,
    "no-repository": 409,
    "run-state": 409,
    "disk-full": 507,
    "stopping": 503,
    "store-unreachable": 503,
    "store": 500,
}
"""The status of each code that is not the caller's malformed request (400)."""


class ApiError(SkerryError):
    """A request is answered with this status, code and message."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        hint: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code
        self.headers = headers


def answer(
    status: int,
    code: str,
    message: str,
    hint: str = "",
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return an error as a response."""
    body = {"error": {"code": code, "message": message, "hint": hint}}
    return JSONResponse(body, status, headers)


def handle_errors(app: FastAPI) -> None:
    """Answer every failure in the one shape."""

    @app.exception_handler(SkerryError)
    async def skerry(request: Request, error: SkerryError) -> JSONResponse:
        request.state.why = error.code
        if isinstance(error, ApiError):
            return answer(error.status, error.code, error.message, error.hint, error.headers)
        known = 400 if isinstance(error, ConfigError | RejectedError) else 500
        status = STATUS.get(error.code, known)
        if status == 500:
            log.error("%s %s: %s", request.method, request.url.path, error)
        return answer(status, error.code, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        request.state.why = "invalid"
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        return answer(422, "invalid", f"{where}: {first['msg']}", "see /openapi.json")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        request.state.why = f"http-{error.status_code}"
        code = {
            400: "invalid",
            404: "not-found",
            405: "method",
            408: "timeout",
            413: "too-large",
        }.get(error.status_code, "http")
        return answer(error.status_code, code, str(error.detail), "", error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        trace = new_id("e-")
        log.error("%s %s failed (%s)", request.method, request.url.path, trace, exc_info=error)
        return answer(
            500, "internal", f"the coordinator failed at this; its log says why under {trace}"
        )
