"""What ``raypipe doctor`` checks: this machine, the nodes of a cluster, and a cluster behind a dashboard."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a job needs: its state, and what to do about it unless it is ok."""

    name: str
    state: State
    found: str
    remedy: str = ""
