//! Sessions put in place of those that were found to work, as nothing else makes the runtime fail later than the
//! first time, or gives two providers memory of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offramp_model::Package;
use offramp_test_support::onnxruntime;

use super::build::{Example, prove, prove_batch};
use super::session::{Graph, Running};
use super::{Offload, OffloadProblem, Offloaded, Progress, Provider, Refusal, RunBy, library};
use crate::error::Cause;
use crate::stage::{Handed, Held, Threads};
use crate::{Engine, Frame};

fn package(name: &str) -> Package {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zoo");
    Package::open(&zoo.join(name)).unwrap()
}

/// A stage of a package as its manifest says, in the graph of `other`.
fn graph(package: &Package, engine: &Engine, stage: usize, other: &Package) -> Graph {
    let declared = &package.manifest().stages[stage];
    let own = &engine.stages[stage];
    assert!(own.handed().iter().all(|source| matches!(source, Handed::Output)));
    let hands_on = engine.stages.get(stage + 1).map_or(&[][..], |next| next.reads());
    let state = declared.state.iter().cloned().zip(hands_on.iter().cloned());
    Graph {
        bytes: other.stages().nth(stage).unwrap().to_vec(),
        reads: declared
            .inputs
            .iter()
            .cloned()
            .zip(own.reads().iter().cloned())
            .collect(),
        gives: std::iter::once((declared.features.clone(), vec![1, engine.features(stage)]))
            .chain(state)
            .collect(),
    }
}

#[test]
fn a_stage_that_fails_while_it_runs_goes_back_and_costs_no_frame() {
    let package = package("revcol-fashion");
    let offload = Offload {
        library: Some(onnxruntime()),
        providers: vec![Provider::Cpu],
        ..Offload::new(PathBuf::from("unused"))
    };
    let mut own = Engine::load(&package).unwrap();
    let values = package.manifest().input.values();
    let images: Vec<Vec<f32>> = (0..3).map(|n| vec![n as f32 - 1.0; values]).collect();
    let run = |engine: &mut Engine, frame: &mut Frame, image: &[f32]| -> Vec<Vec<f32>> {
        engine.start(frame, image).unwrap();
        (0..engine.stages())
            .map(|stage| engine.run_stage(stage, frame).unwrap().to_vec())
            .collect()
    };
    let expected: Vec<_> = images
        .iter()
        .map(|image| run(&mut own, &mut Frame::default(), image))
        .collect();

    // Stage 2 fails, when stage 1 has left its state with the runtime: same names in its graph, other shapes.
    let other = self::package("revcol-cifar100");
    let mut engine = own.clone();
    let runtime = library::open(offload.library.as_deref()).unwrap();
    let broken = Offloaded::new(&engine.stages, |_| true);
    for stage in 0..engine.stages() {
        let graph = graph(&package, &engine, stage, if stage == 2 { &other } else { &package });
        let running = Running::open(runtime, Provider::Cpu, &graph, &offload, Path::new(""));
        broken.publish(stage, running.unwrap());
    }
    engine.offloaded = Some(Arc::new(broken));
    assert!(
        engine
            .stage_states()
            .iter()
            .all(|state| state.progress == Progress::Working)
    );

    let close = |found: &[Vec<f32>], expected: &[Vec<f32>]| {
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        pairs.for_each(|(found, expected)| assert!((found - expected).abs() < 1e-3, "{found} {expected}"));
    };
    let mut clone = engine.clone();
    let before = engine.changes();
    let mut frame = engine.frame();
    close(&run(&mut engine, &mut frame, &images[0]), &expected[0]);
    assert_eq!(engine.changes(), before + 1);
    // It is told once, and the other engine knows.
    for engine in [&mut engine, &mut clone] {
        for (image, expected) in images.iter().zip(&expected) {
            close(&run(engine, &mut frame, image), expected);
        }
        assert_eq!(engine.changes(), before + 1);
        let states = engine.stage_states();
        let run_by: Vec<RunBy> = states.iter().map(|state| state.run_by).collect();
        let cpu = RunBy::OnnxRuntime(Provider::Cpu);
        assert_eq!(run_by, [cpu, cpu, RunBy::Fused, cpu]);
        assert_eq!(states[2].progress, Progress::Failed);
        assert!(matches!(
            states[2].refused[..],
            [Refusal(OffloadProblem::FailedWhileRunning { .. })]
        ));
        let text = states[2].to_string();
        assert!(
            text.starts_with("fused; not offloaded; cpu failed while running: "),
            "{text}"
        );
    }
}

/// The session of stage 0, and what goes in.
fn first_stage(package: &Package, engine: &Engine) -> (Running, Graph, Held) {
    let graph = graph(package, engine, 0, package);
    let runtime = library::open(Some(&onnxruntime())).unwrap();
    let offload = Offload::new(PathBuf::from("unused"));
    let running = Running::open(runtime, Provider::Cpu, &graph, &offload, Path::new("")).unwrap();
    let mut held = Held::default();
    held.start(&vec![0.5; package.manifest().input.values()], true);
    (running, graph, held)
}

#[test]
fn a_session_that_cannot_keep_its_state_proves_so_before_it_is_taken() {
    let package = package("revcol-fashion");
    let mut engine = Engine::load(&package).unwrap();
    let (running, graph, before) = first_stage(&package, &engine);
    let mut after = before.clone();
    engine.stages[0].run(&mut [&mut after], &Threads::default()).unwrap();
    let (before, after) = (vec![before], vec![after]);
    let (example, handed) = (Example { before, after }, engine.stages[0].handed());
    let offload = Offload::new(PathBuf::from("unused"));
    let run = |image: &mut Held, stays| running.run(handed, &mut [image], |_| stays);
    prove(Provider::Cpu, &graph, &offload, &example, run).unwrap();
    let run = |image: &mut Held, stays| match stays {
        true => Err(Cause::new("no memory of this device")),
        false => run(image, stays),
    };
    let problem = prove(Provider::Cpu, &graph, &offload, &example, run).unwrap_err();
    assert_eq!(problem.to_string(), "cpu does not run it: no memory of this device");
}

