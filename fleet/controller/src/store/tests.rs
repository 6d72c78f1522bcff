use std::collections::BTreeMap;
use std::sync::Arc;

use offramp_proto::{
    Arm, Audits, Birth, BootId, CameraReport, ClassCount, ControlReport, Cost, Death, Desired, DeviceId, Digest,
    Event as EventMessage, ExitUse, Generation, GuardReport, LearnerReport, LogLevel, ModelFacts, Parameter,
    PolicyReport, PolicySource, PublicKey, Reported, Sequence, Summary as SummaryMessage, Window as WindowMessage,
};
use offramp_test_support::Postgres;
use proptest::prelude::*;
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;

use super::*;
use crate::authority::Issued;
use crate::key::Keyring;

/// Every device that these tests have.
const ALL: &[&str] = &["a", "b", "cam", "cam-0", "cam-1", "z"];

/// A database of its own.
struct Fixture {
    store: Store,
    place: Place,
    ring: Arc<Keyring>,
    _keys: TempDir,
}

enum Place {
    Sqlite(TempDir),
    Postgres { _server: Arc<Postgres>, url: PostgresUrl },
}

impl Place {
    fn sqlite() -> Self {
        Self::Sqlite(tempfile::tempdir().unwrap())
    }

    fn postgres() -> Self {
        let server = Postgres::shared();
        let url = server.database().parse().unwrap();
        Self::Postgres { _server: server, url }
    }

    async fn open(&self, tenant: &TenantId) -> Result<Store, StoreError> {
        let database = match self {
            Self::Sqlite(folder) => Database::File(folder.path().join("fleet.db")),
            Self::Postgres { url, .. } => Database::Postgres(url.clone()),
        };
        Ok(Store::open(&database, tenant).await?.0)
    }
}

impl Fixture {
    async fn new(place: Place) -> Self {
        let store = place.open(&tenant("t")).await.unwrap();
        let (ring, keys) = ring();
        store.claim_keys(&ring, 1).await.unwrap();
        Self {
            store,
            place,
            ring,
            _keys: keys,
        }
    }

    fn key(&self) -> Arc<Keyring> {
        Arc::clone(&self.ring)
    }

    /// Closes the database, and opens it again for this tenant.
    async fn reopen(self, tenant: &TenantId) -> Result<Self, StoreError> {
        self.store.close().await;
        let store = self.place.open(tenant).await?;
        Ok(Self { store, ..self })
    }

    async fn insert(&self, arrivals: Vec<Arrival>) -> Vec<Outcome> {
        self.store.arrival_insert(arrivals.into()).await.unwrap()
    }

    async fn device(&self, name: &str) -> Device {
        self.store.device_fetch(name).await.unwrap().unwrap()
    }
}

/// Keys in a file of their own.
fn ring() -> (Arc<Keyring>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let ring = Keyring::load_or_generate(&folder.path().join("fleet.key")).unwrap();
    (Arc::new(ring), folder)
}

/// A desired state that one of the keys has signed.
fn verified(ring: &Keyring, signed: &[u8]) -> Desired {
    let keys = ring.public();
    keys.iter().find_map(|key| key.verify(signed).ok()).unwrap()
}

/// Runs tests on both databases.
macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            use super::{Fixture, Place};
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(Fixture::new(Place::sqlite()).await).await;
                }
            )*
        }
        mod postgres {
            use super::{Fixture, Place};
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(Fixture::new(Place::postgres()).await).await;
                }
            )*
        }
    };
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

fn boot(number: u8) -> BootId {
    BootId([number; 16])
}

fn live(record: Record) -> Arrival {
    Arrival {
        at: 1000,
        retained: false,
        record,
        raw: vec![0xa0],
    }
}

fn kept(record: Record) -> Arrival {
    Arrival {
        retained: true,
        ..live(record)
    }
}

fn birth(name: &str, run: u8, started_at: u64) -> Record {
    Record::Birth(Box::new(Birth {
        device: device(name),
        boot: boot(run),
        started_at,
        agent: "0.1.0".into(),
        model: ModelFacts {
            name: "revcol".into(),
            version: 3,
            digest: Digest([7; 32]),
            classes: vec!["a".into(), "b".into()],
            stage_macs: vec![10, 20],
        },
        capabilities: vec!["tract".into()],
        told: 1,
    }))
}

/// A birth that is told again.
fn again(name: &str, run: u8, started_at: u64, told: u64) -> Record {
    let Record::Birth(mut birth) = birth(name, run, started_at) else {
        unreachable!("it is one")
    };
    birth.told = told;
    Record::Birth(birth)
}

fn death(name: &str, run: u8) -> Record {
    Record::Death(Death {
        device: device(name),
        boot: boot(run),
    })
}

fn policy() -> PolicyReport {
    PolicyReport {
        name: "threshold".into(),
        version: 2,
        digest: None,
        source: PolicySource::Desired,
        faults: 0,
    }
}

fn summary(name: &str, run: u8, sequence: u64, frames: u64) -> SummaryMessage {
    SummaryMessage {
        device: device(name),
        boot: boot(run),
        sequence: Sequence(sequence),
        window: WindowMessage {
            start: sequence * 1000,
            end: sequence * 1000 + 1000,
        },
        generation: Generation(1),
        frames,
        dropped: 0,
        exits: vec![
            ExitUse {
                taken: frames - frames / 4,
            },
            ExitUse { taken: frames / 4 },
        ],
        cost: Cost {
            macs: frames * 50,
            audit_macs: 1,
            full_macs: frames * 100,
            stage_us: 5,
            overhead_us: 1,
        },
        audits: Audits {
            run: frames / 10,
            disagreements: frames / 20,
            bound: 0.25,
        },
        learner: LearnerReport::default(),
        guard: None,
        classes: vec![ClassCount {
            class: 1,
            count: frames,
        }],
        policy: policy(),
        outbox: 0,
        temperature: None,
        control: None,
        drift: None,
        watts: None,
        hurried: 0,
        cameras: Vec::new(),
        engines: Vec::new(),
    }
}

fn summarised(name: &str, run: u8, sequence: u64, frames: u64) -> Record {
    Record::Summary(Box::new(summary(name, run, sequence, frames)))
}

/// A summary of a device that tells of its guard.
fn guarded(run: u8, sequence: u64, paused: bool) -> Record {
    let guard = GuardReport {
        threshold: 0.75,
        temperatures: vec![1.5],
        loss: -0.125,
        loss_bound: 0.5,
        audits: 256,
        promotions: 2,
        paused,
        contexts: 3,
        bytes: 2_600_000,
    };
    Record::Summary(Box::new(SummaryMessage {
        guard: Some(guard),
        ..summary("cam", run, sequence, 100)
    }))
}

fn reported(name: &str, generation: u64, refused: Option<&str>) -> Record {
    Record::Reported(Box::new(Reported {
        device: device(name),
        boot: boot(1),
        at: 1,
        generation: Generation(generation),
        policy: policy(),
        refused: refused.map(Into::into),
        refused_generation: None,
        trusts: Vec::new(),
    }))
}

fn event(name: &str, sequence: u64) -> Record {
    Record::Event(Box::new(EventMessage {
        device: device(name),
        boot: boot(1),
        sequence: Sequence(sequence),
        at: 5,
        kind: "policy-swapped".into(),
        message: "Swapped.".into(),
        facts: [("to".to_owned(), "x".to_owned())].into(),
    }))
}

