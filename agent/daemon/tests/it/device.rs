//! A device for tests: the program `offramp run` with frames on its standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use offramp_camera::{ImageSet, sample};
use offramp_proto::PublicKey;
use offramp_store::{Limits, Store};
use serde_json::Value;

/// The program under test.
pub(crate) fn offramp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offramp"));
    command.env_remove("RUST_LOG").env_remove("OFFRAMP_DATA");
    command
}

/// A device's folder: configuration and state.
pub(crate) struct Device {
    folder: PathBuf,
    images: ImageSet,
}

impl Device {
    /// A device that talks to a broker, if one is given.
    pub(crate) fn new(folder: &Path, id: &str, fleet: Option<(&str, &PublicKey)>) -> Self {
        let fleet = fleet.map_or_else(String::new, |(broker, key)| {
            format!("[fleet]\nbroker = \"{broker}\"\ncontroller_key = \"{key:?}\"\n")
        });
        let config = format!(
            "[device]\nid = \"{id}\"\n[camera]\nsource = \"stdin\"\n[learner]\naudit_rate = 0.1\n\
             [state]\nsummary_seconds = 0.1\ncheckpoint_seconds = 0.1\n{fleet}"
        );
        std::fs::write(folder.join("offramp.toml"), config).unwrap();
        Self {
            folder: folder.into(),
            images: sample::stream().unwrap(),
        }
    }

    /// Adds to the configuration.
    pub(crate) fn configure(&self, text: &str) {
        let path = self.folder.join("offramp.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(path, config + text).unwrap();
    }

    /// Changes what is in the configuration.
    pub(crate) fn replace(&self, text: &str, by: &str) {
        let path = self.folder.join("offramp.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        assert!(config.contains(text));
        std::fs::write(path, config.replace(text, by)).unwrap();
    }

    /// Starts the agent.
    pub(crate) fn start(&self) -> Running {
        self.start_with(&[])
    }

    /// Starts the agent with more arguments.
    pub(crate) fn start_with(&self, arguments: &[&str]) -> Running {
        Self::spawn(self.command().args(arguments))
    }

    /// Starts the agent as a service manager that listens at this socket does.
    pub(crate) fn start_as_service(&self, socket: &Path, watchdog: Duration) -> Running {
        let watchdog = watchdog.as_micros().to_string();
        let mut command = self.command();
        Self::spawn(command.env("NOTIFY_SOCKET", socket).env("WATCHDOG_USEC", watchdog))
    }

    fn command(&self) -> Command {
        let mut command = offramp();
        command
            .args(["run", "--log-json", "--config"])
            .arg(self.folder.join("offramp.toml"))
            .env("RUST_LOG", "offramp=info");
        command
    }

    fn spawn(command: &mut Command) -> Running {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        // Read to the end on a thread of its own, or a full pipe would stop the agent.
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let log = thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut errors, &mut text).unwrap();
            text
        });
        Running {
            child,
            input,
            output,
            log: Some(log),
        }
    }

    /// Bytes of a frame.
    pub(crate) fn frame(&self, index: usize) -> &[u8] {
        self.images.pixels(index % self.images.len()).unwrap()
    }

    /// The device's store, while no agent runs.
    pub(crate) fn store(&self) -> Store {
        Store::open(&self.folder.join("offramp-state.redb"), Limits::default())
            .unwrap()
            .0
    }
}

/// A running agent.
pub(crate) struct Running {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    log: Option<JoinHandle<String>>,
}

impl Running {
    /// Gives it frames, and reads the prediction of each.
    pub(crate) fn show<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<Value> {
        let mut predictions = Vec::new();
        for frame in frames {
            let input = self.input.as_mut().unwrap();
            input.write_all(frame).and_then(|()| input.flush()).unwrap();
            predictions.push(self.prediction());
        }
        predictions
    }

    /// Gives it frames, whether it takes them or not, and reads nothing. The frames go on once this is handed back.
    pub(crate) fn flood(&mut self, frames: Vec<u8>) -> JoinHandle<ChildStdin> {
        let mut input = self.input.take().unwrap();
        thread::spawn(move || {
            input.write_all(&frames).and_then(|()| input.flush()).unwrap();
            input
        })
    }

    /// The next prediction.
    pub(crate) fn prediction(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "the agent ended early");
        serde_json::from_str(&line).unwrap()
    }

    /// SIGKILL, between two frames. Gives back the log.
    pub(crate) fn kill(mut self) -> Vec<Value> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log()
    }

    /// Ends the stream of frames and waits for the agent's orderly end. Gives back the log.
    pub(crate) fn end(mut self) -> Vec<Value> {
        drop(self.input.take());
        self.ended()
    }

    /// SIGTERM, while the agent waits for a frame, and its orderly end. Gives back the log.
    pub(crate) fn terminate(mut self) -> Vec<Value> {
        let process = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &process])
                .status()
                .unwrap()
                .success()
        );
        self.ended()
    }

    fn ended(&mut self) -> Vec<Value> {
        let status = self.child.wait().unwrap();
        let log = self.log();
        assert!(status.success(), "{status}: {log:#?}");
        log
    }

    fn log(&mut self) -> Vec<Value> {
        let text = self.log.take().unwrap().join().unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a log that say something.
pub(crate) fn said<'a>(log: &'a [Value], what: &str) -> Vec<&'a Value> {
    log.iter()
        .map(|line| &line["fields"])
        .filter(|fields| fields["message"].as_str().is_some_and(|m| m.contains(what)))
        .collect()
}
