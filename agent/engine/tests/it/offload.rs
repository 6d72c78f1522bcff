//! Stages in ONNX Runtime, as PyPI's wheel has it: its CPU provider, and what happens where there is no other.
//!
//! A process has one library. These tests share it, and a test that needs a process without one starts itself again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use offramp_engine::{Engine, Frame, Offload, OffloadProblem, Progress, Provider, RunBy};
use offramp_model::Package;
use offramp_test_support::{onnxruntime, temp_dir};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;

use crate::running::{image, run_all};
use crate::zoo::{CIFAR100, FASHION, Files, package};

/// All stages on these providers of the wheel's library.
pub(crate) fn on(providers: &[Provider]) -> Offload {
    Offload {
        library: Some(onnxruntime()),
        providers: providers.to_vec(),
        ..Offload::new(PathBuf::from("unused"))
    }
}

/// An engine whose offload has come to its end.
pub(crate) fn offloaded(package: &Package, offload: Offload) -> Engine {
    let mut engine = Engine::load(package).unwrap();
    engine.offload(package, offload).unwrap();
    engine.wait_for_offload();
    engine
}

fn run_by(engine: &Engine) -> Vec<RunBy> {
    engine.stage_states().iter().map(|state| state.run_by).collect()
}

fn is_settled(progress: Progress) -> bool {
    !matches!(progress, Progress::Waiting | Progress::Building { .. })
}

const ON_CPU: RunBy = RunBy::OnnxRuntime(Provider::Cpu);

#[track_caller]
fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(1f32, |scale, value| scale.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            let apart = (found - expected).abs() / scale;
            assert!(apart <= Provider::Cpu.tolerance(false), "{found} and {expected}");
        }
    }
}

#[test]
fn every_choice_of_stages_gives_what_our_own_kernels_give() {
    let package = package(FASHION);
    let mut own = Engine::load(&package).unwrap();
    let images: Vec<_> = (0..4).map(|n| image(&package, n)).collect();
    let expected: Vec<_> = images
        .iter()
        .map(|pixels| run_all(&mut own, &mut Frame::default(), pixels))
        .collect();
    // State goes over from here to there and back in every way there is.
    for choice in 0..1u32 << own.stages() {
        let chosen = |stage: &usize| choice & 1 << stage != 0;
        let stages: Vec<usize> = (0..own.stages()).filter(chosen).collect();
        let mut engine = offloaded(
            &package,
            Offload {
                stages: Some(stages.clone()),
                batch: if choice % 2 == 0 { 1 } else { 4 },
                ..on(&[Provider::Cpu])
            },
        );
        let wanted: Vec<_> = (0..own.stages())
            .map(|stage| if chosen(&stage) { ON_CPU } else { RunBy::Fused })
            .collect();
        assert_eq!(run_by(&engine), wanted);
        let mut frame = engine.frame();
        for (pixels, expected) in images.iter().zip(&expected) {
            assert_close(&run_all(&mut engine, &mut frame, pixels), expected);
        }
        // Several at a time, of which some leave early.
        let mut frames = vec![engine.frame(); images.len()];
        for (frame, pixels) in frames.iter_mut().zip(&images) {
            engine.start(frame, pixels).unwrap();
        }
        for stage in 0..engine.stages() {
            let mut together: Vec<&mut Frame> = frames.iter_mut().skip(stage).collect();
            engine.run_stage_of(stage, &mut together).unwrap();
            for (frame, expected) in frames.iter().zip(&expected).skip(stage) {
                assert_close(&[frame.features().to_vec()], &expected[stage..=stage]);
            }
        }
    }
}

