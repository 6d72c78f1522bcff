//! The cameras' threads: they wait for pixels, so that nobody else has to.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use offramp_camera::{Camera, Frame};
use tracing::{error, warn};

use crate::agent::pool::Shared;

/// A frame, and when it came.
pub(crate) struct Delivered {
    pub(crate) frame: Frame,
    pub(crate) at: Instant,
}

/// Starts the thread of a camera. It ends with the camera, or when nobody takes its frames any more.
pub(crate) fn start(
    camera: Box<dyn Camera>,
    number: usize,
    name: &str,
    every: Option<Duration>,
    shared: Arc<Shared>,
) -> std::io::Result<()> {
    let name = name.to_owned();
    std::thread::Builder::new()
        .name("offramp-camera".into())
        .spawn(move || {
            let open = Open { shared, number };
            film(camera, number, &name, every, &open.shared);
        })
        .map(drop)
}

/// A camera until it ends, be it by a panic: otherwise its seat would wait for ever.
struct Open {
    shared: Arc<Shared>,
    number: usize,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shared.close(self.number);
    }
}

fn film(mut camera: Box<dyn Camera>, number: usize, name: &str, every: Option<Duration>, shared: &Shared) {
    let mut frame = Frame::for_shape(camera.shape());
    let mut due = Instant::now();
    loop {
        match camera.next(&mut frame) {
            Ok(true) if !shared.stop.load(Ordering::Relaxed) => {}
            Ok(_) => break,
            Err(error) => {
                error!(
                    camera = name,
                    error = &error as &dyn std::error::Error,
                    "the camera has failed"
                );
                break;
            }
        }
        if let Some(every) = every {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due = (due + every).max(Instant::now());
        }
        let delivered = Delivered {
            frame,
            at: Instant::now(),
        };
        match shared.deliver(number, delivered) {
            Some(empty) => frame = empty,
            None => break,
        }
    }
    if camera.skipped() > 0 {
        warn!(
            camera = name,
            images = camera.skipped(),
            "images were skipped because they could not be read"
        );
    }
}
