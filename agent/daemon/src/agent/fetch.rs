//! Fetching an artifact: from its address, where it has one, or from the controller, chunk by chunk. What is here stays
//! here, whatever breaks, and the rest is fetched.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use offramp_proto::{ArtifactChunk, ArtifactRequest, CHUNK, Digest, MAX_CHUNKS};
use offramp_store::{Depot, DepotError, Part};
use tokio::sync::mpsc;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::judge::chain;

/// Pieces of an address that wait to be written.
const AHEAD: usize = 4;
/// Bytes of such a piece.
const PIECE: usize = 64 * 1024;
/// How long an address may take to connect, to answer, and to send a piece.
const SILENCE: Duration = Duration::from_secs(30);

/// An artifact on its way here.
#[derive(Debug)]
pub(crate) struct Fetch {
    part: Part,
    route: Route,
    /// Up to here chunks were asked for.
    asked: u64,
    /// Chunks that are asked for at a time.
    most: u64,
}

/// Where it comes from.
#[derive(Debug)]
enum Route {
    /// The controller, over the broker.
    Broker,
    /// An address.
    Address(mpsc::Receiver<Result<Vec<u8>, String>>),
}

/// What a piece brought.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Not for us, or here already; or more is on its way.
    Waiting,
    /// Ask for what comes next.
    More,
    /// All is here.
    Whole,
    /// It cannot be had.
    Failed(String),
}

impl Fetch {
    /// Goes on with a part, or begins it: from the controller.
    pub(crate) fn over_broker(part: Part) -> Self {
        Self {
            asked: part.have(),
            most: MAX_CHUNKS,
            part,
            route: Route::Broker,
        }
    }

    /// Goes on with a part, or begins it: from an address. `ca` are certificates that
    /// are trusted where those of the web do not do.
    pub(crate) fn from_address(part: Part, url: String, ca: Option<PathBuf>) -> Self {
        let (to_fetch, pieces) = mpsc::channel(AHEAD);
        let (have, size) = (part.have(), part.size());
        let work = move || {
            if let Err(why) = download(&url, ca, have, size, &to_fetch) {
                let _ = to_fetch.blocking_send(Err(why));
            }
        };
        // One that is not started leaves an empty channel. Nobody waits for its end.
        let _ = std::thread::Builder::new().name("offramp-fetch".into()).spawn(work);
        Self {
            asked: part.have(),
            most: MAX_CHUNKS,
            part,
            route: Route::Address(pieces),
        }
    }

    /// The artifact.
    pub(crate) fn digest(&self) -> Digest {
        self.part.digest()
    }

    /// Whether it comes from an address.
    pub(crate) fn has_address(&self) -> bool {
        matches!(self.route, Route::Address(_))
    }

    /// Waits for a piece from the address; for ever where there is none.
    pub(crate) async fn piece(&mut self) -> Result<Vec<u8>, String> {
        match &mut self.route {
            Route::Address(pieces) => match pieces.recv().await {
                Some(piece) => piece,
                None => Err("it has ended early".into()),
            },
            Route::Broker => std::future::pending().await,
        }
    }

    /// What to ask for next; after a silence from what is here on.
    pub(crate) fn request(&mut self) -> ArtifactRequest {
        let left = (self.part.size() - self.part.have()).div_ceil(CHUNK as u64);
        let chunks = left.clamp(1, self.most);
        self.asked = self.part.have() + chunks * CHUNK as u64;
        ArtifactRequest {
            digest: self.part.digest(),
            offset: self.part.have(),
            chunks,
        }
    }

    /// After a silence: a slow link would be full of what was asked for twice.
    pub(crate) fn slow_down(&mut self) {
        self.most = (self.most / 2).max(1);
    }

    /// Takes a chunk, whose own hash has been checked when it was decoded.
    pub(crate) fn take(&mut self, chunk: &ArtifactChunk) -> Progress {
        let digest = self.part.digest();
        if self.has_address() || chunk.digest != digest {
            return Progress::Waiting;
        }
        if chunk.data.is_empty() {
            return Progress::Failed(format!("the controller does not have artifact {}", digest.short()));
        }
        if chunk.offset != self.part.have() {
            return Progress::Waiting;
        }
        if chunk.total != self.part.size() {
            let (digest, total, size) = (digest.short(), chunk.total, self.part.size());
            return Progress::Failed(format!("artifact {digest} has {total} bytes where {size} were signed"));
        }
        let is_last = chunk.offset + chunk.data.len() as u64 == chunk.total;
        if !is_last && chunk.data.len() != CHUNK {
            return Progress::Failed(format!("artifact {} came in a chunk that is too short", digest.short()));
        }
        self.append(&chunk.data)
    }

