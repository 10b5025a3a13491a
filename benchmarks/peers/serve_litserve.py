"""LitServe, with Pillow and PyTorch inside or with our decoder and runtime, picture by picture or in batches.

python -m benchmarks.peers.serve_litserve FOLDER PORT torch|flatfix BATCH
"""

import sys
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request

BATCH_TIMEOUT_S = 0.01  # that a batch waits for more, as in LitServe's own benchmarks


class Api(litserve.LitAPI):
    """Decode, predict and encode in LitServe's worker; its batches are lists."""

    def __init__(self, folder: Path, engine: str, batch: int) -> None:
        if batch > 1:
            super().__init__(max_batch_size=batch, batch_timeout=BATCH_TIMEOUT_S)
        else:
            super().__init__()
        self._folder, self._engine, self._is_batched = folder, engine, batch > 1

    def setup(self, device: str) -> None:
        """Load the model."""
        if self._engine == "torch":
            from benchmarks.peers.serve_torch import Eager

            self._model: Any = Eager(self._folder)
        else:
            from benchmarks.peers.serve_runtime import Ours

            self._model = Ours(self._folder)

    def decode_request(self, request: Request) -> Any:
        """Decode the picture of a form."""
        return self._model.pixels(request["file"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Leave the stacking to the model."""
        return list(inputs)

    def predict(self, x: Any) -> Any:
        """Answer one picture or a batch."""
        return self._model.answers(x) if self._is_batched else self._model.answers([x])[0]

    def unbatch(self, output: Any) -> Any:
        """Part the answers, which come as a list."""
        return output

    def encode_response(self, output: list[float]) -> dict[str, list[float]]:
        """Write the answer as the plain handler does."""
        return {"probabilities": output}


if __name__ == "__main__":
    api = Api(Path(sys.argv[1]), sys.argv[3], int(sys.argv[4]))
    server = litserve.LitServer(api, accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
