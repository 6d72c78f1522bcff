//! Exit traces that an agent records.

use std::fs::File;
use std::io::BufReader;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::channel;

use offramp::agent::{Agent, Options, Source, TraceOptions};
use offramp::judge::{PolicyJudge, PolicySource, Workshop};
use offramp::lane::Judge as _;
use offramp::package;
use offramp_broker::{Broker, Persistence};
use offramp_camera::{Frame as Picture, Playback, sample};
use offramp_core::{AuditResult, ExitView, Prediction};
use offramp_fleet::Target;
use offramp_proto::Event;
use offramp_store::{Limits, Store};
use offramp_test_support::temp_dir;
use offramp_trace::{Frame, Header, Reader, Replay, files};

use crate::cameras::options;
use crate::device::Device;
use crate::kill::{controller, upload};

/// No more than may wait for the disk: however busy the machine is, none is left out.
const FRAMES: u32 = 200;

/// Lets an agent record; gives its predictions.
fn record(folder: &Path, trace: TraceOptions) -> Vec<Prediction> {
    let package = package::embedded().unwrap();
    let images = sample::stream().unwrap();
    let camera = Playback::new(images.into(), (0..FRAMES).collect()).unwrap();
    let (told, heard) = channel();
    let listener = move |prediction: &Prediction, _: &Picture, _: &[String]| told.send(*prediction).unwrap();
    let options = Options {
        trace: Some(trace),
        // Learning goes on: a trace holds what was seen at the time.
        ..options(folder, package::settings(&package), 1)
    };
    let source = Source::new(Box::new(camera), Box::new(listener));
    Agent::start(options, &package, vec![source]).unwrap().join();
    heard.into_iter().collect()
}

fn trace_options(folder: &Path) -> TraceOptions {
    TraceOptions {
        folder: folder.join("traces"),
        file_bytes: 1 << 20,
        files: 4,
        features: false,
        complete_share: 0.2,
        share_bytes: 0,
    }
}

fn read(folder: &Path) -> (Header, Vec<Frame>) {
    let paths = files(&folder.join("traces")).unwrap();
    assert_eq!(paths.len(), 1, "{paths:?}");
    let reader = Reader::new(BufReader::new(File::open(&paths[0]).unwrap())).unwrap();
    (reader.header().clone(), reader.collect::<Result<_, _>>().unwrap())
}

#[test]
fn a_trace_tells_what_was_seen_and_answered_and_replays_to_the_same_verdicts() {
    let folder = temp_dir();
    let predictions = record(folder.path(), trace_options(folder.path()));
    let (header, frames) = read(folder.path());
    assert_eq!(frames.len(), FRAMES as usize);
    for (frame, prediction) in frames.iter().zip(&predictions) {
        let taken = frame.taken.unwrap();
        assert_eq!((frame.number, u32::from(taken)), (prediction.frame, prediction.exit));
        let view = &frame.exits[usize::from(taken)].view;
        assert_eq!(view.class, prediction.class);
        assert!(frame.latency > 0.0 && frame.label.is_none() && frame.policy.is_some());
        let last = frame.exits.last().unwrap().view;
        match frame.audit {
            AuditResult::None => assert_eq!(usize::from(taken) + 1, frame.exits.len()),
            AuditResult::Agreed => assert_eq!(last.class, view.class),
            AuditResult::Differed => assert_ne!(last.class, view.class),
        }
    }
    let complete = frames.iter().filter(|frame| frame.exits.len() == header.exits());
    assert!(
        complete.count() > FRAMES as usize / 10,
        "some are audited for the trace"
    );

    // The policy of the agent, in a host of its own.
    let package = package::embedded().unwrap();
    let source = PolicySource::threshold([("threshold".to_owned(), offramp_proto::Parameter::Number(0.9))].into());
    let workshop = Workshop::new(&package).unwrap();
    assert_eq!(workshop.facts().exit_costs, header.stage_shares());
    let mut judge = PolicyJudge::new(workshop.prepare(&source).unwrap());
    let mut replay = Replay::default();
    for frame in &frames {
        judge.start_frame();
        let exit = replay.add(&header, frame, 1.0, &mut |view: &ExitView| judge.decide(view).0);
        assert_eq!(exit, frame.taken.map(usize::from));
    }
    assert_eq!((replay.unanswered, replay.changed), (0, 0));
    assert!(replay.recorded >= u64::from(FRAMES));
}

