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
    # Which form its journal has (runs.record.JOURNAL), and the version that wrote it last.
    sa.Column("journal", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("written_by", sa.String(64), nullable=False, default="", server_default=""),
    # Each device's place among the run's devices, as {device: number}.
    sa.Column("partitions", sa.JSON, nullable=False, default=dict, server_default="{}"),
    # The newest checkpoint: the digest of its blob, and {"round", "asked", "mustered"}.
    sa.Column("checkpoint", sa.String(64)),
    sa.Column("checkpoint_at", sa.JSON),
)

# What a run's server side asked of devices, until a checkpoint makes it superfluous. With the
# tasks, the answers to "which devices are there" and what was pulled, a new server side hears again
# what the old one heard.
questions = sa.Table(
    "question",
    metadata,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("side", sa.Boolean, nullable=False, default=False),  # asked by a thread of the app's
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("phase", sa.String(32), nullable=False),
    # SHA-256 of all that was asked, and of whom and how alone.
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("shape", sa.String(64), nullable=False),
    # [[task, node]] in the order asked; tasks for nodes that nobody has are only here.
    sa.Column("parts", sa.JSON, nullable=False),
    sa.Column("deadline_at", sa.Float, nullable=False),
    sa.Column("left_s", sa.Float),  # of its time, while the run is paused
    sa.Column("asked_at", sa.Float, nullable=False),
    sa.Column("closed_at", sa.Float),
)

musters = sa.Table(
    "muster",
    metadata,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("nodes", sa.JSON, nullable=False),  # [[node, device]]
)

