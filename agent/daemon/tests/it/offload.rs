//! Stages in ONNX Runtime, as the agent uses it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use offramp::agent::{Agent, Counters, Options, Source};
use offramp::package;
use offramp_camera::{Camera, Frame, FrameShape, ImageSet, sample};
use offramp_core::Prediction;
use offramp_engine::{Offload, Provider};
use offramp_proto::{Event, decode};
use offramp_store::{Limits, Store};
use offramp_test_support::{PATIENCE, onnxruntime, temp_dir};

use crate::cameras::{options, settings};

/// Shows the same image for as long as it is not told to end.
struct Still {
    images: ImageSet,
    end: Arc<AtomicBool>,
}

impl Camera for Still {
    fn shape(&self) -> FrameShape {
        self.images.shape()
    }

    fn next(&mut self, frame: &mut Frame) -> Result<bool, offramp_camera::Error> {
        frame.pixels.clear();
        frame.pixels.extend_from_slice(self.images.pixels(7).unwrap());
        Ok(!self.end.load(Ordering::Relaxed))
    }
}

/// Runs an agent of so many cameras until its stages are as they should be; gives its predictions.
async fn run_until(
    folder: &Path,
    cameras: usize,
    offload: Offload,
    reached: impl Fn(&Counters) -> bool,
) -> Vec<Prediction> {
    let package = package::open(package::EMBEDDED).unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let options = Options {
        offload: Some(offload),
        ..options(folder, settings(&package), 1)
    };
    let source = |number: usize| {
        let camera = Still {
            images: sample::stream().unwrap(),
            end: Arc::clone(&end),
        };
        let told = Arc::clone(&seen);
        let listener = move |prediction: &Prediction, _: &Frame, _: &[String]| told.lock().unwrap().push(*prediction);
        Source {
            name: format!("c{number}"),
            ..Source::new(Box::new(camera), Box::new(listener))
        }
    };
    let sources = (0..cameras).map(source).collect();
    let agent = Agent::start(options, &package, sources).unwrap();
    let mut counters = agent.counters();
    let there = tokio::time::timeout(PATIENCE, counters.wait_for(reached)).await.is_ok();
    assert!(there, "the stages are run by {:?}", counters.borrow().engines);
    let before = seen.lock().unwrap().len();
    // Some more, by whoever runs them now.
    while seen.lock().unwrap().len() < before + 20 {
        tokio::task::yield_now().await;
    }
    end.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(|| agent.join()).await.unwrap();
    let seen = seen.lock().unwrap();
    seen.clone()
}

fn events(folder: &Path, kind: &str) -> Vec<Event> {
    let (store, _) = Store::open(&folder.join("state.redb"), Limits::default()).unwrap();
    let records = store.records_after(0, usize::MAX, u64::MAX).unwrap();
    let events = records.iter().filter(|record| record.topic == "up/event");
    let events = events.map(|record| decode::<Event>(&record.payload).unwrap());
    events.filter(|event| event.kind == kind).collect()
}

#[tokio::test]
async fn stages_move_to_onnx_runtime_while_frames_run() {
    let folder = temp_dir();
    let offload = Offload {
        library: Some(onnxruntime()),
        providers: vec![Provider::Cpu],
        ..Offload::new(folder.path().join("engines"))
    };
    let everywhere = |counters: &Counters| counters.engines == ["onnxruntime/cpu"; 4];
    let seen = run_until(folder.path(), 1, offload, everywhere).await;
    let first = seen[0];
    for prediction in &seen {
        assert_eq!((prediction.class, prediction.exit), (first.class, first.exit));
        assert!((prediction.confidence - first.confidence).abs() < 1e-4);
    }
    assert_eq!(events(folder.path(), "stage-offloaded").len(), 4);
    assert_eq!(events(folder.path(), "stage-not-offloaded"), []);
}

#[tokio::test]
async fn frames_of_several_cameras_run_there_as_batches() {
    let folder = temp_dir();
    let offload = Offload {
        library: Some(onnxruntime()),
        providers: vec![Provider::Cpu],
        ..Offload::new(folder.path().join("engines"))
    };
    let batches = |counters: &Counters| counters.engines == ["onnxruntime/cpu, 4 at a time"; 4];
    let seen = run_until(folder.path(), 5, offload, batches).await;
    let first = seen[0];
    for prediction in &seen {
        assert_eq!((prediction.class, prediction.exit), (first.class, first.exit));
        assert!((prediction.confidence - first.confidence).abs() < 1e-4);
    }
    assert_eq!(events(folder.path(), "stage-not-offloaded"), []);
}

#[tokio::test]
async fn without_the_library_our_own_kernels_go_on_and_the_fleet_hears_why() {
    let folder = temp_dir();
    let offload = Offload {
        library: Some(PathBuf::from("/nowhere/libonnxruntime.so")),
        ..Offload::new(folder.path().join("engines"))
    };
    let given_up = |counters: &Counters| counters.engines == ["fused (not offloaded)"; 4];
    run_until(folder.path(), 1, offload, given_up).await;
    let told = events(folder.path(), "stage-not-offloaded");
    assert_eq!(told.len(), 4);
    assert!(
        told[0].message.contains("/nowhere/libonnxruntime.so"),
        "{}",
        told[0].message
    );
    assert_eq!(told[0].facts["engine"], "fused");
}
