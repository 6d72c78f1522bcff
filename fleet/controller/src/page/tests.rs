use std::collections::BTreeMap;

use offramp_proto::{BootId, CameraReport, Digest, LearnerSettings, LogLevel};

use super::*;
use crate::forecast::{Forecast, Mix, ModelForecast};
use crate::overview::DeviceOverview;
use crate::overview::{Disagreement, Life, Overview, Progress, Recent, Running, Saving};
use crate::rollout::{Gauge, Member, MemberState, Observed, Plan, Rollout, State, Sums, Verdict};
use crate::store::{Artifact, ArtifactKind, AuditEntry, KeptModel, RolloutView};
use crate::store::{DesiredState, Device, Event, Group, Guard, History, Model, ReportedState, Run, Wanted, Window};
use crate::totals::Figures;

const HOSTILE: &str = "<script>alert('x')</script>\"&";

/// A camera; the learning of one named "yard" is paused.
fn camera(name: &str) -> CameraReport {
    CameraReport {
        name: name.into(),
        frames: 50,
        dropped: 7,
        exits: vec![40, 10],
        macs: 10,
        full_macs: 40,
        paused: name == "yard",
        ..CameraReport::default()
    }
}

fn overview(name: &str, text: &str) -> DeviceOverview {
    DeviceOverview {
        saving: Some(Saving {
            learned: 0.375,
            frozen: 0.5,
            error: 0.015625,
            audits: 256,
            ms: Some(1.25),
            mj: Some(9.5),
        }),
        device: Device {
            device: name.into(),
            first_seen: 1000,
            last_seen: 60_000,
            alive: true,
            boot: Some(BootId([1; 16])),
            started_at: Some(500),
            agent: Some(text.into()),
            model: Some(Model {
                name: text.into(),
                version: 3,
                digest: Some(Digest([2; 32])),
                classes: vec![text.into(), "boot".into()],
                stage_macs: vec![1_000_000, 2_000_000],
            }),
            capabilities: vec![text.into()],
            quarantine: None,
            certificate_ends: None,
            labels: [("site".to_owned(), "north".to_owned())].into(),
            reported: Some(ReportedState {
                refused_generation: None,
                at: 50_000,
                generation: 4,
                policy: text.into(),
                version: 2,
                source: "desired".into(),
                refused: Some(text.into()),
            }),
        },
        life: Life::Alive,
        recent: Recent {
            frames: 100,
            macs: 41,
            full_macs: 100,
            stage_us: 20_000,
            drift: Some(0.0625),
            watts: Some(7.5),
            exits: vec![60, 30, 10],
            classes: vec![(0, 70), (1, 20), (900, 10)],
            dropped: 0,
            hurried: 0,
            cameras: ["gate", text].map(camera).into(),
            engines: vec!["fused".into(), text.into()],
        },
        frames: 123_456,
        disagreement: Some(Disagreement {
            estimate: 0.0125,
            bound: 0.034,
            audits: 250,
        }),
        guard: None,
        desired: Some(DesiredState {
            device: name.into(),
            generation: 5,
            issued_at: 40_000,
            policy: Some((text.into(), 3)),
            model: Some((text.into(), 4)),
            settings: Wanted {
                learner: LearnerSettings {
                    enabled: Some(false),
                    accuracy_budget: Some(0.02),
                    ..LearnerSettings::default()
                },
                log: Some(LogLevel::Debug),
            },
            signed: vec![],
        }),
        progress: Progress::Refused(text.into()),
        running: Some(Running {
            policy: text.into(),
            version: 2,
            source: Some("desired".into()),
        }),
    }
}

fn figures(devices: &[DeviceOverview]) -> Arc<Figures> {
    let mut figures = Figures::default();
    devices.iter().for_each(|device| figures.add(device));
    Arc::new(figures)
}

fn event(text: &str) -> Event {
    Event {
        device: "cam-1".into(),
        sequence: 1,
        received_at: 60_000,
        at: 60_000,
        kind: text.into(),
        message: text.into(),
        facts: BTreeMap::new(),
    }
}

