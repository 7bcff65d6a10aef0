"""The operator API's client: one call per thing a command needs, every failure a SkerryError."""

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from json import JSONDecodeError
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
from skerry_protos.errors import (
    ConfigError,
    DeadlineError,
    LinkError,
    PeerError,
    RejectedError,
    SkerryError,
    TrustError,
)

from skerry_devices import contexts
from skerry_devices.contexts import Context

TIMEOUT_S = 30.0
POLL_S = 20.0
"""How long one long poll may wait at the coordinator."""


class NotFoundError(SkerryError):
    """There is no such thing at the coordinator."""

    code = "not-found"
    exit_code = 3


class Client:
    """One person's connection to one coordinator."""

    def __init__(self, context: Context, *, name: str = "", timeout_s: float = TIMEOUT_S) -> None:
        self.name = name
        self.url = context.url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            verify=_trust(context),
            headers={"Authorization": f"Bearer {context.token}"} if context.token else {},
            timeout=timeout_s,
            trust_env=False,  # a proxy of the environment is not the way to one's own fleet
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def get(self, path: str, *, wait_s: float = 0.0, **query: Any) -> Any:
        """Return what the coordinator says at `path`; `wait_s` is a long poll's longest wait."""
        asked = {key: value for key, value in query.items() if value not in (None, "")}
        if wait_s:
            asked["wait_s"] = wait_s
        return _json(self._ask("GET", path, query=asked, wait_s=wait_s))

    def items(self, path: str, *, wait_s: float = 0.0, **query: Any) -> list[dict[str, Any]]:
        """Return a list's items."""
        made = self.get(path, wait_s=wait_s, **query)
        if not isinstance(made, dict) or not isinstance(made.get("items"), list):
            raise PeerError(f"{self.url}{path} answered no list", hint="skerry doctor")
        return list(made["items"])

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Do something; return what the coordinator says of it."""
        return _json(self._ask("POST", path, body=body or {}))

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Let something be so; return it."""
        return _json(self._ask("PUT", path, body=body))

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """Change something; return what it is now."""
        return _json(self._ask("PATCH", path, body=body))

    def delete(self, path: str) -> Any:
        """Remove something."""
        return _json(self._ask("DELETE", path))

    def upload(self, path: str, data: bytes) -> Any:
        """Send bytes; return what the coordinator says of them."""
        return _json(self._ask("POST", path, data=data, wait_s=300.0))

    def upload_file(self, path: str, file: Path) -> Any:
        """Send a file piece by piece; return what the coordinator says of it."""
        with file.open("rb") as content:
            return _json(
                self._ask("POST", path, data=iter(lambda: content.read(1024**2), b""), wait_s=300.0)
            )

    @contextmanager
    def download(self, path: str) -> Iterator[httpx.Response]:
        """Open a body that is read piece by piece."""
        with (
            _translated(self.url),
            self._http.stream("GET", path, timeout=httpx.Timeout(TIMEOUT_S, read=120.0)) as answer,
        ):
            if answer.is_error:
                answer.read()
                raise _refusal(answer)
            yield answer

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        data: bytes | Iterator[bytes] | None = None,
        wait_s: float = 0.0,
    ) -> httpx.Response:
        with _translated(self.url):
            answer = self._http.request(
                method,
                path,
                params=query,
                json=body,
                content=data,
                timeout=httpx.Timeout(TIMEOUT_S, read=TIMEOUT_S + wait_s),
                headers={"Content-Type": "application/zip"} if data is not None else {},
            )
        if answer.is_error:
            raise _refusal(answer)
        return answer


def connect() -> Client:
    """Return a client for the context of this call."""
    name, context = contexts.chosen()
    return Client(context, name=name)


def at(*parts: str) -> str:
    """Return the API's path made of these parts, each quoted."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _trust(context: Context) -> ssl.SSLContext | bool:
    if urlsplit(context.url).scheme == "http":
        if urlsplit(context.url).hostname not in {"localhost", "127.0.0.1", "::1"}:
            raise ConfigError(f"{context.url} is not encrypted", hint="use https://")
        return False
    if not context.ca:
        return True
    try:
        return ssl.create_default_context(cafile=context.ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"cannot read the CA certificate {context.ca}: {error}",
            hint="skerry config set-context NAME --ca FILE",
        ) from error


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn httpx's errors into ours."""
    try:
        yield
    except httpx.ConnectError as error:
        if any(words in str(error) for words in ("not yet valid", "has expired")):
            raise TrustError(
                f"{url}: its certificate does not hold now: {error}",
                hint=f"is the clock right? this machine says {_now()}; skerry doctor says more",
            ) from error
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise TrustError(
                f"{url} is not vouched for by this context's CA: {error}",
                hint="skerry config set-context NAME --ca FILE, with that coordinator's ca.pem",
            ) from error
        raise LinkError(
            f"cannot reach the coordinator at {url}: {error}",
            hint="is it running? skerry up starts one here; skerry doctor says more",
        ) from error
    except httpx.TimeoutException as error:
        raise DeadlineError(
            f"the coordinator at {url} did not answer in time", hint="skerry doctor"
        ) from error
    except httpx.InvalidURL as error:
        raise ConfigError(f"{url} is not an address: {error}") from error
    except httpx.HTTPError as error:
        raise LinkError(
            f"the connection to {url} failed: {error or type(error).__name__}",
            hint="try again; skerry doctor says more",
        ) from error


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _refusal(answer: httpx.Response) -> SkerryError:
    """Return the error that an answer with a status of 400 or more means."""
    try:
        said = answer.json()["error"]
        code, message, hint = said["code"], said["message"], said.get("hint") or ""
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        code, message, hint = "peer", f"{answer.url} answered {answer.status_code}", "skerry doctor"
    error: SkerryError
    match answer.status_code:
        case 404:
            error = NotFoundError(message, hint=hint)
        case 401 | 403:
            error = TrustError(message, hint=hint)
        case 408 | 504:
            error = DeadlineError(message, hint=hint)
        case 429 | 502 | 503:
            error = LinkError(message, hint=hint)
        case status if status >= 500:
            error = PeerError(message, hint=hint or "the coordinator's log says more")
        case 400 | 413 | 422:
            error = ConfigError(message, hint=hint)
        case 409 if code == "ambiguous":
            error = ConfigError(message, hint=hint)
        case _:
            error = RejectedError(code, message)
            error.hint = hint
    error.code = code
    return error


def _json(answer: httpx.Response) -> Any:
    if not answer.content:
        return {}
    try:
        return answer.json()
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise PeerError(f"{answer.url} answered no JSON", hint="skerry doctor") from error
