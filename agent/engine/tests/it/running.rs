use offramp_engine::{Engine, Frame, Kernels, RunError};
use offramp_model::Package;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

use crate::zoo::{CIFAR100, FASHION, Files, package};

/// The n-th image of the package's vectors, normalised.
pub(crate) fn image(package: &Package, n: usize) -> Vec<f32> {
    let input = &package.manifest().input;
    let images = package.vectors().unwrap().unwrap().images;
    let mut pixels = vec![0.0; input.values()];
    input.normalize(&images[n * input.values()..][..input.values()], &mut pixels);
    pixels
}

pub(crate) fn run_all(engine: &mut Engine, frame: &mut Frame, pixels: &[f32]) -> Vec<Vec<f32>> {
    engine.start(frame, pixels).unwrap();
    (0..engine.stages())
        .map(|stage| engine.run_stage(stage, frame).unwrap().to_vec())
        .collect()
}

#[test]
fn stages_run_in_order_and_only_once() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap();
    let mut frame = engine.frame();
    let order = |result: Result<&[f32], RunError>| match result {
        Err(RunError::Order { next, .. }) => next,
        other => panic!("{other:?}"),
    };
    assert_eq!(order(engine.run_stage(0, &mut frame)), None);
    engine.start(&mut frame, &image(&package, 0)).unwrap();
    assert_eq!(order(engine.run_stage(1, &mut frame)), Some(0));
    for stage in 0..engine.stages() {
        // A refused order does no harm to the frame.
        assert_eq!(order(engine.run_stage(stage + 7, &mut frame)), Some(stage));
        let features = engine.features(stage);
        assert_eq!(engine.run_stage(stage, &mut frame).unwrap().len(), features);
        let _ = order(engine.run_stage(stage, &mut frame));
    }
    assert_eq!(order(engine.run_stage(engine.stages(), &mut frame)), None);
}

#[test]
fn an_image_of_another_size_is_refused() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap();
    let mut frame = engine.frame();
    let pixels = image(&package, 0);
    for wrong in [&pixels[1..], &[], &[&pixels[..], &[0.0]].concat()] {
        let error = engine.start(&mut frame, wrong).unwrap_err();
        assert!(
            matches!(error, RunError::Image { found, expected } if found == wrong.len() && expected == pixels.len())
        );
        assert!(engine.run_stage(0, &mut frame).is_err());
    }
}

#[test]
fn a_frame_forgets_the_image_before() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap();
    let (first, second) = (image(&package, 0), image(&package, 1));
    let expected = run_all(&mut engine.clone(), &mut Frame::default(), &second);
    for stages_before in 0..=engine.stages() {
        let mut frame = engine.frame();
        engine.start(&mut frame, &first).unwrap();
        for stage in 0..stages_before {
            engine.run_stage(stage, &mut frame).unwrap();
        }
        assert_eq!(run_all(&mut engine, &mut frame, &second), expected);
    }
}

#[test]
fn frames_that_take_turns_do_not_disturb_each_other() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap();
    let images: Vec<_> = (0..3).map(|n| image(&package, n)).collect();
    let alone: Vec<_> = images
        .iter()
        .map(|pixels| run_all(&mut engine, &mut Frame::default(), pixels))
        .collect();
    assert_ne!(alone[0], alone[1]);
    let mut frames = vec![engine.frame(); 3];
    for (frame, pixels) in frames.iter_mut().zip(&images) {
        engine.start(frame, pixels).unwrap();
    }
    for stage in 0..engine.stages() {
        for (frame, alone) in frames.iter_mut().zip(&alone) {
            assert_eq!(engine.run_stage(stage, frame).unwrap(), alone[stage]);
        }
    }
}

#[test]
fn every_stage_of_the_shipped_packages_runs_in_our_own_kernels() {
    for name in [FASHION, CIFAR100] {
        let engine = Engine::load(&package(name)).unwrap();
        assert!((0..engine.stages()).all(|stage| engine.is_fused(stage)), "{name}");
    }
}

#[test]
fn frames_together_give_what_each_gives_alone() {
    for (name, kernels) in [(FASHION, Kernels::Fused), (FASHION, Kernels::Tract)] {
        let package = package(name);
        let mut engine = Engine::load_with(&package, kernels).unwrap();
        let images: Vec<_> = (0..5).map(|n| image(&package, n)).collect();
        let alone: Vec<_> = images
            .iter()
            .map(|pixels| run_all(&mut engine, &mut Frame::default(), pixels))
            .collect();
        let mut frames = vec![engine.frame(); 5];
        for (frame, pixels) in frames.iter_mut().zip(&images) {
            engine.start(frame, pixels).unwrap();
        }
        for stage in 0..engine.stages() {
            // One leaves before every stage: the others go on together.
            let mut together: Vec<&mut Frame> = frames.iter_mut().skip(stage).collect();
            engine.run_stage_of(stage, &mut together).unwrap();
            for (frame, alone) in frames.iter().zip(&alone).skip(stage) {
                assert_eq!(frame.features(), alone[stage], "{kernels:?}");
            }
        }
        // One that is not before the stage keeps all of them from running.
        let (first, rest) = frames.split_at_mut(1);
        let mixed = engine.run_stage_of(1, &mut [&mut first[0], &mut rest[0]]);
        assert!(matches!(mixed, Err(RunError::Order { .. })));
        assert!(engine.run_stage(1, &mut first[0]).is_ok());
    }
}

