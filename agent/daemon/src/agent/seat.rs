//! What belongs to one camera and goes with its frame from worker to worker.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use offramp_core::{Facts, Prediction, Settings};
use offramp_engine::Engine;
use tokio::sync::mpsc;
use tracing::warn;

use crate::agent::board::Board;
use crate::agent::film::Delivered;
use crate::agent::{DropPolicy, Listener, Order, Report, apply_learner};
use crate::judge::PolicyJudge;
use crate::lane::{FrameError, Lane, Next, Time};

/// How soon a frame without a deadline is due: an order among cameras, and no promise.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a camera was promised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    pub(crate) drop: DropPolicy,
    pub(crate) deadline: Option<Duration>,
}

impl Service {
    /// When a frame is due that arrived then.
    pub(crate) fn due(self, arrived: Instant) -> Instant {
        arrived + self.deadline.unwrap_or(PATIENCE)
    }
}

/// One camera's seat at the engine.
pub(crate) struct Seat {
    /// Its place among the cameras.
    pub(crate) camera: usize,
    /// For logs: empty where there is one camera only.
    pub(crate) name: String,
    pub(crate) service: Service,
    pub(crate) lane: Lane,
    pub(crate) board: Arc<Board>,
    pub(crate) judge: PolicyJudge,
    pub(crate) listener: Listener,
    /// Names of the model's classes.
    pub(crate) classes: Arc<[String]>,
    pub(crate) orders: Receiver<Order>,
    pub(crate) reports: mpsc::Sender<Report>,
    /// As the device's configuration has them.
    pub(crate) configured: Settings,
    pub(crate) checkpoint_every: Duration,
    pub(crate) checkpoint_due: Instant,
    /// Whether anything may have been learned since the last checkpoint.
    pub(crate) unsaved: bool,
    /// Milliseconds from the latest frame's arrival to its prediction.
    pub(crate) latency: Option<f32>,
    /// The frame on its way.
    pub(crate) current: Option<Delivered>,
    /// When it last looked for orders.
    pub(crate) tended: Instant,
    /// Windows that were closed.
    pub(crate) windows: u64,
    /// Whether its camera had ended when another model took over.
    pub(crate) left_behind: bool,
    /// Frames that the camera gave and that were begun.
    pub(crate) arrived: u64,
    /// Frames that got a prediction.
    pub(crate) predicted: u64,
    /// Frames that gave way to newer ones, or came to their turn too late.
    pub(crate) dropped: u64,
    /// Frames that left because their deadline was near, until the last window.
    pub(crate) hurried: u64,
}

impl Seat {
    /// Frames that gave way to newer ones, or came too late.
    pub(crate) fn add_dropped(&mut self, frames: u64) {
        self.dropped += frames;
        self.lane.core.add_dropped(frames);
    }

    /// Begins the current frame. Gives whether it is on its way.
    pub(crate) fn begin(&mut self, engine: &Engine, waiting: usize) -> bool {
        self.take_orders();
        let Some(current) = &self.current else { return false };
        let left_ms = self.left_ms(current.at);
        if left_ms.is_some_and(|left| left < 0.0) && self.service.drop == DropPolicy::Oldest {
            self.add_dropped(1);
            return false;
        }
        let facts = Facts {
            time_left: left_ms.unwrap_or(f32::NAN),
            queue_depth: waiting as u32,
            temperature: self.board.temperature(),
            power_budget: self.board.power_budget(),
            battery: self.board.battery(),
        };
        let number = self.arrived;
        self.arrived += 1;
        self.unsaved = true;
        let begun = self
            .lane
            .begin(engine, number, &current.frame.pixels, facts, &mut self.judge);
        match begun {
            Ok(()) => true,
            Err(error) => {
                self.tell_failed(&error);
                false
            }
        }
    }

    /// Milliseconds to the deadline of a frame that arrived then; negative once that has passed.
    fn left_ms(&self, arrived: Instant) -> Option<f32> {
        let deadline = self.service.deadline?;
        Some((deadline.as_secs_f32() - arrived.elapsed().as_secs_f32()) * 1e3)
    }

