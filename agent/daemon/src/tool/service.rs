//! What a service manager is told of the agent (`sd_notify(3)`): that it is ready, that it ends, and, as long as its
//! workers go on, that it lives. Where no manager asks, nothing is.

use std::io;
use std::sync::Arc;

use crate::agent::Pulse;

/// The agent is ready. From now on it is told that it lives, as often as the manager asks for (`WATCHDOG_USEC`); not
/// while a worker has been at one piece of work for half of that time, which systemd takes as a reason to restart it.
#[cfg(target_os = "linux")]
pub(super) fn ready(pulse: Arc<Pulse>) -> io::Result<()> {
    use sd_notify::NotifyState::{Ready, Status, Watchdog};
    use std::time::Instant;

    const RUNS: &str = "frames are served";
    tell(&[Ready, Status(RUNS)]);
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return Ok(());
    };
    let watch = move || {
        let mut hangs = false;
        loop {
            let longest = pulse.longest(Instant::now());
            let hung = longest >= limit / 2;
            match (hangs, hung) {
                (false, true) => {
                    let text = format!("a worker has hung for {:.1} s", longest.as_secs_f64());
                    tracing::error!("{text}: if it goes on, the service manager restarts the agent");
                    tell(&[Status(&text)]);
                }
                (true, false) => tell(&[Watchdog, Status(RUNS)]),
                (false, false) => tell(&[Watchdog]),
                (true, true) => {}
            }
            hangs = hung;
            std::thread::sleep(limit / 4);
        }
    };
    std::thread::Builder::new()
        .name("offramp-pulse".into())
        .spawn(watch)
        .map(drop)
}

/// The agent ends in order.
#[cfg(target_os = "linux")]
pub(super) fn stopping() {
    tell(&[sd_notify::NotifyState::Stopping]);
}

#[cfg(target_os = "linux")]
fn tell(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

#[cfg(not(target_os = "linux"))]
#[allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps)]
pub(super) fn ready(_: Arc<Pulse>) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn stopping() {}
