//! ONNX Runtime and PyTorch, in a Python of their own.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, bail};
use offramp_model::Package;
use serde::Deserialize;
use serde_json::json;

/// What the peers run; it reads rounds from its standard input.
const PEERS: &str = include_str!("../../../../../../tests/bench/peers.py");
/// Pinned: a figure without its version is no figure.
const REQUIREMENTS: &str = include_str!("../../../../../../tests/bench/requirements.txt");

/// A peer that is there.
#[derive(Clone, Debug, Deserialize)]
pub(in crate::tool::bench) struct Peer {
    pub(super) name: String,
    version: String,
}

impl Peer {
    /// Name and version.
    pub(in crate::tool::bench) fn label(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// What the peers tell of themselves.
#[derive(Default, Deserialize)]
pub(in crate::tool::bench) struct Told {
    pub(super) there: Vec<Peer>,
    /// The folder of ONNX Runtime's library.
    pub(super) library: PathBuf,
    /// What it gives behind each stage for the image.
    pub(super) features: Vec<Vec<f32>>,
}

/// The process that both run in.
pub(in crate::tool::bench) struct Peers {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    pub(super) told: Told,
    _folder: tempfile::TempDir,
}

impl Peers {
    /// Starts the peers, which run a package's stages on this image.
    pub(in crate::tool::bench) fn start(
        package: &Package,
        image: &[f32],
        python: &Path,
        pytorch: bool,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut files = Vec::new();
        for (stage, bytes) in package.stages().enumerate() {
            let path = folder.path().join(format!("stage-{stage}.onnx"));
            fs::write(&path, bytes)?;
            files.push(path);
        }
        // How the stages' tensors hang together is the manifest's to say.
        let manifest = package.manifest();
        let stages: Vec<_> = manifest
            .stages
            .iter()
            .zip(&files)
            .map(|(stage, file)| {
                json!({"file": file, "inputs": stage.inputs, "features": stage.features, "state": stage.state})
            })
            .collect();
        let input = &manifest.input;
        let shape = [1, input.height, input.width, input.channels];
        let pixels = folder.path().join("image");
        fs::write(
            &pixels,
            image.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
        )?;
        let plan = json!({"stages": stages, "image": pixels, "shape": shape, "pytorch": pytorch});
        let mut child = Command::new(python)
            .args(["-c", PEERS])
            .arg(plan.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let input = child.stdin.take().context("the peers' input")?;
        let output = BufReader::new(child.stdout.take().context("the peers' output")?);
        let mut peers = Self {
            child,
            input,
            output,
            told: Told::default(),
            _folder: folder,
        };
        peers.told = serde_json::from_str(&peers.answer()?).context("what the peers tell of themselves")?;
        Ok(peers)
    }

    /// The peers that are there.
    pub(in crate::tool::bench) fn there(&self) -> &[Peer] {
        &self.told.there
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the peers ended early: their message stands above");
        }
        Ok(line.trim().to_owned())
    }

    /// Mean milliseconds over some frames.
    pub(in crate::tool::bench) fn round(&mut self, peer: &str, threads: usize, frames: usize) -> anyhow::Result<f64> {
        writeln!(self.input, "{peer} {threads} {frames}")?;
        self.input.flush()?;
        Ok(self.answer()?.parse()?)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python that was given, or one that is set up for the peers.
pub(in crate::tool::bench) fn python(given: Option<&Path>, pytorch: bool) -> anyhow::Result<PathBuf> {
    given.map_or_else(|| set_up_python(pytorch), |python| Ok(python.into()))
}

/// A Python environment with what the peers need, made once. PyTorch, which is large, only where it is asked for.
fn set_up_python(pytorch: bool) -> anyhow::Result<PathBuf> {
    let folder = super::super::cache().context("or give --python")?.join("bench-python");
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    let wanted: String = REQUIREMENTS
        .lines()
        .filter(|line| pytorch || !line.starts_with("torch"))
        .map(|line| format!("{line}\n"))
        .collect();
    // What has PyTorch too serves as well without.
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted || have == REQUIREMENTS) {
        return Ok(python);
    }
    eprintln!("setting up the peers' Python in {} (once)", folder.display());
    fs::create_dir_all(&folder)?;
    let list = folder.join("wanted.txt");
    fs::write(&list, wanted)?;
    let run = |command: &mut Command| -> anyhow::Result<()> {
        let status = command
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("cannot start {command:?}"))?;
        if !status.success() {
            bail!("{command:?} failed; install Python 3.10 or newer with its venv module, or give --python");
        }
        Ok(())
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "-r"])
        .arg(&list))?;
    fs::rename(&list, &stamp)?;
    Ok(python)
}
