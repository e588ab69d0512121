"""Encoded scenes cached on disk, so that a second pass with other questions never encodes."""

from unfuse.feature_store.folder import DEFAULT_MAX_BYTES, StoreInfo
from unfuse.feature_store.store import FeatureStore, StoreCounts

__all__ = ["DEFAULT_MAX_BYTES", "FeatureStore", "StoreCounts", "StoreInfo"]