#[test]
fn frames_that_wait_together_run_as_one_batch_and_those_that_are_with_the_runtime_alone() {
    let package = package(FASHION);
    let mut own = Engine::load(&package).unwrap();
    let images: Vec<_> = (0..5).map(|n| image(&package, n)).collect();
    let expected: Vec<_> = images
        .iter()
        .map(|pixels| run_all(&mut own, &mut Frame::default(), pixels))
        .collect();
    let mut engine = offloaded(
        &package,
        Offload {
            batch: 4,
            ..on(&[Provider::Cpu])
        },
    );
    for state in engine.stage_states() {
        assert_eq!(state.to_string(), "onnxruntime/cpu, 4 at a time");
    }
    let mut frames = vec![engine.frame(); images.len()];
    for (frame, pixels) in frames.iter_mut().zip(&images) {
        engine.start(frame, pixels).unwrap();
    }
    // Five are four and one; the one's state stays, and it goes on by itself.
    let mut away = Vec::new();
    for stage in 0..engine.stages() {
        engine
            .run_stage_of(stage, &mut frames.iter_mut().collect::<Vec<_>>())
            .unwrap();
        for (frame, expected) in frames.iter().zip(&expected) {
            assert_close(&[frame.features().to_vec()], &expected[stage..=stage]);
        }
        away.push(frames.iter().filter(|frame| frame.is_away()).count());
    }
    assert_eq!(away, [1, 1, 1, 0]);
}

#[test]
fn a_graph_for_one_image_runs_no_batches_and_says_so() {
    let fixed = Files::of(FASHION).graph(1, |graph| {
        for input in &mut graph.input {
            let Some(Type::TensorType(tensor)) = input.r#type.as_mut().and_then(|declared| declared.value.as_mut())
            else {
                continue;
            };
            tensor.shape.as_mut().unwrap().dim[0].value = Some(Dim::DimValue(1));
        }
    });
    let package = fixed.package();
    let mut engine = offloaded(
        &package,
        Offload {
            batch: 4,
            ..on(&[Provider::Cpu])
        },
    );
    let states = engine.stage_states();
    assert_eq!(run_by(&engine), [ON_CPU; 4], "{states:?}");
    assert!(states.iter().all(|state| state.progress == Progress::Working));
    let text = states[1].to_string();
    assert!(
        text.starts_with("onnxruntime/cpu; cpu runs no batches: the graph does not leave")
            && text.contains("`batch = 1`"),
        "{text}"
    );
    let mut own = Engine::load(&package).unwrap();
    let mut frames = vec![engine.frame(); 3];
    for (number, frame) in frames.iter_mut().enumerate() {
        engine.start(frame, &image(&package, number)).unwrap();
    }
    for stage in 0..engine.stages() {
        engine
            .run_stage_of(stage, &mut frames.iter_mut().collect::<Vec<_>>())
            .unwrap();
    }
    for (number, frame) in frames.iter().enumerate() {
        let expected = run_all(&mut own, &mut Frame::default(), &image(&package, number));
        assert_close(&[frame.features().to_vec()], &expected[3..]);
    }
}

#[test]
fn clones_share_the_sessions_and_take_them_up_between_frames() {
    let package = package(FASHION);
    let mut engine = Engine::load(&package).unwrap();
    let pixels = image(&package, 0);
    let expected = run_all(&mut engine, &mut Frame::default(), &pixels);
    engine.offload(&package, on(&[Provider::Cpu])).unwrap();
    let before = engine.changes();
    // They serve from the first moment on, whoever runs the stages then.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut clone = engine.clone();
            let (pixels, expected) = (&pixels, &expected);
            scope.spawn(move || {
                let mut frame = clone.frame();
                while clone.stage_states().iter().any(|state| !is_settled(state.progress)) {
                    assert_close(&run_all(&mut clone, &mut frame, pixels), expected);
                }
                assert_close(&run_all(&mut clone, &mut frame, pixels), expected);
            });
        }
    });
    engine.wait_for_offload();
    assert!(engine.changes() > before);
    for state in engine.stage_states() {
        assert_eq!(state.progress, Progress::Working);
        assert_eq!(state.to_string(), "onnxruntime/cpu");
    }
}

