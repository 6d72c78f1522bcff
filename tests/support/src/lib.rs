//! What the integration tests share: finding and installing tools, free ports, child processes
//! that end with their test, temporary directories, a mosquitto broker, a PostgreSQL
//! server, ONNX Runtime's library, and a bad network.
//!
//! Everything here panics instead of returning errors: its callers are tests.

mod chromium;
mod mosquitto;
mod network;
mod onnxruntime;
mod postgres;
mod process;
mod tool;

pub use chromium::Chromium;
pub use mosquitto::Mosquitto;
pub use network::{Direction, Network};
pub use onnxruntime::onnxruntime;
pub use postgres::Postgres;
pub use process::Process;
pub use tool::{Tool, find, require};

pub use tempfile::TempDir;

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long a test waits for an event that should come at once. Long enough for a machine that is
/// busy with other things; only a failing test ever waits so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP port on the loopback interface that nobody listens on at this moment.
///
/// For programs that must be told their port. What can listen on port 0 and say what it got should.
///
/// It lies below the range that systems give to outgoing connections and to port 0, and each
/// process begins to look elsewhere, so that nobody is likely to take it before the program does.
pub fn free_port() -> u16 {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u32> = 10_000..30_000;
    let start = std::process::id().wrapping_mul(331);
    for _ in PORTS {
        let offset = start.wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let port = u16::try_from(PORTS.start + offset).expect("the range lies below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("a loopback port should be free");
}

/// A directory that is removed with the returned value.
pub fn temp_dir() -> TempDir {
    TempDir::with_prefix("offramp-test-").expect("the temporary directory should be writable")
}
