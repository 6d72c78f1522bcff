//! Several cameras at one engine: a fixed pool of workers runs whatever frames are due, as many at a time as wait
//! at the same stage.
//!
//! A [`Seat`] is with one thread at a time: it waits here, or a worker has it. So nobody locks a core, and a camera's
//! frames are decided and learned from one after another, in the order in which they came.

// Seats are large, and change hands with every stage.
#![allow(clippy::vec_box)]

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use offramp_camera::Frame;
use offramp_core::Settings;
use offramp_engine::{Engine, Frame as Staged};
use offramp_proto::Window;
use tokio::sync::mpsc;
use tracing::warn;

use crate::agent::film::Delivered;
use crate::agent::pulse::Pulse;
use crate::agent::queue::Queue;
use crate::agent::seat::{Seat, Service};
use crate::agent::windows::{Part, Sums, Whole};
use crate::agent::{DropPolicy, Ended, Outcome, Report};
use crate::judge::PolicyJudge;
use crate::lane::{Lane, Next};

/// How often somebody looks up who waits for frames: the switch may have been turned, or a window ended.
const LOOK_UP: Duration = Duration::from_millis(200);
/// What the last run of a stage counts for in what it is expected to take.
const FRESH: f32 = 0.1;

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// What cameras and workers share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something may be there to be done.
    work: Condvar,
    /// A camera's frame has been taken.
    room: Condvar,
    /// Ends everything once the frames that have begun are done.
    pub(crate) stop: Arc<AtomicBool>,
    /// A worker has panicked, and its seats are gone with it.
    broken: AtomicBool,
    /// Windows that every seat should have closed.
    windows: AtomicU64,
    /// Frames that are run at a time.
    batch: usize,
    exchange: Arc<Exchange>,
    /// Models that took the place of another.
    replaced: AtomicU64,
    pub(crate) pulse: Arc<Pulse>,
}

/// Between the keeper, who has a model ready, and the pool, which takes it up between two frames.
#[derive(Default)]
pub(crate) struct Exchange {
    wanted: AtomicBool,
    next: Mutex<Option<Box<Replacement>>>,
}

/// A model that is to take the place of the one that runs.
pub(crate) struct Replacement {
    pub(crate) engine: Engine,
    pub(crate) classes: Arc<[String]>,
    pub(crate) settings: Settings,
    /// In the order of the cameras.
    pub(crate) lanes: Vec<(Lane, PolicyJudge)>,
}

