use std::error::Error as _;

use offramp_engine::{Engine, StageProblem};
use prost::Message as _;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};

use crate::zoo::{FASHION, Files, package};

/// Refuses the package over a stage, and gives the problem and the whole message.
#[track_caller]
fn refused(files: Files, stage: usize) -> (StageProblem, String) {
    let error = files.load().expect_err("the package was accepted");
    let mut message = error.to_string();
    if let Some(source) = error.source() {
        message = format!("{message}: {source}");
    }
    println!("{message}");
    let part = format!("stage-{stage}.onnx");
    assert_eq!((error.package.as_str(), &error.part), ("spoilt", &part), "{message}");
    assert!(
        message.starts_with(&format!("model package spoilt: {part} ")),
        "{message}"
    );
    assert!(message.len() < 3000, "a message of {} bytes", message.len());
    (error.problem, message)
}

/// Sets the last axis of an input or output in its declaration.
fn set_last_axis(value: &mut ValueInfoProto, size: i64) {
    let Some(Type::TensorType(tensor)) = value.r#type.as_mut().unwrap().value.as_mut() else {
        panic!("{value:?}");
    };
    tensor.shape.as_mut().unwrap().dim.last_mut().unwrap().value = Some(Dim::DimValue(size));
}

fn input<'g>(graph: &'g mut GraphProto, name: &str) -> &'g mut ValueInfoProto {
    graph.input.iter_mut().find(|input| input.name == name).unwrap()
}

fn first_of<'g>(graph: &'g mut GraphProto, op: &str) -> &'g mut NodeProto {
    graph.node.iter_mut().find(|node| node.op_type == op).unwrap()
}

#[test]
fn a_truncated_stage_is_refused_wherever_it_is_cut() {
    let length = Files::of(FASHION).stage(1).len();
    for cut in (0..64).map(|part| part * length / 64).chain(length - 8..length) {
        let mut files = Files::of(FASHION);
        files.stage(1).truncate(cut);
        let (problem, message) = refused(files, 1);
        // A cut between two fields of the file leaves a graph without its end.
        let expected = matches!(
            problem,
            StageProblem::NotOnnx(_) | StageProblem::NoTensor { .. } | StageProblem::Inputs { .. }
        );
        assert!(expected, "cut at {cut}: {message}");
    }
}

#[test]
fn garbage_with_a_digest_that_fits_is_refused() {
    let garbage: [&[u8]; 4] = [b"", b"not a graph at all", &[0xff; 4096], &[0x0a; 4096]];
    for bytes in garbage {
        let mut files = Files::of(FASHION);
        *files.stage(2) = bytes.to_vec();
        let (problem, message) = refused(files, 2);
        assert!(matches!(problem, StageProblem::NotOnnx(_)), "{message}");
    }
}

#[test]
fn the_stage_of_another_place_is_refused() {
    let mut files = Files::of(FASHION);
    let other = files.stage(2).clone();
    *files.stage(1) = other;
    let (problem, message) = refused(files, 1);
    assert!(matches!(problem, StageProblem::Inputs { .. }), "{message}");
}

#[test]
fn an_input_of_another_shape_than_the_stage_before_gives_is_refused() {
    let mut name = String::new();
    let mut files = Files::of(FASHION);
    name.push_str(files.declared(1)["inputs"][4].as_str().unwrap());
    let files = files.graph(1, |graph| set_last_axis(input(graph, &name), 7));
    let (problem, message) = refused(files, 1);
    assert!(
        matches!(problem, StageProblem::Shape { tensor, .. } if tensor == name),
        "{message}"
    );
}

#[test]
fn an_image_of_another_shape_than_the_manifest_says_is_refused() {
    let files = Files::of(FASHION).graph(0, |graph| set_last_axis(input(graph, "image"), 3));
    let (problem, message) = refused(files, 0);
    assert!(
        matches!(problem, StageProblem::Shape { tensor, .. } if tensor == "image"),
        "{message}"
    );
}

