"""Answers a range of the table that lies beside this file with the sha256 of its bytes."""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only Triton has it


class TritonPythonModel:
    """What Triton's python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Maps the table: its bytes come from the disk when they are asked for."""
        with Path(args["model_repository"], args["model_version"], "weights.bin").open("rb") as table:
            self._table = memoryview(mmap.mmap(table.fileno(), 0, access=mmap.ACCESS_READ))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each range."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        first, count = (int(value) for value in pb_utils.get_input_tensor_by_name(request, "RANGE").as_numpy())
        if first < 0 or count < 0 or first + count > len(self._table):
            error = pb_utils.TritonError(f"the table has {len(self._table)} bytes")
            return pb_utils.InferenceResponse(error=error)
        digest = hashlib.sha256(self._table[first : first + count]).hexdigest()
        return pb_utils.InferenceResponse([pb_utils.Tensor("SHA256", np.array([digest.encode()], dtype=np.object_))])
