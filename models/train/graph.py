"""The ONNX graph of one stage, written node by node.

An exporter that traces the network would give NCHW graphs full of shape
arithmetic. These have a fixed small vocabulary, which an engine can match and
fuse:

    convolution      Transpose, Conv, Transpose (the tensor between is NCHW)
    linear           MatMul over the last axis, Add of the bias if there is one
    layer norm       LayerNormalization, axis -1, bias only where it is not zero
    exact GELU       Mul(Mul(x, 0.5), Add(Erf(Mul(x, 1/sqrt 2)), 1))
    ReLU6            Clip to 0..6
    up-sample + add  Add of [N,h,2,w,2,C] and [N,h,1,w,1,C], between Reshapes
    pool             ReduceMean over height and width

Activations are f32 [N,H,W,C] with N left open. Weights are stored as f16 with
a Cast to f32, which an engine folds away when it loads the graph.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import efficientnet
from efficientnet import EfficientNet
from revcol import EPS, Block, Column, Down, RevCol, Scale, Spec, Up

OPSET = 18
IR_VERSION = 10
LEVELS = range(4)


def state_names(spec: Spec | efficientnet.Spec, stage: int) -> list[str]:
    """What a stage hands on: its outputs after `u`, and the next stage's inputs, in this order."""
    suffix = f"_{stage}" if stage else ""
    levels = LEVELS if isinstance(spec, Spec) else ()
    return [name + suffix for name in ("x", *(f"c{level}" for level in levels))]


def stage_graph(network: RevCol | EfficientNet, stage: int) -> onnx.ModelProto:
    """Stage `stage` of a folded network (see export.fold)."""
    if isinstance(network, RevCol):
        return revcol_stage(network, stage)
    return efficientnet_stage(network, stage)


