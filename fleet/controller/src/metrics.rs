//! `/metrics`: the fleet in the format of Prometheus (OpenMetrics), for alarms and long memories.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::api::ApiError;
use crate::named::name;
use crate::rollout::{MemberState, State as RolloutState};
use crate::statistics::Statistics;
use crate::store::{ArtifactKind, RolloutView, Selection, now};
use crate::totals::Totals;
use crate::web::Fleet;

/// Rollouts that are told of, the newest.
const MOST_ROLLOUTS: u32 = 5;
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Share = Gauge<f64, AtomicU64>;
type Labelled = Family<Vec<(&'static str, String)>, Gauge>;

pub(crate) async fn fetch(State(shared): Fleet) -> Result<impl IntoResponse, ApiError> {
    let figures = shared.totals.fetch(&shared.store, &Selection::default()).await?;
    let rollouts = shared.store.rollout_list(MOST_ROLLOUTS).await?;
    let statistics = *shared.statistics.borrow();
    let connected = matches!(*shared.link.borrow(), offramp_link::State::Connected { .. });
    let denied = shared.denied.load(Ordering::Relaxed);
    let ending = shared.store.certificates_ending(now()).await?;
    let text = render(&figures.all, &rollouts, &statistics, denied, ending, connected);
    Ok(([(header::CONTENT_TYPE, TYPE)], text))
}

fn render(
    totals: &Totals,
    rollouts: &[RolloutView],
    statistics: &Statistics,
    denied: u64,
    ending: u64,
    connected: bool,
) -> String {
    let mut registry = Registry::with_prefix("offramp");
    let link = Gauge::<i64>::default();
    link.set(i64::from(connected));
    registry.register(
        "broker_connected",
        "Whether the controller is connected to its broker",
        link,
    );

    let devices = Labelled::default();
    let states = [
        ("alive", totals.alive),
        ("silent", totals.silent.count),
        ("gone", totals.gone.count),
        ("quarantined", totals.quarantined.count),
    ];
    for (state, count) in states {
        devices.get_or_create(&vec![("state", state.into())]).set(count as i64);
    }
    registry.register("devices", "Devices by whether they live", devices);

    let desired = Labelled::default();
    let progress = [
        ("in-force", totals.in_force),
        ("pending", totals.pending.count),
        ("refused", totals.refused.count),
    ];
    for (progress, count) in progress {
        desired
            .get_or_create(&vec![("progress", progress.into())])
            .set(count as i64);
    }
    registry.register("desired_devices", "Devices by how far their desired state is", desired);

    let paused = Gauge::<i64>::default();
    paused.set(totals.paused.count as i64);
    registry.register(
        "learning_paused_devices",
        "Devices whose learning has paused after harm",
        paused,
    );

    for (name, help, devices) in [
        (
            "unprofitable_devices",
            "Devices on which learning surely saves less than 2 %",
            &totals.idle,
        ),
        (
            "drifting_devices",
            "Devices that see something else than usual",
            &totals.drifting,
        ),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(devices.count as i64);
        registry.register(name, help, gauge);
    }

    let certificates = Gauge::<i64>::default();
    certificates.set(i64::try_from(ending).unwrap_or(i64::MAX));
    registry.register(
        "certificates_ending_devices",
        "Devices that should have renewed their certificate and have not: it is in the last sixth of its time",
        certificates,
    );

    let shares = [
        (
            "cost_share",
            "Multiply-adds spent lately over the whole network's",
            totals.cost(),
        ),
        (
            "disagreement_share",
            "Share of frames whose prediction differs from the last exit's",
            totals.disagreement(),
        ),
        (
            "accuracy_given_up",
            "Accuracy given up against the last exit, in expectation",
            totals.loss(),
        ),
        (
            "saved_share",
            "What learning saves of the multiply-adds that frozen heads would have taken",
            totals.saving().map(|saving| saving.share()),
        ),
    ];
    for (name, help, value) in shares {
        // What is not known is left out: a zero would be an answer.
        if let Some(value) = value {
            let share = Share::default();
            share.set(value);
            registry.register(name, help, share);
        }
    }

    let members = Labelled::default();
    for rollout in rollouts {
        for (state, state_name) in MemberState::ALL {
            let labels = vec![
                ("rollout", rollout.id.to_string()),
                (
                    name(&ArtifactKind::ALL, rollout.rollout.kind),
                    format!("{} {}", rollout.name, rollout.version),
                ),
                (
                    "rollout_state",
                    name(&RolloutState::ALL, rollout.rollout.state).to_owned(),
                ),
                ("state", state_name.to_owned()),
            ];
            let count = rollout.count(state);
            members.get_or_create(&labels).set(count as i64);
        }
    }
    registry.register(
        "rollout_devices",
        "Devices of the newest rollouts by how far they are",
        members,
    );

    let counters = [
        ("messages_received", "Messages of devices", statistics.received),
        (
            "summaries_stored",
            "Summaries that were new and are kept",
            statistics.ingested,
        ),
        (
            "summaries_repeated",
            "Summaries that were here already",
            statistics.duplicates,
        ),
        ("events_stored", "Events that were new and are kept", statistics.events),
        ("messages_refused", "Messages that were refused", statistics.refused),
        (
            "requests_denied",
            "Requests with a token or session that does not hold",
            denied,
        ),
        (
            "certificates_renewed",
            "Certificates of devices that were renewed",
            statistics.renewals,
        ),
        (
            "artifact_parts_sent",
            "Parts of artifacts that were sent",
            statistics.chunks,
        ),
        (
            "desired_states_published",
            "Desired states that were published",
            statistics.published,
        ),
    ];
    for (name, help, count) in counters {
        let counter = Counter::<u64>::default();
        counter.inc_by(count);
        registry.register(name, help, counter);
    }

    let mut text = String::new();
    encode(&mut text, &registry).expect("a text takes all that is written");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out_and_what_is_has_its_name() {
        let statistics = Statistics {
            ingested: 7,
            ..Statistics::default()
        };
        let text = render(&Totals::default(), &[], &statistics, 0, 0, true);
        for line in [
            "offramp_broker_connected 1",
            "offramp_devices{state=\"gone\"} 0",
            "offramp_summaries_stored_total 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("offramp_cost_share"), "{text}");
    }
}