fn draft(version: u64, bytes: &[u8], devices: Option<&[&str]>) -> Draft {
    Draft {
        name: "entropy".into(),
        version,
        digest: Digest::of(bytes),
        bytes: bytes.to_vec(),
        parameters: [("limit".to_owned(), Parameter::Number(0.5))].into(),
        devices: devices.map(|names| names.iter().map(|name| device(name)).collect()),
        who: "ada".into(),
        now: 77,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_and_repetition_of_summaries_gives_the_same_totals(
        order in prop::collection::vec((0u8..2, 1u8..3, 0u64..6), 1..60),
        batch in 1usize..20,
    ) {
        block_on(async { totals(Fixture::new(Place::sqlite()).await, &order, batch).await })?;
    }

    #[test]
    fn any_order_and_repetition_of_summaries_gives_the_same_totals_on_postgresql(
        order in prop::collection::vec((0u8..2, 1u8..3, 0u64..6), 1..60),
        batch in 1usize..20,
    ) {
        block_on(async { totals(Fixture::new(Place::postgres()).await, &order, batch).await })?;
    }
}

/// However summaries are repeated, mixed up and cut into batches, each counts once.
async fn totals(fixture: Fixture, order: &[(u8, u8, u64)], batch: usize) -> Result<(), TestCaseError> {
    let arrivals: Vec<Arrival> = order
        .iter()
        .map(|(name, run, sequence)| {
            let frames = 40 + sequence * 7 + u64::from(*run);
            live(summarised(&format!("cam-{name}"), *run, *sequence, frames))
        })
        .collect();
    let mut stored = 0;
    for batch in arrivals.chunks(batch) {
        let outcomes = fixture.insert(batch.to_vec()).await;
        stored += outcomes.iter().filter(|o| **o == Outcome::Stored).count();
    }

    let distinct: std::collections::BTreeSet<_> = order.iter().collect();
    prop_assert_eq!(stored, distinct.len());
    let mut expected = std::collections::BTreeMap::<(String, Vec<u8>), Run>::new();
    for (name, run, sequence) in distinct {
        let frames = 40 + sequence * 7 + u64::from(*run);
        let totals = expected.entry((format!("cam-{name}"), vec![*run; 16])).or_default();
        totals.summaries += 1;
        totals.frames += frames;
        totals.early += frames - frames / 4;
        totals.macs += frames * 50;
        totals.full_macs += frames * 100;
        totals.audits += frames / 10;
        totals.disagreements += frames / 20;
    }
    let found: std::collections::BTreeMap<_, _> = fixture
        .store
        .run_list(ALL)
        .await
        .unwrap()
        .into_iter()
        .flat_map(|(name, runs)| runs.into_iter().map(move |(boot, run)| ((name.clone(), boot), run)))
        .collect();
    prop_assert_eq!(found, expected);
    Ok(())
}

async fn cameras_engines_and_what_learning_is_worth_are_kept(fixture: Fixture) {
    let mut message = summary("cam", 1, 4, 100);
    message.hurried = 2;
    message.dropped = 3;
    message.engines = vec!["fused".into(), "tract".into()];
    message.cameras = ["gate", "yard"]
        .map(|name| CameraReport {
            name: name.into(),
            frames: 50,
            exits: vec![40, 10],
            loss: 0.25,
            ..CameraReport::default()
        })
        .into();
    message.control = Some(ControlReport {
        audits: 256,
        learned: Arm { cost: 0.25, loss: 0.0 },
        frozen: Arm { cost: 0.5, loss: 0.125 },
        error: 0.0625,
    });
    (message.drift, message.watts) = (Some(0.5), Some(7.5));
    let (cameras, engines, control) = (message.cameras.clone(), message.engines.clone(), message.control);
    fixture.insert(vec![live(Record::Summary(Box::new(message)))]).await;
    let kept = &fixture.store.summary_list("cam", Some(0), 10).await.unwrap()[0].window;
    assert_eq!((&kept.cameras, &kept.engines), (&cameras, &engines));
    assert_eq!((kept.hurried, kept.dropped), (2, 3));
    assert_eq!((kept.control, kept.drift, kept.watts), (control, Some(0.5), Some(7.5)));
    fixture.insert(vec![live(summarised("cam", 1, 5, 100))]).await;
    let silent = &fixture.store.summary_list("cam", Some(0), 10).await.unwrap()[1].window;
    assert_eq!((silent.control, silent.drift, silent.watts), (None, None, None));
}

async fn summary_is_kept_as_it_came_with_what_is_unknown_here(fixture: Fixture) {
    let mut arrival = live(summarised("cam", 1, 4, 100));
    arrival.raw = b"bytes with fields of the future".to_vec();
    fixture.insert(vec![arrival]).await;
    let raw: Vec<u8> = query_scalar("SELECT raw FROM summaries")
        .fetch_one(&fixture.store.readers)
        .await
        .unwrap();
    assert_eq!(raw, b"bytes with fields of the future");
    let summaries = fixture.store.summary_list("cam", Some(0), 10).await.unwrap();
    let window = &summaries[0].window;
    assert_eq!((window.start, window.end, window.frames), (4000, 5000, 100));
    assert_eq!(window.exits, [75, 25]);
    assert_eq!(window.classes, [(1, 100)]);
    assert_eq!(window.bound, 0.25);
    assert_eq!(summaries[0].policy_source, "desired");
}

async fn totals_saturate_instead_of_failing(fixture: Fixture) {
    let huge = |sequence| {
        let mut summary = summary("cam", 1, sequence, 4);
        summary.cost.full_macs = u64::MAX;
        summary.cost.macs = u64::MAX;
        live(Record::Summary(Box::new(summary)))
    };
    fixture.insert(vec![huge(1), huge(2)]).await;
    fixture.insert(vec![huge(3)]).await;
    let runs = fixture.store.run_list(&["cam"]).await.unwrap();
    let run = runs["cam"][&vec![1; 16]];
    assert_eq!(run.full_macs, i64::MAX as u64);
    assert_eq!(run.summaries, 3);
}

async fn device_lives_from_birth_to_the_death_of_the_same_run(fixture: Fixture) {
    fixture.insert(vec![live(birth("cam", 1, 10))]).await;
    assert!(fixture.device("cam").await.alive);
    fixture.insert(vec![live(death("cam", 1))]).await;
    assert!(!fixture.device("cam").await.alive);
}

async fn death_of_an_older_run_is_ignored(fixture: Fixture) {
    fixture
        .insert(vec![
            live(birth("cam", 1, 10)),
            live(birth("cam", 2, 20)),
            live(death("cam", 1)),
        ])
        .await;
    let device = fixture.device("cam").await;
    assert!(device.alive);
    assert_eq!(device.boot, Some(boot(2)));
}

async fn run_that_speaks_after_its_death_lives_again(fixture: Fixture) {
    fixture
        .insert(vec![live(birth("cam", 1, 10)), live(death("cam", 1))])
        .await;
    fixture.insert(vec![live(summarised("cam", 1, 1, 10))]).await;
    assert!(fixture.device("cam").await.alive);
}

async fn late_summary_of_an_older_run_does_not_revive_the_device(fixture: Fixture) {
    fixture
        .insert(vec![live(birth("cam", 1, 10)), live(birth("cam", 2, 20))])
        .await;
    fixture.insert(vec![live(death("cam", 2))]).await;
    fixture.insert(vec![live(summarised("cam", 1, 1, 10))]).await;
    assert!(!fixture.device("cam").await.alive);
}

#[tokio::test]
async fn kept_birth_does_not_revive_a_dead_run() {
    // The death came while the controller was away; what the broker kept comes in any order.
    for order in [[0, 1], [1, 0]] {
        let fixture = Fixture::new(Place::sqlite()).await;
        let arrivals = [kept(birth("cam", 1, 10)), live(death("cam", 1))];
        for i in order {
            fixture.insert(vec![arrivals[i].clone()]).await;
        }
        assert!(!fixture.device("cam").await.alive, "{order:?}");
    }
}

async fn repeated_birth_of_an_overtaken_run_is_ignored(fixture: Fixture) {
    fixture
        .insert(vec![
            live(birth("cam", 1, 10)),
            live(birth("cam", 2, 20)),
            live(birth("cam", 1, 10)),
        ])
        .await;
    assert_eq!(fixture.device("cam").await.boot, Some(boot(2)));
}

async fn device_whose_clock_went_back_is_born_again(fixture: Fixture) {
    fixture
        .insert(vec![live(birth("cam", 1, 1_000_000)), live(birth("cam", 2, 5))])
        .await;
    assert_eq!(fixture.device("cam").await.boot, Some(boot(2)));
}

async fn what_the_broker_kept_does_not_count_as_seen(fixture: Fixture) {
    fixture
        .insert(vec![kept(birth("cam", 1, 10)), kept(reported("cam", 1, None))])
        .await;
    assert_eq!(fixture.device("cam").await.last_seen, 0);
    fixture.insert(vec![live(event("cam", 1))]).await;
    assert_eq!(fixture.device("cam").await.last_seen, 1000);
}

async fn birth_and_reported_state_are_read_back(fixture: Fixture) {
    fixture
        .insert(vec![
            live(birth("cam", 1, 10)),
            live(reported("cam", 4, Some("bad digest"))),
        ])
        .await;
    let device = fixture.device("cam").await;
    let model = device.model.unwrap();
    assert_eq!((model.name.as_str(), model.version), ("revcol", 3));
    assert_eq!(model.classes, ["a", "b"]);
    assert_eq!(model.stage_macs, [10, 20]);
    assert_eq!(device.capabilities, ["tract"]);
    let reported = device.reported.unwrap();
    assert_eq!(
        (reported.generation, reported.refused.as_deref()),
        (4, Some("bad digest"))
    );
}

async fn events_are_kept_once_and_listed_last_first(fixture: Fixture) {
    let outcomes = fixture
        .insert(vec![
            live(event("cam", 1)),
            live(event("cam", 2)),
            live(event("cam", 1)),
        ])
        .await;
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Stored, Outcome::Repeated]);
    let filter = EventFilter {
        device: Some("cam"),
        since: 0,
        limit: 10,
    };
    let events = fixture.store.event_list(filter).await.unwrap();
    assert_eq!(events.iter().map(|e| e.sequence).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(events[0].facts["to"], "x");
    let other = EventFilter {
        device: Some("cam-2"),
        ..filter
    };
    assert!(fixture.store.event_list(other).await.unwrap().is_empty());
}

