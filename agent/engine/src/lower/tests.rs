//! Every operator, on every instruction set of this machine, against tract running the graph as it stands.

use offramp_kernels::{Buffers, Pool, Tensors};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TypeProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};
use tract_onnx::prelude::*;

use super::{Isa, Plan, lower};

/// What goes into a plan and comes out of it.
#[derive(Clone, Default)]
struct Image {
    inputs: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
}

impl Tensors for Image {
    fn inputs(&mut self) -> &mut [Vec<f32>] {
        &mut self.inputs
    }

    fn outputs(&mut self) -> &mut [Vec<f32>] {
        &mut self.outputs
    }
}

/// A graph with one input, in the making.
struct Graph {
    graph: GraphProto,
    shape: Vec<usize>,
    random: u32,
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..Default::default()
    }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..Default::default()
    }
}

impl Graph {
    fn new(shape: &[usize]) -> Self {
        let dim = |size: &usize| tensor_shape_proto::Dimension {
            value: Some(tensor_shape_proto::dimension::Value::DimValue(*size as i64)),
            ..Default::default()
        };
        let tensor = type_proto::Tensor {
            elem_type: DataType::Float as i32,
            shape: Some(tract_onnx::pb::TensorShapeProto {
                dim: shape.iter().map(dim).collect(),
            }),
        };
        let input = ValueInfoProto {
            name: "x".into(),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self {
            graph: GraphProto {
                input: vec![input],
                ..Default::default()
            },
            shape: shape.to_vec(),
            random: 1,
        }
    }

    /// From -1 to 1.
    fn number(&mut self) -> f32 {
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.random >> 8) as f32 / 8_388_608.0 - 1.0
    }

    /// Weights at random; `half` rounds them so that they are halves.
    fn weights(&mut self, shape: &[usize], half: bool) -> String {
        let count: usize = shape.iter().product();
        let scale = (count as f32).powf(-0.25);
        let values: Vec<f32> = (0..count)
            .map(|_| {
                let w = self.number() * scale;
                if half { half::f16::from_f32(w).to_f32() } else { w }
            })
            .collect();
        self.constant(shape, &values)
    }

    fn constant(&mut self, shape: &[usize], values: &[f32]) -> String {
        let name = format!("w{}", self.graph.initializer.len());
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            data_type: DataType::Float as i32,
            dims: shape.iter().map(|size| *size as i64).collect(),
            float_data: values.to_vec(),
            ..Default::default()
        });
        name
    }

    fn integers(&mut self, values: &[i64]) -> String {
        let name = format!("w{}", self.graph.initializer.len());
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            data_type: DataType::Int64 as i32,
            dims: vec![values.len() as i64],
            int64_data: values.to_vec(),
            ..Default::default()
        });
        name
    }

    fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let name = format!("n{}", self.graph.node.len());
        self.graph.node.push(NodeProto {
            name: name.clone(),
            op_type: op.into(),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![name.clone()],
            attribute: attributes,
            ..Default::default()
        });
        name
    }

    fn first(&mut self, x: &str) -> String {
        self.node("Transpose", &[x], vec![ints("perm", &[0, 3, 1, 2])])
    }

    fn last(&mut self, x: &str) -> String {
        self.node("Transpose", &[x], vec![ints("perm", &[0, 2, 3, 1])])
    }

    fn linear(&mut self, x: &str, inputs: usize, outputs: usize, half: bool) -> String {
        let (weights, bias) = (self.weights(&[inputs, outputs], half), self.weights(&[outputs], true));
        let y = self.node("MatMul", &[x, &weights], vec![]);
        self.node("Add", &[&y, &bias], vec![])
    }

    fn scalar(&mut self, value: f32) -> String {
        self.constant(&[], &[value])
    }

    /// The plan for an instruction set.
    fn lower(&self, outputs: &[&str], isa: Isa) -> Option<Plan> {
        lower(&self.graph, &[("x", &self.shape)], outputs, isa)
    }

    /// Runs the graph in tract and as a plan for each instruction set, and compares every output.
    fn check(mut self, outputs: &[&str]) -> Vec<Plan> {
        let image: Vec<f32> = (0..self.shape.iter().product()).map(|_| self.number()).collect();
        for output in outputs {
            self.graph.output.push(ValueInfoProto {
                name: (*output).into(),
                ..Default::default()
            });
        }
        let proto = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto {
                version: 18,
                ..Default::default()
            }],
            graph: Some(self.graph.clone()),
            ..Default::default()
        };
        let model = tract_onnx::onnx().model_for_proto_model(&proto).unwrap();
        let model = model.into_typed().unwrap().into_runnable().unwrap();
        let input = Tensor::from_shape(&self.shape, &image).unwrap().into_tvalue();
        let expected = model.run(tvec!(input)).unwrap();
        let (mut plans, pool) = (Vec::new(), Pool::default());
        for isa in Isa::available() {
            let plan = self.lower(outputs, isa).unwrap_or_else(|| panic!("no plan"));
            let (mut buffers, mut one) = (Buffers::default(), Image::default());
            one.inputs.push(image.clone());
            one.outputs.resize(outputs.len(), Vec::new());
            // Others beside it, and again: what a run leaves behind must not show in the next.
            let mut other = one.clone();
            other.inputs[0].iter_mut().for_each(|x| *x = -*x);
            for images in [1, 3, 1] {
                let (mut before, mut after) = (other.clone(), other.clone());
                match images {
                    1 => plan.run(&mut buffers, &mut [&mut one], &pool),
                    _ => plan.run(&mut buffers, &mut [&mut before, &mut one, &mut after], &pool),
                }
                assert_eq!(one.inputs[0], image, "{isa:?}: the input is handed back");
                assert_eq!(
                    before.outputs, after.outputs,
                    "{isa:?}: images do not disturb each other"
                );
                for (given, expected) in one.outputs.iter().zip(&expected) {
                    let view = expected.try_as_plain_ram().unwrap();
                    let expected = view.as_slice::<f32>().unwrap();
                    assert_eq!(given.len(), expected.len());
                    let range = expected.iter().fold(1e-3_f32, |range, x| range.max(x.abs()));
                    let worst = given.iter().zip(expected).map(|(a, b)| (a - b).abs());
                    let worst = worst.fold(0.0, f32::max) / range;
                    assert!(worst <= 1e-5, "{isa:?}: {worst}");
                }
            }
            plans.push(plan);
        }
        plans
    }
}