    /// Goes on after a stage that took so long for this frame, when the next would take `next_ms`.
    pub(crate) fn go_on(&mut self, took: Duration, next_ms: f32) -> Next {
        let Some(current) = &self.current else {
            return Next::Finished;
        };
        let time = Time {
            left_ms: self.left_ms(current.at),
            next_ms,
        };
        let (listener, predicted, latency) = (&mut self.listener, &mut self.predicted, &mut self.latency);
        let classes = &self.classes;
        let emit = |prediction: &Prediction| {
            *predicted += 1;
            *latency = Some(current.at.elapsed().as_secs_f32() * 1e3);
            // The core's clock does not know how long the frame has waited.
            let prediction = Prediction {
                latency_us: current.at.elapsed().as_micros() as u64,
                ..*prediction
            };
            listener(&prediction, &current.frame, classes);
        };
        match self.lane.go_on(took, time, &mut self.judge, emit) {
            Ok(next) => next,
            Err(error) => {
                self.tell_failed(&error);
                Next::Finished
            }
        }
    }

    pub(crate) fn tell_failed(&self, error: &FrameError) {
        warn!(
            camera = self.name,
            frame = self.arrived.saturating_sub(1),
            error = error as &dyn std::error::Error,
            "a frame has failed"
        );
    }

    /// Does what is left once a frame is over.
    pub(crate) fn finish(&mut self) {
        self.lane.tell(&mut self.judge, |outcome| {
            outcome.latency = self.latency.unwrap_or(outcome.latency);
            // Sensors are read once a second: between two frames the board draws what it drew.
            outcome.energy = self.board.watts() * outcome.interval / 1e3;
        });
        self.lane.learn();
        self.tell_policy_steps();
        self.save_if_due();
    }

    /// Does what does not wait for a frame.
    pub(crate) fn tend(&mut self) {
        self.take_orders();
        self.save_if_due();
    }

    /// Takes up another model. The context stays the one that the camera is in.
    pub(crate) fn take_model(&mut self, lane: Lane, judge: PolicyJudge, settings: Settings, classes: Arc<[String]>) {
        // What was ordered before was meant for the model before.
        self.take_orders();
        let context = self.lane.context;
        self.lane = lane;
        self.lane.context = context;
        self.judge = judge;
        self.configured = settings;
        self.classes = classes;
        self.unsaved = false;
    }

    fn save_if_due(&mut self) {
        if Instant::now() < self.checkpoint_due {
            return;
        }
        if self.unsaved {
            // A keeper that is behind gets the next one: only the newest matters.
            let sent = self.reports.try_send(self.checkpoint());
            self.unsaved = sent.is_err();
        }
        self.checkpoint_due = Instant::now() + self.checkpoint_every;
    }

    pub(crate) fn checkpoint(&self) -> Report {
        Report::Checkpoint {
            camera: self.camera,
            heads: self.lane.core.checkpoint(),
        }
    }

    fn take_orders(&mut self) {
        self.tended = Instant::now();
        for order in self.orders.try_iter() {
            match order {
                Order::Swap { generation, chosen } => self.judge.swap(*chosen, generation),
                Order::Learner(wanted) => apply_learner(&mut self.lane.core, &self.configured, wanted),
                Order::Context(key) => self.lane.context = key,
            }
        }
    }

    fn tell_policy_steps(&mut self) {
        let frame = self.arrived.saturating_sub(1);
        while let Some(step) = self.judge.next_step() {
            let report = Report::Policy {
                camera: self.camera,
                step,
                policy: self.judge.report(0),
                frame,
            };
            // The keeper's channel is long and steps are rare; waiting here for a stuck disk would be worse
            // than telling the step with the next window only.
            if self.reports.try_send(report).is_err() {
                warn!(camera = self.name, frame, "a change of policy was not told");
            }
        }
    }
}
