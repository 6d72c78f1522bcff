//! A medium in memory.
//!
//! Faults it injects: any one call may fail; at a power cut, of the writes since the last sync any
//! subset is lost, in any order, and a write may be torn at a multiple of 512 bytes.
//!
//! Faults it never injects: a sync that reports success and lies, and bytes that change by
//! themselves (`tests/it` damages files for that).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    synced: Vec<u8>,
    /// What a reader sees: `synced` with `unsynced` applied.
    live: Vec<u8>,
    unsynced: Vec<Step>,
    usage: Usage,
    fails_at: Option<u64>,
}

#[derive(Clone, Debug)]
enum Step {
    Write { at: usize, bytes: Vec<u8> },
    Length(usize),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) calls: u64,
    pub(super) syncs: u64,
    pub(super) written: u64,
}

impl Disk {
    fn with(content: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State {
            synced: content.clone(),
            live: content,
            ..State::default()
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(super) fn usage(&self) -> Usage {
        let mut usage = self.state().usage;
        // Reads depend on the cache; the rest is what wears a medium.
        usage.calls = 0;
        usage
    }

    pub(super) fn length(&self) -> usize {
        self.state().live.len()
    }

    pub(super) fn calls(&self) -> u64 {
        self.state().usage.calls
    }

    /// Lets call number `call` fail (the first is 1), and no other.
    pub(super) fn fail_at(&self, call: u64) {
        self.state().fails_at = Some(call);
    }

    /// The medium as another process finds it after this one was killed.
    pub(super) fn after_kill(&self) -> Self {
        Self::with(self.state().live.clone())
    }

    /// The medium as it is found after the power was cut. `random` decides what survived.
    pub(super) fn after_power_cut(&self, random: &mut impl FnMut() -> u64) -> Self {
        let state = self.state();
        let mut content = state.synced.clone();
        for step in &state.unsynced {
            if random().is_multiple_of(2) {
                continue;
            }
            let mut step = step.clone();
            if let Step::Write { bytes, .. } = &mut step
                && random().is_multiple_of(4)
            {
                let sectors = (bytes.len() / SECTOR) as u64;
                bytes.truncate((random() % (sectors + 1)) as usize * SECTOR);
            }
            step.apply(&mut content);
        }
        Self::with(content)
    }
}

impl Step {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Length(length) => content.resize(*length, 0),
            Self::Write { at, bytes } => {
                let end = at + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

impl State {
    fn call(&mut self) -> io::Result<()> {
        self.usage.calls += 1;
        if self.fails_at == Some(self.usage.calls) {
            return Err(io::Error::other("injected failure"));
        }
        Ok(())
    }

    fn change(&mut self, step: Step) {
        step.apply(&mut self.live);
        self.unsynced.push(step);
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.call()?;
        Ok(state.live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        let start = offset as usize;
        let bytes = state.live.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        state.change(Step::Length(len as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        state.usage.syncs += 1;
        let State { synced, unsynced, .. } = &mut *state;
        unsynced.drain(..).for_each(|step| step.apply(synced));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        state.call()?;
        state.usage.written += data.len() as u64;
        state.change(Step::Write {
            at: offset as usize,
            bytes: data.to_vec(),
        });
        Ok(())
    }
}
