//! Headers and frames to be written, made up.

use offramp_core::{AuditResult, ExitView, Facts, Verdict};
use offramp_proto::Digest;
use offramp_trace::{Frame, Header, PolicyId, Reader, Seen, TraceError, Writer};
use proptest::prelude::*;

pub(crate) const FEATURES: [u32; 3] = [2, 3, 4];

pub(crate) fn header(features: bool) -> Header {
    Header {
        model: "some-model".into(),
        model_version: 3,
        model_digest: Digest::of(b"manifest"),
        classes: 10,
        stage_macs: vec![100, 300, 700],
        exit_costs: vec![0.1, 0.4, 1.0],
        features: if features { FEATURES.to_vec() } else { vec![] },
        camera: "gate".into(),
        started_at: 1_700_000_000_000,
    }
}

/// A view as the header has it.
pub(crate) fn view(header: &Header, exit: usize, class: u32, confidence: f32) -> ExitView {
    let shares = header.stage_shares();
    let macs = &header.stage_macs;
    ExitView {
        exit: exit as u32,
        exits: header.exits() as u32,
        class,
        confidence,
        margin: confidence / 2.0,
        entropy: 1.0 - confidence,
        agreement: false,
        change: 0.25,
        cost: shares[exit],
        next_cost: macs.get(exit + 1).copied().unwrap_or(0) as f32 / macs.iter().sum::<u64>() as f32,
        time_left: f32::NAN,
        queue_depth: 0,
        temperature: f32::NAN,
        power_budget: f32::NAN,
        battery: f32::NAN,
        threshold: 0.8,
    }
}

/// A frame whose exits are this sure of these classes.
pub(crate) fn frame(header: &Header, number: u64, label: u16, exits: &[(u32, f32)]) -> Frame {
    let seen = exits.iter().enumerate().map(|(exit, (class, confidence))| Seen {
        view: view(header, exit, *class, *confidence),
        verdict: None,
        by_rule: false,
        features: header
            .features
            .get(exit)
            .map_or(vec![], |c| vec![half::f16::ONE; *c as usize]),
    });
    Frame {
        number,
        label: Some(label),
        exits: seen.collect(),
        ..Frame::default()
    }
}

pub(crate) fn written(header: &Header, frames: &[Frame]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), header.clone()).unwrap();
    frames.iter().for_each(|frame| writer.push(frame).unwrap());
    writer.finish().unwrap()
}

/// All frames up to the end or the damage.
pub(crate) fn read(bytes: &[u8]) -> Result<(Vec<Frame>, Option<TraceError>), TraceError> {
    let mut reader = Reader::new(bytes)?;
    let mut frames = Vec::new();
    loop {
        match reader.next_frame() {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return Ok((frames, None)),
            Err(error) => return Ok((frames, Some(error))),
        }
    }
}

/// The text of frames: NaN is NaN there, and a float's shortest decimal stands for its bits.
pub(crate) fn text(frames: &[Frame]) -> String {
    format!("{frames:?}")
}

fn number() -> impl Strategy<Value = f32> {
    prop_oneof![3 => 0.0_f32..2.0, 1 => Just(f32::NAN), 1 => Just(f32::MIN_POSITIVE), 1 => -40.0_f32..1e6]
}

pub(crate) fn any_frame(features: bool) -> impl Strategy<Value = Frame> {
    let verdict = prop_oneof![
        Just(None),
        Just(Some(Verdict::GoOn)),
        Just(Some(Verdict::Leave)),
        Just(Some(Verdict::LeaveWithoutLearning)),
        Just(Some(Verdict::Audit)),
    ];
    let seen = (
        0..10_u32,
        any::<[bool; 2]>(),
        verdict,
        [number(), number(), number(), number(), number()],
        proptest::collection::vec(any::<u16>(), 4),
    );
    let audit = prop_oneof![
        Just(AuditResult::None),
        Just(AuditResult::Agreed),
        Just(AuditResult::Differed)
    ];
    let deadline = any::<bool>();
    (
        any::<u64>(),
        proptest::option::of(0..10_u16),
        proptest::option::of(any::<[u8; 2]>()),
        proptest::option::of((any::<u32>(), [number(), number(), number()])),
        (
            [number(), number(), number(), number()],
            any::<[bool; 2]>(),
            audit,
            deadline,
        ),
        proptest::collection::vec(seen, 1..=3),
        any::<u8>(),
    )
        .prop_map(
            move |(number, label, policy, board, (times, flags, audit, deadline), seen, taken)| {
                let header = header(features);
                let mut facts = Facts::default();
                if let Some((queue, [temperature, budget, battery])) = board {
                    (facts.queue_depth, facts.temperature) = (queue, temperature);
                    (facts.power_budget, facts.battery) = (budget, battery);
                }
                let exits = seen.len() as u8;
                let seen =
                    seen.into_iter()
                        .enumerate()
                        .map(|(exit, (class, [agreement, by_rule], verdict, n, bits))| Seen {
                            view: ExitView {
                                margin: n[1],
                                entropy: n[2],
                                change: n[3],
                                agreement,
                                time_left: if deadline { n[4] } else { f32::NAN },
                                queue_depth: facts.queue_depth,
                                temperature: facts.temperature,
                                power_budget: facts.power_budget,
                                battery: facts.battery,
                                threshold: times[3],
                                ..view(&header, exit, class, n[0])
                            },
                            verdict,
                            by_rule,
                            features: header.features.get(exit).map_or(vec![], |c| {
                                bits[..*c as usize]
                                    .iter()
                                    .map(|bits| half::f16::from_bits(*bits))
                                    .collect()
                            }),
                        });
                Frame {
                    number,
                    label,
                    policy: policy.map(|[a, b]| PolicyId([a % 2, 0, 0, 0, 0, 0, 0, b % 2])),
                    facts,
                    taken: (taken % 4 < exits).then_some(taken % 4),
                    latency: times[0],
                    interval: times[1],
                    energy: times[2],
                    hurried: flags[0],
                    fault: flags[1],
                    audit,
                    exits: seen.collect(),
                }
            },
        )
}
