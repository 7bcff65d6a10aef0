"""The coordinator's tables. A change here is an Alembic migration in store/migrations/.

Times are seconds since 1970 (UTC), as floats. JSON columns hold small records that only people and
one reader look at; whatever is searched for has a column.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

devices = sa.Table(
    "device",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    # The device's number for Flower, 63 random bits; 1 is the server.
    sa.Column("node", sa.BigInteger, nullable=False, unique=True),
    sa.Column("profile", sa.String(64), nullable=False, default=""),
    sa.Column("invite", sa.String(32), nullable=False, default=""),  # which invite it came by
    sa.Column("enrolled_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float),
    sa.Column("revoked_why", sa.String(500)),
    # Takes no new work while true; drained_at: also had its work taken away.
    sa.Column("cordoned", sa.Boolean, nullable=False, default=False),
    sa.Column("drained_at", sa.Float),
    sa.Column("connected", sa.Boolean, nullable=False, default=False),
    sa.Column("transport", sa.String(32), nullable=False, default=""),
    sa.Column("last_seen_at", sa.Float),
    sa.Column("last_error", sa.String(500), nullable=False, default=""),
    sa.Column("agent_version", sa.String(64), nullable=False, default=""),
    # The newest heartbeat, as JSON of skerry.v1.Heartbeat.
    sa.Column("heartbeat", sa.JSON, nullable=False, default=dict),
)

labels = sa.Table(
    "label",
    metadata,
    sa.Column("device", sa.String(64), sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("key", sa.String(63), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
    sa.Index("ix_label_key_value", "key", "value"),
)

certificates = sa.Table(
    "certificate",
    metadata,
    sa.Column("serial", sa.String(64), primary_key=True),
    sa.Column("device", sa.String(64), sa.ForeignKey("device.id"), nullable=False, index=True),
    # SHA-256 of the public key, so that a join whose answer was lost can be repeated.
    sa.Column("key_sha256", sa.String(64), nullable=False),
    sa.Column("issued_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

invites = sa.Table(
    "invite",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("uses", sa.Integer, nullable=False),
    sa.Column("uses_left", sa.Integer, nullable=False),
    sa.Column("labels", sa.JSON, nullable=False, default=dict),
    sa.Column("created_by", sa.String(64), nullable=False, default=""),
    sa.Column("revoked_at", sa.Float),
)

operators = sa.Table(
    "operator",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("token_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),  # viewer, operator, admin
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("operator", sa.String(64), nullable=False),
    sa.Column("action", sa.String(64), nullable=False),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("outcome", sa.String(200), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False, default=dict),
)

device_logs = sa.Table(
    "device_log",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("device", sa.String(64), nullable=False, index=True),
    # The parcel that brought the line: a parcel that comes twice is kept once.
    sa.Column("parcel", sa.String(128), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("level", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

runs = sa.Table(
    "run",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    # The run's number for Flower, 63 random bits.
    sa.Column("number", sa.BigInteger, nullable=False, unique=True),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("app", sa.String(64), nullable=False),  # the bundle's digest
    sa.Column("app_kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # runs.lifecycle.RunState
    sa.Column("why", sa.Text, nullable=False, default=""),
    # What the run waits for now: {"what", "why", "until_unix_s", "on": [device ids]} or null.
    sa.Column("waiting", sa.JSON),
    sa.Column("options", sa.JSON, nullable=False),  # runs.plan.RunOptions
    sa.Column("round", sa.Integer, nullable=False, default=0),
    sa.Column("rounds", sa.Integer, nullable=False, default=0),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("model", sa.String(64)),  # digest of the final records blob
)

# The journal: append only; what a person sees and, with the tasks, what a restart reads.
events = sa.Table(
    "event",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("run", sa.String(64), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("round", sa.Integer, nullable=False, default=0),
    sa.Column("device", sa.String(64), nullable=False, default=""),
    sa.Column("data", sa.JSON, nullable=False, default=dict),
)

tasks = sa.Table(
    "task",
    metadata,
    sa.Column("id", sa.String(128), primary_key=True),  # the parcel's id
    sa.Column("run", sa.String(64), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("device", sa.String(64), nullable=False, index=True),
    sa.Column("message_type", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # runs.lifecycle.TaskState
    sa.Column("why", sa.String(500), nullable=False, default=""),
    sa.Column("parcel", sa.LargeBinary, nullable=False),  # skerry.v1.Parcel
    sa.Column("deadline_at", sa.Float, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("sent_at", sa.Float),
    sa.Column("replied_at", sa.Float),
    sa.Column("reply", sa.LargeBinary),  # skerry.v1.Parcel, stored before it is acknowledged
    sa.Column("bytes_down", sa.BigInteger, nullable=False, default=0),
    sa.Column("bytes_up", sa.BigInteger, nullable=False, default=0),
)

metrics = sa.Table(
    "metric",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("run", sa.String(64), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("device", sa.String(64), nullable=False, default=""),  # empty: of the whole round
    sa.Column("phase", sa.String(32), nullable=False),  # train, evaluate, server
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

blobs = sa.Table(
    "blob",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    # Why it is kept: "app", "task", "reply", "model"; unreferenced ones are swept.
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("run", sa.String(64), nullable=False, default="", index=True),
)
