"""The operator API with every part's routes, served.

The coordinator reads this module, and FastAPI with it, when all else is up.
"""

import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping

from skerry_protos.blobs import LocalBlobs

from skerry_cloud.api.app import make_app
from skerry_cloud.api.enrol import LinkView
from skerry_cloud.api.models import ARTEFACT_LIMIT, UPLOAD_PATH
from skerry_cloud.api.models import router as models_router
from skerry_cloud.api.policies import router as policies_router
from skerry_cloud.api.repository import METADATA_LIMIT, METADATA_PATH
from skerry_cloud.api.repository import router as repository_router
from skerry_cloud.api.rollouts import router as rollouts_router
from skerry_cloud.api.runs import BUNDLE_LIMIT
from skerry_cloud.api.runs import router as runs_router
from skerry_cloud.api.serving import serving
from skerry_cloud.identity import Authority
from skerry_cloud.models.registry import Models
from skerry_cloud.policies import Policies
from skerry_cloud.registry import Registry
from skerry_cloud.rollouts.engine import Rollouts
from skerry_cloud.runs import Runs
from skerry_cloud.store import Store


@contextlib.asynccontextmanager
async def serve_api(
    *,
    listener: socket.socket,
    context: ssl.SSLContext,
    url: str,
    links: Mapping[str, str],
    store: Store,
    blobs: LocalBlobs,
    authority: Authority,
    registry: Registry,
    runs: Runs,
    models: Models,
    rollouts: Rollouts,
    policies: Policies,
) -> AsyncIterator[None]:
    """Serve on a bound socket while the block runs; `links` are devices' URLs by transport."""
    app = make_app(
        store=store,
        authority=authority,
        registry=registry,
        url=url,
        links=[LinkView(kind=kind, url=each) for kind, each in links.items()],
        routers=[
            runs_router(runs),
            models_router(models, store, blobs),
            repository_router(models, blobs),
            rollouts_router(rollouts),
            policies_router(policies),
        ],
        large_bodies={
            "/v1/apps": BUNDLE_LIMIT,
            UPLOAD_PATH: ARTEFACT_LIMIT,
            METADATA_PATH: METADATA_LIMIT,
        },
    )
    async with serving(app, [listener], context):
        yield
