"""Which variant each device serves, as it says."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables."""
    with op.batch_alter_table("device_model", schema=None) as batch_op:
        batch_op.add_column(sa.Column("choice", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    """Put them back."""
    with op.batch_alter_table("device_model", schema=None) as batch_op:
        batch_op.drop_column("choice")