/// Names of the steps.
fn steps(plan: &Plan) -> Vec<&'static str> {
    plan.steps().collect()
}

#[test]
fn linear_layers_of_any_size_agree() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (1, 256, 100),
        (4, 7, 33),
        (16, 64, 64),
        (25, 31, 130),
        (9, 48, 16),
    ] {
        for half in [true, false] {
            let mut graph = Graph::new(&[1, rows, 1, inputs]);
            let y = graph.linear("x", inputs, outputs, half);
            let plans = graph.check(&[&y]);
            assert_eq!(steps(&plans[0]), ["linear"], "the bias is part of it");
        }
    }
}

#[test]
fn convolutions_of_every_kind_agree() {
    for (side, inputs, outputs, kernel, stride, pads) in [
        (8, 3, 16, 3, 2, [1, 1, 1, 1]),
        (8, 16, 24, 2, 2, [0, 0, 0, 0]),
        (9, 5, 7, 3, 1, [1, 1, 1, 1]),
        (9, 5, 7, 3, 2, [0, 0, 1, 1]),
        (7, 8, 9, 1, 1, [0, 0, 0, 0]),
        (7, 8, 9, 1, 2, [0, 0, 0, 0]),
        (4, 3, 8, 4, 4, [0, 0, 0, 0]),
        (6, 2, 3, 5, 1, [2, 2, 2, 2]),
        // A kernel that stands wholly on its padding.
        (6, 1, 4, 3, 2, [3, 3, 3, 3]),
        (3, 2, 4, 2, 1, [0, 4, 5, 2]),
    ] {
        let mut graph = Graph::new(&[1, side, side, inputs]);
        let x = graph.first("x");
        let (weights, bias) = (
            graph.weights(&[outputs, inputs, kernel, kernel], true),
            graph.weights(&[outputs], true),
        );
        let attributes = vec![ints("strides", &[stride, stride]), ints("pads", &pads)];
        let y = graph.node("Conv", &[&x, &weights, &bias], attributes);
        let y = graph.last(&y);
        graph.check(&[&y]);
    }
}

#[test]
fn depthwise_convolutions_agree() {
    for (side, channels, kernel, stride, pads) in [
        (8, 32, 3, 1, [1, 1, 1, 1]),
        (2, 64, 3, 1, [1, 1, 1, 1]),
        (9, 19, 3, 2, [1, 1, 1, 1]),
        (7, 24, 7, 1, [3, 3, 3, 3]),
        (8, 17, 5, 2, [1, 1, 2, 2]),
        (3, 16, 5, 1, [2, 2, 2, 2]),
        (3, 16, 2, 1, [0, 4, 5, 2]),
        (4, 17, 3, 2, [3, 3, 4, 4]),
    ] {
        let mut graph = Graph::new(&[1, side, side, channels]);
        let x = graph.first("x");
        let (weights, bias) = (
            graph.weights(&[channels, 1, kernel, kernel], true),
            graph.weights(&[channels], true),
        );
        let attributes = vec![
            ints("strides", &[stride, stride]),
            ints("pads", &pads),
            int("group", channels as i64),
        ];
        let y = graph.node("Conv", &[&x, &weights, &bias], attributes);
        let y = graph.node("Relu", &[&y], vec![]);
        let y = graph.last(&y);
        let plans = graph.check(&[&y]);
        assert_eq!(steps(&plans[0]), ["depthwise"]);
    }
}

