"""List, read and create objects by URI (``s3://bucket/prefix``, a local path or ``file://``).

A read can require that the etag is unchanged. A put can be create-only: it then never replaces an object. Credentials,
region and endpoint come from the usual AWS variables and profiles, never from a URI.
"""

from raypipe.storage.base import StoredObject
from raypipe.storage.folder import Folder, Listed, list_videos, read_object, read_range

__all__ = ["Folder", "Listed", "StoredObject", "list_videos", "read_object", "read_range"]
