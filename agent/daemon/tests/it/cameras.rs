//! Several cameras at one engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use offramp::agent::{Agent, DropPolicy, Options, Outcome, Source};
use offramp::judge::{PolicyJudge, PolicySource, Workshop};
use offramp::lane::Single;
use offramp::package;
use offramp_camera::{Camera, Frame, FrameShape, ImageSet, Playback, sample};
use offramp_core::{Facts, LearnerSettings, Prediction, Settings};
use offramp_model::Package;
use offramp_proto::{DeviceId, Parameter, Summary, TenantId, decode};
use offramp_store::{Limits, Store};
use offramp_test_support::temp_dir;

fn policy() -> PolicySource {
    PolicySource::threshold([("threshold".to_owned(), Parameter::Number(0.9))].into())
}

/// Nothing is drawn and nothing learned: what a frame gets depends on nothing but the frame.
pub(crate) fn settings(package: &Package) -> Settings {
    let settings = package::settings(package);
    Settings {
        audit_rate: 0.0,
        learner: LearnerSettings {
            enabled: false,
            ..settings.learner
        },
        ..settings
    }
}

/// An agent alone, whose windows are short.
pub(crate) fn options(folder: &Path, settings: Settings, threads: usize) -> Options {
    let (device, tenant) = (DeviceId::new("edge").unwrap(), TenantId::new("test").unwrap());
    Options {
        summary_every: Duration::from_millis(20),
        checkpoint_every: Duration::from_millis(20),
        threads: Some(threads),
        batch: 4,
        ..Options::new(device, tenant, policy(), settings, folder.join("state.redb"))
    }
}

fn run(folder: &Path, package: &Package, settings: Settings, threads: usize, sources: Vec<Source>) -> Outcome {
    let options = options(folder, settings, threads);
    Agent::start(options, package, sources).unwrap().join()
}

/// What waits for a controller.
fn summaries(folder: &Path) -> Vec<Summary> {
    let (store, _) = Store::open(&folder.join("state.redb"), Limits::default()).unwrap();
    let records = store.records_after(0, usize::MAX, u64::MAX).unwrap();
    let summaries = records.iter().filter(|record| record.topic == "up/summary");
    summaries.map(|record| decode(&record.payload).unwrap()).collect()
}

/// A camera that shows every image once, from one of them on.
fn playback(images: &ImageSet, first: u32, frames: u32) -> Box<dyn Camera> {
    let order = (0..frames).map(|n| (first + n) % images.len() as u32).collect();
    Box::new(Playback::new(images.clone().into(), order).unwrap())
}

#[test]
fn every_camera_gets_what_it_would_get_alone_in_order() {
    const FRAMES: u32 = 300;
    let folder = temp_dir();
    let package = package::open(package::EMBEDDED).unwrap();
    let images = sample::stream().unwrap();
    let (told, heard) = channel();
    let sources = (0..5).map(|camera: u32| {
        let told: Sender<(u32, Prediction, u64)> = told.clone();
        let listener = move |prediction: &Prediction, frame: &Frame, _: &[String]| {
            told.send((camera, *prediction, frame.id)).unwrap();
        };
        Source {
            name: format!("camera-{camera}"),
            ..Source::new(playback(&images, 137 * camera, FRAMES), Box::new(listener))
        }
    });
    let outcome = run(folder.path(), &package, settings(&package), 3, sources.collect());
    drop(told);

    let mut single = Single::new(&package, settings(&package), 1).unwrap();
    let mut judge = PolicyJudge::new(Workshop::new(&package).unwrap().prepare(&policy()).unwrap());
    let mut seen = BTreeMap::<u32, u64>::new();
    for (camera, prediction, image) in heard {
        let number = seen.entry(camera).or_default();
        assert_eq!(prediction.frame, *number, "camera {camera}");
        assert_eq!(image, (137 * u64::from(camera) + *number) % images.len() as u64);
        *number += 1;
        let pixels = images.pixels(image as usize).unwrap();
        let alone = single
            .run(prediction.frame, pixels, Facts::default(), &mut judge)
            .unwrap();
        let latency_us = prediction.latency_us;
        assert_eq!(prediction, Prediction { latency_us, ..alone });
    }
    assert_eq!(seen.into_values().collect::<Vec<_>>(), [u64::from(FRAMES); 5]);
    for camera in &outcome.cameras {
        assert_eq!((camera.arrived, camera.predicted, camera.dropped), (300, 300, 0));
    }

    let mut frames = BTreeMap::<String, u64>::new();
    for summary in summaries(folder.path()) {
        let parts = summary.cameras.iter().map(|camera| camera.frames).sum::<u64>();
        assert_eq!(parts, summary.frames);
        assert_eq!((summary.dropped, summary.hurried), (0, 0));
        for camera in summary.cameras {
            *frames.entry(camera.name).or_default() += camera.frames;
        }
    }
    let expected = (0..5).map(|camera| (format!("camera-{camera}"), 300));
    assert_eq!(frames, expected.collect());
}