#[test]
fn what_a_stage_only_passes_on_arrives_wherever_the_stages_run() {
    // As the shipped package, but for a name: `x` goes through stage 1 untouched.
    let mut files = Files::of(FASHION);
    files.declared(1)["state"].as_array_mut().unwrap()[0] = "x".into();
    files.declared(2)["inputs"].as_array_mut().unwrap()[0] = "x".into();
    let package = files
        .graph(2, |graph| {
            let nodes = graph.node.iter_mut().flat_map(|node| &mut node.input);
            let inputs = graph.input.iter_mut().map(|input| &mut input.name);
            nodes
                .chain(inputs)
                .filter(|name| *name == "x_1")
                .for_each(|name| *name = "x".into());
        })
        .package();
    let pixels = image(&package, 1);
    let honest = run_all(
        &mut Engine::load(&crate::zoo::package(FASHION)).unwrap(),
        &mut Frame::default(),
        &pixels,
    );
    for stages in [
        vec![0],
        vec![0, 1],
        vec![0, 1, 2],
        vec![1, 2],
        vec![0, 2],
        vec![1],
        vec![0, 1, 2, 3],
    ] {
        let mut engine = offloaded(
            &package,
            Offload {
                stages: Some(stages),
                ..on(&[Provider::Cpu])
            },
        );
        assert_close(&run_all(&mut engine, &mut Frame::default(), &pixels), &honest);
        assert!(
            engine
                .stage_states()
                .iter()
                .all(|state| state.progress != Progress::Failed)
        );
    }
}

#[test]
fn state_stays_with_the_runtime_until_a_stage_here_reads_it() {
    let package = package(FASHION);
    let pixels = image(&package, 2);
    for (stages, expected) in [
        (vec![0, 1, 2, 3], [true, true, true, false]),
        (vec![0, 1, 3], [true, false, false, false]),
    ] {
        let mut engine = offloaded(
            &package,
            Offload {
                stages: Some(stages),
                ..on(&[Provider::Cpu])
            },
        );
        let mut frame = engine.frame();
        engine.start(&mut frame, &pixels).unwrap();
        for (stage, expected) in expected.into_iter().enumerate() {
            engine.run_stage(stage, &mut frame).unwrap();
            assert_eq!(frame.is_away(), expected, "behind stage {stage}");
            assert_eq!(engine.computes_state(stage), stage < 3);
        }
    }
}

#[test]
fn a_frame_that_waits_between_stages_can_be_cloned() {
    let package = package(FASHION);
    let mut engine = offloaded(&package, on(&[Provider::Cpu]));
    let pixels = image(&package, 2);
    let expected = run_all(&mut engine, &mut Frame::default(), &pixels);
    let mut frame = engine.frame();
    engine.start(&mut frame, &pixels).unwrap();
    engine.run_stage(0, &mut frame).unwrap();
    let mut other = frame.clone();
    for (stage, expected) in expected.iter().enumerate().skip(1) {
        assert_eq!(engine.run_stage(stage, &mut frame).unwrap(), expected);
        assert_eq!(engine.run_stage(stage, &mut other).unwrap(), expected);
    }
}