async fn guard_is_kept_and_a_summary_without_one_too(fixture: Fixture) {
    fixture
        .insert(vec![live(summarised("cam", 1, 1, 100)), live(guarded(1, 2, true))])
        .await;
    let guards: Vec<_> = fixture
        .store
        .summary_list("cam", Some(0), 10)
        .await
        .unwrap()
        .into_iter()
        .map(|s| s.window.guard)
        .collect();
    let guard = Guard {
        threshold: 0.75,
        loss: -0.125,
        loss_bound: 0.5,
        audits: 256,
        promotions: 2,
        paused: true,
        contexts: 3,
        bytes: 2_600_000,
    };
    assert_eq!(guards, [None, Some(guard)]);
}

async fn pause_and_its_end_are_events_once_each(fixture: Fixture) {
    let batches = [
        vec![live(guarded(1, 1, false)), live(guarded(1, 3, true))],
        // Repeated, late, silent about it, and by another run that is paused still.
        vec![
            live(guarded(1, 3, true)),
            live(guarded(1, 2, true)),
            live(summarised("cam", 1, 4, 10)),
            live(guarded(2, 5, true)),
        ],
        vec![
            live(guarded(2, 6, false)),
            live(guarded(2, 7, false)),
            live(guarded(2, 6, false)),
        ],
    ];
    for batch in batches {
        fixture.insert(batch).await;
    }
    let filter = EventFilter {
        device: Some("cam"),
        since: 0,
        limit: 10,
    };
    let mut events = fixture.store.event_list(filter).await.unwrap();
    events.sort_by_key(|e| e.sequence);
    let told: Vec<_> = events.iter().map(|e| (e.sequence, e.kind.as_str())).collect();
    assert_eq!(told, [(3, "learning-paused"), (6, "learning-resumed")]);
}

async fn first_summary_of_a_device_may_say_that_learning_has_paused(fixture: Fixture) {
    fixture.insert(vec![live(guarded(1, 1, true))]).await;
    let kinds: Vec<String> = query_scalar("SELECT kind FROM events")
        .fetch_all(&fixture.store.readers)
        .await
        .unwrap();
    assert_eq!(kinds, ["learning-paused"]);
}

async fn latest_windows_are_the_ones_with_the_highest_sequence(fixture: Fixture) {
    // The clock of the second run is behind that of the first.
    let mut late = summary("a", 2, 9, 8);
    late.window = WindowMessage { start: 1, end: 2 };
    let mut arrivals: Vec<_> = (0..8).map(|i| live(summarised("a", 1, i, 8))).collect();
    arrivals.push(live(Record::Summary(Box::new(late))));
    arrivals.push(live(summarised("b", 1, 3, 8)));
    fixture.insert(arrivals).await;
    let latest = fixture.store.window_latest(ALL, 3).await.unwrap();
    let sequences = |name| latest[name].iter().map(|w| w.sequence).collect::<Vec<_>>();
    assert_eq!(sequences("a"), [9, 7, 6]);
    assert_eq!(sequences("b"), [3]);
    let one = fixture.store.window_latest(&["b"], 3).await.unwrap();
    assert_eq!(one.len(), 1);
}

async fn history_holds_the_last_windows_and_what_came_before_them(fixture: Fixture) {
    let arrivals = (0..10).map(|i| live(summarised("cam", 1, i, 40))).collect();
    fixture.insert(arrivals).await;
    let history = fixture.store.history_fetch("cam", 3000, 100).await.unwrap();
    assert_eq!(
        history.windows.iter().map(|w| w.sequence).collect::<Vec<_>>(),
        [7, 8, 9]
    );
    let before = history.before[&vec![1; 16]];
    assert_eq!((before.summaries, before.frames, before.audits), (7, 280, 28));
    let cut = fixture.store.history_fetch("cam", 1_000_000, 2).await.unwrap();
    assert_eq!(cut.windows.iter().map(|w| w.sequence).collect::<Vec<_>>(), [8, 9]);
    assert!(
        fixture
            .store
            .history_fetch("nobody", 1000, 9)
            .await
            .unwrap()
            .windows
            .is_empty()
    );
}

async fn generations_rise_per_device_and_the_learner_is_left_alone(fixture: Fixture) {
    fixture
        .insert(vec![live(birth("a", 1, 1)), live(birth("b", 1, 1))])
        .await;
    let push = |version, devices: Option<&'static [&'static str]>| {
        fixture
            .store
            .desired_insert(fixture.key(), draft(version, &[version as u8], devices))
    };
    let first = push(1, None).await.unwrap();
    assert_eq!(
        first,
        Drafted::Desired(vec![(device("a"), Generation(1)), (device("b"), Generation(1))])
    );
    let second = push(2, Some(&["b"])).await.unwrap();
    assert_eq!(second, Drafted::Desired(vec![(device("b"), Generation(2))]));
    let current = fixture.store.desired_list(ALL).await.unwrap();
    let found: Vec<_> = current.iter().map(|d| (d.device.as_str(), d.generation)).collect();
    assert_eq!(found, [("a", 1), ("b", 2)]);
    let desired: Desired = verified(&fixture.ring, &current[1].signed);
    assert_eq!(desired.device, device("b"));
    assert_eq!(desired.generation, Generation(2));
    assert_eq!(desired.policy.unwrap().version, 2);
}

async fn generation_rises_above_what_the_device_reports(fixture: Fixture) {
    fixture.insert(vec![live(reported("cam", 41, None))]).await;
    let drafted = fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"x", None))
        .await
        .unwrap();
    assert_eq!(drafted, Drafted::Desired(vec![(device("cam"), Generation(42))]));
}

async fn name_and_version_always_mean_the_same_bytes(fixture: Fixture) {
    fixture.insert(vec![live(birth("cam", 1, 1))]).await;
    fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"one", None))
        .await
        .unwrap();
    let refused = fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"two", None))
        .await
        .unwrap();
    assert_eq!(refused, Drafted::Taken(Digest::of(b"one")));
    assert_eq!(fixture.store.artifact_part(Digest::of(b"two"), 0).await.unwrap(), None);
    assert_eq!(fixture.store.desired_list(ALL).await.unwrap()[0].generation, 1);
    // The same bytes again are a new generation, not a new policy.
    fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"one", None))
        .await
        .unwrap();
    assert_eq!(fixture.store.desired_list(ALL).await.unwrap()[0].generation, 2);
    assert_eq!(fixture.store.policy_list(10).await.unwrap().len(), 1);
}

async fn push_to_an_unknown_device_changes_nothing(fixture: Fixture) {
    fixture.insert(vec![live(birth("a", 1, 1))]).await;
    let drafted = fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"x", Some(&["a", "z"])))
        .await
        .unwrap();
    assert_eq!(drafted, Drafted::Unfit(Unfit::Unknown(vec![device("z")])));
    assert!(fixture.store.desired_list(ALL).await.unwrap().is_empty());
    assert!(fixture.store.policy_list(10).await.unwrap().is_empty());
}

async fn two_agents_of_one_name_are_kept_apart_and_a_restart_is_not(fixture: Fixture) {
    let minutes = |m: u64| m * 60_000;
    let at = |at: u64, record: Record| Arrival { at, ..live(record) };
    // An agent that restarts often, and a broker that sends again, or late, what it had.
    for run in 1..20 {
        fixture.insert(vec![at(minutes(1), birth("a", run, run.into()))]).await;
        let sent_twice = at(minutes(1), birth("a", 1, 1));
        fixture.insert(vec![sent_twice, kept(birth("a", 1, 1))]).await;
    }
    // Another controller hears it all, too, and is late.
    for run in 1..20 {
        fixture.insert(vec![at(minutes(2), birth("a", run, run.into()))]).await;
    }
    // Now and then something is told in another order.
    for hour in 1..20 {
        let late = again("a", 1, 1, 1 + hour);
        fixture.insert(vec![at(minutes(60 * hour), late)]).await;
    }
    assert_eq!(fixture.device("a").await.quarantine, None);

    // A copy: each is born again whenever it has taken the session from the other.
    for turn in 0..4 {
        assert_eq!(fixture.device("a").await.quarantine, None, "{turn}");
        let (one, other) = (again("a", 30, 30, 1 + turn), again("a", 1, 1, 100 + turn));
        fixture.insert(vec![at(minutes(9000 + turn), one)]).await;
        fixture.insert(vec![at(minutes(9000 + turn), other)]).await;
    }
    let quarantine = fixture.device("a").await.quarantine.unwrap();
    assert!(quarantine.reason.contains("two agents"), "{quarantine:?}");
    assert_eq!(
        selected(&fixture.store, "state=quarantined", minutes(9010)).await,
        ["a"]
    );

    // It is given nothing, by name or with all others.
    fixture.insert(vec![at(minutes(9010), birth("b", 1, 1))]).await;
    let named = fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"x", Some(&["a", "b"])))
        .await
        .unwrap();
    assert_eq!(named, Drafted::Unfit(Unfit::Quarantined(vec![device("a")])));
    let all = fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"x", None))
        .await
        .unwrap();
    assert_eq!(all, Drafted::Desired(vec![(device("b"), Generation(1))]));

    // What was desired before waits until it is let go, and is then signed anew.
    let release = async || {
        fixture
            .store
            .release(fixture.key(), device("a"), "ada".into(), 5)
            .await
            .unwrap()
    };
    assert_eq!(release().await, Kept::Done);
    assert_eq!(release().await, Kept::Already);
    fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"x", Some(&["a"])))
        .await
        .unwrap();
    let put = fixture
        .store
        .quarantine(device("a"), "stolen".into(), "ada".into(), 6)
        .await
        .unwrap();
    assert_eq!(put, Kept::Done);
    let published = async || {
        let (desired, _) = fixture.store.desired_since(0).await.unwrap();
        desired
            .into_iter()
            .map(|d| (d.device, d.generation))
            .collect::<Vec<_>>()
    };
    assert_eq!(published().await, [("b".to_owned(), 1)]);
    release().await;
    assert_eq!(published().await, [("b".to_owned(), 1), ("a".to_owned(), 2)]);
    let unknown = fixture
        .store
        .quarantine(device("nobody"), "x".into(), "ada".into(), 6)
        .await
        .unwrap();
    assert_eq!(unknown, Kept::Unknown);
    let log = fixture.store.audit_list(Some("device a"), 10).await.unwrap();
    let log: Vec<(&str, &str)> = log.iter().rev().map(|e| (e.who.as_str(), e.what.as_str())).collect();
    let expected = [
        ("controller", "device.quarantine"),
        ("ada", "device.release"),
        ("ada", "device.quarantine"),
        ("ada", "device.release"),
    ];
    assert_eq!(log, expected);
}