def efficientnet_stage(network: EfficientNet, stage: int) -> onnx.ModelProto:
    """Convolutions see NCHW from end to end; only the maps between stages are NHWC."""
    spec, graph, last = network.spec, Graph(), stage + 1 == len(network.stages)
    sides = [spec.height]
    for groups in ((), *spec.stages):
        strides = [group[1] for group in groups] or [2]
        sides.append(-(-sides[-1] // math.prod(strides)))
    assert spec.height == spec.width, "sides are counted once"
    if stage == 0:
        image = graph.input("image", (spec.height, spec.width, spec.channels))
        x = graph.node("Transpose", image, perm=[0, 3, 1, 2])
        x, side = graph.relu6(graph.same(x, network.stem, spec.height)), sides[1]
    else:
        side, (c,) = sides[stage + 1], spec.widths[stage - 1]
        x = graph.input(state_names(spec, stage - 1)[0], (side, side, c))
        x = graph.node("Transpose", x, perm=[0, 3, 1, 2])
    for block in network.stages[stage]:
        y = x if block.expand is None else graph.relu6(graph.same(x, block.expand, side))
        y = graph.relu6(graph.same(y, block.depthwise, side))
        side = -(-side // block.depthwise.stride[0])
        y = graph.same(y, block.project, side)
        x = graph.node("Add", x, y) if block.residual else y
    top = graph.relu6(graph.same(x, network.top, side)) if last else x
    (c,) = spec.widths[stage]
    mean = graph.node("ReduceMean", top, graph.shape(2, 3), keepdims=0)
    graph.output("u", graph.plain_norm(mean, c), (c,))
    if not last:
        handed = graph.node("Transpose", x, perm=[0, 2, 3, 1])
        graph.output(state_names(spec, stage)[0], handed, (side, side, c))
    return graph.model(f"stage-{stage}")


def revcol_stage(network: RevCol, stage: int) -> onnx.ModelProto:
    spec, column = network.spec, network.columns[stage]
    graph = Graph()
    maps = [(*side, c) for side, c in zip(spec.sides, spec.widths[stage], strict=True)]
    if stage == 0:
        image = graph.input("image", (spec.height, spec.width, spec.channels))
        x, before = graph.norm(graph.convolve(image, network.stem), network.stem_norm), None
    else:
        past = [(*side, c) for side, c in zip(spec.sides, spec.widths[stage - 1], strict=True)]
        shapes = [(*spec.sides[0], spec.stem), *past]
        x, *before = map(graph.input, state_names(spec, stage - 1), shapes)
    features = graph.column(column, x, before, maps)
    graph.output("u", graph.pool(features[3], maps[3][2]), (maps[3][2],))
    if stage + 1 < len(network.columns):
        shapes = [(*spec.sides[0], spec.stem), *maps]
        names = state_names(spec, stage)
        for name, value, shape in zip(names, [x, *features], shapes, strict=True):
            graph.output(name, value, shape)
    return graph.model(f"stage-{stage}")


class Graph:
    """A graph under construction. Values are known by name; every method returns one."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, name, self.inputs, self.outputs, list(self.constants.values())
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="offramp",
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    # Values

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", *shape)))
        return name

    def output(self, name: str, value: str, shape: tuple[int, ...]) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"{name}.out"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", *shape)))

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        value = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [value], name=value, **attributes))
        return value

    def constant(self, name: str, value: np.ndarray) -> str:
        """A constant by name; the same name may be asked for again."""
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.float32(value).reshape(()))

    def shape(self, *sizes: int) -> str:
        return self.constant("shape_" + "_".join(map(str, sizes)), np.array(sizes, np.int64))

    def weight(self, tensor: Tensor) -> str:
        """A weight, stored as f16, used as f32."""
        name = f"weight_{len(self.constants)}"
        half = tensor.detach().cpu().numpy().astype(np.float16)
        return self.node("Cast", self.constant(name, half), to=TensorProto.FLOAT)

    # Layers

    def convolve(self, x: str, conv: nn.Conv2d) -> str:
        nchw = self.node("Transpose", x, perm=[0, 3, 1, 2])
        y = self.node(
            "Conv",
            nchw,
            self.weight(conv.weight),
            self.weight(conv.bias),
            kernel_shape=conv.kernel_size,
            strides=conv.stride,
            pads=[*conv.padding, *conv.padding],
            group=conv.groups,
        )
        return self.node("Transpose", y, perm=[0, 2, 3, 1])

    def same(self, x: str, conv: efficientnet.Convolution, side: int) -> str:
        """A convolution from NCHW to NCHW."""
        before, behind = conv.pads(side)
        return self.node(
            "Conv",
            x,
            self.weight(conv.weight),
            self.weight(conv.bias),
            kernel_shape=conv.kernel_size,
            strides=conv.stride,
            pads=[before, before, behind, behind],
            group=conv.groups,
        )

    def relu6(self, x: str) -> str:
        return self.node("Clip", x, self.scalar("zero", 0.0), self.scalar("six", 6.0))

    def linear(self, x: str, linear: nn.Linear) -> str:
        y = self.node("MatMul", x, self.weight(linear.weight.t()))
        return y if linear.bias is None else self.node("Add", y, self.weight(linear.bias))

    def norm(self, x: str, norm: nn.LayerNorm) -> str:
        if (norm.weight == 1).all() and (norm.bias == 0).all():
            return self.plain_norm(x, len(norm.weight))
        scale, shift = self.weight(norm.weight), self.weight(norm.bias)
        return self.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPS)

    def plain_norm(self, x: str, c: int) -> str:
        ones = self.constant(f"ones_{c}", np.ones(c, np.float32))
        return self.node("LayerNormalization", x, ones, axis=-1, epsilon=EPS)

    def gelu(self, x: str) -> str:
        scaled = self.node("Mul", x, self.scalar("inv_sqrt2", math.sqrt(0.5)))
        upper = self.node("Add", self.node("Erf", scaled), self.scalar("one", 1.0))
        return self.node("Mul", self.node("Mul", x, self.scalar("half", 0.5)), upper)

    def pool(self, x: str, c: int) -> str:
        mean = self.node("ReduceMean", x, self.shape(1, 2), keepdims=0)
        return self.plain_norm(mean, c)

    # Parts of RevCol, as in revcol.py

    def block(self, x: str, block: Block) -> str:
        y = self.norm(self.convolve(x, block.depthwise), block.norm)
        y = self.linear(self.gelu(self.linear(y, block.expand)), block.contract)
        return self.node("Add", x, y)

    def down(self, x: str, down: Down) -> str:
        return self.norm(self.convolve(x, down.conv), down.norm)

    def up_add(self, x: str, coarse: str, up: Up, shape: tuple[int, int, int]) -> str:
        h, w, c = shape
        fine = self.node("Reshape", x, self.shape(0, h // 2, 2, w // 2, 2, c))
        coarse = self.norm(self.linear(coarse, up.linear), up.norm)
        coarse = self.node("Reshape", coarse, self.shape(0, h // 2, 1, w // 2, 1, c))
        return self.node("Reshape", self.node("Add", fine, coarse), self.shape(0, h, w, c))

    def lateral(self, x: str, lateral: Scale | nn.Linear) -> str:
        if isinstance(lateral, nn.Linear):
            return self.linear(x, lateral)
        return self.node("Mul", x, self.weight(lateral.alpha))

    def column(
        self,
        column: Column,
        x: str,
        before: list[str] | None,
        shapes: list[tuple[int, int, int]],
    ) -> list[str]:
        out: list[str] = []
        for level in LEVELS:
            if level:
                y = self.down(out[-1], column.down[level - 1])
            else:
                y = self.linear(x, column.entry) if isinstance(column.entry, nn.Linear) else x
            if before is not None and level < 3:
                y = self.up_add(y, before[level + 1], column.up[level], shapes[level])
            for block in column.levels[level]:
                y = self.block(y, block)
            if before is not None:
                y = self.node("Add", y, self.lateral(before[level], column.lateral[level]))
            out.append(y)
        return out
