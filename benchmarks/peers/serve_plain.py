"""The handler that most people write: FastAPI, Pillow and PyTorch, in a function that FastAPI runs on its threads.

python -m benchmarks.peers.serve_plain FOLDER PORT
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.serve_torch import Eager

app = FastAPI()


@app.post("/predict")
def predict(file: UploadFile) -> dict[str, list[float]]:
    return {"probabilities": model.answers([model.pixels(file.file.read())])[0]}


if __name__ == "__main__":
    model = Eager(Path(sys.argv[1]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), access_log=False)
