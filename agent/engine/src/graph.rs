//! What is checked of an ONNX graph before the runtime sees it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::RangeInclusive;

use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto};
use tract_onnx::prelude::Framework as _;

use crate::contain::contain;
use crate::error::{Cause, StageProblem};
use crate::stage::said;

/// Nodes of one graph, and initializers of one.
const MAX_NODES: usize = 20_000;

/// How often, on average, the weights of a graph may be read, and how many bytes may be read besides. Every reader
/// packs its own copy, here and in the runtime.
const MAX_READS: usize = 8;
const FREE_READS: usize = 4 << 20;

/// Integers among the attributes: axes, kernel sizes, strides, groups …
const ATTRIBUTES: RangeInclusive<i64> = -65_536..=65_536;

const EXPORT_AGAIN: &str = "export the package again";
const IN_ONE_FILE: &str = "export the weights into the graph itself";

/// The operators of convolutional networks, as exporters write them. The runtime
/// has many more; but a graph can make some of those loop or allocate without
/// end, so that each is let in when a network needs it and was tried with it.
const OPERATORS: [&str; 47] = [
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "Div",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Flatten",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "Pow",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Transpose",
    "Unsqueeze",
];

/// Operators whose result is at most as large as what they read, and so may be
/// applied to constants while a graph is loaded.
const ON_CONSTANTS: [&str; 10] = [
    "Cast",
    "Concat",
    "Flatten",
    "Identity",
    "Neg",
    "Reshape",
    "Slice",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// Decodes a graph and refuses what must not reach the runtime.
pub(crate) fn decode(onnx: &tract_onnx::Onnx, bytes: &[u8]) -> Result<ModelProto, StageProblem> {
    let model = contain(|| onnx.proto_model_for_read(&mut &*bytes))
        .and_then(|read| read.map_err(said))
        .map_err(StageProblem::NotOnnx)?;
    let graph = model.graph.as_ref();
    // An empty file decodes as a model without a graph.
    let graph = graph.ok_or_else(|| StageProblem::NotOnnx(Cause::new("it holds no graph")))?;
    // It is the last thing in the file: without it the end was cut off.
    if !model.opset_import.iter().any(|set| set.version > 0) {
        return Err(StageProblem::NotOnnx(Cause::new("it states no operator set")));
    }
    for (what, found) in [("nodes", graph.node.len()), ("initializers", graph.initializer.len())] {
        if found > MAX_NODES {
            return Err(StageProblem::TooLarge {
                what,
                found,
                limit: MAX_NODES,
            });
        }
    }
    let operators: BTreeSet<_> = graph.node.iter().map(|node| &node.op_type).collect();
    let unknown: Vec<_> = operators
        .into_iter()
        .filter(|op| !OPERATORS.contains(&op.as_str()))
        .collect();
    if !unknown.is_empty() {
        return Err(StageProblem::Unsupported(
            unknown.into_iter().take(8).cloned().collect(),
        ));
    }
    check_constructs(graph)?;
    check_constants(graph)?;
    Ok(model)
}

/// Everything has to be in the one graph of the one file, and the numbers in it
/// such that the runtime's loops over axes, kernels and paddings end soon.
fn check_constructs(graph: &GraphProto) -> Result<(), StageProblem> {
    let external = |tensor: &TensorProto| tensor.data_location == Some(DataLocation::External as i32);
    let refuse = |what, node: &str, remedy| {
        Err(StageProblem::Refused {
            what,
            node: node.to_owned(),
            remedy,
        })
    };
    for tensor in &graph.initializer {
        if external(tensor) {
            return refuse("data in another file", &tensor.name, IN_ONE_FILE);
        }
        if !is_finite(tensor) {
            return Err(StageProblem::NotFinite {
                tensor: tensor.name.clone(),
            });
        }
    }
    for node in &graph.node {
        if node
            .attribute
            .iter()
            .any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty())
        {
            return refuse("a subgraph", label(node), "export it without control flow");
        }
        if node
            .attribute
            .iter()
            .any(|attribute| attribute.t.as_ref().is_some_and(external))
        {
            return refuse("data in another file", label(node), IN_ONE_FILE);
        }
        for attribute in &node.attribute {
            let mut floats = attribute.floats.iter().chain([&attribute.f]);
            let finite = attribute.t.as_ref().is_none_or(is_finite) && floats.all(|value| value.is_finite());
            // Elsewhere an infinite number may say that there is no bound.
            if node.op_type == "Constant" && !finite {
                return Err(StageProblem::NotFinite {
                    tensor: label(node).to_owned(),
                });
            }
            let mut numbers = attribute.ints.iter().chain([&attribute.i]);
            if !numbers.all(|number| ATTRIBUTES.contains(number)) {
                return refuse("an attribute out of range", label(node), EXPORT_AGAIN);
            }
            let axes = &attribute.ints;
            if attribute.name == "perm" && !(0..axes.len() as i64).all(|axis| axes.contains(&axis)) {
                return refuse("a transposition that is no permutation", label(node), EXPORT_AGAIN);
            }
        }
    }
    Ok(())
}