async fn another_key_than_before_is_refused(fixture: Fixture) {
    let (ours, (theirs, _folder)) = (fixture.key(), ring());
    let fixture = fixture.reopen(&tenant("t")).await.unwrap();
    fixture.store.claim_keys(&ours, 2).await.unwrap();
    let error = fixture.store.claim_keys(&theirs, 3).await.unwrap_err();
    assert!(matches!(error, StoreError::Key { .. }), "{error}");
    let said = error.to_string();
    assert!(
        said.contains(&format!("{:?}", ours.newest())) && said.contains(&format!("{:?}", theirs.newest())),
        "{said}"
    );
    assert!(said.contains("backup"), "{said}");
}

async fn a_key_is_replaced_device_by_device(fixture: Fixture) {
    let store = &fixture.store;
    let ring = fixture.key();
    let old = ring.newest();
    fixture
        .insert(vec![live(birth("a", 1, 1000)), live(birth("b", 1, 1000))])
        .await;
    let says = async |name: &str, trusts: &[&PublicKey], at: u64| {
        let Record::Reported(mut message) = reported(name, at, None) else {
            unreachable!()
        };
        message.trusts = trusts.iter().map(|key| (*key).clone()).collect();
        let arrival = Arrival {
            raw: offramp_proto::encode(&*message).unwrap(),
            ..live(Record::Reported(message))
        };
        fixture.insert(vec![arrival]).await;
    };
    says("a", &[&old], 1).await;
    let drafted = store.desired_insert(Arc::clone(&ring), draft(1, b"one", None)).await;
    assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    let signed_by = async |name: &str, key: &PublicKey| {
        let state = store.desired_fetch(name).await.unwrap().unwrap();
        let desired: Desired = key.verify(&state.signed).unwrap();
        (desired.keys, desired.policy.map(|policy| policy.version))
    };
    assert_eq!(signed_by("a", &old).await, (vec![], Some(1)));

    let new = ring.add().unwrap();
    let told = store
        .key_introduce(Arc::clone(&ring), new.clone(), "ada".into(), 5)
        .await;
    assert_eq!(told.unwrap(), 2);
    let both = vec![old.clone(), new.clone()];
    assert_eq!(signed_by("a", &old).await, (both.clone(), Some(1)));
    says("a", &[&old, &new], 2).await;
    let revoke = async |key: &PublicKey, force| {
        let done = store.key_revoke(Arc::clone(&ring), key.clone(), force, "ada".into(), 9);
        done.await.unwrap()
    };
    assert_eq!(revoke(&old, false).await, Revocation::Left(Left(vec!["b".into()])));
    // Each is spoken to with what it trusts.
    let drafted = store.desired_insert(Arc::clone(&ring), draft(2, b"two", None)).await;
    assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    assert_eq!(signed_by("a", &new).await, (both.clone(), Some(2)));
    assert_eq!(signed_by("b", &old).await, (both, Some(2)));
    says("b", &[&old, &new], 3).await;
    let keys = store.key_list().await.unwrap();
    let trusted: Vec<_> = keys.iter().map(|key| (key.key.clone(), key.trusted_by)).collect();
    assert_eq!(trusted, [(old.clone(), 2), (new.clone(), 2)]);
    let done = Revocation::Done {
        told: 2,
        left: Left::default(),
    };
    assert_eq!(revoke(&old, false).await, done);
    assert_eq!(revoke(&old, false).await, Revocation::Unknown);
    assert_eq!(revoke(&new, true).await, Revocation::Last);
    for name in ["a", "b"] {
        assert_eq!(signed_by(name, &new).await, (vec![new.clone()], Some(2)));
    }
    assert_eq!(store.key_newest().await.unwrap(), Some(new));
    // Whoever has not got the file of the new key signs nothing.
    let (stranger, _folder) = self::ring();
    let error = store.claim_keys(&stranger, 10).await.unwrap_err();
    assert!(matches!(error, StoreError::Key { .. }), "{error}");
}

/// Names of the devices that a text means, now being this time.
async fn selected(store: &Store, text: &str, now: u64) -> Vec<String> {
    let selection = store.resolve(text.parse().unwrap()).await.unwrap().unwrap();
    store.select(&selection, "", 100, now).await.unwrap()
}

async fn selectors_mean_devices_by_label_fact_and_group(fixture: Fixture) {
    let store = &fixture.store;
    // `a` lives, `b` is silent, `cam` is gone and runs another policy, `z` has windows of an hour.
    let hour = {
        let mut summary = summary("z", 1, 1, 40);
        summary.window.end = summary.window.start + 3_600_000;
        Record::Summary(Box::new(summary))
    };
    let Record::Reported(mut says) = reported("cam", 1, None) else {
        unreachable!()
    };
    says.policy.name = "ent_ropy".into();
    let at = |at: u64, record: Record| Arrival { at, ..live(record) };
    fixture
        .insert(vec![
            at(1_000_000, birth("a", 1, 1)),
            at(1000, birth("b", 1, 1)),
            at(1_000_000, birth("cam", 1, 1)),
            at(1_000_000, Record::Reported(says)),
            at(1_000_000, death("cam", 1)),
            at(1000, hour),
        ])
        .await;
    let give = async |names: &[&str], labels: &[(&str, Option<&str>)]| {
        let names = names.iter().map(|name| device(name)).collect();
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(Into::into)));
        store.label(names, labels.collect(), "ada".into(), 5).await.unwrap()
    };
    assert_eq!(
        give(&["a", "b"], &[("site", Some("north")), ("floor", Some("2"))]).await,
        Labelled::Done
    );
    give(&["cam"], &[("site", Some("north-yard")), ("retired", Some("yes"))]).await;
    give(&["b"], &[("floor", None)]).await;
    store
        .group_set("yard".into(), "site=*yard*,retired".parse().unwrap(), "ada".into(), 5)
        .await
        .unwrap();

    const NOW: u64 = 1_000_000;
    for (text, expected) in [
        ("", &["a", "b", "cam", "z"][..]),
        ("site=north", &["a", "b"]),
        ("site=north*", &["a", "b", "cam"]),
        ("site=NORTH", &[]),
        ("site!=north", &["cam", "z"]),
        ("floor", &["a"]),
        ("!site", &["z"]),
        ("device=a|z", &["a", "z"]),
        ("device=c*m", &["cam"]),
        ("device=c_m", &[]),
        ("state=alive", &["a", "z"]),
        ("state=silent", &["b"]),
        ("state=gone|silent", &["b", "cam"]),
        ("model=revcol,model-version=3", &["a", "b", "cam"]),
        ("model!=revcol", &["z"]),
        ("policy=ent_r*", &["cam"]),
        ("policy=entXropy", &[]),
        ("policy-version=2", &["cam"]),
        ("capability=tract,state=alive", &["a"]),
        ("capability=trac", &[]),
        ("capability=*rac*", &["a", "b", "cam"]),
        ("agent=0.1.*", &["a", "b", "cam"]),
        ("group=yard", &["cam"]),
        ("group!=yard,site", &["a", "b"]),
    ] {
        assert_eq!(selected(store, text, NOW).await, expected, "{text}");
        let selection = store.resolve(text.parse().unwrap()).await.unwrap().unwrap();
        assert_eq!(
            store.count(&selection, NOW).await.unwrap(),
            expected.len() as u64,
            "{text}"
        );
    }
    let all = store.resolve("site=north".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(store.select(&all, "a", 1, NOW).await.unwrap(), ["b"]);
    let unknown = store.resolve("group=none".parse().unwrap()).await.unwrap();
    assert_eq!(unknown, Err(UnknownGroup("none".into())));
    assert_eq!(fixture.device("a").await.labels.len(), 2);

    // Nothing is given where one of them would have too many.
    let many: Vec<(String, Option<String>)> = (0..31).map(|n| (format!("k{n}"), Some("x".into()))).collect();
    let done = store
        .label(
            vec![device("z"), device("a")],
            many.into_iter().collect(),
            "ada".into(),
            5,
        )
        .await
        .unwrap();
    assert_eq!(done, Labelled::Many(device("a")));
    assert!(fixture.device("z").await.labels.is_empty());
    assert!(store.group_remove("yard".into(), "ada".into(), 6).await.unwrap());
    assert!(!store.group_remove("yard".into(), "ada".into(), 6).await.unwrap());
}