pulls = sa.Table(
    "pull",
    metadata,
    sa.Column("run", sa.String(64), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("tasks", sa.JSON, nullable=False),  # [task], whose answers the app took together
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
    sa.Column("question", sa.Integer, nullable=False, default=0, server_default="0"),
    # The blobs that it was asked with and answered with, or nothing.
    sa.Column("content", sa.String(64), nullable=False, default="", server_default=""),
    sa.Column("answer", sa.String(64), nullable=False, default="", server_default=""),
    # What the server side was told when there is no reply (Flower's ErrorCode); `why` says it.
    sa.Column("code", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Index("ix_task_run_question", "run", "question"),
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
    # Why it is kept: "app", "task", "reply", "checkpoint", "model"; "gone": to be removed.
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("run", sa.String(64), nullable=False, default="", index=True),
)

# Models: what was imported or exported, which files it has, what it is called.
models = sa.Table(
    "model",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
)

model_versions = sa.Table(
    "model_version",
    metadata,
    sa.Column("model", sa.String(64), sa.ForeignKey("model.name"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    # Where it comes from: run, data statistics, codec, quantization, parent.
    sa.Column("lineage", sa.JSON, nullable=False, default=dict),
    sa.Column("retired_at", sa.Float),
    sa.Column("retired_why", sa.String(500), nullable=False, default=""),
    # A rollout found it bad on devices: it is not rolled out again unless told to.
    sa.Column("quarantined_at", sa.Float),
    sa.Column("quarantined_why", sa.String(500), nullable=False, default=""),
)

artefacts = sa.Table(
    "artefact",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("file", sa.String(128), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("runtime", sa.String(32), nullable=False, default=""),
    sa.Column("profile", sa.String(64), nullable=False, default=""),  # empty: any
    # What the artefact says of itself (docs/models.md), for people and for choosing.
    sa.Column("manifest", sa.JSON, nullable=False, default=dict),
    sa.ForeignKeyConstraint(
        ["model", "version"],
        ["model_version.model", "model_version.version"],
        name="fk_artefact_model_version",
    ),
)

model_labels = sa.Table(
    "model_label",
    metadata,
    sa.Column("model", sa.String(64), sa.ForeignKey("model.name"), primary_key=True),
    sa.Column("label", sa.String(32), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("by", sa.String(64), nullable=False),
)

# TUF metadata as it was signed; drafts have too few signatures yet.
tuf_metadata = sa.Table(
    "tuf_metadata",
    metadata,
    sa.Column("repository", sa.String(16), primary_key=True),  # models, director
    sa.Column("role", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("draft", sa.Boolean, nullable=False, default=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("by", sa.String(64), nullable=False),
)

# What the director wants each device to serve of each model.
assignments = sa.Table(
    "assignment",
    metadata,
    sa.Column("device", sa.String(64), sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("target", sa.String(300), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("rollout", sa.String(64), nullable=False, default=""),
    sa.Column("wish", sa.JSON, nullable=False, default=dict),
    sa.Column("at", sa.Float, nullable=False),
)

# The number of the director's newest word to a device.
directed = sa.Table(
    "directed",
    metadata,
    sa.Column("device", sa.String(64), sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
)

# A device's newest report on a model.
device_models = sa.Table(
    "device_model",
    metadata,
    sa.Column("device", sa.String(64), sa.ForeignKey("device.id"), primary_key=True),
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("rollout", sa.String(64), nullable=False, default=""),
    sa.Column("target", sa.String(300), nullable=False, default=""),
    sa.Column("digest", sa.String(64), nullable=False, default=""),
    sa.Column("phase", sa.String(16), nullable=False),  # skerry_protos.artefacts.Phase
    sa.Column("why", sa.String(500), nullable=False, default=""),
    sa.Column("readings", sa.JSON, nullable=False, default=dict),
    sa.Column("serving", sa.String(300), nullable=False, default=""),
    sa.Column("serving_digest", sa.String(64), nullable=False, default=""),
    sa.Column("at", sa.Float, nullable=False),
    # Which variant it serves and why, with what it measured of each (models.choices).
    sa.Column("choice", sa.JSON, nullable=False, default=dict),
)

rollouts = sa.Table(
    "rollout",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(64), nullable=False, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("channel", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # rollouts.lifecycle.RolloutState
    sa.Column("why", sa.Text, nullable=False, default=""),
    sa.Column("plan", sa.JSON, nullable=False),  # rollouts.plan.Plan
    sa.Column("wave", sa.Integer, nullable=False, default=0),
    sa.Column("wave_at", sa.Float),  # when the wave, or its soak, began
    sa.Column("behind", sa.String(64), nullable=False, default=""),  # begins after this rollout
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    sa.Column("ended_at", sa.Float),
)

rollout_devices = sa.Table(
    "rollout_device",
    metadata,
    sa.Column("rollout", sa.String(64), sa.ForeignKey("rollout.id"), primary_key=True),
    sa.Column("device", sa.String(64), sa.ForeignKey("device.id"), primary_key=True, index=True),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # rollouts.lifecycle.DeviceState
    sa.Column("why", sa.String(500), nullable=False, default=""),
    sa.Column("target", sa.String(300), nullable=False, default=""),
    sa.Column("digest", sa.String(64), nullable=False, default=""),
    # What was assigned before, to go back to; empty: nothing was.
    sa.Column("previous", sa.String(300), nullable=False, default=""),
    sa.Column("readings", sa.JSON, nullable=False, default=dict),
    sa.Column("asked_at", sa.Float),
    sa.Column("changed_at", sa.Float),
)

rollout_events = sa.Table(
    "rollout_event",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("rollout", sa.String(64), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("wave", sa.Integer, nullable=False, default=0),
    sa.Column("device", sa.String(64), nullable=False, default=""),
    sa.Column("data", sa.JSON, nullable=False, default=dict),
)

# What begins a run of an app when a model's inputs have drifted on devices.
policies = sa.Table(
    "policy",
    metadata,
    sa.Column("model", sa.String(64), primary_key=True),
    sa.Column("app", sa.String(64), nullable=False),  # the bundle's digest
    sa.Column("options", sa.JSON, nullable=False),  # runs.plan.RunOptions
    sa.Column("threshold", sa.Float, nullable=False),
    sa.Column("min_devices", sa.Integer, nullable=False),
    sa.Column("window_s", sa.Float, nullable=False),
    sa.Column("cooldown_s", sa.Float, nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("created_by", sa.String(64), nullable=False),
    # When it last began a run, which, and why; or why it could not.
    sa.Column("last_at", sa.Float),
    sa.Column("last_run", sa.String(64), nullable=False, default=""),
    sa.Column("last_why", sa.String(500), nullable=False, default=""),
)

# Which version of the coordinator brought the tables to a revision: who may be asked to go back.
revisions = sa.Table(
    "revision",
    metadata,
    sa.Column("revision", sa.String(32), primary_key=True),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