fn guard(loss: f64, loss_bound: f64, paused: bool) -> Guard {
    Guard {
        threshold: 0.825,
        loss,
        loss_bound,
        audits: 256,
        promotions: 2,
        paused,
        contexts: 3,
        bytes: 2_600_000,
    }
}

fn fleet_page(text: &str) -> String {
    fleet_page_of(vec![overview("cam-1", text)], text)
}

fn fleet_page_of(devices: Vec<DeviceOverview>, text: &str) -> String {
    let page = FleetPage {
        figures: figures(&devices),
        overview: Overview { devices, cut: false },
        select: String::new(),
        problem: None,
        groups: Vec::new(),
        after: String::new(),
        rollouts: vec![rollout(text)],
        policies: vec![Artifact {
            name: text.into(),
            version: 2,
            digest: Some(Digest([9; 32])),
            size: 11_500,
            added_at: 1,
            desired: 1,
            reported: 0,
        }],
        models: vec![KeptModel {
            artifact: Artifact {
                name: text.into(),
                version: 4,
                digest: Some(Digest([8; 32])),
                size: 1_500_000,
                added_at: 1,
                desired: 1,
                reported: 1,
            },
            manifest: None,
            url: None,
        }],
        events: vec![event(text)],
        broker: "mqtt://localhost:1883".into(),
        now: 70_000,
    };
    let frame = Frame {
        tenant: "tenant".into(),
        trouble: Some(text.into()),
        refused: 3,
        identity: crate::access::Identity::local(),
    };
    layout(&frame, None, &page.render()).into_string()
}

fn rollout(text: &str) -> RolloutView {
    RolloutView {
        id: 3,
        name: text.into(),
        version: 2,
        parameters: BTreeMap::new(),
        rollout: Rollout {
            kind: ArtifactKind::Policy,
            plan: Plan::default(),
            state: State::Running,
            wave: 1,
            wave_since: 0,
        },
        reason: Some(text.into()),
        gauges: vec![Gauge {
            gate: text.into(),
            bound: 0.05,
            value: Some(0.5),
            before: None,
            verdict: Verdict::Fails,
        }],
        forecast: Some(Forecast {
            models: vec![ModelForecast {
                model: text.into(),
                version: 1,
                digest: text.into(),
                devices: 2,
                pieces: 3,
                frames: 400,
                scored: 200,
                not_represented: 0,
                today: Mix {
                    cost: Some(0.4),
                    exits: vec![0.7, 0.3],
                    agreement: Some(0.98),
                },
                foreseen: Mix {
                    cost: Some(0.525),
                    exits: vec![0.5, 0.5],
                    agreement: Some(0.99),
                },
                faults: 0,
                fault: None,
                recorded: 400,
                changed: 20,
                refused: None,
            }],
            left_out: 0,
        }),
        first_row: 0,
        created_at: 1,
        created_by: text.into(),
        changed_at: 2,
        devices: [
            (MemberState::Proven, 3),
            (MemberState::Waiting, 9),
            (MemberState::Failed, 1),
        ]
        .into(),
    }
}

fn rollout_page(text: &str) -> String {
    let member = Member {
        device: text.into(),
        state: MemberState::Failed,
        why: Some(text.into()),
        wave: Some(1),
        generation: 4,
        ordered_at: 1,
        was_alive: true,
        in_force_at: 0,
        boot: None,
        restarts: 0,
        before: Sums::default(),
        now: Observed::default(),
    };
    let page = RolloutPage {
        rollout: rollout(text),
        members: vec![member],
        may_command: true,
        log: vec![AuditEntry {
            id: 1,
            at: 1,
            who: text.into(),
            what: text.into(),
            subject: "rollout 3".into(),
            detail: text.into(),
        }],
        now: 100_000,
    };
    let frame = Frame {
        tenant: "tenant".into(),
        trouble: None,
        refused: 0,
        identity: crate::access::Identity::local(),
    };
    layout(&frame, Some("Rollout 3"), &page.render()).into_string()
}

