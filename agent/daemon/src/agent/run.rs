//! The camera's and the lane's threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use offramp_camera::{Camera, Frame};
use offramp_core::Facts;
use offramp_proto::Window;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::{error, warn};

use crate::agent::{Listener, Order, Outcome, Report, apply_learner};
use crate::judge::PolicyJudge;
use crate::lane::Lane;

/// Frames between camera and lane: one is being filled while another runs.
const FRAMES: usize = 2;
/// How often the lane looks up from a silent camera.
const LOOK_UP: Duration = Duration::from_millis(200);

/// How often what is done.
pub(crate) struct Pace {
    pub(crate) summary: Duration,
    pub(crate) checkpoint: Duration,
    pub(crate) frame: Option<Duration>,
}

/// Frames go round between the two threads, so that none is allocated after the start.
pub(crate) struct Frames {
    filled: Receiver<Frame>,
    empty: Sender<Frame>,
}

/// Starts the camera's thread. It ends with the camera, or when nobody takes its frames any more.
pub(crate) fn start_camera(camera: Box<dyn Camera>, stop: Arc<AtomicBool>) -> std::io::Result<Frames> {
    let (filled_tx, filled) = sync_channel(FRAMES - 1);
    let (empty, empty_rx) = channel();
    for _ in 0..FRAMES + 1 {
        let _ = empty.send(Frame::for_shape(camera.shape()));
    }
    std::thread::Builder::new()
        .name("offramp-camera".into())
        .spawn(move || film(camera, &empty_rx, &filled_tx, &stop))?;
    Ok(Frames { filled, empty })
}

fn film(mut camera: Box<dyn Camera>, empty: &Receiver<Frame>, filled: &SyncSender<Frame>, stop: &AtomicBool) {
    while let Ok(mut frame) = empty.recv() {
        match camera.next(&mut frame) {
            Ok(true) if !stop.load(Ordering::Relaxed) => {
                if filled.send(frame).is_err() {
                    return;
                }
            }
            Ok(_) => break,
            Err(error) => {
                error!(error = &error as &dyn std::error::Error, "the camera has failed");
                break;
            }
        }
    }
    if camera.skipped() > 0 {
        warn!(
            images = camera.skipped(),
            "images were skipped because they could not be read"
        );
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// Everything that the lane's thread owns.
pub(crate) struct Run {
    pub(crate) lane: Lane,
    pub(crate) judge: PolicyJudge,
    pub(crate) frames: Frames,
    pub(crate) orders: Receiver<Order>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) pace: Pace,
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) listener: Listener,
}

impl Run {
    pub(crate) fn run(mut self) -> Outcome {
        let (mut arrived, mut predicted) = (0, 0);
        let mut window_start = unix_ms();
        let mut summary_due = Instant::now() + self.pace.summary;
        let mut checkpoint_due = Instant::now() + self.pace.checkpoint;
        let mut frame_due = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            self.take_orders();
            if Instant::now() >= summary_due && self.close_window(&mut window_start) {
                summary_due = Instant::now() + self.pace.summary;
            }
            if Instant::now() >= checkpoint_due {
                // A keeper that is behind gets the next one: only the newest matters.
                let _ = self.reports.try_send(Report::Checkpoint(self.lane.core.checkpoint()));
                checkpoint_due = Instant::now() + self.pace.checkpoint;
            }
            let frame = match self.frames.filled.recv_timeout(LOOK_UP) {
                Ok(frame) => frame,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if let Some(every) = self.pace.frame {
                std::thread::sleep(frame_due.saturating_duration_since(Instant::now()));
                frame_due = (frame_due + every).max(Instant::now());
            }
            let listener = &mut self.listener;
            let emit = |prediction: &offramp_core::Prediction| {
                predicted += 1;
                listener(prediction, &frame);
            };
            if let Err(error) = self
                .lane
                .run(arrived, &frame.pixels, Facts::default(), &mut self.judge, emit)
            {
                warn!(
                    frame = arrived,
                    error = &error as &dyn std::error::Error,
                    "a frame has failed"
                );
            }
            self.lane.learn();
            self.tell_policy_steps(arrived);
            arrived += 1;
            let _ = self.frames.empty.send(frame);
        }
        self.lane.core.learn();
        let heads = self.lane.core.checkpoint();
        let last = self.window_report(&mut window_start);
        let _ = self.reports.blocking_send(last);
        let _ = self.reports.blocking_send(Report::Checkpoint(heads.clone()));
        let _ = self.reports.blocking_send(Report::Ended);
        Outcome {
            arrived,
            predicted,
            heads,
        }
    }

    fn take_orders(&mut self) {
        for order in self.orders.try_iter() {
            match order {
                Order::Swap { generation, chosen } => self.judge.swap(*chosen, generation),
                Order::Learner(wanted) => apply_learner(&mut self.lane.core, wanted),
                Order::Context(key) => self.lane.context = key,
            }
        }
    }

    fn tell_policy_steps(&mut self, frame: u64) {
        while let Some(step) = self.judge.next_step() {
            let policy = self.judge.report(0);
            // The keeper's channel is long and steps are rare; waiting here for a stuck disk would be worse
            // than telling the step with the next window only.
            if self.reports.try_send(Report::Policy { step, policy, frame }).is_err() {
                warn!(frame, "a change of policy was not told");
            }
        }
    }

    fn window_report(&mut self, start: &mut u64) -> Report {
        let report = self.lane.core.close_window();
        let end = unix_ms().max(*start);
        let span = Window {
            start: std::mem::replace(start, end),
            end,
        };
        let policy = self.judge.report(report.faults);
        Report::Window {
            report: Box::new(report),
            span,
            policy,
        }
    }

    /// Ends the window, unless the keeper has no room for it: then it goes on.
    fn close_window(&mut self, start: &mut u64) -> bool {
        match self.reports.clone().try_reserve() {
            Ok(permit) => {
                permit.send(self.window_report(start));
                true
            }
            Err(TrySendError::Full(()) | TrySendError::Closed(())) => false,
        }
    }
}
