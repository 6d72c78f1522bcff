use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use crate::{Frame, Header, TraceError, Writer};

/// Digits of a file's number, at least.
const DIGITS: usize = 8;
/// No device writes so many files.
const MAX_NUMBER: u64 = 1 << 48;

/// The traces of one camera in a folder: files `NAME-NNNNNNNN.trace`, of which the oldest make room for new ones.
///
/// Each run begins a file of its own: a damaged end of the one before does no harm.
#[derive(Debug)]
pub struct Folder {
    folder: PathBuf,
    name: String,
    header: Header,
    file_bytes: u64,
    files: usize,
    open: Option<Writer<BufWriter<File>>>,
    next: u64,
}

impl Folder {
    /// Traces of a camera, named by it, or by `camera` where its name is empty: at most so many files of about so many
    /// bytes. No file is made before the first frame.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, header: Header, file_bytes: u64, files: usize) -> Result<Self, TraceError> {
        header.check()?;
        fs::create_dir_all(folder)?;
        let name = if header.camera.is_empty() {
            "camera"
        } else {
            &header.camera
        }
        .to_owned();
        let last = numbered(folder, &name)?.last().map_or(0, |(number, _)| number + 1);
        Ok(Self {
            folder: folder.into(),
            name,
            header,
            file_bytes,
            files: files.max(1),
            open: None,
            next: last,
        })
    }

    /// Adds a frame. `now` is the time in milliseconds since 1970, for the header of a new file.
    ///
    /// # Errors
    /// When it does not fit, or cannot be written.
    pub fn push(&mut self, frame: &Frame, now: u64) -> Result<(), TraceError> {
        let writer = match self.open.as_mut() {
            Some(writer) => writer,
            None => {
                self.make_room()?;
                let file = self.create()?;
                let header = Header {
                    started_at: now,
                    ..self.header.clone()
                };
                self.open.insert(Writer::new(BufWriter::new(file), header)?)
            }
        };
        writer.push(frame)?;
        if writer.bytes() >= self.file_bytes {
            self.finish()?;
        }
        Ok(())
    }

    /// Writes what waits.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> Result<(), TraceError> {
        self.open.as_mut().map_or(Ok(()), Writer::flush)
    }

    /// Ends the open file; the next frame begins another.
    ///
    /// # Errors
    /// When what waits cannot be written.
    pub fn finish(&mut self) -> Result<(), TraceError> {
        self.open.take().map_or(Ok(()), |writer| writer.finish().map(drop))
    }

    /// Makes the next file. Where the model has changed, what was recorded of the one before may still be written, and
    /// have taken a number.
    fn create(&mut self) -> io::Result<File> {
        loop {
            let path = self.folder.join(format!("{}-{:0DIGITS$}.trace", self.name, self.next));
            self.next += 1;
            match File::options().write(true).create_new(true).open(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
    }

    /// Removes the oldest files, so that there is room for one more.
    fn make_room(&self) -> io::Result<()> {
        let there = numbered(&self.folder, &self.name)?;
        let over = (there.len() + 1).saturating_sub(self.files);
        there.iter().take(over).try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// A camera's files by number.
fn numbered(folder: &Path, name: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_name().and_then(|file| {
            let digits = file
                .to_str()?
                .strip_suffix(".trace")?
                .strip_prefix(name)?
                .strip_prefix('-')?;
            let all_digits = digits.bytes().all(|digit| digit.is_ascii_digit());
            // A number from which one cannot count on is not ours.
            digits.parse().ok().filter(|number| all_digits && *number < MAX_NUMBER)
        });
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

/// The traces that a path names: the file itself, or all `.trace` files of a folder, by name.
///
/// # Errors
/// When the path cannot be read.
pub fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.into()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "trace") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
