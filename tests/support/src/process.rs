//! Child processes that end with their test.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::PATIENCE;

/// Lines kept of a process's output, for messages of failing tests.
const KEPT_LINES: usize = 2_000;

/// A child process whose output is read line by line. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    output: Arc<Output>,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    kept: VecDeque<String>,
    /// Lines that [`Process::wait_for_line`] has not looked at yet.
    unread: VecDeque<String>,
    open_streams: usize,
}

impl Process {
    /// Starts a program. Standard output and standard error are both read, as one.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("`{name}` should start: {error}"));
        let output = Arc::new(Output::default());
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        output.lines().open_streams = streams.len();
        for stream in streams.into_iter().flatten() {
            let output = Arc::clone(&output);
            thread::spawn(move || output.read(stream));
        }
        Self { child, name, output }
    }

    /// Waits for the next line that contains `text`, and returns it.
    ///
    /// # Panics
    /// If the process ends without such a line, or takes longer than [`PATIENCE`].
    pub fn wait_for_line(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.output.lines();
        loop {
            while let Some(line) = lines.unread.pop_front() {
                if line.contains(text) {
                    return line;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let ended = lines.open_streams == 0;
            assert!(
                !ended && !left.is_zero(),
                "`{}` {} without a line containing `{text}`; it wrote:\n{}",
                self.name,
                if ended { "ended" } else { "went on" },
                lines.kept.iter().map(|line| format!("  {line}\n")).collect::<String>(),
            );
            lines = self.output.wait(lines, left);
        }
    }

    /// What the process wrote up to now; of long output the end.
    pub fn output(&self) -> String {
        let lines = self.output.lines();
        lines.kept.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the process without warning (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        self.wait();
    }

    /// Asks the process to end (SIGTERM) and waits until it has.
    ///
    /// # Panics
    /// If it takes longer than [`PATIENCE`].
    pub fn terminate(&mut self) -> ExitStatus {
        let asked = Command::new("sh")
            .args(["-c", &format!("kill -TERM {}", self.child.id())])
            .status();
        assert!(
            asked.is_ok_and(|status| status.success()),
            "`{}` should take a signal",
            self.name
        );
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.output.lines();
        // A process that ends closes its output.
        while lines.open_streams > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "`{}` should end when asked to", self.name);
            lines = self.output.wait(lines, left);
        }
        drop(lines);
        self.wait()
    }

    fn wait(&mut self) -> ExitStatus {
        self.child
            .wait()
            .unwrap_or_else(|error| panic!("`{}` should be waited for: {error}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Output {
    /// A test that fails while it holds the lock must not take the reading threads with it.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, lines: MutexGuard<'a, Lines>, limit: Duration) -> MutexGuard<'a, Lines> {
        let waited = self.changed.wait_timeout(lines, limit);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn read(&self, stream: impl Read) {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut lines = self.lines();
            if lines.kept.len() == KEPT_LINES {
                lines.kept.pop_front();
            }
            lines.kept.push_back(line.clone());
            lines.unread.push_back(line);
            self.changed.notify_all();
        }
        self.lines().open_streams -= 1;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::Process;
    use std::process::Command;

    fn shell(script: &str) -> Process {
        Process::start(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn lines_are_waited_for_in_order() {
        let process = shell("echo one; echo two >&2; echo three");
        process.wait_for_line("three");
        assert!(process.output().contains("one\n"));
    }

    #[test]
    #[should_panic(expected = "ended without a line containing `never`")]
    fn a_process_that_ends_is_not_waited_for() {
        shell("echo one").wait_for_line("never");
    }

    #[test]
    fn a_process_ends_when_asked() {
        let mut process = shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        process.wait_for_line("ready");
        assert_eq!(process.terminate().code(), Some(7));
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let process = shell("echo ready; exec sleep 1000");
        process.wait_for_line("ready");
        let id = process.id();
        drop(process);
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    }
}