#[test]
fn a_gelu_is_known_however_it_is_spelled() {
    for divide in [false, true] {
        let mut graph = Graph::new(&[1, 4, 4, 24]);
        let x = graph.linear("x", 24, 40, true);
        let factor = if divide {
            std::f32::consts::SQRT_2
        } else {
            std::f32::consts::FRAC_1_SQRT_2
        };
        let (factor, one, half) = (graph.scalar(factor), graph.scalar(1.0), graph.scalar(0.5));
        let scaled = graph.node(if divide { "Div" } else { "Mul" }, &[&x, &factor], vec![]);
        let erf = graph.node("Erf", &[&scaled], vec![]);
        let upper = graph.node("Add", &[&erf, &one], vec![]);
        let y = if divide {
            // PyTorch's exporter: half comes at the end.
            let twice = graph.node("Mul", &[&x, &upper], vec![]);
            graph.node("Mul", &[&twice, &half], vec![])
        } else {
            let lower = graph.node("Mul", &[&x, &half], vec![]);
            graph.node("Mul", &[&lower, &upper], vec![])
        };
        let plans = graph.check(&[&y]);
        assert_eq!(steps(&plans[0]), ["linear"], "the activation is part of it");
    }
}

#[test]
fn a_block_is_five_steps_and_agrees() {
    let (side, c) = (8, 32);
    let mut graph = Graph::new(&[1, side, side, c]);
    // What a column's first block reads is needed afterwards, too.
    let x = graph.linear("x", c, c, true);
    let nchw = graph.first(&x);
    let (weights, bias) = (graph.weights(&[c, 1, 3, 3], true), graph.weights(&[c], true));
    let attributes = vec![ints("pads", &[1; 4]), int("group", c as i64)];
    let y = graph.node("Conv", &[&nchw, &weights, &bias], attributes);
    let y = graph.last(&y);
    let ones = graph.constant(&[c], &vec![1.0; c]);
    let y = graph.node("LayerNormalization", &[&y, &ones], vec![int("axis", -1)]);
    let y = graph.linear(&y, c, 4 * c, true);
    let (factor, one, half) = (
        graph.scalar(std::f32::consts::FRAC_1_SQRT_2),
        graph.scalar(1.0),
        graph.scalar(0.5),
    );
    let scaled = graph.node("Mul", &[&y, &factor], vec![]);
    let erf = graph.node("Erf", &[&scaled], vec![]);
    let upper = graph.node("Add", &[&erf, &one], vec![]);
    let lower = graph.node("Mul", &[&y, &half], vec![]);
    let y = graph.node("Mul", &[&lower, &upper], vec![]);
    let y = graph.linear(&y, 4 * c, c, true);
    let y = graph.node("Add", &[&x, &y], vec![]);
    let plans = graph.check(&[&y]);
    assert_eq!(steps(&plans[0]), ["linear", "depthwise", "norm", "linear", "linear"]);
}

#[test]
fn norms_with_and_without_scale_and_shift_agree() {
    for (channels, parts) in [(32, 1), (33, 2), (5, 3), (256, 3)] {
        let mut graph = Graph::new(&[1, 3, 2, channels]);
        let ones = graph.constant(&[channels], &vec![1.0; channels]);
        let (scale, shift) = (graph.weights(&[channels], true), graph.weights(&[channels], true));
        let inputs = [vec!["x", &ones], vec!["x", &scale], vec!["x", &scale, &shift]];
        let inputs: Vec<String> = inputs[parts - 1].iter().map(|s| (*s).to_owned()).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let y = graph.node("LayerNormalization", &inputs, vec![int("axis", -1)]);
        graph.check(&[&y]);
    }
}

