//! Artifacts as files: those on their way here, and model packages, which are too large for the store.
//!
//! A folder holds them by digest: `HEX` is whole, and what it should be; `HEX.part` is on its way. Nothing under a name
//! without `.part` was ever half there: a file gets that name once it is whole, on the medium, and of its digest.
//!
//! # Constraints
//!
//! - One process at a time, that which has the [`Store`](crate::Store) beside it.
//! - One artifact is on its way at a time: another one that is begun takes its place.
//! - All files together have at most so many bytes as was said when the depot was opened.
//!
//! # Recovery
//!
//! A part is written in pieces of [`PIECE`] bytes, each on the medium before the next is begun. So after a power cut
//! all pieces but the last are sound, whatever the file system made of that: the last is fetched again. A file that was
//! spoilt in another way fails its digest when it is whole, or when it is read, and is removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use offramp_proto::Digest;

/// Bytes that are written before they are brought to the medium.
pub const PIECE: u64 = 1 << 20;

/// Why a file is not kept or not given.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// The folder or a file in it cannot be used.
    #[error("{} cannot be used; check its permissions and the room on its disk", path.display())]
    Io {
        /// Folder or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no room beside what must stay.
    #[error("no room for an artifact of {bytes} bytes: {pinned} of {limit} bytes are taken by those in use")]
    Full {
        /// Its size.
        bytes: u64,
        /// Bytes of what must stay.
        pinned: u64,
        /// Bytes of all files together.
        limit: u64,
    },
    /// The bytes are not those that the digest names. They are removed.
    #[error("artifact {expected} has the digest {actual}; it was removed")]
    WrongDigest {
        /// What was wanted.
        expected: Digest,
        /// What was there.
        actual: Digest,
    },
    /// More bytes than the artifact has.
    #[error("artifact {digest} has {size} bytes, and more came")]
    TooLong {
        /// The artifact.
        digest: Digest,
        /// Its size.
        size: u64,
    },
}

/// A folder of artifacts.
#[derive(Debug)]
pub struct Depot {
    folder: PathBuf,
    limit: u64,
}

/// An artifact on its way here.
#[derive(Debug)]
pub struct Part {
    digest: Digest,
    size: u64,
    have: u64,
    file: File,
    path: PathBuf,
}

impl Depot {
    /// A depot in a folder, which is made when the first artifact comes.
    pub fn new(folder: PathBuf, limit: u64) -> Self {
        Self { folder, limit }
    }

    fn path(&self, digest: Digest) -> PathBuf {
        let hex: String = digest.0.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(hex)
    }

    /// Goes on with an artifact, or begins it. What else was on its way is removed, and, where there is no room, what is
    /// not `pinned`.
    ///
    /// # Errors
    /// [`DepotError::Full`] where what is pinned leaves no room; a failure of the medium.
    pub fn begin(&self, digest: Digest, size: u64, pinned: &[Digest]) -> Result<Part, DepotError> {
        fs::create_dir_all(&self.folder).map_err(at(&self.folder))?;
        let path = self.path(digest).with_extension("part");
        self.make_room(&path, size, pinned)?;
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let mut file = open.map_err(at(&path))?;
        let length = file.metadata().map_err(at(&path))?.len().min(size);
        let have = length.saturating_sub(1) / PIECE * PIECE;
        file.set_len(have).map_err(at(&path))?;
        file.seek(SeekFrom::Start(have)).map_err(at(&path))?;
        sync_folder(&self.folder)?;
        Ok(Part {
            digest,
            size,
            have,
            file,
            path,
        })
    }