#[test]
fn each_camera_learns_for_itself_and_finds_its_heads_again() {
    let folder = temp_dir();
    let package = package::open(package::EMBEDDED).unwrap();
    let images = sample::stream().unwrap();
    let sources = |frames| {
        [("gate", 0u16), ("yard", 8)].map(|(name, class)| {
            let order = images.of_classes(&[class]).into_iter().take(frames).collect();
            let camera = Playback::new(images.clone().into(), order).unwrap();
            Source {
                name: name.into(),
                ..Source::new(Box::new(camera), Box::new(|_, _, _| ()))
            }
        })
    };
    let learning = package::settings(&package);
    let first = run(folder.path(), &package, learning, 2, sources(100).into());
    let heads: Vec<_> = first.cameras.iter().map(|camera| &camera.heads).collect();
    assert_ne!(heads[0], heads[1], "they have seen different things");
    {
        let (store, _) = Store::open(&folder.path().join("state.redb"), Limits::default()).unwrap();
        for camera in &first.cameras {
            assert_eq!(store.checkpoints(&camera.name).unwrap()[0].heads, camera.heads);
        }
        assert_eq!(store.checkpoints("").unwrap(), []);
    }
    // Without a frame nothing is learned: what comes out is what was found.
    let again = run(folder.path(), &package, learning, 2, sources(0).into());
    for (before, after) in first.cameras.iter().zip(&again.cameras) {
        assert_eq!(before.heads, after.heads, "{}", before.name);
    }
}

/// Shows as many frames as it is told to, and tells when it is asked for one.
struct Told {
    shape: FrameShape,
    asked: Sender<u64>,
    go: Receiver<bool>,
    shown: u64,
}

impl Camera for Told {
    fn shape(&self) -> FrameShape {
        self.shape
    }

    fn next(&mut self, frame: &mut Frame) -> Result<bool, offramp_camera::Error> {
        self.asked.send(self.shown).unwrap();
        if !self.go.recv().unwrap() {
            return Ok(false);
        }
        frame.pixels.resize(self.shape.bytes(), 0);
        frame.id = self.shown;
        self.shown += 1;
        Ok(true)
    }
}

#[test]
fn under_overload_the_newest_frame_is_served_and_the_others_are_counted() {
    let folder = temp_dir();
    let package = package::open(package::EMBEDDED).unwrap();
    let shape = sample::stream().unwrap().shape();
    let (asked_tx, asked) = channel();
    let (go_tx, go) = channel();
    let camera = Told {
        shape,
        asked: asked_tx,
        go,
        shown: 0,
    };
    let (told, heard) = channel();
    let mut overload = Some((asked, go_tx.clone()));
    let listener = move |_: &Prediction, frame: &Frame, _: &[String]| {
        told.send(frame.id).unwrap();
        // While the first frame is being served five more come, one by one, and then no more.
        if let Some((asked, go)) = overload.take() {
            while asked.recv().unwrap() < 1 {}
            for shown in 2..=6 {
                go.send(true).unwrap();
                assert_eq!(asked.recv().unwrap(), shown);
            }
            go.send(false).unwrap();
        }
    };
    let source = Source {
        name: "live".into(),
        drop: DropPolicy::Oldest,
        ..Source::new(Box::new(camera), Box::new(listener))
    };
    go_tx.send(true).unwrap();
    let outcome = run(folder.path(), &package, settings(&package), 1, vec![source]);
    assert_eq!(heard.iter().collect::<Vec<_>>(), [0, 5]);
    let camera = &outcome.cameras[0];
    assert_eq!((camera.arrived, camera.predicted, camera.dropped), (2, 2, 4));
    let dropped: u64 = summaries(folder.path()).iter().map(|summary| summary.dropped).sum();
    assert_eq!(dropped, 4);
}

#[test]
fn a_panic_ends_the_agent_whoever_else_works() {
    let folder = temp_dir();
    let package = package::open(package::EMBEDDED).unwrap();
    let images = sample::stream().unwrap();
    let sources = (0..3).map(|camera: u32| {
        let listener = move |prediction: &Prediction, _: &Frame, _: &[String]| {
            assert!(camera != 1 || prediction.frame < 5, "as it should");
        };
        Source {
            name: format!("camera-{camera}"),
            ..Source::new(playback(&images, camera, 2_000), Box::new(listener))
        }
    });
    let sources = sources.collect();
    let run = || run(folder.path(), &package, settings(&package), 2, sources);
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
}

#[test]
fn a_camera_that_panics_has_ended_and_the_others_go_on() {
    struct Broken(FrameShape);
    impl Camera for Broken {
        fn shape(&self) -> FrameShape {
            self.0
        }

        fn next(&mut self, _: &mut Frame) -> Result<bool, offramp_camera::Error> {
            panic!("as it should")
        }
    }
    let folder = temp_dir();
    let package = package::open(package::EMBEDDED).unwrap();
    let images = sample::stream().unwrap();
    let cameras: [(&str, Box<dyn Camera>); 2] = [
        ("broken", Box::new(Broken(images.shape()))),
        ("whole", playback(&images, 0, 50)),
    ];
    let sources = cameras.map(|(name, camera)| Source {
        name: name.into(),
        ..Source::new(camera, Box::new(|_, _, _| ()))
    });
    let outcome = run(folder.path(), &package, settings(&package), 2, sources.into());
    let predicted: Vec<_> = outcome.cameras.iter().map(|camera| camera.predicted).collect();
    assert_eq!(predicted, [0, 50]);
}