#[test]
fn up_sampling_lateral_scales_and_pooling_agree() {
    let (side, c) = (6, 20);
    let mut graph = Graph::new(&[1, side, side, c]);
    let fine = graph.linear("x", c, c, false);
    // A coarser map of the same picture.
    let x = graph.first(&fine);
    let weights = graph.weights(&[c, c, 2, 2], true);
    let coarse = graph.node("Conv", &[&x, &weights], vec![ints("strides", &[2, 2])]);
    let coarse = graph.last(&coarse);
    let split = graph.integers(&[0, 3, 2, 3, 2, c as i64]);
    let flat = graph.integers(&[0, 3, 1, 3, 1, c as i64]);
    let whole = graph.integers(&[0, side as i64, side as i64, c as i64]);
    let a = graph.node("Reshape", &[&fine, &split], vec![]);
    let b = graph.node("Reshape", &[&coarse, &flat], vec![]);
    let sum = graph.node("Add", &[&a, &b], vec![]);
    let sum = graph.node("Reshape", &[&sum, &whole], vec![]);
    let alpha = graph.weights(&[c], true);
    let lateral = graph.node("Mul", &["x", &alpha], vec![]);
    let y = graph.node("Add", &[&sum, &lateral], vec![]);
    let axes = graph.integers(&[1, 2]);
    let pooled = graph.node("ReduceMean", &[&y, &axes], vec![int("keepdims", 0)]);
    // Also what is read and given, and given twice.
    let again = graph.node("Identity", &[&y], vec![]);
    let same = graph.node("Identity", &["x"], vec![]);
    let plans = graph.check(&[&pooled, &y, &again, &same]);
    assert!(steps(&plans[0]).contains(&"add up-sampled"));
}

#[test]
fn bounds_and_global_pools_agree() {
    let mut graph = Graph::new(&[1, 5, 5, 12]);
    let x = graph.first("x");
    let weights = graph.weights(&[18, 12, 1, 1], true);
    let y = graph.node("Conv", &[&x, &weights], vec![]);
    let (low, high) = (graph.scalar(0.0), graph.scalar(0.5));
    let y = graph.node("Clip", &[&y, &low, &high], vec![]);
    let y = graph.node("GlobalAveragePool", &[&y], vec![]);
    let y = graph.node("Flatten", &[&y], vec![]);
    let plans = graph.check(&[&y]);
    assert_eq!(steps(&plans[0]), ["linear", "pool"]);
}

/// EfficientNet-Lite's, with the maps NCHW from end to end.
#[test]
fn a_stem_and_inverted_bottlenecks_agree() {
    let mut graph = Graph::new(&[1, 30, 30, 3]);
    let (low, high) = (graph.scalar(0.0), graph.scalar(6.0));
    let convolve = |graph: &mut Graph, x: &str, shape: [usize; 4], stride: i64, pads: [i64; 4], clip: bool| {
        let (weights, bias) = (graph.weights(&shape, true), graph.weights(&shape[..1], true));
        let group = if shape[1] == 1 { shape[0] as i64 } else { 1 };
        let attributes = vec![ints("strides", &[stride; 2]), ints("pads", &pads), int("group", group)];
        let y = graph.node("Conv", &[x, &weights, &bias], attributes);
        if clip {
            graph.node("Clip", &[&y, &low, &high], vec![])
        } else {
            y
        }
    };
    let x = graph.first("x");
    let x = convolve(&mut graph, &x, [32, 3, 3, 3], 2, [0, 0, 1, 1], true);
    let y = convolve(&mut graph, &x, [32, 1, 3, 3], 1, [1; 4], true);
    let x = convolve(&mut graph, &y, [24, 32, 1, 1], 1, [0; 4], false);
    let y = convolve(&mut graph, &x, [144, 24, 1, 1], 1, [0; 4], true);
    let y = convolve(&mut graph, &y, [144, 1, 5, 5], 1, [2; 4], true);
    let y = convolve(&mut graph, &y, [24, 144, 1, 1], 1, [0; 4], false);
    let x = graph.node("Add", &[&x, &y], vec![]);
    let y = convolve(&mut graph, &x, [144, 24, 1, 1], 1, [0; 4], true);
    let y = convolve(&mut graph, &y, [144, 1, 5, 5], 2, [1, 1, 2, 2], true);
    let y = convolve(&mut graph, &y, [40, 144, 1, 1], 1, [0; 4], false);
    let axes = graph.integers(&[2, 3]);
    let pooled = graph.node("ReduceMean", &[&y, &axes], vec![int("keepdims", 0)]);
    let y = graph.last(&y);
    let plans = graph.check(&[&pooled, &y]);
    let block = ["linear", "depthwise", "linear"];
    let expected: Vec<&str> = [&["gather"][..], &block[..], &block[..], &block[..], &["pool"][..]].concat();
    assert_eq!(
        steps(&plans[0]),
        expected,
        "activations and the residual are part of them"
    );
}