/// Whether a tensor is free of NaN and infinity. Numbers of these two types are
/// kept as raw bytes or, where an exporter is wordy, one by one.
fn is_finite(tensor: &TensorProto) -> bool {
    let finite_half = |bits: u16| bits & 0x7c00 != 0x7c00;
    match DataType::try_from(tensor.data_type) {
        Ok(DataType::Float16) => {
            let (halves, _) = tensor.raw_data.as_chunks();
            halves.iter().all(|&bytes| finite_half(u16::from_le_bytes(bytes)))
                && tensor.int32_data.iter().all(|&bits| finite_half(bits as u16))
        }
        Ok(DataType::Float) => {
            let (floats, _) = tensor.raw_data.as_chunks();
            floats.iter().all(|&bytes| f32::from_le_bytes(bytes).is_finite())
                && tensor.float_data.iter().all(|value| value.is_finite())
        }
        _ => true,
    }
}

/// The runtime computes what follows from constants alone while it loads a
/// graph. A few bytes of constants can ask for any amount of memory there
/// (`Expand`, or a sum of a row and a column), so that only operators which
/// cannot grow their inputs are let through; and of what they read, or others
/// would pack, only a few times of what the graph holds.
fn check_constants(graph: &GraphProto) -> Result<(), StageProblem> {
    // With the bytes that each takes in the file.
    let sized = graph
        .initializer
        .iter()
        .map(|tensor| (tensor.name.as_str(), bytes(tensor)));
    let mut constants: HashMap<&str, usize> = sized.collect();
    // An absent optional input decides nothing.
    constants.insert("", 0);
    let inputs = graph.input.iter().map(|input| input.name.as_str());
    let mut given: HashSet<&str> = constants.keys().copied().chain(inputs).collect();
    let (mut held, mut reads) = (constants.values().sum::<usize>(), 0usize);
    for node in &graph.node {
        let refuse = |what, remedy| {
            Err(StageProblem::Refused {
                what,
                node: label(node).to_owned(),
                remedy,
            })
        };
        // What follows from constants shows in this one pass only where every
        // name is given once, and before it is read.
        if node.input.iter().any(|input| !given.contains(input.as_str())) {
            return refuse("an input that nothing before it gives", EXPORT_AGAIN);
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if !given.insert(output) {
                return refuse("an output that was given before", EXPORT_AGAIN);
            }
        }
        let sizes = node.input.iter().filter_map(|input| constants.get(input.as_str()));
        let read = sizes.sum::<usize>();
        reads += read;
        let constant = match node.op_type.as_str() {
            "Constant" => {
                let own = node.attribute.iter().map(|attribute| {
                    let tensor = attribute.t.as_ref().map_or(0, bytes);
                    tensor + 4 * attribute.floats.len() + 8 * attribute.ints.len()
                });
                let own = own.sum();
                held += own;
                Some(own)
            }
            operator if node.input.iter().all(|input| constants.contains_key(input.as_str())) => {
                if !ON_CONSTANTS.contains(&operator) {
                    return refuse("arithmetic on constants", "fold the constants when exporting");
                }
                Some(read)
            }
            _ => None,
        };
        if reads > MAX_READS * held + FREE_READS {
            return refuse("weights that too many nodes read", "share fewer of them between nodes");
        }
        if let Some(size) = constant {
            constants.extend(node.output.iter().map(|output| (output.as_str(), size)));
        }
    }
    Ok(())
}

