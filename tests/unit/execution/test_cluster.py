"""The engine on a Ray cluster of two nodes on this machine."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chores import Heard, chore, double

from isobasin.errors import DependencyError, IsobasinError
from isobasin.execution.cluster import Cluster
from isobasin.execution.local import Here
from isobasin.execution.tasks import Task

ray: Any = pytest.importorskip("ray", reason="Ray is not installed")