/// ConvNeXt's as torchvision and timm write it: the residual and the scale of the layer are NCHW.
#[test]
fn a_block_with_a_scale_of_the_layer_agrees() {
    for shape in [&[24, 1, 1][..], &[1, 24, 1, 1], &[24]] {
        let c = 24;
        let mut graph = Graph::new(&[1, 6, 6, c]);
        let x = graph.first("x");
        let (weights, bias) = (graph.weights(&[c, 1, 7, 7], true), graph.weights(&[c], true));
        let attributes = vec![ints("pads", &[3; 4]), int("group", c as i64)];
        let y = graph.node("Conv", &[&x, &weights, &bias], attributes);
        let y = graph.last(&y);
        let (scale, shift) = (graph.weights(&[c], true), graph.weights(&[c], true));
        let y = graph.node("LayerNormalization", &[&y, &scale, &shift], vec![int("axis", -1)]);
        let y = graph.linear(&y, c, 4 * c, true);
        let y = graph.node("Gelu", &[&y], vec![]);
        let y = graph.linear(&y, 4 * c, c, true);
        let y = graph.first(&y);
        let gamma = graph.weights(shape, true);
        let for_maps = graph.integers(&[1, -1, 1, 1]);
        let gamma = if shape.len() == 1 {
            graph.node("Reshape", &[&gamma, &for_maps], vec![])
        } else {
            gamma
        };
        let y = graph.node("Mul", &[&gamma, &y], vec![]);
        let y = graph.node("Add", &[&y, &x], vec![]);
        let shift = graph.weights(&[24, 1, 1], true);
        let y = graph.node("Add", &[&y, &shift], vec![]);
        let y = graph.last(&y);
        let plans = graph.check(&[&y]);
        assert_eq!(
            steps(&plans[0]),
            ["depthwise", "norm", "linear", "linear", "copy", "add", "shift"]
        );
    }
}

#[test]
fn products_with_a_bias_of_their_own_agree() {
    for (transposed, with_bias) in [(false, true), (true, true), (true, false)] {
        let mut graph = Graph::new(&[1, 33]);
        let shape = if transposed { [20, 33] } else { [33, 20] };
        let (weights, bias) = (graph.weights(&shape, true), graph.weights(&[20], true));
        let inputs = if with_bias {
            vec!["x", &weights, &bias]
        } else {
            vec!["x", &weights]
        };
        let y = graph.node("Gemm", &inputs, vec![int("transB", transposed.into())]);
        let plans = graph.check(&[&y]);
        assert_eq!(steps(&plans[0]), ["linear"]);
    }
}

#[test]
fn what_has_no_kernel_has_no_plan() {
    let isa = Isa::best();
    let mut graph = Graph::new(&[1, 4, 4, 8]);
    let y = graph.node("Sigmoid", &["x"], vec![]);
    assert!(graph.lower(&[&y], isa).is_none());
    // A norm over the width.
    let mut graph = Graph::new(&[1, 4, 4, 8]);
    let x = graph.first("x");
    let scale = graph.constant(&[4], &[1.0; 4]);
    let y = graph.node("LayerNormalization", &[&x, &scale], vec![int("axis", -1)]);
    assert!(graph.lower(&[&y], isa).is_none());
    // Numbers for each row or column of a square map, which has as many channels.
    for (first, shape) in [
        (false, &[8, 1, 1][..]),
        (false, &[8, 1]),
        (true, &[8]),
        (true, &[1, 1, 8]),
    ] {
        for op in ["Mul", "Add"] {
            let mut graph = Graph::new(&[1, 8, 8, 8]);
            let x = if first { graph.first("x") } else { "x".into() };
            let (factors, other) = (graph.weights(shape, true), graph.linear("x", 8, 8, true));
            let other = if first { graph.first(&other) } else { other };
            let y = graph.node(op, &[&x, &factors], vec![]);
            let y = graph.node("Add", &[&y, &other], vec![]);
            let y = if first { graph.last(&y) } else { y };
            assert!(graph.lower(&[&y], isa).is_none(), "{op} {shape:?}");
        }
    }
    // A map that is handed on with its channels first.
    let mut graph = Graph::new(&[1, 4, 4, 8]);
    let y = graph.first("x");
    assert!(graph.lower(&[&y], isa).is_none());
    // Groups that are neither one nor as many as there are channels.
    let mut graph = Graph::new(&[1, 4, 4, 8]);
    let x = graph.first("x");
    let weights = graph.weights(&[8, 4, 1, 1], true);
    let y = graph.node("Conv", &[&x, &weights], vec![int("group", 2)]);
    let y = graph.last(&y);
    assert!(graph.lower(&[&y], isa).is_none());
}