    /// Adds what comes next.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Progress {
        match self.part.append(bytes) {
            Err(error) => Progress::Failed(chain(&error)),
            Ok(()) if self.part.is_whole() => Progress::Whole,
            Ok(()) if !self.has_address() && self.part.have() >= self.asked => {
                self.most = (2 * self.most).min(MAX_CHUNKS);
                Progress::More
            }
            Ok(()) => Progress::Waiting,
        }
    }

    /// Takes in what is whole.
    pub(crate) fn finish(self, depot: &Depot) -> Result<Vec<u8>, DepotError> {
        depot.finish(self.part)
    }
}

/// Sends what an address has from a byte on.
fn download(
    url: &str,
    ca: Option<PathBuf>,
    have: u64,
    size: u64,
    to_fetch: &mpsc::Sender<Result<Vec<u8>, String>>,
) -> Result<(), String> {
    let ask = |roots: RootCerts| {
        let config = ureq::Agent::config_builder()
            .https_only(true)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .timeout_connect(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        let agent: ureq::Agent = config.into();
        let request = agent.get(url);
        let request = match have {
            0 => request,
            have => request.header("range", format!("bytes={have}-")),
        };
        request.call().map_err(|error| chain(&error))
    };
    let mut answer = match (ask(RootCerts::WebPki), ca) {
        (Err(_), Some(ca)) => ask(roots(&ca)?)?,
        (answer, _) => answer?,
    };
    let skip = match answer.status().as_u16() {
        206 => 0,
        // It does not know how to go on: what is here is passed over.
        200 => have,
        status => return Err(format!("it answers with status {status}")),
    };
    let mut body = answer.body_mut().as_reader();
    let skipped = std::io::copy(&mut body.by_ref().take(skip), &mut std::io::sink());
    if skipped.map_err(|error| error.to_string())? < skip {
        return Err("it is shorter than what was signed".into());
    }
    let mut left = size - have;
    while left > 0 {
        let mut piece = Vec::with_capacity(PIECE);
        let read = body.by_ref().take(left.min(PIECE as u64)).read_to_end(&mut piece);
        // What has come counts, also where the rest does not.
        left -= piece.len() as u64;
        let ended = piece.is_empty();
        if !ended && to_fetch.blocking_send(Ok(piece)).is_err() {
            return Ok(()); // something else is wanted by now
        }
        read.map_err(|error| error.to_string())?;
        if ended {
            return Err("it is shorter than what was signed".into());
        }
    }
    Ok(())
}

/// The certificates of a file.
fn roots(path: &std::path::Path) -> Result<RootCerts, String> {
    let pem = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let of_file = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let all: Vec<Certificate<'static>> = of_file.collect();
    Ok(RootCerts::from(all))
}

#[cfg(test)]
mod tests {
    use offramp_test_support::temp_dir;

    use super::*;

    fn chunk_of(artifact: &[u8], offset: usize) -> ArtifactChunk {
        let data = artifact[offset..(offset + CHUNK).min(artifact.len())].to_vec();
        ArtifactChunk {
            digest: Digest::of(artifact),
            offset: offset as u64,
            total: artifact.len() as u64,
            hash: Digest::of(&data),
            data,
        }
    }

    fn fetch(depot: &Depot, artifact: &[u8], size: usize) -> Fetch {
        Fetch::over_broker(depot.begin(Digest::of(artifact), size as u64, &[]).unwrap())
    }

    #[test]
    fn chunks_in_order_make_the_artifact_and_repeats_do_no_harm() {
        let folder = temp_dir();
        let depot = Depot::new(folder.path().into(), 1 << 30);
        let artifact: Vec<u8> = (0..40 * CHUNK + 5).map(|i| (i * i) as u8).collect();
        let mut fetch = fetch(&depot, &artifact, artifact.len());
        // After silences fewer are asked for, and again more as they come.
        for most in [8, 4, 2, 1, 1] {
            fetch.slow_down();
            assert_eq!(fetch.request().chunks, most);
        }
        fetch.most = MAX_CHUNKS;
        let request = fetch.request();
        assert_eq!((request.offset, request.chunks), (0, 16));
        assert_eq!(
            fetch.take(&chunk_of(&artifact, CHUNK)),
            Progress::Waiting,
            "not that yet"
        );
        for chunk in 0..16 {
            let expected = if chunk == 15 { Progress::More } else { Progress::Waiting };
            assert_eq!(fetch.take(&chunk_of(&artifact, chunk * CHUNK)), expected);
            assert_eq!(
                fetch.take(&chunk_of(&artifact, chunk * CHUNK)),
                Progress::Waiting,
                "again"
            );
        }
        for chunk in 16..40 {
            if chunk % 16 == 0 {
                let request = fetch.request();
                let left = if chunk == 32 { 9 } else { 16 };
                assert_eq!((request.offset, request.chunks), ((chunk * CHUNK) as u64, left));
            }
            fetch.take(&chunk_of(&artifact, chunk * CHUNK));
        }
        fetch.slow_down();
        assert_eq!(fetch.request().chunks, 1, "the last");
        assert_eq!(fetch.take(&chunk_of(&artifact, 40 * CHUNK)), Progress::Whole);
        assert_eq!(fetch.finish(&depot).unwrap(), artifact);
    }

    /// Serves a file over TLS, to as many who ask as there are answers: each gets so many bytes, then the connection
    /// breaks. Gives the address, and where the authority's certificate lies; and, at the end, the ranges asked for.
    fn serve(
        folder: &std::path::Path,
        file: Vec<u8>,
        answers: Vec<(bool, usize)>,
    ) -> (String, PathBuf, std::thread::JoinHandle<Vec<Option<u64>>>) {
        use std::io::{BufRead as _, BufReader, Write as _};
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, made.cert.pem()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![made.cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let config = std::sync::Arc::new(config);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("https://localhost:{}/model.tar", listener.local_addr().unwrap().port());
        let thread = std::thread::spawn(move || {
            let mut asked = Vec::new();
            for (knows_ranges, bytes) in answers {
                let request = loop {
                    let (stream, _) = listener.accept().unwrap();
                    let connection = rustls::ServerConnection::new(std::sync::Arc::clone(&config)).unwrap();
                    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
                    let mut lines = Vec::new();
                    let mut line = String::new();
                    // Who does not trust the certificate goes again.
                    while stream.read_line(&mut line).is_ok_and(|read| read > 0) && line != "\r\n" {
                        lines.push(std::mem::take(&mut line));
                    }
                    if !lines.is_empty() {
                        break (lines, stream);
                    }
                };
                let (lines, stream) = request;
                let range = lines.iter().find_map(|line| {
                    let range = line.to_lowercase();
                    range
                        .strip_prefix("range: bytes=")?
                        .trim()
                        .strip_suffix('-')?
                        .parse::<u64>()
                        .ok()
                });
                asked.push(range);
                let start = range.filter(|_| knows_ranges).unwrap_or(0) as usize;
                let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
                let mut stream = stream.into_inner();
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", file.len() - start);
                let end = file.len().min(start + bytes);
                // Who has what was wanted closes.
                let _ = stream.write_all(head.as_bytes());
                let _ = stream.write_all(&file[start..end]);
                let _ = stream.flush();
            }
            asked
        });
        (url, ca, thread)
    }

    #[tokio::test]
    async fn an_address_is_asked_for_what_is_missing_and_only_tls_is_spoken() {
        const MIB: usize = 1 << 20;
        let folder = temp_dir();
        let depot = Depot::new(folder.path().join("depot"), 1 << 30);
        let file: Vec<u8> = (0..5 * MIB + 77).map(|i| (i % 253) as u8).collect();
        let answers = vec![(true, 3 * MIB), (true, MIB + 5), (false, usize::MAX)];
        let (url, ca, server) = serve(folder.path(), file.clone(), answers);
        let digest = Digest::of(&file);
        let begin = || depot.begin(digest, file.len() as u64, &[]).unwrap();
        let mut ends = Vec::new();
        loop {
            let mut fetch = Fetch::from_address(begin(), url.clone(), Some(ca.clone()));
            let end = loop {
                match fetch.piece().await {
                    Ok(piece) => match fetch.append(&piece) {
                        Progress::Waiting => {}
                        end => break end,
                    },
                    Err(why) => break Progress::Failed(why),
                }
            };
            ends.push(end);
            if ends.last() == Some(&Progress::Whole) {
                assert_eq!(fetch.finish(&depot).unwrap(), file);
                break;
            }
            assert!(ends.len() < 3, "{ends:?}");
        }
        assert_eq!(ends.len(), 3, "twice it broke off: {ends:?}");
        let asked = server.join().unwrap();
        assert_eq!(asked, [None, Some(2 * MIB as u64), Some(3 * MIB as u64)]);
        let mut plain = Fetch::from_address(begin(), "http://localhost:9/model.tar".into(), None);
        assert!(plain.piece().await.unwrap_err().contains("https"), "not in the clear");
    }

    #[test]
    fn an_artifact_that_is_not_what_was_signed_is_refused() {
        let folder = temp_dir();
        let depot = Depot::new(folder.path().into(), 1 << 30);
        let (good, evil) = (vec![1; 100], vec![2; 100]);
        let forged = ArtifactChunk {
            digest: Digest::of(&good),
            ..chunk_of(&evil, 0)
        };
        let mut taken = fetch(&depot, &good, 100);
        assert_eq!(taken.take(&forged), Progress::Whole);
        assert!(matches!(taken.finish(&depot), Err(DepotError::WrongDigest { .. })));
        let mut taken = fetch(&depot, &good, 99);
        assert!(matches!(taken.take(&chunk_of(&good, 0)), Progress::Failed(why) if why.contains("99 were signed")));
        let missing = ArtifactChunk {
            data: vec![],
            hash: Digest::of(b""),
            ..chunk_of(&good, 0)
        };
        let mut taken = fetch(&depot, &good, 100);
        assert!(matches!(taken.take(&missing), Progress::Failed(why) if why.contains("does not have")));
    }
}