impl Exchange {
    pub(crate) fn offer(&self, replacement: Replacement) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(replacement));
        self.wanted.store(true, Ordering::Release);
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    fn take(&self) -> Option<Box<Replacement>> {
        self.wanted.store(false, Ordering::Release);
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

struct State {
    queue: Queue<Box<Seat>>,
    mail: Vec<Mail>,
    /// Seats that wait for a frame, each at its camera's place.
    idle: Vec<Option<Box<Seat>>>,
    /// Seats whose cameras have ended.
    ended: Vec<Box<Seat>>,
    /// Workers that have nothing to do.
    resting: usize,
    round: Round,
    /// Runs the stages.
    engine: Engine,
    /// Seats that begin no frame until all are here and another model takes over, and room at the keeper to tell of it.
    parked: Vec<Box<Seat>>,
    room: Option<mpsc::OwnedPermit<Report>>,
}

/// Between a camera and its seat.
struct Mail {
    service: Service,
    waiting: Option<Delivered>,
    /// Memory for the next frames: none is allocated once a few went round.
    empty: Vec<Frame>,
    /// Frames that gave way to newer ones.
    dropped: u64,
    /// Whether the camera has ended.
    closed: bool,
}

/// The window that all seats close at about the same time.
struct Round {
    every: Duration,
    due: Instant,
    start: u64,
    sums: Sums,
    reports: mpsc::Sender<Report>,
    /// Windows that were closed and not told yet.
    parts: Vec<Part>,
    /// Room at the keeper while a round goes on, and how many seats have not closed their windows.
    open: Option<(mpsc::OwnedPermit<Report>, usize)>,
}

impl Round {
    /// What was closed and not told yet, as one window.
    fn close(&mut self) -> (Box<Whole>, Window) {
        let end = unix_ms().max(self.start);
        let span = Window {
            start: mem::replace(&mut self.start, end),
            end,
        };
        (Box::new(self.sums.join(mem::take(&mut self.parts))), span)
    }

    fn report(&mut self) -> Report {
        let (whole, span) = self.close();
        Report::Window { whole, span }
    }

    /// Takes in the window of a seat, which may be the one that the round waits for. The last one's ends the round.
    fn add(&mut self, part: Part, awaited: bool) {
        self.parts.push(part);
        if let Some((permit, missing)) = self.open.take() {
            let missing = missing - usize::from(awaited);
            if missing == 0 {
                permit.send(self.report());
            } else {
                self.open = Some((permit, missing));
            }
        }
    }
}

/// What a worker does next.
enum Job {
    /// Run this stage of the frames in the batch, when so many others wait.
    Run { stage: usize, waiting: usize },
    /// Do what a seat has to do without a frame.
    Tend(Box<Seat>),
    /// Take another model's engine from now on.
    Take(Box<Engine>),
    /// All is done.
    End,
}

/// How much a pool does at a time.
pub(crate) struct Size {
    /// Workers.
    pub(crate) threads: usize,
    /// Frames that wait at the same stage and are run together, at most.
    pub(crate) batch: usize,
    /// Between two windows.
    pub(crate) window_every: Duration,
}

/// The seats, and what runs them.
pub(crate) struct Pool {
    pub(crate) shared: Arc<Shared>,
    threads: usize,
}

impl Pool {
    pub(crate) fn new(
        engine: Engine,
        seats: Vec<Seat>,
        Size {
            threads,
            batch,
            window_every,
        }: Size,
        reports: mpsc::Sender<Report>,
        stop: Arc<AtomicBool>,
        exchange: Arc<Exchange>,
    ) -> Self {
        let mail = seats.iter().map(|seat| Mail {
            service: seat.service,
            waiting: None,
            empty: Vec::new(),
            dropped: 0,
            closed: false,
        });
        let now = Instant::now();
        let state = State {
            queue: Queue::new(engine.stages()),
            mail: mail.collect(),
            ended: Vec::with_capacity(seats.len()),
            idle: seats.into_iter().map(|seat| Some(Box::new(seat))).collect(),
            resting: 0,
            round: Round {
                every: window_every,
                due: now + window_every,
                start: unix_ms(),
                sums: Sums::default(),
                reports,
                parts: Vec::new(),
                open: None,
            },
            engine,
            parked: Vec::new(),
            room: None,
        };
        let shared = Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            stop,
            broken: AtomicBool::new(false),
            windows: AtomicU64::new(0),
            batch,
            exchange,
            replaced: AtomicU64::new(0),
            pulse: Arc::new(Pulse::new(threads, now)),
        };
        Self {
            shared: Arc::new(shared),
            threads,
        }
    }

    /// Works until all cameras have ended, then tells the keeper the last of each.
    pub(crate) fn run(self) -> Outcome {
        std::thread::scope(|scope| {
            for number in 1..self.threads {
                let engine = self.shared.lock().engine.clone();
                let worker = std::thread::Builder::new().name("offramp-worker".into());
                let shared = &*self.shared;
                let work = move || Worker::new(shared, number, engine).run();
                if let Err(error) = worker.spawn_scoped(scope, work) {
                    self.shared.pulse.end(number);
                    warn!(%error, "the system refuses a thread: stages run on fewer");
                }
            }
            let engine = self.shared.lock().engine.clone();
            Worker::new(&self.shared, 0, engine).run();
        });
        let mut state = self.shared.lock();
        let mut seats = mem::take(&mut state.ended);
        seats.sort_by_key(|seat| seat.camera);
        let last = (!state.round.parts.is_empty()).then(|| state.round.report());
        let reports = state.round.reports.clone();
        drop(state);
        if let Some(last) = last {
            let _ = reports.blocking_send(last);
        }
        let mut cameras = Vec::with_capacity(seats.len());
        for seat in seats {
            let heads = seat.lane.core.checkpoint();
            if !seat.left_behind {
                let _ = reports.blocking_send(Report::Checkpoint {
                    camera: seat.camera,
                    heads: heads.clone(),
                });
            }
            cameras.push(Ended {
                name: seat.name,
                arrived: seat.arrived,
                predicted: seat.predicted,
                dropped: seat.dropped,
                hurried: seat.hurried,
                heads,
            });
        }
        let _ = reports.blocking_send(Report::Ended);
        Outcome { cameras }
    }
}