    fn make_room(&self, part: &Path, size: u64, pinned: &[Digest]) -> Result<(), DepotError> {
        let pinned: Vec<PathBuf> = pinned.iter().map(|digest| self.path(*digest)).collect();
        let (mut kept, mut free) = (0, Vec::new());
        for entry in fs::read_dir(&self.folder).map_err(at(&self.folder))? {
            let entry = entry.map_err(at(&self.folder))?;
            let (path, facts) = (entry.path(), entry.metadata().map_err(at(&self.folder))?);
            if path == part {
                continue;
            }
            if pinned.contains(&path) {
                kept += facts.len();
            } else if path.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(&path).map_err(at(&path))?;
            } else {
                free.push((facts.modified().ok(), facts.len(), path));
            }
        }
        let full = || DepotError::Full {
            bytes: size,
            pinned: kept,
            limit: self.limit,
        };
        let mut room = self
            .limit
            .checked_sub(kept)
            .and_then(|room| room.checked_sub(size))
            .ok_or_else(full)?;
        // The youngest may stay, as far as there is room.
        free.sort();
        for (_, length, path) in free.into_iter().rev() {
            match room.checked_sub(length) {
                Some(left) => room = left,
                None => fs::remove_file(&path).map_err(at(&path))?,
            }
        }
        Ok(())
    }

    /// Removes all but these.
    ///
    /// # Errors
    /// A failure of the medium.
    pub fn keep(&self, digests: &[Digest]) -> Result<(), DepotError> {
        let kept: Vec<PathBuf> = digests.iter().map(|digest| self.path(*digest)).collect();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(at(&self.folder))?,
        };
        for entry in entries {
            let path = entry.map_err(at(&self.folder))?.path();
            if !kept.contains(&path) {
                fs::remove_file(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    /// Whether an artifact is here, whole.
    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// An artifact, if it is here. Its bytes are held to the digest; where they are others they are removed.
    ///
    /// # Errors
    /// [`DepotError::WrongDigest`]; a failure of the medium.
    pub fn read(&self, digest: Digest) -> Result<Option<Vec<u8>>, DepotError> {
        let path = self.path(digest);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.map_err(at(&path))?,
        };
        let actual = Digest::of(&bytes);
        if actual != digest {
            fs::remove_file(&path).map_err(at(&path))?;
            let expected = digest;
            return Err(DepotError::WrongDigest { expected, actual });
        }
        Ok(Some(bytes))
    }

    /// Takes in an artifact that is whole.
    ///
    /// # Errors
    /// [`DepotError::WrongDigest`]; a failure of the medium. The part is gone then.
    pub fn finish(&self, part: Part) -> Result<Vec<u8>, DepotError> {
        let Part { digest, file, path, .. } = part;
        file.sync_all().map_err(at(&path))?;
        drop(file);
        let bytes = fs::read(&path).map_err(at(&path))?;
        let actual = Digest::of(&bytes);
        if actual != digest {
            fs::remove_file(&path).map_err(at(&path))?;
            let expected = digest;
            return Err(DepotError::WrongDigest { expected, actual });
        }
        fs::rename(&path, self.path(digest)).map_err(at(&path))?;
        sync_folder(&self.folder)?;
        Ok(bytes)
    }
}

impl Part {
    /// The artifact.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes that are here.
    pub fn have(&self) -> u64 {
        self.have
    }

    /// Bytes of the whole.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether all is here.
    pub fn is_whole(&self) -> bool {
        self.have == self.size
    }

    /// Adds what comes next.
    ///
    /// # Errors
    /// [`DepotError::TooLong`] behind the end; a failure of the medium.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), DepotError> {
        if bytes.len() as u64 > self.size - self.have {
            return Err(DepotError::TooLong {
                digest: self.digest,
                size: self.size,
            });
        }
        while !bytes.is_empty() {
            let room = PIECE - self.have % PIECE;
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.file.write_all(now).map_err(at(&self.path))?;
            self.have += now.len() as u64;
            // Before the next piece is begun.
            if self.have.is_multiple_of(PIECE) {
                self.file.sync_data().map_err(at(&self.path))?;
            }
            bytes = later;
        }
        Ok(())
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DepotError {
    let path = path.to_path_buf();
    move |source| DepotError::Io { path, source }
}

fn sync_folder(folder: &Path) -> Result<(), DepotError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(at(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 8 * PIECE;

    fn artifact(seed: u8, length: u64) -> (Digest, Vec<u8>) {
        let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8 ^ seed).collect();
        (Digest::of(&bytes), bytes)
    }

    fn take_in(depot: &Depot, (digest, bytes): &(Digest, Vec<u8>), pinned: &[Digest]) {
        let mut part = depot.begin(*digest, bytes.len() as u64, pinned).unwrap();
        part.append(&bytes[part.have() as usize..]).unwrap();
        assert_eq!(depot.finish(part).unwrap(), *bytes);
    }

    #[test]
    fn what_was_on_the_medium_is_not_fetched_again_and_what_may_be_torn_is() {
        let folder = tempfile::tempdir().unwrap();
        let depot = Depot::new(folder.path().join("packages"), LIMIT);
        let (digest, bytes) = artifact(1, 3 * PIECE + 77);
        for cut in [
            0,
            1,
            PIECE - 1,
            PIECE,
            PIECE + 1,
            2 * PIECE + 5,
            3 * PIECE,
            3 * PIECE + 77,
        ] {
            let mut part = depot.begin(digest, bytes.len() as u64, &[]).unwrap();
            let have = part.have();
            part.append(&bytes[have as usize..have.max(cut) as usize]).unwrap();
            assert!(!depot.has(digest), "a half one is no whole one");
            assert_eq!(depot.read(digest).unwrap(), None);
            let path = part.path.clone();
            drop(part);
            // The power goes: of the piece that was being written the file system may have kept anything.
            let sound = have.max(cut).saturating_sub(1) / PIECE * PIECE;
            let mut file = OpenOptions::new().write(true).open(&path).unwrap();
            file.seek(SeekFrom::Start(sound)).unwrap();
            let torn = vec![0xee; (have.max(cut) - sound) as usize];
            file.write_all(&torn).unwrap();
            assert_eq!(depot.begin(digest, bytes.len() as u64, &[]).unwrap().have(), sound);
        }
        take_in(&depot, &(digest, bytes.clone()), &[]);
        assert_eq!(depot.read(digest).unwrap(), Some(bytes));
    }

    #[test]
    fn what_is_pinned_stays_and_the_rest_gives_way_to_what_comes() {
        let folder = tempfile::tempdir().unwrap();
        let depot = Depot::new(folder.path().into(), LIMIT);
        let all: Vec<_> = (0..4).map(|seed| artifact(seed, 3 * PIECE)).collect();
        let [a, b, c, d] = [0, 1, 2, 3].map(|i: usize| all[i].0);
        take_in(&depot, &all[0], &[]);
        take_in(&depot, &all[1], &[a]);
        assert!(depot.has(a) && depot.has(b));
        take_in(&depot, &all[2], &[a]);
        assert_eq!([a, b, c].map(|digest| depot.has(digest)), [true, false, true]);
        let refused = depot.begin(d, 3 * PIECE, &[a, c]).unwrap_err();
        assert!(
            matches!(refused, DepotError::Full { pinned, .. } if pinned == 6 * PIECE),
            "{refused}"
        );
        depot.keep(&[c]).unwrap();
        assert_eq!([a, c].map(|digest| depot.has(digest)), [false, true]);
        // What was begun gives way to what is begun after it.
        drop(depot.begin(d, 5 * PIECE, &[c]).unwrap());
        drop(depot.begin(a, 3 * PIECE, &[c]).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn bytes_that_are_others_are_refused_and_gone() {
        let folder = tempfile::tempdir().unwrap();
        let depot = Depot::new(folder.path().into(), LIMIT);
        let ((digest, bytes), (_, other)) = (artifact(1, 1000), artifact(2, 1000));
        let mut part = depot.begin(digest, 1000, &[]).unwrap();
        part.append(&other).unwrap();
        assert!(part.is_whole());
        assert!(matches!(part.append(b"x"), Err(DepotError::TooLong { .. })));
        assert!(matches!(depot.finish(part), Err(DepotError::WrongDigest { .. })));
        assert_eq!(depot.begin(digest, 1000, &[]).unwrap().have(), 0);
        take_in(&depot, &(digest, bytes), &[]);
        fs::write(depot.path(digest), &other).unwrap();
        assert!(matches!(depot.read(digest), Err(DepotError::WrongDigest { .. })));
        assert!(!depot.has(digest));
        depot.keep(&[]).unwrap();
        assert_eq!(
            Depot::new(folder.path().join("none"), LIMIT).read(digest).unwrap(),
            None
        );
    }
}
