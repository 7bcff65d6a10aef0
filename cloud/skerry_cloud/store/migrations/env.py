"""Alembic's entry: the connection comes from skerry_cloud.store.migrate or scripts/migration."""

from alembic import context
from skerry_cloud.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
