"""What begins a run when a model's inputs drift."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables."""
    op.create_table(
        "policy",
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("app", sa.String(length=64), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("min_devices", sa.Integer(), nullable=False),
        sa.Column("window_s", sa.Float(), nullable=False),
        sa.Column("cooldown_s", sa.Float(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("last_at", sa.Float(), nullable=True),
        sa.Column("last_run", sa.String(length=64), nullable=False),
        sa.Column("last_why", sa.String(length=500), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_policy")),
    )


def downgrade() -> None:
    """Put them back."""
    op.drop_table("policy")
