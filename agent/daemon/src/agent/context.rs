//! Which context the camera is in: what is learned in one does not apply in another.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use offramp_proto::Digest;
use tracing::{info, warn};

use crate::agent::Order;
use crate::agent::pool::unix_ms;

/// Longest name of a context in bytes.
const MAX_NAME: u64 = 256;
/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Who says which context it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ContextSource {
    /// There is only one.
    #[default]
    One,
    /// The clock: another context from each of these hours (UTC, rising) on, until the next.
    Hours(Vec<u8>),
    /// Whoever writes the file: the name of the context is its first line.
    File(PathBuf),
}

impl ContextSource {
    /// The present context, or why it cannot be told.
    fn key(&self, now_ms: u64) -> Result<u64, String> {
        match self {
            Self::One => Ok(0),
            Self::Hours(hours) => Ok(of_hour(hours, (now_ms / 3_600_000 % 24) as u8)),
            Self::File(path) => of_file(path).map_err(|why| format!("file {} {why}", path.display())),
        }
    }

    /// The context at the start, and, where it can change, a thread that tells the lane until the switch is
    /// turned. The lane itself must not wait for a disk.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(crate) fn watch(self, to_lane: Sender<Order>, stop: Arc<AtomicBool>) -> std::io::Result<u64> {
        let mut watched = Watched::default();
        watched.look(self.key(unix_ms()));
        let first = watched.key;
        if self == Self::One {
            return Ok(first);
        }
        let work = move || {
            while !stop.load(Ordering::Relaxed) {
                std::thread::park_timeout(LOOK);
                if watched.look(self.key(unix_ms())) && to_lane.send(Order::Context(watched.key)).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name("offramp-context".into()).spawn(work)?;
        Ok(first)
    }
}

/// What was last seen of a source.
#[derive(Debug, Default)]
struct Watched {
    key: u64,
    /// Why the context could not be told the last time: said once, not every second.
    fault: Option<String>,
}

impl Watched {
    /// Whether this is another context. What cannot be told changes nothing.
    fn look(&mut self, seen: Result<u64, String>) -> bool {
        match seen {
            Ok(key) => {
                self.fault = None;
                let changed = std::mem::replace(&mut self.key, key) != key;
                if changed {
                    info!(context = format!("{key:x}"), "the camera is in another context");
                }
                changed
            }
            Err(fault) => {
                if self.fault.as_ref() != Some(&fault) {
                    warn!(fault, "the context cannot be told; the one before goes on");
                    self.fault = Some(fault);
                }
                false
            }
        }
    }
}

/// The last hour that has begun, counted from 1; before the first one it is still the last of the day before.
fn of_hour(hours: &[u8], now: u8) -> u64 {
    match hours.iter().filter(|hour| **hour <= now).count() {
        0 => hours.len() as u64,
        begun => begun as u64,
    }
}

/// Context 0 where there is no file, or nothing in it.
fn of_file(path: &Path) -> Result<u64, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_NAME + 1).read_to_string(&mut text));
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(format!("cannot be read: {error}")),
        Ok(_) => {}
    }
    let name = text.lines().next().unwrap_or_default().trim();
    if text.len() as u64 > MAX_NAME {
        return Err(format!("is longer than {MAX_NAME} bytes"));
    }
    if name.is_empty() {
        return Ok(0);
    }
    let digest = Digest::of(name.as_bytes());
    Ok(u64::from_le_bytes(digest.0[..8].try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: u64) -> u64 {
        (20_000 * 24 + hour) * 3_600_000 + 17
    }

    #[test]
    fn hours_divide_the_day_and_the_last_goes_on_after_midnight() {
        let source = ContextSource::Hours(vec![6, 18]);
        let keys = [0, 5, 6, 17, 18, 23].map(|hour| source.key(at(hour)));
        assert_eq!(keys, [2, 2, 1, 1, 2, 2].map(Ok));
        assert_eq!(ContextSource::One.key(at(7)), Ok(0));
    }

    #[test]
    fn a_file_names_the_context_by_its_first_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("context");
        let source = ContextSource::File(path.clone());
        let key = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            source.key(0)
        };
        assert_eq!(source.key(0), Ok(0));
        let gate = key(b"gate 7\n");
        assert!(gate.as_ref().is_ok_and(|key| *key != 0));
        assert_eq!(key(b"  gate 7  \nwritten by the door's controller"), gate);
        assert_ne!(key(b"gate 8"), gate);
        assert_eq!(key(b""), Ok(0));
    }

    #[test]
    fn what_cannot_be_a_name_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("context");
        let source = ContextSource::File(path.clone());
        for bad in [&[0xff; 4][..], &[b'x'; 300]] {
            std::fs::write(&path, bad).unwrap();
            let mut watched = Watched { key: 7, fault: None };
            assert!(!watched.look(source.key(0)) && watched.key == 7 && watched.fault.is_some());
        }
        assert!(ContextSource::File(folder.path().into()).key(0).is_err());
    }
}