#[test]
fn features_are_recorded_where_they_are_asked_for() {
    let folder = temp_dir();
    let options = TraceOptions {
        features: true,
        complete_share: 0.0,
        share_bytes: 0,
        ..trace_options(folder.path())
    };
    record(folder.path(), options);
    let (header, frames) = read(folder.path());
    let package = package::embedded().unwrap();
    let widths: Vec<u32> = package.heads().iter().map(|head| head.features as u32).collect();
    assert_eq!(header.features, widths);
    for seen in frames.iter().flat_map(|frame| &frame.exits) {
        // Layer-normalised: ‖u‖² = C, but for the rounding to halves.
        let energy: f32 = seen.features.iter().map(|u| u.to_f32() * u.to_f32()).sum();
        let c = seen.features.len() as f32;
        assert!((energy / c - 1.0).abs() < 0.05, "{energy} of {c}");
    }
}

#[test]
fn files_that_cannot_be_written_end_the_recording_and_not_the_frames() {
    let folder = temp_dir();
    // The oldest is to make room, and cannot be removed as a file is.
    let options = TraceOptions {
        files: 1,
        ..trace_options(folder.path())
    };
    std::fs::create_dir_all(options.folder.join("camera-00000001.trace")).unwrap();
    let predictions = record(folder.path(), options);
    assert_eq!(predictions.len(), FRAMES as usize);
    let (store, _) = Store::open(&folder.path().join("state.redb"), Limits::default()).unwrap();
    let records = store.records_after(0, usize::MAX, u64::MAX).unwrap();
    let events = records.iter().filter(|record| record.topic == "up/event");
    let events: Vec<Event> = events
        .map(|record| offramp_proto::decode(&record.payload).unwrap())
        .collect();
    assert!(events.iter().any(|event| event.kind == "trace-failed"), "{events:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_shares_the_controller_replays_bit_for_bit() {
    let folder = temp_dir();
    let broker = Broker::start(([127, 0, 0, 1], 0).into(), Persistence::Memory)
        .await
        .unwrap();
    let controller = controller(&broker).await;
    let policy = upload(7, 0.85);
    controller.push_policy(Target::Nobody, policy).await.unwrap();
    let url = format!("mqtt://{}", broker.address());
    let device = Device::new(folder.path(), "sharing", Some((&url, &controller.public_key())));
    device.configure(
        "[policy]\nname = \"threshold\"\nparameters = { threshold = 0.85 }\n\
         [trace]\nfolder = \"traces\"\ncomplete_share = 0.2\nshare_kb = 1000000\n",
    );
    let mut agent = device.start();
    let mut shown = 0;
    while controller.statistics().traces < 2 {
        agent.show((shown..shown + 50).map(|number| device.frame(number)));
        shown += 50;
        assert!(shown < 100_000, "nothing is shared");
    }
    agent.end();
    let address = controller.address();
    let forecast = tokio::task::spawn_blocking(move || {
        fetch(address, "/api/v1/policies/threshold/7/replay?parameter=threshold=0.85")
    });
    let forecast = forecast.await.unwrap();
    let model = &forecast["models"][0];
    assert!(model["frames"].as_u64().unwrap() > 500, "{model}");
    assert!(model["scored"].as_u64().unwrap() > 100 && model["scored"].as_u64() < model["frames"].as_u64());
    assert!(model["recorded"].as_u64().unwrap() >= model["frames"].as_u64().unwrap());
    assert_eq!(
        (model["changed"].as_u64(), model["faults"].as_u64()),
        (Some(0), Some(0)),
        "{model}"
    );
    assert_eq!(model["today"], model["foreseen"]);
    controller.shutdown().await;
}

/// Fetches JSON.
fn fetch(address: SocketAddr, path: &str) -> serde_json::Value {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}
