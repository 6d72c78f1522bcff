//! Programs run with an end in sight.

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Runs a program to its end and says whether it succeeded; one that takes longer than `limit` is
/// stopped. Its output goes where ours goes, but never to standard output.
pub(crate) fn succeeds(command: &mut Command, limit: Duration) -> bool {
    let Ok(mut child) = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() else {
        return false;
    };
    let end = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
            Ok(None) | Err(_) => {
                // It may have ended by itself in between: then there is nothing to stop.
                let _ = child.kill();
                let _ = child.wait();
                return false;
            }
        }
    }
}

/// What a program that is known to be quick prints, if it succeeds.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    if !output.status.success() {
        return None;
    }
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