#[test]
fn features_are_the_same_to_the_bit_on_any_number_of_threads() {
    let of_both = [FASHION, CIFAR100].map(|name| [(name, Kernels::Fused), (name, Kernels::Tract)]);
    for (name, kernels) in of_both.into_iter().flatten() {
        let package = package(name);
        let mut alone = Engine::load_with(&package, kernels).unwrap();
        let images: Vec<_> = (0..3).map(|n| image(&package, n)).collect();
        let expected: Vec<_> = images
            .iter()
            .map(|pixels| run_all(&mut alone, &mut Frame::default(), pixels))
            .collect();
        for threads in [2, 3] {
            let engine = Engine::load_with(&package, kernels).unwrap();
            let mut engine = engine.with_threads(threads).unwrap();
            let mut frame = engine.frame();
            for (pixels, expected) in images.iter().zip(&expected) {
                assert_eq!(
                    &run_all(&mut engine, &mut frame, pixels),
                    expected,
                    "{name}, {threads} threads"
                );
            }
            let mut frames = vec![engine.frame(); images.len()];
            for (frame, pixels) in frames.iter_mut().zip(&images) {
                engine.start(frame, pixels).unwrap();
            }
            for stage in 0..engine.stages() {
                engine
                    .run_stage_of(stage, &mut frames.iter_mut().collect::<Vec<_>>())
                    .unwrap();
                for (frame, expected) in frames.iter().zip(&expected) {
                    assert_eq!(frame.features(), expected[stage], "{name}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn clones_share_the_threads_that_help_them() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap().with_threads(2).unwrap();
    let pixels = image(&package, 0);
    let expected = run_all(&mut engine, &mut Frame::default(), &pixels);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut engine = engine.clone();
            let (pixels, expected) = (&pixels, &expected);
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&run_all(&mut engine, &mut Frame::default(), pixels), expected);
                }
            });
        }
    });
}

#[test]
fn clones_run_on_threads_of_their_own() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap();
    let pixels = image(&package, 0);
    let expected = run_all(&mut engine, &mut Frame::default(), &pixels);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut engine = engine.clone();
            let (pixels, expected) = (&pixels, &expected);
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(&run_all(&mut engine, &mut Frame::default(), pixels), expected);
                }
            });
        }
    });
}

/// A package whose last stage divides by zero as soon as its input is not zero,
/// which no check before can know.
fn with_a_last_stage_that_fails() -> Package {
    let mut files = Files::of(FASHION);
    let input = files.declared(3)["inputs"][4].as_str().unwrap().to_owned();
    let spoilt = files.graph(3, |graph| {
        graph.node.iter_mut().find(|node| node.output[0] == "u").unwrap().output[0] = "honest".into();
        let mut wire = |op: &str, inputs: &[&str], output: &str, to: Option<DataType>| {
            let to = to.map(|to| AttributeProto {
                name: "to".into(),
                r#type: 2,
                i: to as i64,
                ..Default::default()
            });
            graph.node.push(NodeProto {
                op_type: op.into(),
                input: inputs.iter().map(|&name| name.into()).collect(),
                output: vec![output.into()],
                attribute: to.into_iter().collect(),
                ..Default::default()
            });
        };
        wire("Abs", &[&input], "size", None);
        wire("Mul", &["size", "far"], "large", None);
        wire("Min", &["large", "unit"], "at_most_one", None);
        wire("ReduceMax", &["at_most_one"], "any", None);
        wire("Cast", &["any"], "zero_or_one", Some(DataType::Int64));
        wire("Sub", &["one_whole", "zero_or_one"], "one_or_zero", None);
        wire("Div", &["one_whole", "one_or_zero"], "quotient", None);
        wire("Cast", &["quotient"], "factor", Some(DataType::Float));
        wire("Reshape", &["factor", "row"], "factors", None);
        wire("Mul", &["honest", "factors"], "u", None);
        let float = |name: &str, value| TensorProto {
            name: name.into(),
            data_type: DataType::Float as i32,
            float_data: vec![value],
            ..Default::default()
        };
        let whole = |name: &str, dims: &[i64], values: &[i64]| TensorProto {
            name: name.into(),
            data_type: DataType::Int64 as i32,
            dims: dims.to_vec(),
            int64_data: values.to_vec(),
            ..Default::default()
        };
        graph.initializer.extend([float("far", 1e9), float("unit", 1.0)]);
        graph
            .initializer
            .extend([whole("one_whole", &[1, 1, 1, 1], &[1]), whole("row", &[2], &[1, 1])]);
    });
    spoilt.package()
}

#[test]
fn a_stage_that_is_not_asked_for_is_not_run() {
    let package = with_a_last_stage_that_fails();
    let mut engine = Engine::load(&package).unwrap();
    let mut frame = engine.frame();
    for n in 0..3 {
        engine.start(&mut frame, &image(&package, n)).unwrap();
        for stage in 0..3 {
            engine.run_stage(stage, &mut frame).unwrap();
        }
    }
    // Had it been run, it would have shown.
    assert!(engine.run_stage(3, &mut frame).is_err());
}

#[test]
fn a_stage_that_fails_ends_its_frame_and_nothing_else() {
    let package = with_a_last_stage_that_fails();
    let mut engine = Engine::load(&package).unwrap();
    let mut frame = engine.frame();
    for n in 0..3 {
        engine.start(&mut frame, &image(&package, n)).unwrap();
        let features: Vec<_> = (0..3)
            .map(|stage| engine.run_stage(stage, &mut frame).unwrap().to_vec())
            .collect();
        let error = engine.run_stage(3, &mut frame).unwrap_err();
        assert!(matches!(error, RunError::Runtime { stage: 3, .. }), "{error}");
        assert!(std::error::Error::source(&error).is_some());
        assert!(matches!(
            engine.run_stage(3, &mut frame),
            Err(RunError::Order { next: None, .. })
        ));
        let mut honest = Engine::load(&crate::zoo::package(FASHION)).unwrap();
        assert_eq!(
            run_all(&mut honest, &mut Frame::default(), &image(&package, n))[..3],
            features
        );
    }
}
