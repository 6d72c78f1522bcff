"""ONNX Runtime and PyTorch as the peers of `offramp bench engine`: the stages joined into one network.

The argument is a plan in JSON, with the image to run in a file of 32-bit floats. The first line that is printed tells
the peers that are there, with their versions, the folder of ONNX Runtime's library, and the features that it gives
behind each stage; then, for every line `PEER THREADS FRAMES`, the mean milliseconds per frame.

PyTorch runs eagerly what a hand-written network would: a linear layer is one call, so is a GELU, and a convolution
sees the channels-last map as it lies in memory.
"""

import json
import pathlib
import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import compose, helper, numpy_helper


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


class OnnxRuntime:
    name = "onnxruntime"
    version = onnxruntime.__version__

    def __init__(self, model: onnx.ModelProto, image: np.ndarray) -> None:
        self.model, self.image = model.SerializeToString(), image
        self.sessions: dict[int, onnxruntime.InferenceSession] = {}

    def run(self, threads: int) -> list[np.ndarray]:
        if threads not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            self.sessions[threads] = onnxruntime.InferenceSession(
                self.model, options, providers=["CPUExecutionProvider"]
            )
        session = self.sessions[threads]
        return session.run(None, {session.get_inputs()[0].name: self.image})


class PyTorch:
    name = "pytorch"

    def __init__(self, model: onnx.ModelProto, image: np.ndarray) -> None:
        import torch

        self.torch, self.version = torch, torch.__version__
        graph = model.graph
        self.values = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
        }
        self.image, self.input = torch.from_numpy(image), graph.input[0].name
        self.outputs = [output.name for output in graph.output]
        self.steps = list(self.translate(list(graph.node)))

    def run(self, threads: int) -> list[np.ndarray]:
        if self.torch.get_num_threads() != threads:
            self.torch.set_num_threads(threads)
        with self.torch.inference_mode():
            values = self.values | {self.input: self.image}
            for output, call, inputs in self.steps:
                values[output] = call(*[values[name] for name in inputs])
        return [values[name].numpy() for name in self.outputs]

    def translate(self, nodes: list[onnx.NodeProto]):
        """Calls in the graph's order, with constants folded and the nodes of a linear layer or a GELU in one."""
        made = {node.output[0]: node for node in nodes}
        users: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                users.setdefault(name, []).append(node)
        taken: set[str] = set()
        calls = []
        for node in nodes:
            output = node.output[0]
            if all(name in self.values for name in node.input if name):
                self.values[output] = self.call(node)(*[self.values[name] for name in node.input])
                continue
            calls.append(node)
        for node in reversed(calls):
            output = node.output[0]
            if output in taken:
                continue
            gelu = self.gelu(node, made)
            if gelu:
                taken.update(gelu[1])
                made[output] = ("gelu", gelu[0])
            elif linear := self.linear(node, made, users):
                taken.add(linear[0])
                made[output] = ("linear", linear[1])
        functional = self.torch.nn.functional
        for node in calls:
            output = node.output[0]
            if output in taken:
                continue
            match made[output]:
                case ("gelu", x):
                    yield output, functional.gelu, [x]
                case ("linear", (x, weight, bias)):
                    name = f"{weight} transposed"
                    self.values[name] = self.values[weight].t().contiguous()
                    yield output, functional.linear, [x, name, bias]
                case _:
                    yield output, self.call(node), [name for name in node.input if name]

    def linear(self, node: onnx.NodeProto, made: dict, users: dict):
        """MatMul and Add of the bias: the first's output, and (x, weight, bias)."""
        if node.op_type != "Add":
            return None
        for x, bias in (tuple(node.input), tuple(reversed(node.input))):
            product = made.get(x)
            if bias in self.values and isinstance(product, onnx.NodeProto) and product.op_type == "MatMul":
                if product.input[1] in self.values and len(users[x]) == 1:
                    return x, (product.input[0], product.input[1], bias)
        return None

    def gelu(self, node: onnx.NodeProto, made: dict):
        """Mul(Mul(x, 0.5), Add(Erf(Mul(x, 1/sqrt 2)), 1)): x, and the outputs of the other nodes."""

        def maker(name: str, op: str):
            found = made.get(name)
            return found if isinstance(found, onnx.NodeProto) and found.op_type == op else None

        if node.op_type != "Mul":
            return None
        half, upper = maker(node.input[0], "Mul"), maker(node.input[1], "Add")
        erf = upper and maker(upper.input[0], "Erf")
        scaled = erf and maker(erf.input[0], "Mul")
        if not half or not scaled or half.input[0] != scaled.input[0]:
            return None
        constants = [self.values.get(name) for name in (half.input[1], upper.input[1], scaled.input[1])]
        wanted = [0.5, 1.0, 0.5**0.5]
        if any(c is None or abs(c.item() - w) > 1e-6 for c, w in zip(constants, wanted, strict=True)):
            return None
        return half.input[0], [n.output[0] for n in (half, upper, erf, scaled)]

    def call(self, node: onnx.NodeProto):
        torch, functional = self.torch, self.torch.nn.functional
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        match node.op_type:
            case "Cast":
                kinds = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.INT64: torch.int64}
                return lambda x: x.to(kinds[given["to"]])
            case "Identity":
                return lambda x: x
            case "Transpose":
                return lambda x: x.permute(given["perm"])
            case "Reshape":
                shape = self.values[node.input[1]].tolist()
                return lambda x, _: x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])
            case "Conv":
                top, left, bottom, right = given.get("pads", [0] * 4)
                even = (top, left) == (bottom, right)
                options = {"stride": given.get("strides", [1, 1]), "groups": given.get("group", 1)}

                def convolve(x, weight, bias=None):
                    if even:
                        return functional.conv2d(x, weight, bias, padding=(top, left), **options)
                    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, bias, **options)

                return convolve
            case "MatMul":
                return torch.matmul
            case "LayerNormalization":
                epsilon = given.get("epsilon", 1e-5)
                return lambda x, scale, bias=None: functional.layer_norm(x, x.shape[-1:], scale, bias, epsilon)
            case "Gelu":
                return functional.gelu
            case "Erf":
                return torch.erf
            case "Relu":
                return functional.relu
            case "Clip":
                low, high = (self.values[name].item() for name in node.input[1:3])
                return lambda x, *_: functional.hardtanh(x, low, high)
            case "Add":
                return torch.add
            case "Mul":
                return torch.mul
            case "ReduceMean":
                axes, keep = self.values[node.input[1]].tolist(), bool(given.get("keepdims", 1))
                return lambda x, _: x.mean(axes, keepdim=keep)
            case other:
                raise SystemExit(f"the PyTorch peer does not know the operator {other}: leave --pytorch out")


