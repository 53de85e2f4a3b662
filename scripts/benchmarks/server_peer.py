"""The program that server.py compares `agenet serve` with: FastAPI and ONNX Runtime, no batching.

python -m scripts.benchmarks.server_peer GRAPH.onnx PORT

Each request is decoded, searched and predicted in one of FastAPI's threads, as its documentation
has it. Detector, crop and network are agenet's own, so that only the serving differs.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from agenet.faces.yunet import YuNet
from agenet.inference.finder import FaceFinder


def create_app(graph: Path) -> FastAPI:
    """Creates the program for an ONNX file that `agenet export` wrote."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    finder = FaceFinder(YuNet(), images.shape[1])
    app = FastAPI()

    def predict(body: bytes) -> list[dict[str, object]]:
        image = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR_RGB)
        found = [] if image is None else finder.detect(image)
        if image is None or not found:
            return []
        squares = np.stack(finder.crop(image, found))
        outputs = dict(zip(names, session.run(names, {images.name: squares}), strict=True))
        return [
            {"box": list(face.box)}
            | {name: values[row].tolist() for name, values in outputs.items()}
            for row, face in enumerate(found)
        ]

    @app.post("/predict")
    async def answer(request: Request) -> list[dict[str, object]]:
        return await run_in_threadpool(predict, await request.body())

    return app


def main() -> None:
    graph, port = sys.argv[1:]
    uvicorn.run(create_app(Path(graph)), port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