impl Seat {
    /// Closes the window.
    fn window(&mut self) -> Part {
        self.windows += 1;
        let report = self.lane.core.close_window();
        let hurried = self.lane.take_hurried();
        self.hurried += hurried;
        Part {
            camera: self.name.clone(),
            hurried,
            policy: self.judge.report(report.faults),
            report,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a thread that panics ends the agent")
    }

    /// Hands over a frame. Waits where frames are not to be dropped and one waits already; otherwise the new one
    /// takes its place. Gives memory for the next frame, and `None` once nobody takes frames any more.
    pub(crate) fn deliver(&self, camera: usize, delivered: Delivered) -> Option<Frame> {
        let mut state = self.lock();
        while state.mail[camera].waiting.is_some() && state.mail[camera].service.drop == DropPolicy::Never {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            let waited = self.room.wait_timeout(state, LOOK_UP);
            state = waited.expect("a thread that panics ends the agent").0;
        }
        let mail = &mut state.mail[camera];
        let due = mail.service.due(delivered.at);
        let replaced = mail.waiting.replace(delivered);
        mail.dropped += u64::from(replaced.is_some());
        let empty = replaced.map(|old| old.frame).or_else(|| mail.empty.pop());
        if let Some(seat) = state.idle[camera].take() {
            state.queue.push(0, due, seat);
            self.call(&state);
        }
        Some(empty.unwrap_or_default())
    }

    /// The camera has ended.
    pub(crate) fn close(&self, camera: usize) {
        let mut state = self.lock();
        state.mail[camera].closed = true;
        self.call(&state);
    }

    /// Wakes a worker, if one rests.
    fn call(&self, state: &State) {
        if state.resting > 0 {
            self.work.notify_one();
        }
    }

    /// What to do next; waits for it.
    fn next(&self, worker: usize, batch: &mut Vec<Box<Seat>>, replaced: &mut u64) -> Job {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            self.pulse.beat(worker, now);
            // Also of who rests: the engine before is to go.
            if *replaced != self.replaced.load(Ordering::Relaxed) {
                *replaced = self.replaced.load(Ordering::Relaxed);
                return Job::Take(Box::new(state.engine.clone()));
            }
            let windows = self.windows.load(Ordering::Relaxed);
            if self.stop.load(Ordering::Relaxed) {
                let mut seats: Vec<_> = state.idle.iter_mut().filter_map(Option::take).collect();
                state.queue.take_unbegun(&mut seats);
                seats.append(&mut state.parked);
                seats.into_iter().for_each(|seat| state.end(seat, windows));
            }
            if self.exchange.is_wanted() && self.make_way(&mut state) {
                continue;
            }
            state.open_round(now, &self.windows);
            if let Some(seat) = state.untended(now, self.windows.load(Ordering::Relaxed)) {
                return Job::Tend(seat);
            }
            if let Some(stage) = state.queue.take(self.batch, batch) {
                if stage == 0 {
                    for seat in &mut *batch {
                        let mail = &mut state.mail[seat.camera];
                        seat.add_dropped(mem::take(&mut mail.dropped));
                        seat.current = mail.waiting.take();
                    }
                    self.room.notify_all();
                }
                // Whoever rests may take what is left.
                if state.queue.len() > 0 {
                    self.call(&state);
                }
                let waiting = state.queue.len();
                return Job::Run { stage, waiting };
            }
            if state.ended.len() == state.mail.len() || self.broken.load(Ordering::Relaxed) {
                self.work.notify_all();
                self.pulse.end(worker);
                return Job::End;
            }
            state.resting += 1;
            let waited = self.work.wait_timeout(state, LOOK_UP);
            state = waited.expect("a thread that panics ends the agent").0;
            state.resting -= 1;
        }
    }

