"""Folders and objects by URI (``s3://bucket/prefix``, a local path or ``file://``): list, read if unchanged, put once.

Credentials, region and endpoint come from the usual AWS variables and profiles, never from a URI.
"""

from raypipe.storage.base import StoredObject
from raypipe.storage.folder import Folder, Listed, list_videos, read_object, read_range

__all__ = ["Folder", "Listed", "StoredObject", "list_videos", "read_object", "read_range"]
