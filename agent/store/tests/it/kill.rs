//! A process that writes to its store is killed (SIGKILL) again and again.
//!
//! The child is this test binary, run again with the store's path in the environment. It writes a
//! line to standard error, which the test harness leaves alone, before and after each operation;
//! what it has said *after* one is confirmed, and must be there.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use offramp_store::{Limits, Opened, Record, Store};

use crate::random;

const FILE: &str = "OFFRAMP_STORE_TO_KILL";
const SEED: &str = "OFFRAMP_STORE_SEED";
const ROUNDS: u64 = 60;

fn payload(sequence: u64) -> Vec<u8> {
    let length = random(sequence)(3_000) as usize;
    format!("{sequence}:")
        .into_bytes()
        .into_iter()
        .chain(std::iter::repeat_n(sequence as u8, length))
        .collect()
}

#[test]
#[ignore = "runs only as a child of a_killed_process_loses_nothing_it_confirmed"]
fn child() {
    let path = PathBuf::from(env::var_os(FILE).expect("a path"));
    let mut random = random(env::var(SEED).unwrap().parse().unwrap());
    let say = |line: String| {
        // One write, so that a kill cuts between lines or within the last.
        std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
    };
    let (store, _) = Store::open(&path, Limits::default()).unwrap();
    say(format!("booted {}", store.boot()));
    loop {
        match random(8) {
            0 => {
                say("checkpointing".to_owned());
                let next = store.checkpoints("").unwrap().first().map_or(1, |last| last.number + 1);
                say(format!(
                    "checkpointed {}",
                    store.save_checkpoint("", &payload(next)).unwrap()
                ));
            }
            1 => {
                say("desiring".to_owned());
                let next = store.desired().unwrap().map_or(1, |last| last.generation + 1);
                store.set_desired(next, &payload(next)).unwrap();
                say(format!("desired {next}"));
            }
            2 | 3 => {
                let count = random(5) as usize;
                let oldest = store.records_after(0, count, u64::MAX).unwrap();
                let sequences: Vec<u64> = oldest.iter().map(|record| record.sequence).collect();
                let list: Vec<String> = sequences.iter().map(u64::to_string).collect();
                say(format!("acknowledging {}", list.join(" ")));
                assert_eq!(store.acknowledge(&sequences).unwrap(), sequences.len() as u64);
                say("acknowledged".to_owned());
            }
            _ => {
                say("appending".to_owned());
                let appended = store.append("up/summary", payload).unwrap();
                assert_eq!(appended.dropped, 0);
                say(format!("appended {}", appended.sequence));
            }
        }
    }
}

/// What the child has said about the store.
#[derive(Debug, Default)]
struct Said {
    boot: u64,
    records: BTreeMap<u64, ()>,
    last_sequence: u64,
    checkpoint: u64,
    generation: u64,
    /// Announced, and not confirmed: may be done or not.
    open: Open,
}