async fn artifacts_are_read_in_parts(fixture: Fixture) {
    let bytes: Vec<u8> = (0..offramp_proto::CHUNK + 100).map(|i| i as u8).collect();
    fixture
        .store
        .desired_insert(fixture.key(), draft(1, &bytes, None))
        .await
        .unwrap();
    let digest = Digest::of(&bytes);
    let part = |offset| fixture.store.artifact_part(digest, offset);
    let first = part(0).await.unwrap().unwrap();
    let second = part(offramp_proto::CHUNK as u64).await.unwrap().unwrap();
    assert_eq!(first.total, bytes.len() as u64);
    assert_eq!([first.bytes, second.bytes].concat(), bytes);
    assert!(part(1 << 40).await.unwrap().unwrap().bytes.is_empty());
}

fn new_model(version: u64, bytes: &[u8]) -> NewModel {
    NewModel {
        name: "revcol".into(),
        version,
        digest: Digest::of(bytes),
        manifest: Digest([7; 32]),
        url: None,
        who: "ada".into(),
        now: 5,
    }
}

async fn a_model_lies_in_pieces_under_a_name_and_version_that_mean_the_same_for_ever(fixture: Fixture) {
    let store = &fixture.store;
    let bytes: bytes::Bytes = (0..(2u32 << 20) + 100).map(|i| (i % 251) as u8).collect();
    let digest = Digest::of(&bytes);
    store.artifact_prepare(digest, &bytes).await.unwrap();
    assert_eq!(
        store.artifact_part(digest, 0).await.unwrap(),
        None,
        "nobody has named it yet"
    );
    let size = bytes.len() as u64;
    assert_eq!(store.model_insert(new_model(2, &bytes), size).await.unwrap(), digest);
    let mut read = Vec::new();
    while let Some(part) = store.artifact_part(digest, read.len() as u64).await.unwrap() {
        assert_eq!(part.total, size);
        if part.bytes.is_empty() {
            break;
        }
        read.extend(part.bytes);
    }
    assert!(read == bytes, "all of it, chunk by chunk");
    // Again, now with an address.
    let named = NewModel {
        url: Some("https://models.example/2".into()),
        ..new_model(2, &bytes)
    };
    store.artifact_prepare(digest, &bytes).await.unwrap();
    store.model_insert(named, size).await.unwrap();
    let taken = store.model_insert(new_model(2, b"another"), 7).await.unwrap();
    assert_eq!(taken, digest, "the version is taken");

    fixture
        .insert(vec![live(birth("a", 1, 1)), live(birth("b", 1, 1))])
        .await;
    let wanted = Some(("revcol".to_owned(), 2));
    let push = |devices, model| store.desired_model(fixture.key(), devices, model, "ada".into(), 6);
    let unknown = push(None, Some(("revcol".to_owned(), 9))).await.unwrap();
    assert_eq!(unknown, None);
    let pushed = push(Some(vec![device("a")]), wanted.clone())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(pushed, [(device("a"), Generation(1))]);
    let state = store.desired_fetch("a").await.unwrap().unwrap();
    assert_eq!(state.model, wanted);
    let signed: Desired = verified(&fixture.ring, &state.signed);
    let model = signed.model.unwrap();
    assert_eq!((model.digest, model.size), (digest, size));
    assert_eq!(model.url.as_deref(), Some("https://models.example/2"));
    let listed = store.model_list(10).await.unwrap();
    assert_eq!(
        (listed.len(), listed[0].artifact.desired, listed[0].artifact.reported),
        (1, 1, 2)
    );
    // A policy does not change the model, nor the other way round.
    store.desired_insert(fixture.key(), draft(1, b"x", None)).await.unwrap();
    let state = store.desired_fetch("a").await.unwrap().unwrap();
    assert_eq!((state.model, state.policy.is_some()), (wanted, true));
    push(None, None).await.unwrap().unwrap().unwrap();
    let state = store.desired_fetch("a").await.unwrap().unwrap();
    assert_eq!((state.model, state.policy.is_some()), (None, true));
}

async fn what_was_counted_with_another_model_is_not_the_new_ones(fixture: Fixture) {
    let window = |sequence| live(Record::Summary(Box::new(summary("cam", 1, sequence, 40))));
    fixture
        .insert(vec![live(birth("cam", 1, 10)), window(1), window(2)])
        .await;
    let run = || async {
        fixture
            .store
            .history_fetch("cam", u64::MAX >> 1, 1)
            .await
            .unwrap()
            .before[&vec![1; 16]]
    };
    assert_eq!(run().await.frames, 40);
    // Told again: nothing changes.
    fixture.insert(vec![live(birth("cam", 1, 10))]).await;
    assert_eq!(run().await.frames, 40);
    let Record::Birth(mut other) = birth("cam", 1, 10) else {
        unreachable!()
    };
    other.model.digest = Digest([8; 32]);
    fixture.insert(vec![live(Record::Birth(other)), window(3)]).await;
    let now = fixture.device("cam").await;
    assert!(now.alive && now.model.unwrap().digest == Some(Digest([8; 32])));
    assert_eq!(run().await.frames, 0, "nothing before the last window");
    // To and fro, as often as somebody likes.
    for (digest, sequence) in [(7, 4), (8, 5), (7, 6), (8, 7)] {
        let Record::Birth(mut again) = birth("cam", 1, 10) else {
            unreachable!()
        };
        again.model.digest = Digest([digest; 32]);
        fixture.insert(vec![live(Record::Birth(again)), window(sequence)]).await;
        assert_eq!(run().await.frames, 0, "{sequence}");
    }
}

async fn policy_list_counts_where_a_policy_should_run_and_where_it_runs(fixture: Fixture) {
    fixture
        .insert(vec![live(birth("a", 1, 1)), live(birth("b", 1, 1))])
        .await;
    fixture
        .store
        .desired_insert(fixture.key(), draft(2, b"x", None))
        .await
        .unwrap();
    let Record::Reported(mut says) = reported("a", 1, None) else {
        unreachable!()
    };
    says.policy.name = "entropy".into();
    fixture.insert(vec![live(Record::Reported(says))]).await;
    let policies = fixture.store.policy_list(10).await.unwrap();
    assert_eq!((policies[0].desired, policies[0].reported), (2, 1));
    assert_eq!(policies[0].size, 1);
}

async fn everything_is_there_after_a_restart(fixture: Fixture) {
    fixture
        .insert(vec![live(birth("cam", 1, 1)), live(summarised("cam", 1, 1, 40))])
        .await;
    fixture
        .store
        .desired_insert(fixture.key(), draft(1, b"x", None))
        .await
        .unwrap();
    let fixture = fixture.reopen(&tenant("t")).await.unwrap();
    assert_eq!(
        fixture.store.run_list(ALL).await.unwrap()["cam"][&vec![1; 16]].frames,
        40
    );
    assert_eq!(fixture.store.desired_list(ALL).await.unwrap()[0].generation, 1);
    let again = fixture.insert(vec![live(summarised("cam", 1, 1, 40))]).await;
    assert_eq!(again, [Outcome::Repeated]);
}

#[tokio::test]
async fn database_of_the_first_schema_is_brought_up_to_date() {
    let folder = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.path().join("fleet.db"))
        .create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    let first = sqlite_migrations().iter().take(1).cloned().collect();
    Migrator::with_migrations(first).run(&mut connection).await.unwrap();
    sqlx::query(
        "INSERT INTO summaries VALUES ('cam', 1, x'01', 0, 0, 1000, 0, 10, 0, '[6, 4]', 1, 0, 2, 0, 0, 0, 0, 1.0, \
         0, 0, 7, '[]', 'threshold', 1, 'desired', 0, 0, NULL, x'a0')",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    connection.close().await.unwrap();

    let place = Place::Sqlite(folder);
    let store = place.open(&tenant("t")).await.unwrap();
    let old = store.summary_list("cam", Some(0), 10).await.unwrap();
    assert_eq!((old[0].window.rollbacks, old[0].window.guard), (7, None));
    store
        .arrival_insert(vec![live(guarded(1, 2, false))].into())
        .await
        .unwrap();
    let both = store.summary_list("cam", Some(0), 10).await.unwrap();
    assert!(both[1].window.guard.is_some());
}