#[test]
fn a_batch_that_mixes_images_up_is_not_taken() {
    let package = package("revcol-fashion");
    let mut engine = Engine::load(&package).unwrap();
    let (running, graph, grey) = first_stage(&package, &engine);
    let mut dark = Held::default();
    dark.start(&vec![-0.5; package.manifest().input.values()], true);
    let before = vec![grey, dark];
    let mut after = before.clone();
    engine.stages[0]
        .run(&mut after.iter_mut().collect::<Vec<_>>(), &Threads::default())
        .unwrap();
    let (example, handed) = (Example { before, after }, engine.stages[0].handed());
    let offload = Offload {
        batch: 4,
        ..Offload::new(PathBuf::from("unused"))
    };
    let runtime = library::open(Some(&onnxruntime())).unwrap();
    let batch = running.open_batch(runtime, &graph, &offload, Path::new("")).unwrap();
    let sizes = std::cell::RefCell::new(Vec::new());
    let run = |images: &mut [&mut Held]| {
        sizes.borrow_mut().push(images.len());
        running.run_in(&batch, handed, images, |_| false)
    };
    prove_batch(Provider::Cpu, &graph, &offload, &example, run).unwrap();
    assert_eq!(*sizes.borrow(), [4, 3]);
    let problem = prove_batch(Provider::Cpu, &graph, &offload, &example, |images| {
        run(images)?;
        let (first, rest) = images.split_first_mut().unwrap();
        std::mem::swap(*first, rest[0]);
        Ok(())
    });
    assert!(matches!(problem, Err(OffloadProblem::Differs { .. })), "{problem:?}");
}

#[test]
fn a_batch_that_fails_while_it_runs_costs_no_frame() {
    let package = package("revcol-fashion");
    let other = self::package("revcol-cifar100");
    let offload = Offload {
        batch: 4,
        ..Offload::new(PathBuf::from("unused"))
    };
    let mut own = Engine::load(&package).unwrap();
    let mut engine = own.clone();
    let runtime = library::open(Some(&onnxruntime())).unwrap();
    let broken = Offloaded::new(&engine.stages, |_| true);
    for stage in 0..engine.stages() {
        let good = graph(&package, &engine, stage, &package);
        let running = Running::open(runtime, Provider::Cpu, &good, &offload, Path::new("")).unwrap();
        // Same names in its graph, other shapes.
        let graph = graph(&package, &engine, stage, if stage == 2 { &other } else { &package });
        running.add(running.open_batch(runtime, &graph, &offload, Path::new("")).unwrap());
        broken.publish(stage, running);
    }
    engine.offloaded = Some(Arc::new(broken));
    assert!(engine.stage_states().iter().all(|state| state.batch == 4));

    // Four go together, the fifth leaves its state with the runtime.
    let values = package.manifest().input.values();
    let mut frames = vec![engine.frame(); 5];
    let mut alone = frames.clone();
    for (number, frame) in frames.iter_mut().enumerate() {
        engine.start(frame, &vec![number as f32 - 2.0; values]).unwrap();
        own.start(&mut alone[number], &vec![number as f32 - 2.0; values])
            .unwrap();
    }
    let before = engine.changes();
    for stage in 0..engine.stages() {
        let mut together: Vec<&mut Frame> = frames.iter_mut().collect();
        engine.run_stage_of(stage, &mut together).unwrap();
        for (frame, alone) in frames.iter().zip(&mut alone) {
            let expected = own.run_stage(stage, alone).unwrap();
            for (found, expected) in frame.features().iter().zip(expected) {
                assert!((found - expected).abs() < 1e-3, "stage {stage}: {found} {expected}");
            }
        }
        assert_eq!(frames[0].is_away() || frames[4].is_away(), stage < 2, "stage {stage}");
    }
    assert_eq!(engine.changes(), before + 1);
    assert_eq!(engine.stage_states()[2].progress, Progress::Failed);
}

#[test]
fn state_stays_with_a_provider_only_for_readers_of_the_same() {
    let package = package("revcol-fashion");
    for (reader, stays) in [(Provider::Cpu, true), (Provider::Cuda, false)] {
        let engine = Engine::load(&package).unwrap();
        let offloaded = Offloaded::new(&engine.stages, |_| true);
        let (running, _, mut image) = first_stage(&package, &engine);
        offloaded.publish(0, running);
        for stage in 1..engine.stages() {
            let (mut running, ..) = first_stage(&package, &engine);
            running.provider = reader;
            offloaded.publish(stage, running);
        }
        assert!(offloaded.run(0, std::iter::once(&mut image)).is_empty());
        assert_eq!(image.is_away(), stays, "{reader}");
    }
}

#[test]
fn a_session_that_computes_something_else_is_not_taken() {
    let mut wrong = super::build::difference(&[1.0, 2.0], &[1.0, 2.2]);
    assert!((wrong - 0.2 / 2.2).abs() < 1e-6);
    wrong = super::build::difference(&[f32::NAN, 2.0], &[1.0, 2.0]);
    assert!(wrong.is_nan());
    assert!(super::build::difference(&[1.0], &[1.0, 2.0]).is_infinite());
}
