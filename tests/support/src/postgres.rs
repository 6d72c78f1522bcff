//! Debian's PostgreSQL.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::process::Process;
use crate::tool::{Tool, require};
use crate::{PATIENCE, free_port, temp_dir};

/// It comes with the server; what is in `PATH` on Debian is a wrapper.
const TOOL: Tool = Tool {
    program: "initdb",
    package: "postgresql",
};
/// Debian's user for it. The server refuses to run as root.
const USER: &str = "postgres";

/// A PostgreSQL server on a loopback port, open to everybody on this machine. It does not wait for the disk: what it
/// wrote outlives its own death, but not the machine's.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    port: u16,
    programs: PathBuf,
    directory: TempDir,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts a server and waits until it takes connections. It is installed first if need be.
    ///
    /// # Panics
    /// If it cannot be installed or started.
    pub fn start() -> Self {
        let initdb = require(TOOL);
        // The others lie beside it; a link to it may lie elsewhere.
        let initdb = initdb.canonicalize().expect("it was just found");
        let programs = initdb.parent().expect("a program lies in a folder").to_owned();
        let directory = temp_dir();
        if is_root() {
            let of = |flag| number(Command::new("id").args([flag, USER]));
            let owned = chown(directory.path(), Some(of("-u")), Some(of("-g")));
            owned.expect("root may give a folder away");
        }
        let made = as_user(&initdb)
            .args(["--auth=trust", "--encoding=UTF8", "--no-sync", "--username", USER, "-D"])
            .arg(directory.path().join("data"))
            .output()
            .expect("initdb should start");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        Self {
            process: run(&programs, directory.path(), port),
            port,
            programs,
            directory,
            databases: AtomicU32::new(0),
        }
    }

    /// The server that the tests of this process share. It ends when nobody has it any more.
    ///
    /// # Panics
    /// If it cannot be installed or started.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start());
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// Makes an empty database. Gives its address.
    ///
    /// # Panics
    /// If the server does not answer.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let port = self.port.to_string();
        let made = Command::new(self.programs.join("createdb"))
            .args(["--host=127.0.0.1", "--port", &port, "--username", USER, &name])
            .output()
            .expect("createdb should start");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        format!("postgres://{USER}@127.0.0.1:{port}/{name}")
    }

    /// Kills it without warning; nothing answers until [`Postgres::resume`].
    ///
    /// # Panics
    /// If what belonged to it does not end, which it does when it notices.
    pub fn kill(&mut self) {
        let children = children(self.process.id());
        self.process.kill();
        // As long as one of them is there, no other server may use their memory.
        let deadline = Instant::now() + PATIENCE;
        while children.iter().any(|child| is_alive(*child)) {
            assert!(Instant::now() < deadline, "the server's processes should end with it");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again after [`Postgres::kill`], on the same port and with what it had committed.
    pub fn resume(&mut self) {
        self.process = run(&self.programs, self.directory.path(), self.port);
    }
}

fn run(programs: &Path, directory: &Path, port: u16) -> Process {
    let process = Process::start(
        as_user(&programs.join("postgres"))
            .arg("-D")
            .arg(directory.join("data"))
            .args(["-c", &format!("port={port}")])
            .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
            .args(["-c", "fsync=off", "-c", "max_connections=200", "-c", "lc_messages=C"]),
    );
    process.wait_for_line("ready to accept connections");
    process
}

/// The processes that a process has started and that are there still.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("Linux has it").flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| stat(*id).is_some_and(|(_, of)| of == parent)).collect()
}

/// Whether a process runs. One that has ended may be there until somebody asks how.
fn is_alive(id: u32) -> bool {
    stat(id).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// State and parent of a process.
fn stat(id: u32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in parentheses, may have anything in it.
    let mut rest = text.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

/// A program as somebody who is not root.
fn as_user(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    command.arg(program).current_dir("/");
    command
}

fn is_root() -> bool {
    number(Command::new("id").arg("-u")) == 0
}

fn number(command: &mut Command) -> u32 {
    let output = command.output().expect("`id` should start");
    let text = String::from_utf8_lossy(&output.stdout);
    text.trim().parse().expect("`id` tells a number")
}

#[cfg(test)]
mod tests {
    use super::Postgres;
    use std::net::TcpStream;

    #[test]
    fn databases_are_made_and_it_comes_back() {
        let mut server = Postgres::start();
        assert_ne!(server.database(), server.database());
        server.kill();
        TcpStream::connect(("127.0.0.1", server.port)).unwrap_err();
        server.resume();
        server.database();
    }
}