#[tokio::test]
async fn second_controller_on_one_file_is_refused() {
    let fixture = Fixture::new(Place::sqlite()).await;
    let error = fixture.place.open(&tenant("t")).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn controllers_that_write_at_once_wait_for_each_other() {
    let place = Place::postgres();
    let t = tenant("t");
    let (first, second) = tokio::join!(place.open(&t), place.open(&t));
    let (first, second) = (first.unwrap(), second.unwrap());
    // Each reads the totals and writes them back, over and over: an addition that is not seen is lost.
    let write = async |store: &Store, run: u8| {
        for sequence in 1..=50 {
            let arrivals = vec![
                live(summarised("cam", run, sequence, 40)),
                live(summarised("cam", 3, sequence, 40)),
            ];
            store.arrival_insert(arrivals.into()).await.unwrap();
        }
    };
    tokio::join!(write(&first, 1), write(&second, 2));
    let runs = first.run_list(ALL).await.unwrap();
    assert!(runs["cam"].values().all(|run| run.summaries == 50), "{runs:?}");
}

#[tokio::test]
async fn a_dead_controller_comes_back_only_when_nobody_settles_what_it_left() {
    let place = Place::postgres();
    let t = tenant("t");
    let (north, south) = (place.open(&t).await.unwrap(), place.open(&t).await.unwrap());
    assert!(north.peer_join("north", "a").await.unwrap() && south.peer_join("south", "b").await.unwrap());
    assert_eq!(north.peer_beat("north", 60_000).await.unwrap(), Beat::OnDuty);
    assert_eq!(south.peer_beat("south", 60_000).await.unwrap(), Beat::OffDuty);
    north.peer_leave().await.unwrap();
    assert_eq!(south.peer_beat("south", 60_000).await.unwrap(), Beat::OnDuty);

    let dead = south.peer_list().await.unwrap().remove(0);
    assert_eq!((dead.name.as_str(), dead.on_duty), ("north", false));
    // Whoever is not silent for so long is not dead.
    let claim = async |silent_ms| {
        south
            .peer_claim("north".into(), dead.run.clone(), silent_ms, 60_000)
            .await
            .unwrap()
    };
    assert!(!claim(60_000).await);
    while !claim(1).await {}
    let again = place.open(&t).await.unwrap();
    assert!(!again.peer_join("north", "c").await.unwrap());
    south.peer_renounce("north".into()).await.unwrap();
    assert!(again.peer_join("north", "c").await.unwrap());
    // The one before has lost its name, and nobody can inherit from it.
    assert_eq!(north.peer_beat("north", 60_000).await.unwrap(), Beat::Replaced);
    assert!(!claim(1).await);
    south.peer_forget("north".into(), dead.run.clone()).await.unwrap();
    assert_eq!(
        south.peer_list().await.unwrap().len(),
        2,
        "the new one is not forgotten for the old one"
    );
}

#[tokio::test]
async fn nul_in_a_text_stops_no_batch() {
    let fixture = Fixture::new(Place::postgres()).await;
    let Record::Event(mut bad) = event("cam", 1) else {
        unreachable!()
    };
    bad.message = "a\0b".into();
    fixture.insert(vec![live(Record::Event(bad))]).await;
    let filter = EventFilter {
        device: None,
        since: 0,
        limit: 10,
    };
    assert_eq!(fixture.store.event_list(filter).await.unwrap()[0].message, "a\u{fffd}b");
}

#[tokio::test]
async fn database_that_is_not_there_is_told_without_its_password() {
    let port = offramp_test_support::free_port();
    let database: Database = format!("postgres://me:secret@127.0.0.1:{port}/fleet").parse().unwrap();
    let error = Store::open(&database, &tenant("t")).await.unwrap_err();
    assert!(matches!(error, StoreError::Connect { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("postgres://127.0.0.1:{port}/fleet")),
        "{error}"
    );
    assert!(
        !format!("{error} {error:?} {database:?}").contains("secret"),
        "{error:?}"
    );
}

async fn database_of_another_tenant_is_refused(fixture: Fixture) {
    let error = fixture.reopen(&tenant("other")).await.err().unwrap();
    assert!(matches!(error, StoreError::Tenant { .. }), "{error}");
}

#[tokio::test]
async fn file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("fleet.db"), vec![b'x'; 8192]).unwrap();
    let error = Place::Sqlite(folder).open(&tenant("t")).await.unwrap_err();
    assert!(
        matches!(error, StoreError::Open { .. } | StoreError::Schema { .. }),
        "{error}"
    );
}

async fn what_is_old_goes_and_totals_and_the_last_row_stay(fixture: Fixture) {
    let at = |time: u64, record: Record| Arrival {
        at: time,
        ..live(record)
    };
    let old = (1..=5000).map(|sequence| at(1000 + sequence, summarised("cam", 1, sequence, 10)));
    for part in old.collect::<Vec<_>>().chunks(500) {
        fixture.insert(part.to_vec()).await;
    }
    fixture
        .insert(vec![
            at(9000, summarised("cam", 1, 5001, 10)),
            at(1, event("cam", 6000)),
        ])
        .await;
    assert_eq!(
        fixture.store.remove_before(4001).await.unwrap(),
        0,
        "none is in its hour"
    );
    while fixture.store.fold_before(u64::MAX).await.unwrap() > 0 {}
    let mut removed = 0;
    loop {
        let now = fixture.store.remove_before(4001).await.unwrap();
        removed += now;
        if now == 0 {
            break;
        }
    }
    // Summaries of 1001 to 4000; the only event is the last row of its table.
    assert_eq!(removed, 3000);
    let left = fixture.store.summary_list("cam", Some(0), 10_000).await.unwrap();
    assert_eq!(left.len(), 2001);
    let runs = fixture.store.run_list(ALL).await.unwrap();
    assert_eq!(runs["cam"].values().map(|run| run.summaries).sum::<u64>(), 5001);
    while fixture.store.remove_before(u64::MAX).await.unwrap() > 0 {}
    assert_eq!(fixture.store.summary_list("cam", Some(0), 10).await.unwrap().len(), 1);
    // And is still known.
    assert_eq!(
        fixture.insert(vec![at(9001, summarised("cam", 1, 5001, 10))]).await,
        [Outcome::Repeated]
    );
}

async fn a_certificate_is_renewed_for_the_key_of_one_that_holds(fixture: Fixture) {
    const DAY: u64 = 24 * 3600 * 1000;
    let issued = |key: u8, serial: u8| Issued {
        serial: [serial; 16],
        key: Digest([key; 32]),
        certificate: format!("certificate {serial} of key {key}"),
        expires_at: 100 * DAY,
    };
    let store = &fixture.store;
    fixture.insert(vec![live(birth("cam", 1, 1000))]).await;
    let token = Digest([9; 32]);
    let made = store.enrolment_create(token, None, [].into(), "ada".into(), DAY, 2 * DAY);
    made.await.unwrap();
    assert_eq!(
        store.enrol(token, device("cam"), DAY, issued(1, 1)).await.unwrap(),
        Enrolled::Done
    );
    let renew = async |name: &str, shown: u8, new: Issued, now: u64| {
        let shown = Digest([shown; 32]);
        store.certificate_renew(device(name), shown, new, now).await.unwrap()
    };
    // With a key of nobody, of another device, or whose certificate has ended.
    assert_eq!(renew("cam", 2, issued(3, 3), 2 * DAY).await, Renewed::Unknown);
    assert_eq!(renew("cam-1", 1, issued(3, 3), 2 * DAY).await, Renewed::Unknown);
    assert_eq!(renew("cam", 1, issued(3, 3), 100 * DAY).await, Renewed::Unknown);
    assert_eq!(renew("cam", 1, issued(2, 2), 2 * DAY).await, Renewed::Done);
    assert_eq!(
        renew("cam", 1, issued(2, 3), 2 * DAY).await,
        Renewed::Again("certificate 2 of key 2".into()),
        "an answer may be lost"
    );
    assert_eq!(fixture.device("cam").await.certificate_ends, Some(100 * DAY));
    for (at, ending) in [(83 * DAY, 0), (84 * DAY, 1), (101 * DAY, 1)] {
        assert_eq!(store.certificates_ending(at).await.unwrap(), ending, "{at}");
    }
    for key in 3..10 {
        assert_eq!(renew("cam", 2, issued(key, key), 2 * DAY).await, Renewed::Done);
    }
    assert_eq!(renew("cam", 2, issued(10, 10), 2 * DAY).await, Renewed::TooMany);
    assert_eq!(renew("cam", 2, issued(10, 10), 4 * DAY).await, Renewed::Done);
    // What is revoked renews nothing, and neither does who is kept apart.
    let revoked = store.certificate_revoke(device("cam"), "stolen".into(), "ada".into(), 5 * DAY);
    assert_eq!(revoked.await.unwrap(), 10);
    assert_eq!(renew("cam", 2, issued(11, 11), 6 * DAY).await, Renewed::Unknown);
    let token = Digest([8; 32]);
    let made = store.enrolment_create(token, Some(device("cam")), [].into(), "ada".into(), 6 * DAY, 7 * DAY);
    made.await.unwrap();
    let again = store.enrol(token, device("cam"), 6 * DAY, issued(12, 12)).await;
    assert_eq!(again.unwrap(), Enrolled::Done);
    assert_eq!(renew("cam", 12, issued(13, 13), 6 * DAY).await, Renewed::Quarantined);
}