fn window(sequence: u64, policy: &str) -> Window {
    Window {
        device: "cam-1".into(),
        boot: vec![1; 16],
        sequence,
        start: sequence * 1000,
        end: sequence * 1000 + 1000,
        frames: 10,
        exits: vec![6, 3, 1],
        macs: 400,
        full_macs: 1000,
        audits: 2,
        disagreements: sequence % 2,
        bound: 0.3,
        rollbacks: 0,
        guard: None,
        control: None,
        drift: None,
        watts: None,
        stage_us: 0,
        classes: vec![(0, 10)],
        policy: policy.into(),
        policy_version: 1,
        dropped: 0,
        hurried: 0,
        cameras: Vec::new(),
        engines: Vec::new(),
    }
}

fn device_page(text: &str, windows: Vec<Window>) -> String {
    let page = DevicePage {
        overview: DeviceOverview {
            guard: windows.last().and_then(|w| w.guard),
            ..overview("cam-1", text)
        },
        history: History {
            windows,
            before: [(vec![1; 16], Run::default())].into(),
        },
        events: vec![event(text)],
        range: Range::named(None),
        may_command: true,
        now: 70_000,
    };
    let frame = Frame {
        tenant: "tenant".into(),
        trouble: None,
        refused: 0,
        identity: crate::access::Identity::local(),
    };
    layout(&frame, Some("cam-1"), &page.render()).into_string()
}

/// The fleet's insight, of one device in one group.
fn insight_page(text: &str) -> String {
    let figures = figures(&[overview("cam-1", text)]);
    let group = Group {
        name: "night".into(),
        selector: "site=north".into(),
        changed_at: 1,
        changed_by: text.into(),
    };
    let page = InsightPage {
        groups: vec![(group, Arc::clone(&figures))],
        figures,
        cut: 0,
    };
    let frame = Frame {
        tenant: "acme".into(),
        trouble: None,
        refused: 0,
        identity: crate::access::Identity::local(),
    };
    layout(&frame, Some("Insight"), &page.render()).into_string()
}

/// The page of a version that one device has.
fn version_page(text: &str, of: Of) -> String {
    let devices = vec![overview("cam-1", text)];
    let page = VersionPage {
        name: text.into(),
        version: 3,
        of,
        rollouts: vec![rollout(text)],
        totals: figures(&devices).all.clone(),
        devices: Overview { devices, cut: false },
        select: format!("model={text}"),
        now: 70_000,
    };
    let frame = Frame {
        tenant: "acme".into(),
        trouble: None,
        refused: 0,
        identity: crate::access::Identity::local(),
    };
    layout(&frame, Some("version"), &page.render()).into_string()
}

#[test]
fn a_version_has_its_figures_rollouts_and_devices() {
    let page = version_page("shoes", Of::Policy(None));
    for part in [
        "shoes 3",
        "25.0\u{202f}%",
        "41.0\u{202f}%",
        "href=\"/devices/cam-1\"",
        "/rollouts/",
        "boot",
    ] {
        assert!(page.contains(part), "{part} is missing: {page}");
    }
    let page = version_page("shoes", Of::Model(None));
    assert!(
        page.contains("Stages") && page.contains("of their own configuration"),
        "{page}"
    );
}

#[test]
fn insight_tells_what_is_saved_by_policy_model_group_and_label() {
    let page = insight_page("shoes");
    for part in [
        "By policy",
        "By model",
        "href=\"/?select=group%3Dnight#devices\"",
        "href=\"/?select=site%3Dnorth#devices\"",
        "37.5\u{202f}% / 50.0\u{202f}%",
        "25.0\u{202f}%",
        "≥\u{202f}19.9\u{202f}%",
        "1.25",
        "9.5",
        "shoes 78\u{202f}%, boot 22\u{202f}%",
    ] {
        assert!(page.contains(part), "{part} is missing: {page}");
    }
    let empty = InsightPage {
        figures: figures(&[]),
        groups: Vec::new(),
        cut: 0,
    };
    let empty = empty.render().into_string();
    assert!(
        empty.contains("Not enough audits yet") && empty.contains("offramp-fleet group set"),
        "{empty}"
    );
}

#[test]
fn first_page_answers_the_questions() {
    let page = fleet_page("threshold");
    for answer in [
        "Saved against frozen heads",
        "cam-1",
        "41.0\u{202f}%",
        "1.2\u{202f}%",
        "3.4\u{202f}%",
        "123\u{202f}456",
        "4 → 5",
        "refused",
        "10\u{202f}s ago",
    ] {
        assert!(page.contains(answer), "{answer} is missing");
    }
    assert!(page.contains("exit 1 60\u{202f}%, exit 2 30\u{202f}%, exit 3 (whole network) 10\u{202f}%"));
}

