//! Debian's mosquitto, the reference broker.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::Process;
use crate::tool::{Tool, require};
use crate::{PATIENCE, free_port, temp_dir};

const TOOL: Tool = Tool {
    program: "mosquitto",
    package: "mosquitto",
};

/// A mosquitto process on a loopback port, open to everybody, which keeps its sessions and
/// retained messages on disk when it is asked to stop.
#[derive(Debug)]
pub struct Mosquitto {
    process: Process,
    program: PathBuf,
    config: PathBuf,
    port: u16,
    directory: TempDir,
}

impl Mosquitto {
    /// Starts mosquitto and waits until it listens. It is installed first if need be.
    ///
    /// # Panics
    /// If it cannot be installed or started.
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// Like [`Mosquitto::start`], with more lines of configuration.
    ///
    /// # Panics
    /// If it cannot be installed or started.
    pub fn start_with(more: &str) -> Self {
        let program = require(TOOL);
        let directory = temp_dir();
        let config = directory.path().join("mosquitto.conf");
        let port = free_port();
        // As root it would become the user `mosquitto`, who may not write to this directory.
        let text = format!(
            "per_listener_settings true\n\
             listener {port} 127.0.0.1\n\
             allow_anonymous true\n\
             user root\n\
             persistence true\n\
             persistence_location {}/\n\
             log_dest stderr\n\
             {more}\n",
            directory.path().display()
        );
        fs::write(&config, text).expect("the temporary directory should be writable");
        Self {
            process: run(&program, &config, port),
            program,
            config,
            port,
            directory,
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Asks it to stop, which lets it write its state to disk.
    pub fn stop(&mut self) {
        self.process.terminate();
    }

    /// Kills it without warning: what it had not written yet is lost.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Removes what a stopped mosquitto wrote.
    ///
    /// # Panics
    /// If there is nothing: it runs still.
    pub fn forget(&mut self) {
        fs::remove_file(self.directory.path().join("mosquitto.db")).expect("mosquitto should have written its state");
    }

    /// Starts it again after [`Mosquitto::stop`] or [`Mosquitto::kill`], on the same port and with the state it wrote.
    pub fn resume(&mut self) {
        self.process = run(&self.program, &self.config, self.port);
    }
}

fn run(program: &Path, config: &Path, port: u16) -> Process {
    let process = Process::start(Command::new(program).arg("-c").arg(config));
    process.wait_for_line(" running");
    // It says so a moment before it does, and a signal in that moment is lost. It runs when it
    // answers: to an MQTT v5 CONNECT without a client id, whatever the answer is.
    const CONNECT: &[u8] = b"\x10\x0d\0\x04MQTT\x05\x02\0\x3c\0\0\0";
    let answered = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(CONNECT)?;
        stream.read_exact(&mut [0; 2])
    });
    assert!(
        answered.is_ok(),
        "mosquitto should answer: {answered:?}; it wrote:\n{}",
        process.output()
    );
    process
}

#[cfg(test)]
mod tests {
    use super::Mosquitto;
    use std::net::TcpStream;

    #[test]
    fn it_listens_and_comes_back() {
        let mut broker = Mosquitto::start();
        TcpStream::connect(broker.address()).unwrap();
        broker.stop();
        TcpStream::connect(broker.address()).unwrap_err();
        broker.resume();
        TcpStream::connect(broker.address()).unwrap();
    }
}