#[test]
fn a_provider_that_the_library_does_not_have_is_passed_over_and_named() {
    let package = package(FASHION);
    let preferred = [Provider::TensorRt, Provider::TensorRtRtx, Provider::Cuda];
    let engine = offloaded(&package, on(&[&preferred[..], &[Provider::Cpu]].concat()));
    for state in engine.stage_states() {
        assert_eq!(state.run_by, ON_CPU);
        let text = state.to_string();
        for part in [
            "onnxruntime/cpu; ONNX Runtime 1.32.0 was built without tensorrt: install",
            "the plugin for tensorrt-rtx cannot be used: ",
            "ONNX Runtime 1.32.0 was built without cuda: install",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    // Without another choice the stages stay where they are, and go on.
    let mut engine = offloaded(&package, on(&[Provider::Cuda]));
    assert!(engine.stage_states().iter().all(|state| {
        let named = matches!(
            state.refused[..],
            [offramp_engine::Refusal(OffloadProblem::NotInLibrary {
                provider: Provider::Cuda,
                ..
            })]
        );
        named && state.run_by == RunBy::Fused && state.progress == Progress::Failed
    }));
    assert!(
        engine.stage_states()[0]
            .to_string()
            .starts_with("fused; not offloaded; ")
    );
    run_all(&mut engine, &mut Frame::default(), &image(&package, 0));
}

#[test]
fn a_stage_that_the_provider_refuses_stays_and_the_others_go() {
    // An operator set from the future: it means the same to tract, and nothing to the runtime.
    let package = Files::of(FASHION).opset(1, 9_999).package();
    let mut engine = offloaded(&package, on(&[Provider::Cpu]));
    let states = engine.stage_states();
    assert_eq!(run_by(&engine), [ON_CPU, RunBy::Fused, ON_CPU, ON_CPU], "{states:?}");
    let text = states[1].to_string();
    assert!(
        text.contains("cpu does not run it: ") && text.contains("`stages`"),
        "{text}"
    );
    let expected = run_all(
        &mut Engine::load(&package).unwrap(),
        &mut Frame::default(),
        &image(&package, 0),
    );
    assert_close(
        &run_all(&mut engine, &mut Frame::default(), &image(&package, 0)),
        &expected,
    );
}

#[test]
fn a_stage_that_nobody_takes_is_told_before_the_next_is_built() {
    let package = Files::of(FASHION).opset(0, 9_999).package();
    let mut engine = Engine::load(&package).unwrap();
    engine.offload(&package, on(&[Provider::Cpu])).unwrap();
    loop {
        let earlier = engine.stage_states();
        let later = engine.stage_states();
        if earlier[1].progress != Progress::Waiting {
            assert_eq!(later[0].progress, Progress::Failed);
        }
        if is_settled(earlier[3].progress) {
            break;
        }
    }
}

#[test]
fn a_stage_that_does_not_exist_is_refused_at_once() {
    let package = package(CIFAR100);
    let mut engine = Engine::load(&package).unwrap();
    let problem = engine
        .offload(
            &package,
            Offload {
                stages: Some(vec![0, 9]),
                ..Offload::new(PathBuf::from("unused"))
            },
        )
        .unwrap_err();
    assert!(matches!(problem, OffloadProblem::NoSuchStage { stage: 9, .. }));
    assert!(problem.remedy().contains("from 0 to"), "{}", problem.remedy());
}

#[test]
fn a_survey_tells_of_each_provider_whether_it_works_here() {
    let package = package(FASHION);
    let engine = Engine::load(&package).unwrap();
    let cache = temp_dir();
    let survey = engine.survey(
        &package,
        &Offload {
            cache: cache.path().to_owned(),
            ..on(&Provider::ALL)
        },
    );
    let (library, version) = survey.library.unwrap();
    assert_eq!((library, version.as_str()), (onnxruntime(), "1.32.0"));
    let works: Vec<_> = survey
        .providers
        .iter()
        .map(|(provider, tried)| (*provider, tried.is_ok()))
        .collect();
    let expected = Provider::ALL.map(|provider| (provider, provider == Provider::Cpu));
    assert_eq!(works, expected);
}

#[test]
fn providers_are_read_by_the_names_they_are_written_with() {
    for provider in Provider::ALL {
        assert_eq!(provider.to_string().parse::<Provider>().unwrap(), provider);
    }
    let problem = "gpu".parse::<Provider>().unwrap_err();
    assert_eq!(problem.to_string(), "`gpu` is no provider");
    assert_eq!(problem.remedy(), "name one of tensorrt, tensorrt-rtx, cuda, cpu");
}

/// Runs one of the tests below in a process of its own, which has no library yet.
#[track_caller]
fn alone(test: &str, library: Option<&Path>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "--ignored", &format!("offload::{test}")])
        .env_remove("ORT_DYLIB_PATH")
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("VIRTUAL_ENV");
    if let Some(library) = library {
        command.env("LIBRARY", library);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Offloads with the library that this process was given, which cannot be used, and gives the problem's two halves.
#[track_caller]
fn refused_library() -> (String, String) {
    let package = package(FASHION);
    let offload = Offload {
        library: std::env::var_os("LIBRARY").map(PathBuf::from),
        ..on(&[Provider::Cpu])
    };
    let mut engine = offloaded(&package, offload.clone());
    for state in engine.stage_states() {
        assert_eq!((state.run_by, state.progress), (RunBy::Fused, Progress::Failed));
        assert_eq!(state.refused.len(), 1);
    }
    run_all(&mut engine, &mut Frame::default(), &image(&package, 0));
    let problem = engine.survey(&package, &offload).library.unwrap_err();
    // What failed does not keep another library from being used.
    assert_eq!(run_by(&offloaded(&package, on(&[Provider::Cpu]))), [ON_CPU; 4]);
    (problem.to_string(), problem.remedy())
}

#[test]
fn a_library_that_is_missing_or_none_is_named_with_the_remedy() {
    let folder = temp_dir();
    let text = folder.path().join("libonnxruntime.so");
    alone("a_missing_library", Some(&text));
    alone("an_empty_folder", Some(folder.path()));
    fs::write(&text, "not a library").unwrap();
    alone("a_file_that_is_no_library", Some(&text));
    // A real one, but another: that of the runtime's own package which only loads providers.
    alone(
        "another_library",
        Some(&onnxruntime().with_file_name("libonnxruntime_providers_shared.so")),
    );
}

#[test]
#[ignore = "run by the test above"]
fn a_missing_library() {
    let (problem, remedy) = refused_library();
    assert!(
        problem.starts_with("there is no ONNX Runtime library at /") && remedy.contains("the folder"),
        "{problem}: {remedy}"
    );
}

#[test]
#[ignore = "run by the test above"]
fn an_empty_folder() {
    let (problem, _) = refused_library();
    assert!(
        problem.starts_with("there is no ONNX Runtime library at /"),
        "{problem}"
    );
}

#[test]
#[ignore = "run by the test above"]
fn a_file_that_is_no_library() {
    let (problem, remedy) = refused_library();
    assert!(
        problem.contains("libonnxruntime.so cannot be used as ONNX Runtime: ") && remedy.contains("`ldd`"),
        "{problem}: {remedy}"
    );
}

#[test]
#[ignore = "run by the test above"]
fn another_library() {
    let (problem, _) = refused_library();
    assert!(problem.ends_with("does not export `OrtGetApiBase`"), "{problem}");
}

#[test]
fn an_older_library_is_named_with_its_version() {
    let folder = temp_dir();
    alone("an_old_library", Some(&built(folder.path(), "1.17.3")));
}

#[test]
#[ignore = "run by the test above"]
fn an_old_library() {
    let (problem, remedy) = refused_library();
    assert!(problem.contains("is ONNX Runtime 1.17.3, older than 1.24"), "{problem}");
    assert_eq!(remedy, "install ONNX Runtime 1.24 or newer");
}

/// A library that says it is ONNX Runtime of some version, and can do nothing else.
fn built(folder: &Path, version: &str) -> PathBuf {
    let cc = offramp_test_support::require(offramp_test_support::Tool {
        program: "cc",
        package: "gcc",
    });
    let (source, library) = (folder.join("old.c"), folder.join("libonnxruntime.so"));
    let text = format!(
        "struct base {{ const void *(*api)(unsigned); const char *(*version)(void); }};\n\
         static const void *api(unsigned v) {{ (void)v; return 0; }}\n\
         static const char *version(void) {{ return \"{version}\"; }}\n\
         static const struct base base = {{ api, version }};\n\
         const struct base *OrtGetApiBase(void) {{ return &base; }}\n"
    );
    fs::write(&source, text).unwrap();
    let built = Command::new(cc)
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success());
    library
}

#[test]
fn a_second_library_is_refused_while_one_is_in_use() {
    let package = package(FASHION);
    drop(offloaded(&package, on(&[Provider::Cpu])));
    let folder = temp_dir();
    let other = folder.path().join("libonnxruntime.so");
    fs::copy(onnxruntime(), &other).unwrap();
    let engine = offloaded(
        &package,
        Offload {
            library: Some(other),
            ..on(&[Provider::Cpu])
        },
    );
    let text = engine.stage_states()[0].to_string();
    assert!(
        text.contains("because this process uses") && text.contains("restart"),
        "{text}"
    );
}
