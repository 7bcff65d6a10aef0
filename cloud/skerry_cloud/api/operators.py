"""Routes about operators and what they did: tokens, roles, the audit log."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from skerry_cloud.api.auth import Caller, needs, note
from skerry_cloud.api.errors import ApiError
from skerry_cloud.store import Store, audit, operators
from skerry_cloud.store.operators import Operator, Role

Named = Annotated[str, Path(max_length=64)]


class NewOperator(BaseModel):
    """Who shall use the API, and for what."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")
    role: Role


class OperatorView(BaseModel):
    """An operator."""

    name: str
    role: Role
    created_at: float
    revoked_at: float | None


class MadeOperator(OperatorView):
    """An operator and its token, which is not shown again."""

    token: str


class Operators(BaseModel):
    """A list of operators by name."""

    items: list[OperatorView]


class AuditRow(BaseModel):
    """One action: who, what, on what, and how it ended ("begun": the coordinator stopped in it)."""

    id: int
    at: float
    operator: str
    action: str
    target: str
    outcome: str
    detail: dict[str, Any]


class AuditPage(BaseModel):
    """Rows, newest first; ask again with `before` = the last one's id."""

    items: list[AuditRow]


def router(store: Store) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/v1", tags=["operators"])

    @routes.get("/whoami", dependencies=[needs(Role.VIEWER)])
    async def whoami(caller: Caller) -> OperatorView:
        """Say whose token this is."""
        return view(caller)

    @routes.post("/operators", dependencies=[needs(Role.ADMIN)])
    async def create_operator(asked: NewOperator, request: Request) -> MadeOperator:
        """Make an operator; the token is in the answer and nowhere else."""
        note(request, name=asked.name, role=asked.role.value)
        token = operators.new_token()
        made = await store.write(
            lambda c: operators.keep(c, name=asked.name, role=asked.role, token=token)
        )
        return MadeOperator(**view(made).model_dump(), token=token)

    @routes.get("/operators", dependencies=[needs(Role.ADMIN)])
    async def list_operators() -> Operators:
        """List operators, also revoked ones."""
        return Operators(items=[view(one) for one in await store.read(operators.listed)])

    @routes.post("/operators/{name}/token", dependencies=[needs(Role.ADMIN)])
    async def replace_operator_token(name: Named) -> dict[str, str]:
        """Give an operator a new token; the old one opens nothing any more."""
        token = operators.new_token()
        if not await store.write(lambda c: operators.replace_token(c, name=name, token=token)):
            raise ApiError(404, "not-found", f"no operator {name!r}")
        return {"name": name, "token": token}

    @routes.delete("/operators/{name}", status_code=204, dependencies=[needs(Role.ADMIN)])
    async def revoke_operator(name: Named) -> None:
        """Let an operator's token open nothing any more."""
        if not await store.write(lambda c: operators.revoke(c, name)):
            raise ApiError(404, "not-found", f"no operator {name!r}")

    @routes.get("/audit", dependencies=[needs(Role.ADMIN)])
    async def read_audit(
        before: Annotated[int, Query(ge=0, description="0: from the newest on.")] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> AuditPage:
        """Read who did what, refused attempts included."""
        rows = await store.read(lambda c: audit.listed(c, before=before, limit=limit))
        return AuditPage(items=[AuditRow(**row) for row in rows])

    return routes


def view(operator: Operator) -> OperatorView:
    """Return an operator as the API shows it."""
    return OperatorView(
        name=operator.name,
        role=operator.role,
        created_at=operator.created_at,
        revoked_at=operator.revoked_at,
    )