    /// Lets no frame begin any more; once all that were on their way are over, another model takes over.
    /// Gives whether it has.
    fn make_way(&self, state: &mut State) -> bool {
        if state.room.is_none() {
            state.room = state.round.reports.clone().try_reserve_owned().ok();
        }
        let Some(room) = state.room.take() else { return false };
        let (idle, parked) = (&mut state.idle, &mut state.parked);
        parked.extend(idle.iter_mut().filter_map(Option::take));
        state.queue.take_unbegun(parked);
        // Whose cameras have all ended needs no other model.
        if parked.is_empty() || parked.len() + state.ended.len() < state.mail.len() {
            state.room = Some(room);
            return false;
        }
        let Some(replacement) = self.exchange.take() else {
            return false;
        };
        room.send(state.replace(*replacement, self.windows.load(Ordering::Relaxed)));
        self.replaced.fetch_add(1, Ordering::Relaxed);
        self.work.notify_all();
        true
    }

    /// Puts frames back that need another stage.
    fn put_back(&self, frames: &mut Vec<(usize, Box<Seat>)>) {
        let mut state = self.lock();
        for (stage, seat) in frames.drain(..) {
            let arrived = seat.current.as_ref().map_or_else(Instant::now, |current| current.at);
            let due = seat.service.due(arrived);
            state.queue.push(stage, due, seat);
        }
    }

    /// Seats whose frames are over wait for the next.
    fn settle(&self, seats: &mut Vec<Box<Seat>>) {
        // A window takes long to close: not while others wait for the lock.
        let windows = self.windows.load(Ordering::Acquire);
        let late = seats.iter_mut().filter(|seat| seat.windows < windows);
        let parts: Vec<Part> = late.map(|seat| seat.window()).collect();
        let mut state = self.lock();
        for part in parts {
            state.round.add(part, true);
        }
        for mut seat in seats.drain(..) {
            let camera = seat.camera;
            let mail = &mut state.mail[camera];
            if let Some(current) = seat.current.take() {
                mail.empty.push(current.frame);
            }
            match &mail.waiting {
                Some(next) => {
                    let due = mail.service.due(next.at);
                    state.queue.push(0, due, seat);
                }
                None if mail.closed => {
                    seat.add_dropped(mem::take(&mut mail.dropped));
                    state.end(seat, windows);
                }
                None => state.idle[camera] = Some(seat),
            }
        }
    }
}

impl State {
    /// Begins a round when it is due, if the keeper has room for what comes of it.
    fn open_round(&mut self, now: Instant, windows: &AtomicU64) {
        let round = &mut self.round;
        // Who has ended closes no more windows.
        let seats = self.mail.len() - self.ended.len();
        if now < round.due || round.open.is_some() || seats == 0 {
            return;
        }
        if let Ok(permit) = round.reports.clone().try_reserve_owned() {
            round.open = Some((permit, seats));
            round.due = now + round.every;
            windows.fetch_add(1, Ordering::Release);
        }
    }

    /// Gives every parked seat its lane of another model. Gives what there is to tell of the one before.
    fn replace(&mut self, replacement: Replacement, windows: u64) -> Report {
        let Replacement {
            engine,
            classes,
            settings,
            lanes,
        } = replacement;
        let mut parked = mem::take(&mut self.parked);
        // A window is of one model.
        for seat in &mut parked {
            let awaited = seat.windows < windows;
            let part = seat.window();
            seat.windows = windows;
            self.round.add(part, awaited);
        }
        let window = (!self.round.parts.is_empty()).then(|| self.round.close());
        // What was audited was audited of the model before.
        self.round.sums = Sums::default();
        self.queue = Queue::new(engine.stages());
        self.engine = engine;
        let mut lanes: Vec<_> = lanes.into_iter().map(Some).collect();
        let (mut heads, mut policy, mut frame) = (Vec::new(), None, 0);
        // Cameras that have ended stay with the model before: what they have learned is told now, or never.
        for seat in self.ended.iter_mut().filter(|seat| !seat.left_behind) {
            heads.push((seat.camera, seat.lane.core.checkpoint()));
            seat.left_behind = true;
        }
        for mut seat in parked {
            if let Some((lane, judge)) = lanes.get_mut(seat.camera).and_then(Option::take) {
                heads.push((seat.camera, seat.lane.core.checkpoint()));
                policy.get_or_insert_with(|| judge.report(0));
                seat.take_model(lane, judge, settings, Arc::clone(&classes));
            }
            frame = frame.max(seat.arrived);
            let mail = &self.mail[seat.camera];
            match &mail.waiting {
                Some(next) => self.queue.push(0, mail.service.due(next.at), seat),
                None => {
                    let camera = seat.camera;
                    self.idle[camera] = Some(seat);
                }
            }
        }
        Report::Replaced {
            window,
            heads,
            policy,
            frame,
        }
    }

