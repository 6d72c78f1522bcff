"""ONNX Runtime as the peer of `offramp bench engine`: the stages joined into one graph, on one thread.

The argument is a plan in JSON. Prints its version, then for every line with a number of frames the mean
milliseconds per frame.
"""

import json
import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import compose


def joined(stages: list[dict]) -> onnx.ModelProto:
    """The stages as one graph: the state of each goes into the next; what is left are the features."""
    whole, handed = None, []
    for number, stage in enumerate(stages):
        own = f"stage{number}/"
        model = compose.add_prefix(onnx.load(stage["file"]), own)
        inputs = [own + name for name in stage["inputs"]]
        if whole is None:
            whole = model
        else:
            whole = compose.merge_models(whole, model, io_map=list(zip(handed, inputs, strict=True)))
        handed = [own + name for name in stage["state"]]
    return whole


def main() -> None:
    plan = json.loads(sys.argv[1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    model = joined(plan["stages"]).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    image = np.random.default_rng(7).uniform(-1, 1, plan["image"]).astype(np.float32)
    feed = {session.get_inputs()[0].name: image}
    print(onnxruntime.__version__, flush=True)
    for line in sys.stdin:
        frames = int(line)
        start = time.perf_counter()
        for _ in range(frames):
            session.run(None, feed)
        print((time.perf_counter() - start) / frames * 1e3, flush=True)


main()
