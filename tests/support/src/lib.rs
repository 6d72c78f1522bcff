//! What the integration tests share: finding and installing tools, free ports, child processes
//! that end with their test, temporary directories, a mosquitto broker, and a bad network.
//!
//! Everything here panics instead of returning errors: its callers are tests.

mod mosquitto;
mod network;
mod process;
mod tool;

pub use mosquitto::Mosquitto;
pub use network::{Direction, Network};
pub use process::Process;
pub use tool::{Tool, find, require};

pub use tempfile::TempDir;

use std::net::TcpListener;
use std::time::Duration;

/// How long a test waits for an event that should come at once. Long enough for a machine that is
/// busy with other things; only a failing test ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP port on the loopback interface that nobody listens on at this moment.
///
/// For programs that must be told their port. What can listen on port 0 and say what it got should.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a loopback port should be free");
    listener.local_addr().expect("a listener has an address").port()
}

/// A directory that is removed with the returned value.
pub fn temp_dir() -> TempDir {
    TempDir::with_prefix("offramp-test-").expect("the temporary directory should be writable")
}
