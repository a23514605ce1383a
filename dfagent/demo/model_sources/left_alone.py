"""Doubles a number."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only Triton has it


class TritonPythonModel:
    """What Triton's python backend looks for."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each number."""
        numbers = [pb_utils.get_input_tensor_by_name(request, "NUMBER").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("DOUBLE", number * 2)]) for number in numbers]
