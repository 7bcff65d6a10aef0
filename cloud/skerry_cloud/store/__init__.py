"""The coordinator's memory: SQLite or PostgreSQL through `Store`, blobs on disk or an object store.

Start at engine.py; tables.py says what is kept, migrations/ how older databases become this one.
"""

from skerry_cloud.store.databases import FullDiskError, StoreError
from skerry_cloud.store.engine import Store

__all__ = ["FullDiskError", "Store", "StoreError"]