#[test]
fn features_of_another_number_than_the_exit_has_are_refused() {
    let mut files = Files::of(FASHION);
    let state = files.declared(0)["state"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .as_str()
        .unwrap()
        .to_owned();
    let features = files.declared(0);
    features.insert("features".into(), state.clone().into());
    let (problem, message) = refused(files, 0);
    assert!(
        matches!(problem, StageProblem::Shape { tensor, .. } if tensor == state),
        "{message}"
    );
}

#[test]
fn weights_of_another_shape_than_the_graph_needs_are_refused() {
    let files = Files::of(FASHION).graph(2, |graph| {
        let halved = graph
            .initializer
            .iter_mut()
            .find(|tensor| tensor.dims.len() == 2)
            .unwrap();
        halved.dims[1] /= 2;
        halved.raw_data.truncate(halved.raw_data.len() / 2);
    });
    let (problem, message) = refused(files, 2);
    assert!(matches!(problem, StageProblem::Runtime(_)), "{message}");
}

#[test]
fn weights_that_are_shorter_than_their_shape_are_refused() {
    for dim in [i64::MAX, 1 << 40, -1] {
        let files = Files::of(FASHION).graph(0, |graph| graph.initializer[0].dims[0] = dim);
        let (problem, message) = refused(files, 0);
        assert!(matches!(problem, StageProblem::Runtime(_)), "{message}");
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    let mut name = String::new();
    let files = Files::of(FASHION).graph(3, |graph| {
        let halves = |tensor: &&mut TensorProto| tensor.data_type == DataType::Float16 as i32;
        let tensor = graph.initializer.iter_mut().filter(halves).last().unwrap();
        tensor.raw_data[..2].copy_from_slice(&0x7e00_u16.to_le_bytes());
        name.clone_from(&tensor.name);
    });
    let (problem, message) = refused(files, 3);
    assert!(
        matches!(problem, StageProblem::NotFinite { tensor } if tensor == name),
        "{message}"
    );
}

#[test]
fn constants_that_are_not_finite_are_refused_as_weights_are() {
    let floats = AttributeProto {
        name: "value_floats".into(),
        r#type: 6,
        floats: vec![1.0, f32::INFINITY],
        ..Default::default()
    };
    let float = AttributeProto {
        name: "value_float".into(),
        r#type: 1,
        f: f32::NAN,
        ..Default::default()
    };
    let tensor = AttributeProto {
        name: "value".into(),
        r#type: 4,
        t: Some(TensorProto {
            data_type: DataType::Float as i32,
            dims: vec![1],
            raw_data: f32::NEG_INFINITY.to_le_bytes().to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    };
    for value in [floats, float, tensor] {
        let files = Files::of(FASHION).graph(3, |graph| {
            let constant = NodeProto {
                op_type: "Constant".into(),
                output: vec!["unbounded".into()],
                attribute: vec![value.clone()],
                ..Default::default()
            };
            graph.node.insert(0, constant);
        });
        let (problem, message) = refused(files, 3);
        assert!(
            matches!(problem, StageProblem::NotFinite { tensor } if tensor == "unbounded"),
            "{}: {message}",
            value.name
        );
    }
}

#[test]
fn a_stage_that_cannot_be_run_is_refused_when_it_is_loaded() {
    // A logarithm of whole numbers: nobody misses the operator until it runs.
    let files = Files::of(FASHION).graph(3, |graph| {
        graph.node.iter_mut().find(|node| node.output[0] == "u").unwrap().output[0] = "honest".into();
        let to = |to: DataType| AttributeProto {
            name: "to".into(),
            r#type: 2,
            i: to as i64,
            ..Default::default()
        };
        let mut whole = node("Cast", "honest", "whole");
        whole.attribute.push(to(DataType::Int64));
        let mut back = node("Cast", "logarithm", "u");
        back.attribute.push(to(DataType::Float));
        graph.node.extend([whole, node("Log", "whole", "logarithm"), back]);
    });
    let (problem, message) = refused(files, 3);
    assert!(matches!(problem, StageProblem::Runtime(_)), "{message}");
}

#[test]
fn a_tensor_that_the_graph_does_not_give_is_refused() {
    let mut files = Files::of(FASHION);
    files.declared(0).insert("features".into(), "v".into());
    let (problem, message) = refused(files, 0);
    assert!(
        matches!(problem, StageProblem::NoTensor { tensor } if tensor == "v"),
        "{message}"
    );
}

#[test]
fn an_operator_that_the_engine_does_not_know_is_refused_by_name() {
    let files = Files::of(FASHION).graph(1, |graph| first_of(graph, "Erf").op_type = "Sparkle".into());
    let (problem, message) = refused(files, 1);
    assert!(
        matches!(problem, StageProblem::Unsupported(operators) if operators == ["Sparkle"]),
        "{message}"
    );
    assert!(message.contains("Sparkle"));
}

#[test]
fn data_outside_of_the_file_is_refused() {
    let files = Files::of(FASHION).graph(0, |graph| {
        graph.initializer[0].data_location = Some(DataLocation::External as i32);
    });
    let (problem, message) = refused(files, 0);
    assert!(
        matches!(
            problem,
            StageProblem::Refused {
                what: "data in another file",
                ..
            }
        ),
        "{message}"
    );
}

#[test]
fn a_subgraph_is_refused() {
    let files = Files::of(FASHION).graph(0, |graph| {
        let attribute = AttributeProto {
            g: Some(GraphProto::default()),
            ..Default::default()
        };
        first_of(graph, "Add").attribute.push(attribute);
    });
    let (problem, message) = refused(files, 0);
    assert!(
        matches!(problem, StageProblem::Refused { what: "a subgraph", .. }),
        "{message}"
    );
}

#[test]
fn attributes_that_would_keep_the_runtime_busy_are_refused() {
    let cases: [(&str, &str, &[i64], &str); 3] = [
        (
            "Transpose",
            "perm",
            &[2, 3, 1, 2],
            "a transposition that is no permutation",
        ),
        ("Transpose", "perm", &[0, 1 << 40], "an attribute out of range"),
        ("Conv", "dilations", &[i64::MIN, 1], "an attribute out of range"),
    ];
    for (op, name, ints, expected) in cases {
        let files = Files::of(FASHION).graph(0, |graph| {
            let attribute = AttributeProto {
                name: name.into(),
                r#type: 7,
                ints: ints.into(),
                ..Default::default()
            };
            let node = first_of(graph, op);
            node.attribute.retain(|attribute| attribute.name != name);
            node.attribute.push(attribute);
        });
        let (problem, message) = refused(files, 0);
        assert!(
            matches!(problem, StageProblem::Refused { what, .. } if what == expected),
            "{message}"
        );
    }
}

fn node(op: &str, input: &str, output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: vec![input.into()],
        output: vec![output.into()],
        ..Default::default()
    }
}

/// Two megabytes of constants whose sum would be a quarter of a terabyte, which
/// the runtime would compute while loading.
#[test]
fn a_graph_that_grows_its_constants_is_refused() {
    const LENGTH: i64 = 1 << 18;
    let constant = |name: &str, dims: [i64; 2]| TensorProto {
        name: name.into(),
        data_type: DataType::Float as i32,
        dims: dims.to_vec(),
        raw_data: vec![0; 4 * LENGTH as usize],
        ..Default::default()
    };
    let check = |expected: &'static str, nodes: Vec<NodeProto>| {
        let files = Files::of(FASHION).graph(0, |graph| {
            graph
                .initializer
                .extend([constant("row", [1, LENGTH]), constant("column", [LENGTH, 1])]);
            graph.node.splice(0..0, nodes);
        });
        let (problem, message) = refused(files, 0);
        assert!(
            matches!(problem, StageProblem::Refused { what, .. } if what == expected),
            "{message}"
        );
    };
    let bomb = || {
        let mut sum = node("Add", "row", "bomb");
        sum.input.push("alias".into());
        sum
    };
    let alias = |from: &str| node("Identity", from, "alias");
    check("arithmetic on constants", vec![alias("column"), bomb()]);
    // Hidden from a reader that goes through the nodes in order.
    check("an input that nothing before it gives", vec![bomb(), alias("column")]);
    check(
        "an output that was given before",
        vec![alias("image"), bomb(), alias("column")],
    );
}

#[test]
fn a_graph_whose_activations_explode_is_refused() {
    let files = Files::of(FASHION).graph(0, |graph| {
        let attribute = |name: &str, ints: &[i64]| AttributeProto {
            name: name.into(),
            r#type: 7,
            ints: ints.to_vec(),
            ..Default::default()
        };
        let convolution = first_of(graph, "Conv");
        convolution.attribute.retain(|attribute| attribute.name != "pads");
        convolution.attribute.push(attribute("pads", &[20_000; 4]));
    });
    let (problem, message) = refused(files, 0);
    assert!(matches!(problem, StageProblem::TensorTooLarge { .. }), "{message}");
}

#[test]
fn a_graph_that_reads_what_nobody_writes_is_refused() {
    let files = Files::of(FASHION).graph(1, |graph| first_of(graph, "MatMul").input[0] = "nowhere".into());
    let (problem, message) = refused(files, 1);
    let expected = "an input that nothing before it gives";
    assert!(
        matches!(problem, StageProblem::Refused { what, .. } if what == expected),
        "{message}"
    );
}

/// An output that no node computes makes the runtime's reader panic.
#[test]
fn a_panic_of_the_runtime_is_contained() {
    let files = Files::of(FASHION).graph(1, |graph| graph.output[0].name = "nowhere".into());
    let (problem, message) = refused(files, 1);
    assert!(matches!(problem, StageProblem::Runtime(_)), "{message}");
}

/// Bytes changed anywhere: an error that names the stage, or an engine.
#[test]
fn a_changed_byte_never_takes_the_process_down() {
    let mut files = Files::of(FASHION);
    let bytes = files.stage(0).clone();
    // Steps that are coprime with the length visit every part of the file; the
    // graph's structure, not its weights, is where a byte matters.
    let model = ModelProto::decode(bytes.as_slice()).unwrap();
    let nodes = model
        .graph
        .unwrap()
        .node
        .iter()
        .map(prost::Message::encoded_len)
        .sum::<usize>();
    for round in 0..40 {
        let mut spoilt = bytes.clone();
        for place in 0..3 {
            let at = (round * 7919 + place * 104_729) % nodes;
            spoilt[at] ^= 1 << ((round + place) % 8);
        }
        let mut files = Files::of(FASHION);
        *files.stage(0) = spoilt;
        if let Err(error) = files.load() {
            assert!(error.part.starts_with("stage-"), "{error}");
        }
    }
    assert!(Engine::load(&package(FASHION)).is_ok());
}