#[test]
fn devices_that_do_not_fit_are_a_page_away() {
    let devices = vec![overview("cam-1", "a"), overview("cam-2", "a")];
    let mut page = FleetPage {
        figures: figures(&devices),
        overview: Overview { devices, cut: true },
        select: String::new(),
        problem: None,
        groups: Vec::new(),
        after: String::new(),
        rollouts: vec![],
        policies: vec![],
        models: vec![],
        events: vec![],
        broker: String::new(),
        now: 70_000,
    };
    let first = page.render().into_string();
    assert!(
        first.contains("href=\"/?after=cam-2#devices\"") && !first.contains(">First<"),
        "{first}"
    );
    (page.after, page.overview.cut) = ("cam-0".into(), false);
    let last = page.render().into_string();
    assert!(last.contains(">First<") && !last.contains("after=cam-2"), "{last}");
}

#[test]
fn first_page_without_devices_says_what_to_do() {
    let page = FleetPage {
        figures: figures(&[]),
        overview: Overview {
            devices: vec![],
            cut: false,
        },
        select: String::new(),
        problem: None,
        groups: Vec::new(),
        after: String::new(),
        rollouts: vec![],
        policies: vec![],
        models: vec![],
        events: vec![],
        broker: "mqtt://localhost:1883".into(),
        now: 0,
    };
    let page = page.render().into_string();
    assert!(page.contains("mqtt://localhost:1883"));
    assert!(page.contains("offramp-fleet policy push"));
}

#[test]
fn nothing_that_a_device_says_becomes_markup() {
    let swap = vec![window(1, "a"), window(2, HOSTILE), window(3, HOSTILE)];
    let pages = [
        fleet_page(HOSTILE),
        device_page(HOSTILE, swap),
        rollout_page(HOSTILE),
        insight_page(HOSTILE),
        version_page(HOSTILE, Of::Model(None)),
        version_page(HOSTILE, Of::Policy(None)),
    ];
    for page in pages {
        assert!(page.contains("&lt;script&gt;alert"));
        // The only script is ours, in the head.
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.matches("alert('x')</script>").count() == 0);
        assert!(!page.contains("\"&\""));
    }
}

#[test]
fn a_rollout_is_told_in_words_and_its_failures_by_name() {
    let (first, own) = (fleet_page("entropy"), rollout_page("entropy"));
    for page in [&first, &own] {
        assert!(page.contains("3 of 13 proven, 1 failed"), "{page}");
        assert!(page.contains("running"));
    }
    assert!(first.contains("href=\"/rollouts/3\""));
    assert!(own.contains("action=\"/rollouts/3/pause\""));
    assert!(own.contains("fails") && own.contains("Who did what"));
    assert!(own.contains("52.5\u{202f}%") && own.contains("400 frames of 2 devices, 200 known"));
}

#[test]
fn charts_are_drawn_and_told_in_words() {
    let page = device_page(
        "threshold",
        (0..30).map(|i| window(i, if i < 15 { "one" } else { "two" })).collect(),
    );
    assert_eq!(page.matches("class=\"drawing\"").count(), 3);
    assert!(page.contains("▾ two 1"));
    assert!(page.contains("exit 1 from 60.0\u{202f}% to 60.0\u{202f}%"));
    assert!(
        page.contains("Cost as a share of the full network: from 40.0\u{202f}% at first to 40.0\u{202f}% at last.")
    );
}

#[test]
fn settings_that_are_wanted_are_told() {
    let page = device_page("a", vec![window(1, "a")]);
    assert!(
        page.contains("learning off, accuracy budget 2.0\u{202f}%, log debug"),
        "{page}"
    );
}