def main() -> None:
    plan = json.loads(sys.argv[1])
    model = joined(plan["stages"])
    image = np.fromfile(plan["image"], "<f4").reshape(plan["shape"])
    peers = [OnnxRuntime(model, image)]
    if plan["pytorch"]:
        try:
            peers.append(PyTorch(model, image))
        except ModuleNotFoundError:
            raise SystemExit("this Python has no torch: give --python one that has, or leave --pytorch out") from None
    results = [peer.run(1) for peer in peers]
    apart = max(float(abs(a - b).max()) for other in results for a, b in zip(results[0], other, strict=True))
    if apart > 1e-3:
        raise SystemExit(f"the peers differ by {apart:.2g} in a feature")
    given = dict(zip((output.name for output in model.graph.output), results[0], strict=True))
    features = [given[f"stage{number}/{stage['features']}"] for number, stage in enumerate(plan["stages"])]
    told = {
        "there": [{"name": peer.name, "version": peer.version} for peer in peers],
        "library": str(pathlib.Path(onnxruntime.__file__).parent / "capi"),
        "features": [of_stage.ravel().tolist() for of_stage in features],
    }
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        name, threads, frames = line.split()
        peer = next(peer for peer in peers if peer.name == name)
        start = time.perf_counter()
        for _ in range(int(frames)):
            peer.run(int(threads))
        print((time.perf_counter() - start) / int(frames) * 1e3, flush=True)


main()
