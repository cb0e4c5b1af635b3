"""The objects of one page of a listing, read from its XML; botocore takes four times as long, for dates mostly."""

from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

OBJECTS = "RaypipeObjects"  # in a reply: (key, size in bytes, etag) of each
_EVENT = "before-parse.s3.ListObjectsV2"


def read_objects_of(s3: Any) -> None:  # noqa: ANN401 - botocore builds the class of a client at run time
    """Have a client put ``OBJECTS`` into each reply, and nothing into ``Contents``; again it does nothing."""
    s3.meta.events.register(_EVENT, _take_objects, unique_id=OBJECTS)


def _take_objects(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_more: object) -> None:
    """Leave to botocore what is not an object, and what is no page of a listing: errors and how to go on."""
    try:
        root = ET.fromstring(response_dict["body"])  # noqa: S314 - as botocore does
    except ET.ParseError:
        return
    namespace, _, kind = root.tag.rpartition("}")
    if kind != "ListBucketResult":
        return
    space = f"{namespace}}}" if namespace else ""
    if root.findtext(f"{space}IsTruncated") not in {"true", "false"}:
        return  # botocore would take anything else for the end of the listing
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    contents, key, size, etag = (f"{space}{name}" for name in ("Contents", "Key", "Size", "ETag"))
    objects = []
    for item in root.findall(contents):
        objects.append((decode(item.findtext(key, "")), int(item.findtext(size) or 0), item.findtext(etag, "")))
        root.remove(item)
    customized_response_dict[OBJECTS] = objects
    response_dict["body"] = ET.tostring(root)
