use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::Engine;

/// Ticks of the watchdog within a deadline.
const TICKS: u32 = 2;

/// The thread that counts an engine's epoch up, by which calls that take too long are ended.
pub(crate) struct Watchdog {
    /// Closing it stops the thread.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Ticks that a call gets: one more than fit into the deadline, as the first is already running.
    pub(crate) const GRANTED: u64 = TICKS as u64 + 1;

    pub(crate) fn start(engine: Engine, deadline: Duration) -> io::Result<Watchdog> {
        let (alive, stopped) = mpsc::channel();
        let tick = (deadline / TICKS).max(Duration::from_micros(100));
        let thread = thread::Builder::new().name("policy-watchdog".into()).spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(tick) {
                engine.increment_epoch();
            }
        })?;
        Ok(Watchdog {
            alive: Some(alive),
            thread: Some(thread),
        })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked, and if it has there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_it_stops_its_thread_without_waiting_for_a_tick() {
        // With its tick of half a year, this test would not come to its end otherwise.
        let watchdog = Watchdog::start(Engine::default(), Duration::from_secs(365 * 24 * 3600)).unwrap();
        drop(watchdog);
    }
}
