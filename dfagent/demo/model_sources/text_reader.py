"""Reads one line of text from a picture with the ONNX model that lies beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # only Triton has it


class TritonPythonModel:
    """What Triton's python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the ONNX model; its metadata holds the characters that its classes stand for."""
        weights = Path(args["model_repository"], args["model_version"], "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        characters = self._session.get_modelmeta().custom_metadata_map["character"].split("\n")
        # Class 0 is "no character here", the last one a blank.
        self._characters = ["", *characters, " "]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each picture with its text."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
        text = np.array([self._read(image).encode()], dtype=np.object_)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", text)])

    def _read(self, image: np.ndarray[Any, Any]) -> str:
        pixels = image.astype(np.float32) / 127.5 - 1.0
        scores = self._session.run(None, {self._input: pixels.transpose(2, 0, 1)[np.newaxis]})[0][0]
        # CTC: one class for each column; a character goes on until the class changes.
        classes = scores.argmax(axis=1)
        starts = classes[np.diff(classes, prepend=0) != 0]
        return "".join(self._characters[index] for index in starts)