#[derive(Debug, Default, PartialEq)]
enum Open {
    #[default]
    Nothing,
    Append,
    Acknowledge(Vec<u64>),
    Checkpoint,
    Desired,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let verb = words.next().unwrap();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        let open = std::mem::take(&mut self.open);
        match verb {
            "booted" => self.boot = numbers[0],
            "appending" => self.open = Open::Append,
            "acknowledging" => self.open = Open::Acknowledge(numbers),
            "checkpointing" => self.open = Open::Checkpoint,
            "desiring" => self.open = Open::Desired,
            "appended" => {
                assert_eq!(numbers[0], self.last_sequence + 1);
                self.last_sequence = numbers[0];
                self.records.insert(numbers[0], ());
            }
            "acknowledged" => {
                let Open::Acknowledge(gone) = open else {
                    panic!("{open:?}")
                };
                self.records.retain(|sequence, ()| !gone.contains(sequence));
            }
            "checkpointed" => self.checkpoint = numbers[0],
            "desired" => self.generation = numbers[0],
            _ => panic!("the child said: {line}"),
        }
    }

    /// Compares with what is in the store, and takes over what had been left open.
    fn check(&mut self, store: &Store) {
        assert!(
            store.boot() == self.boot + 1 || store.boot() == self.boot + 2,
            "boot {}",
            store.boot()
        );
        let found = store.records_after(0, usize::MAX, u64::MAX).unwrap();
        let sequences: Vec<u64> = found.iter().map(|record| record.sequence).collect();
        let confirmed: Vec<u64> = self.records.keys().copied().collect();
        let allowed = match &self.open {
            Open::Append => vec![confirmed.clone(), [&confirmed[..], &[self.last_sequence + 1]].concat()],
            Open::Acknowledge(gone) => {
                let without = confirmed
                    .iter()
                    .copied()
                    .filter(|sequence| !gone.contains(sequence))
                    .collect();
                vec![confirmed.clone(), without]
            }
            Open::Nothing | Open::Checkpoint | Open::Desired => vec![confirmed.clone()],
        };
        assert!(allowed.contains(&sequences), "found {sequences:?}, allowed {allowed:?}");
        for Record {
            sequence,
            topic,
            payload: bytes,
        } in found
        {
            assert_eq!((topic.as_str(), bytes), ("up/summary", payload(sequence)));
        }
        let status = store.outbox().unwrap();
        assert_eq!(status.records, sequences.len() as u64);
        assert!(status.last_sequence >= sequences.last().copied().unwrap_or(0));

        let one_more = |open| u64::from(self.open == open);
        let checkpoints = store.checkpoints("").unwrap();
        let last = checkpoints.first().map_or(0, |checkpoint| checkpoint.number);
        assert!((self.checkpoint..=self.checkpoint + one_more(Open::Checkpoint)).contains(&last));
        assert_eq!(checkpoints.len() as u64, last.min(2));
        for checkpoint in checkpoints {
            assert_eq!(checkpoint.heads, payload(checkpoint.number));
        }
        let desired = store.desired().unwrap();
        let generation = desired.as_ref().map_or(0, |desired| desired.generation);
        assert!((self.generation..=self.generation + one_more(Open::Desired)).contains(&generation));
        assert!(desired.is_none_or(|desired| desired.signed == payload(desired.generation)));

        *self = Self {
            boot: store.boot(),
            records: sequences.into_iter().map(|sequence| (sequence, ())).collect(),
            last_sequence: status.last_sequence,
            checkpoint: last,
            generation,
            open: Open::Nothing,
        };
    }
}

/// Runs the child, kills it after it has said `lines` lines, and hears all it has said.
fn run_and_kill(path: &Path, seed: u64, lines: u64, said: &mut Said) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--ignored", "--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(FILE, path)
        .env(SEED, seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    let mut heard = 0;
    loop {
        line.clear();
        output.read_line(&mut line).unwrap();
        // A line without an end was cut off by the kill: it was not said.
        let Some(line) = line.strip_suffix('\n') else { break };
        said.hear(line);
        heard += 1;
        if heard == lines {
            child.kill().unwrap();
        }
    }
    let status = child.wait().unwrap();
    assert!(status.code().is_none(), "the child should have been killed: {status}");
}

#[test]
fn a_killed_process_loses_nothing_it_confirmed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("device.redb");
    let mut said = Said::default();
    for round in 0..ROUNDS {
        let mut random = random(round);
        run_and_kill(&path, round, 1 + random(80), &mut said);
        let (store, opened) = Store::open(&path, Limits::default()).unwrap();
        // Killed before it opened its first store, the child leaves none.
        assert!(
            opened == Opened::Existing || (opened == Opened::New && said.boot == 0),
            "round {round}: {opened:?}"
        );
        said.check(&store);
    }
    assert!(
        said.last_sequence > ROUNDS,
        "the children should have got something done"
    );
}