#[test]
fn several_cameras_have_a_row_each() {
    let page = device_page("yard", vec![]);
    let rows = page
        .split("id=\"cameras\"")
        .nth(1)
        .unwrap()
        .split("</table>")
        .next()
        .unwrap();
    let rows: Vec<&str> = rows.split("<tr>").skip(2).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows[0].contains("gate") && rows[0].contains("80\u{202f}% · 20\u{202f}%") && rows[0].contains(">7<"));
    assert!(rows[1].contains("yard") && rows[1].contains("learning paused") && !rows[0].contains("paused"));
    assert!(page.contains("fused, yard"), "what runs the stages");
}

#[test]
fn device_without_summaries_has_a_page() {
    let page = device_page("threshold", vec![]);
    assert!(page.contains("No summaries in this range."));
}

#[test]
fn windows_without_frames_and_jumping_clocks_are_drawn() {
    let mut odd = vec![window(5, "a"), window(1, "a"), window(9, "a")];
    odd[0].frames = 0;
    odd[0].exits = vec![0, 0, 0];
    odd[0].full_macs = 0;
    odd[1].start = u64::MAX;
    odd[1].end = u64::MAX;
    odd[2].start = 0;
    odd[2].end = 0;
    odd[2].exits = vec![];
    assert!(device_page("threshold", odd).contains("class=\"drawing\""));
}

#[test]
fn accuracy_given_up_is_shown_with_its_bound_and_drawn() {
    let mut windows: Vec<_> = (0..30).map(|i| window(i, "one")).collect();
    for window in &mut windows[10..] {
        window.guard = Some(guard(0.004, 0.012, false));
        window.rollbacks = 1;
    }
    let page = device_page("threshold", windows);
    for part in [
        "0.4\u{202f}%<small> expected",
        "≤\u{202f}1.2\u{202f}% (95\u{202f}%)</p>",
        "256 audits, threshold 0.82",
        "2.6\u{202f}MB, 3 contexts",
        "40 promoted, 20 rolled back within 1 hour",
        "Expected accuracy given up: from 0.4\u{202f}% at first to 0.4\u{202f}% at last.",
        "Its upper bound: from 1.2\u{202f}% at first to 1.2\u{202f}% at last.",
    ] {
        assert!(page.contains(part), "{part} is missing");
    }
    assert_eq!(page.matches("class=\"drawing\"").count(), 4);
    assert!(!page.contains("paused"));
}

#[test]
fn accuracy_below_zero_is_gained() {
    let page_of = |loss, bound| {
        let mut windows = vec![window(1, "one"), window(2, "one")];
        windows[1].guard = Some(guard(loss, bound, false));
        device_page("threshold", windows)
    };
    let page = page_of(-0.004, 0.012);
    assert!(page.contains("0.4\u{202f}%<small> gained"));
    assert!(page.contains("≤\u{202f}1.2\u{202f}% given up (95\u{202f}%)"));
    assert!(page.contains("\u{2212}2 %</text>"), "the axis goes below zero");
    let page = page_of(-0.02, -0.004);
    assert!(page.contains("≥\u{202f}0.4\u{202f}% gained (95\u{202f}%)"));
}

#[test]
fn agent_that_does_not_tell_of_its_guard_has_a_page() {
    let page = device_page("threshold", vec![window(1, "one"), window(2, "one")]);
    assert!(page.contains("Its agent does not tell"));
    assert!(!page.contains("contexts"));
}

#[test]
fn paused_device_is_marked_on_both_pages() {
    let mut windows = vec![window(1, "one"), window(2, "one")];
    windows[1].guard = Some(guard(0.004, 0.012, true));
    assert!(device_page("threshold", windows).contains("<strong>Learning is paused. </strong>"));

    let paused = DeviceOverview {
        guard: Some(guard(-0.004, 0.012, true)),
        ..overview("cam-2", "threshold")
    };
    let page = fleet_page_of(vec![overview("cam-1", "threshold"), paused], "threshold");
    assert_eq!(page.matches(">learning paused</span>").count(), 1);
    assert!(page.contains("Learning paused: <a href=\"/devices/cam-2\">cam-2</a>"));
    assert!(page.contains("≤\u{202f}1.2\u{202f}% given up on <a href=\"/devices/cam-2\">cam-2</a>"));
    assert!(page.contains("\u{2212}0.4\u{202f}%"));
    assert!(!fleet_page("threshold").contains("learning paused"));
}