    /// The seat's camera has ended: it closes its last window.
    fn end(&mut self, mut seat: Box<Seat>, windows: u64) {
        let awaited = seat.windows < windows;
        let part = seat.window();
        self.round.add(part, awaited);
        self.ended.push(seat);
    }

    /// A seat that waits for a frame and has something to do meanwhile: to end, to close a window, or to look for
    /// orders.
    fn untended(&mut self, now: Instant, windows: u64) -> Option<Box<Seat>> {
        let (idle, mail) = (&mut self.idle, &self.mail);
        let waits = |seat: &mut Box<Seat>| {
            mail[seat.camera].closed || seat.windows < windows || now.saturating_duration_since(seat.tended) >= LOOK_UP
        };
        idle.iter_mut().find_map(|seat| seat.take_if(waits))
    }
}

/// Ends the other workers where one panics: they would wait for its seats for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop.store(true, Ordering::Relaxed);
            self.0.broken.store(true, Ordering::Relaxed);
            self.0.work.notify_all();
        }
    }
}

/// A thread that runs stages.
struct Worker<'a> {
    shared: &'a Shared,
    number: usize,
    engine: Engine,
    /// What each stage is expected to take, in milliseconds.
    expected_ms: Vec<f32>,
    /// Models that it has seen replaced.
    replaced: u64,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, number: usize, engine: Engine) -> Self {
        Self {
            shared,
            number,
            expected_ms: vec![0.0; engine.stages() + 1],
            engine,
            replaced: 0,
        }
    }

    fn run(mut self) {
        let _alarm = Alarm(self.shared);
        let (mut batch, mut over, mut further) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match self.shared.next(self.number, &mut batch, &mut self.replaced) {
                Job::Take(engine) => {
                    self.expected_ms = vec![0.0; engine.stages() + 1];
                    self.engine = *engine;
                }
                Job::Run { stage, waiting } => {
                    if stage == 0 {
                        over.extend(batch.extract_if(.., |seat| !seat.begin(&self.engine, waiting)));
                    }
                    self.run_stage(stage, &mut batch, &mut over, &mut further);
                    if !further.is_empty() {
                        self.shared.put_back(&mut further);
                    }
                    over.iter_mut().for_each(|seat| seat.finish());
                }
                Job::Tend(mut seat) => {
                    seat.tend();
                    over.push(seat);
                }
                Job::End => return,
            }
            if !over.is_empty() {
                self.shared.settle(&mut over);
            }
        }
    }

    fn run_stage(
        &mut self,
        stage: usize,
        batch: &mut Vec<Box<Seat>>,
        over: &mut Vec<Box<Seat>>,
        further: &mut Vec<(usize, Box<Seat>)>,
    ) {
        if batch.is_empty() {
            return;
        }
        let start = Instant::now();
        let mut frames: Vec<&mut Staged> = batch.iter_mut().map(|seat| seat.lane.frame()).collect();
        let run = self.engine.run_stage_of(stage, &mut frames);
        let took = start.elapsed();
        if let Err(error) = run {
            warn!(
                frames = batch.len(),
                error = &error as &dyn std::error::Error,
                "frames have failed"
            );
            batch.iter_mut().for_each(|seat| seat.lane.lose());
            over.append(batch);
            return;
        }
        let ms = took.as_secs_f32() * 1e3;
        let expected = &mut self.expected_ms[stage];
        *expected = if *expected == 0.0 {
            ms
        } else {
            *expected + FRESH * (ms - *expected)
        };
        let share = took / batch.len() as u32;
        for mut seat in batch.drain(..) {
            match seat.go_on(share, self.expected_ms[stage + 1]) {
                Next::Stage(next) => further.push((next, seat)),
                Next::Finished => over.push(seat),
            }
        }
    }
}