async fn settings_change_what_is_named_and_nothing_else(fixture: Fixture) {
    let key = fixture.key();
    let store = &fixture.store;
    fixture
        .insert(vec![live(birth("a", 1, 1000)), live(birth("b", 1, 1000))])
        .await;
    let drafted = store.desired_insert(Arc::clone(&key), draft(1, b"one", None)).await;
    assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    let change = async |devices: Option<Vec<DeviceId>>, change: Change| {
        let done = store.desired_change(Arc::clone(&key), devices, change, "ada".into(), 5);
        done.await.unwrap()
    };
    let budget = Change {
        accuracy_budget: Some(Some(0.02)),
        log: Some(Some(LogLevel::Debug)),
        ..Change::default()
    };
    let changed = change(None, budget).await.unwrap();
    assert_eq!(changed, [(device("a"), Generation(2)), (device("b"), Generation(2))]);
    let off = Change {
        enabled: Some(Some(false)),
        log: Some(None),
        ..Change::default()
    };
    change(Some(vec![device("b")]), off).await.unwrap();
    let desired = async |name: &str| {
        let state = store.desired_fetch(name).await.unwrap().unwrap();
        let signed: Desired = verified(&key, &state.signed);
        assert_eq!(
            (state.settings.learner, state.settings.log),
            (signed.learner, signed.log)
        );
        assert_eq!(state.policy, signed.policy.map(|policy| (policy.name, policy.version)));
        state
    };
    let (a, b) = (desired("a").await, desired("b").await);
    assert_eq!((a.generation, a.settings.log), (2, Some(LogLevel::Debug)));
    assert_eq!(a.settings.learner.enabled, None);
    assert_eq!((b.generation, b.settings.log), (3, None));
    assert_eq!(b.settings.learner.enabled, Some(false));
    assert_eq!(b.settings.learner.accuracy_budget, Some(0.02));
    // Another policy leaves them as they are.
    let drafted = store.desired_insert(Arc::clone(&key), draft(2, b"two", None)).await;
    assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    let next = desired("b").await;
    assert_eq!((next.policy.unwrap().1, next.settings), (2, b.settings));
    let unknown = change(Some(vec![device("z")]), off).await.unwrap_err();
    assert_eq!(unknown, Unfit::Unknown(vec![device("z")]));
    let log = store.audit_list(None, 10).await.unwrap();
    let told = log.iter().find(|entry| entry.subject == "device b").unwrap();
    assert_eq!(told.detail, r#"{"enabled":false,"log":null}"#);
}

async fn summaries_are_folded_into_their_hours_once(fixture: Fixture) {
    const HOUR: u64 = 3600 * 1000;
    let store = &fixture.store;
    let at = |minute: u64, boot: u8, sequence: u64, frames: u64| {
        let mut message = summary("cam", boot, sequence, frames);
        message.window = WindowMessage {
            start: minute * 60_000,
            end: minute * 60_000 + 60_000,
        };
        message.classes = vec![ClassCount {
            class: sequence as u32 % 2,
            count: frames,
        }];
        message.drift = Some(0.25);
        Arrival {
            at: minute * 60_000 + 61_000,
            ..live(Record::Summary(Box::new(message)))
        }
    };
    // Two hours of one run, and one of the next; the clock of the last was far ahead.
    let mut arrivals: Vec<Arrival> = (0..119).map(|minute| at(minute, 1, minute + 1, 10)).collect();
    arrivals.extend((120..130).map(|minute| at(minute, 2, minute + 1, 20)));
    let mut ahead = at(1_000_000, 2, 200, 5);
    ahead.at = 131 * 60_000;
    arrivals.push(ahead);
    for part in arrivals.chunks(50) {
        fixture.insert(part.to_vec()).await;
    }
    let raw = store.history_fetch("cam", u64::MAX >> 12, 10_000).await.unwrap();
    let frames = |history: &History| history.windows.iter().map(|w| w.frames).sum::<u64>();
    // Half of them are old, the rest is told window by window.
    let mut folded = 0;
    loop {
        let now = store.fold_before(60 * 60_000).await.unwrap();
        folded += now;
        if now == 0 {
            break;
        }
    }
    assert_eq!(folded, 59, "those that arrived within the first hour");
    let half = store.history_by_hour("cam", u64::MAX >> 12, 10_000).await.unwrap();
    assert_eq!((half.windows.len(), frames(&half)), (1 + 130 - 59, frames(&raw)));
    assert!(
        half.before
            .values()
            .chain(raw.before.values())
            .all(|run| run.frames == 0)
    );
    while store.fold_before(u64::MAX).await.unwrap() > 0 {}
    let all = store.history_by_hour("cam", u64::MAX >> 12, 10_000).await.unwrap();
    // Of the first run two hours, of the next one: what was ahead is in the hour in which it arrived.
    assert_eq!((all.windows.len(), frames(&all)), (3, frames(&raw)));
    let first = &all.windows[0];
    assert_eq!((first.start, first.end, first.frames), (0, HOUR - 60_000, 590));
    assert_eq!(
        (
            first.exits.iter().sum::<u64>(),
            first.classes.iter().map(|c| c.1).sum::<u64>()
        ),
        (590, 590)
    );
    assert_eq!((first.drift, first.classes.len()), (Some(0.25), 2));
    let sums = |history: &History| {
        let windows = history.windows.iter();
        windows.fold((0, 0, 0), |(macs, full, audits), w| {
            (macs + w.macs, full + w.full_macs, audits + w.audits)
        })
    };
    assert_eq!(sums(&all), sums(&raw));
    // They stay when the summaries go.
    while store.remove_before(u64::MAX).await.unwrap() > 0 {}
    let after = store.history_by_hour("cam", u64::MAX >> 12, 10_000).await.unwrap();
    assert_eq!(after.windows, all.windows);
    assert_eq!(store.hours_remove(HOUR).await.unwrap(), 1);
    let after = store.history_by_hour("cam", u64::MAX >> 12, 10_000).await.unwrap();
    assert_eq!(after.windows, all.windows[1..]);
}

/// As much as a message can carry: older databases hold it, though it would be refused today.
async fn windows_beyond_all_measure_are_folded(fixture: Fixture) {
    let beyond = |sequence| {
        let most = SummaryMessage {
            frames: u64::MAX,
            exits: vec![ExitUse { taken: u64::MAX }],
            drift: Some(0.0),
            watts: Some(1.0),
            ..summary("cam", 1, sequence, 4)
        };
        live(Record::Summary(Box::new(most)))
    };
    fixture.insert((1..=4).map(beyond).collect()).await;
    // In parts, so that what is there already is added to as well.
    fixture.insert(vec![beyond(5), beyond(6)]).await;
    while fixture.store.fold_before(u64::MAX).await.unwrap() > 0 {}
    fixture.insert(vec![beyond(7)]).await;
    while fixture.store.fold_before(u64::MAX).await.unwrap() > 0 {}
    let hours = fixture.store.history_by_hour("cam", u64::MAX >> 12, 10).await.unwrap();
    assert_eq!((hours.windows.len(), hours.windows[0].drift), (1, Some(0.0)));
}

async fn other_settings_and_keys_leave_a_device_in_its_rollout(fixture: Fixture) {
    let (store, key) = (&fixture.store, fixture.key());
    store.peer_join("one", "").await.unwrap();
    store.peer_beat("one", 60_000).await.unwrap();
    let mut message = summary("a", 1, 1, 100);
    message.control = Some(ControlReport {
        audits: 64,
        learned: Arm { cost: 0.25, loss: 0.0 },
        frozen: Arm { cost: 0.5, loss: 0.0 },
        error: 0.0,
    });
    let macs = message.cost.macs;
    let records = vec![live(birth("a", 1, 1000)), live(Record::Summary(Box::new(message)))];
    fixture.insert(records).await;
    let push = async |version, devices| {
        let drafted = store.desired_insert(Arc::clone(&key), draft(version, &[version as u8], devices));
        assert!(matches!(drafted.await.unwrap(), Drafted::Desired(_)));
    };
    push(1, None).await;
    push(2, Some(&[][..])).await;
    let wanted = NewRollout {
        kind: ArtifactKind::Policy,
        name: "entropy".into(),
        version: 2,
        parameters: [].into(),
        devices: None,
        plan: crate::rollout::Plan::default(),
        forecast: None,
        who: "ada".into(),
        now: 2000,
    };
    let Started::Rollout(id) = store.rollout_start(wanted).await.unwrap() else {
        panic!("it starts")
    };
    let order = crate::rollout::Change::Order {
        device: "a".into(),
        wave: 0,
    };
    let running = crate::rollout::State::Running;
    let applied = store.rollout_apply(Arc::clone(&key), id, running, vec![order], vec![], 2000);
    assert!(applied.await.unwrap());
    let member = async || {
        let member = store.rollout_members(id).await.unwrap().remove(0);
        (member.generation, member.now.named_since)
    };
    assert_eq!(member().await, (2, 2));
    let before = store.rollout_members(id).await.unwrap().remove(0).before;
    assert_eq!((before.run.macs, before.saved), (macs, macs), "learning has halved it");
    let change = Change {
        log: Some(Some(LogLevel::Debug)),
        ..Change::default()
    };
    let changed = store.desired_change(Arc::clone(&key), None, change, "ada".into(), 5);
    assert_eq!(changed.await.unwrap().unwrap(), [(device("a"), Generation(3))]);
    let new = key.add().unwrap();
    store
        .key_introduce(Arc::clone(&key), new, "ada".into(), 6)
        .await
        .unwrap();
    assert_eq!(store.desired_fetch("a").await.unwrap().unwrap().generation, 4);
    assert_eq!(member().await, (2, 2), "it still has what was rolled out");
    push(3, None).await;
    assert_eq!(member().await, (2, 5));
}

async fn what_another_controllers_newest_key_has_signed_is_changed_and_not_begun_anew(fixture: Fixture) {
    let (store, one) = (&fixture.store, fixture.key());
    let other = Arc::new(Keyring::load_or_generate(&fixture._keys.path().join("fleet.key")).unwrap());
    fixture.insert(vec![live(birth("a", 1, 1000))]).await;
    let new = one.add().unwrap();
    store
        .key_introduce(Arc::clone(&one), new.clone(), "ada".into(), 5)
        .await
        .unwrap();
    let Record::Reported(mut trusts) = reported("a", 1, None) else {
        unreachable!()
    };
    trusts.trusts = vec![new.clone()];
    fixture.insert(vec![live(Record::Reported(trusts))]).await;
    let drafted = store.desired_insert(Arc::clone(&one), draft(1, b"one", None)).await;
    assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    let change = Change {
        log: Some(Some(LogLevel::Debug)),
        ..Change::default()
    };
    let changed = store.desired_change(Arc::clone(&other), None, change, "ada".into(), 6);
    changed.await.unwrap().unwrap();
    let state = store.desired_fetch("a").await.unwrap().unwrap();
    let signed: Desired = new.verify(&state.signed).unwrap();
    assert_eq!(
        (signed.policy.map(|policy| policy.version), signed.log),
        (Some(1), Some(LogLevel::Debug))
    );
}

async fn a_device_that_reports_an_older_state_is_told_again(fixture: Fixture) {
    let store = &fixture.store;
    fixture
        .insert(vec![live(birth("a", 1, 1000)), live(birth("b", 1, 1000))])
        .await;
    let drafted = store.desired_insert(fixture.key(), draft(1, b"one", None)).await;
    assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    let (_, mut row) = store.desired_since(0).await.unwrap();
    let mut again = async |arrival: Arrival| {
        fixture.insert(vec![arrival]).await;
        let (found, next) = store.desired_since(row).await.unwrap();
        row = next;
        found
            .into_iter()
            .map(|state| (state.device, state.generation))
            .collect::<Vec<_>>()
    };
    assert_eq!(again(live(reported("a", 0, None))).await, [("a".to_owned(), 1)]);
    assert_eq!(again(kept(reported("a", 0, None))).await, [], "the broker had kept it");
    assert_eq!(again(live(reported("a", 0, Some("no room")))).await, [], "it knows it");
    assert_eq!(again(live(reported("a", 1, None))).await, []);
}

async fn old_desired_states_and_runs_make_room(fixture: Fixture) {
    let store = &fixture.store;
    let at = |at: u64, record: Record| Arrival { at, ..live(record) };
    fixture.insert(vec![live(birth("a", 1, 1))]).await;
    for run in 1..=200 {
        let arrivals = vec![
            at(run, birth("a", run as u8, run)),
            at(run, summarised("a", run as u8, 1, 8)),
        ];
        fixture.insert(arrivals).await;
    }
    let runs = async || store.run_list(&["a"]).await.unwrap().remove("a").unwrap();
    let frames = |runs: &BTreeMap<Vec<u8>, Run>| runs.values().map(|run| run.frames).sum::<u64>();
    assert_eq!((runs().await.len(), frames(&runs().await)), (200, 1600));
    // Those that are still young stay, and that which goes on.
    assert_eq!(store.runs_join_before(60).await.unwrap(), 0);
    while store.runs_join_before(u64::MAX >> 1).await.unwrap() > 0 {}
    let left = runs().await;
    assert_eq!((left.len(), frames(&left)), (65, 1600));
    assert_eq!(left[&vec![200; 16]].frames, 8);
    assert!(left.contains_key(&vec![150; 16]) && !left.contains_key(&vec![100; 16]));
    for run in 201..=254 {
        fixture
            .insert(vec![
                at(run, birth("a", run as u8, run)),
                at(run, summarised("a", run as u8, 1, 8)),
            ])
            .await;
    }
    while store.runs_join_before(u64::MAX >> 1).await.unwrap() > 0 {}
    assert_eq!((runs().await.len(), frames(&runs().await)), (65, 1600 + 54 * 8));

    for version in 1..=60 {
        let drafted = store
            .desired_insert(fixture.key(), draft(version, &[version as u8], None))
            .await;
        assert!(matches!(drafted.unwrap(), Drafted::Desired(_)));
    }
    let (_, all) = store.desired_since(0).await.unwrap();
    assert_eq!(all, 60, "rows are numbered on");
    assert_eq!(store.desired_fetch("a").await.unwrap().unwrap().generation, 60);

    // Of an artifact whose upload broke off nothing stays.
    let bytes = bytes::Bytes::from_static(b"half");
    store.artifact_prepare(Digest::of(b"whole"), &bytes).await.unwrap();
    assert_eq!(store.pieces_remove_before(1000).await.unwrap(), 0, "it may go on");
    assert_eq!(store.pieces_remove_before(u64::MAX >> 1).await.unwrap(), 1);
    assert!(store.artifact_part(Digest::of(&[60]), 0).await.unwrap().is_some());
}

on_both! {
    windows_beyond_all_measure_are_folded,
    other_settings_and_keys_leave_a_device_in_its_rollout,
    what_another_controllers_newest_key_has_signed_is_changed_and_not_begun_anew,
    a_device_that_reports_an_older_state_is_told_again,
    old_desired_states_and_runs_make_room,
    summaries_are_folded_into_their_hours_once,
    settings_change_what_is_named_and_nothing_else,
    a_certificate_is_renewed_for_the_key_of_one_that_holds,
    cameras_engines_and_what_learning_is_worth_are_kept,
    summary_is_kept_as_it_came_with_what_is_unknown_here,
    totals_saturate_instead_of_failing,
    device_lives_from_birth_to_the_death_of_the_same_run,
    death_of_an_older_run_is_ignored,
    run_that_speaks_after_its_death_lives_again,
    late_summary_of_an_older_run_does_not_revive_the_device,
    repeated_birth_of_an_overtaken_run_is_ignored,
    device_whose_clock_went_back_is_born_again,
    what_the_broker_kept_does_not_count_as_seen,
    birth_and_reported_state_are_read_back,
    events_are_kept_once_and_listed_last_first,
    guard_is_kept_and_a_summary_without_one_too,
    pause_and_its_end_are_events_once_each,
    first_summary_of_a_device_may_say_that_learning_has_paused,
    latest_windows_are_the_ones_with_the_highest_sequence,
    history_holds_the_last_windows_and_what_came_before_them,
    generations_rise_per_device_and_the_learner_is_left_alone,
    generation_rises_above_what_the_device_reports,
    name_and_version_always_mean_the_same_bytes,
    push_to_an_unknown_device_changes_nothing,
    artifacts_are_read_in_parts,
    a_model_lies_in_pieces_under_a_name_and_version_that_mean_the_same_for_ever,
    what_was_counted_with_another_model_is_not_the_new_ones,
    policy_list_counts_where_a_policy_should_run_and_where_it_runs,
    what_is_old_goes_and_totals_and_the_last_row_stay,
    everything_is_there_after_a_restart,
    database_of_another_tenant_is_refused,
    another_key_than_before_is_refused,
    a_key_is_replaced_device_by_device,
    selectors_mean_devices_by_label_fact_and_group,
    two_agents_of_one_name_are_kept_apart_and_a_restart_is_not,
}
