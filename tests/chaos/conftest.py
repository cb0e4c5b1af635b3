from collections.abc import Iterator

import pytest

from chaos.fault_proxy import FaultProxy, running_proxy
from raypipe.demo.s3_server import S3Server
from raypipe.storage import s3_client


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Route this process through a proxy to the real server; the client gives up soon after a failure."""
    monkeypatch.setattr(s3_client, "RETRY_SECONDS", 0)
    monkeypatch.setattr(s3_client, "MAX_PAUSE_SECONDS", 0)
    with running_proxy(s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint_url)
        yield proxy