/// What the numbers of a tensor take in the file.
fn bytes(tensor: &TensorProto) -> usize {
    let small = tensor.float_data.len() + tensor.int32_data.len();
    let large = tensor.int64_data.len() + tensor.double_data.len() + tensor.uint64_data.len();
    tensor.raw_data.len() + 4 * small + 8 * large
}

fn label(node: &NodeProto) -> &str {
    if node.name.is_empty() {
        node.output.first().unwrap_or(&node.op_type)
    } else {
        &node.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_has_every_operator_that_is_let_in() {
        let known = tract_onnx::onnx().op_register.0;
        for operator in OPERATORS {
            assert!(known.contains_key(operator), "{operator}");
        }
        assert!(ON_CONSTANTS.iter().all(|operator| OPERATORS.contains(operator)));
    }

    #[test]
    fn weights_are_not_multiplied_by_those_who_read_them() {
        let node = |op: &str, inputs: [&str; 2], output: &str| NodeProto {
            op_type: op.into(),
            input: inputs.map(Into::into).into(),
            output: vec![output.into()],
            ..Default::default()
        };
        let graph = |nodes: Vec<NodeProto>| GraphProto {
            initializer: vec![TensorProto {
                name: "w".into(),
                raw_data: vec![0; 1 << 20],
                ..Default::default()
            }],
            input: vec![tract_onnx::pb::ValueInfoProto {
                name: "x".into(),
                ..Default::default()
            }],
            node: nodes,
            ..Default::default()
        };
        let products = |count: usize| graph((0..count).map(|n| node("MatMul", ["x", "w"], &n.to_string())).collect());
        check_constants(&products(12)).unwrap();
        let refused = check_constants(&products(13)).unwrap_err().to_string();
        assert!(refused.contains("too many nodes read at node `12`"), "{refused}");
        // Each twice as large as the one before.
        let names: Vec<String> = ["w".into()]
            .into_iter()
            .chain((0..40).map(|n| format!("c{n}")))
            .collect();
        let doubles = names
            .windows(2)
            .map(|pair| node("Concat", [&pair[0], &pair[0]], &pair[1]));
        let refused = check_constants(&graph(doubles.collect())).unwrap_err().to_string();
        assert!(refused.contains("too many nodes read at node `c2`"), "{refused}");
    }

    #[test]
    fn numbers_that_are_not_finite_are_found_however_they_are_stored() {
        let tensor = |data_type: DataType, raw_data: &[u8]| TensorProto {
            data_type: data_type as i32,
            raw_data: raw_data.to_vec(),
            ..Default::default()
        };
        for (value, finite) in [
            (f32::MAX, true),
            (-0.0, true),
            (f32::NAN, false),
            (f32::NEG_INFINITY, false),
        ] {
            let raw = [1f32.to_le_bytes(), value.to_le_bytes()].concat();
            assert_eq!(is_finite(&tensor(DataType::Float, &raw)), finite, "{value}");
            let wordy = TensorProto {
                float_data: vec![1.0, value],
                ..tensor(DataType::Float, &[])
            };
            assert_eq!(is_finite(&wordy), finite, "{value}");
        }
        // The largest half, infinity and a NaN.
        for (bits, finite) in [(0x7bff_u16, true), (0xfbff, true), (0x7c00, false), (0xfe00, false)] {
            let raw = [1u16.to_le_bytes(), bits.to_le_bytes()].concat();
            assert_eq!(is_finite(&tensor(DataType::Float16, &raw)), finite, "{bits:x}");
            let wordy = TensorProto {
                int32_data: vec![bits.into()],
                ..tensor(DataType::Float16, &[])
            };
            assert_eq!(is_finite(&wordy), finite, "{bits:x}");
        }
    }
}
