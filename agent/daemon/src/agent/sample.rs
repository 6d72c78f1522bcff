//! Pieces of traces for the fleet: a few hundred frames that follow each other, now and then.

use std::time::{Duration, Instant};

use offramp_proto::MAX_TRACE;
use offramp_trace::{Frame, Header, TraceError, Writer};

/// Bytes at which a piece is whole: what is left below the largest holds any frame without features.
const WHOLE: u64 = MAX_TRACE as u64 * 3 / 4;
/// Frames of a piece at most: of a network with two exits these are as many bytes.
const MOST: u32 = 1000;
/// A camera that gives few frames gives a smaller piece after this time.
const PATIENCE: Duration = Duration::from_secs(600);

/// Makes the pieces of one camera, within a budget of bytes.
pub(crate) struct Sampler {
    header: Header,
    bytes_per_second: f64,
    piece: Option<(Writer<Vec<u8>>, u32, Instant)>,
    /// When the next piece may begin.
    next: Instant,
}

impl Sampler {
    /// For a camera with this header, and so many bytes an hour.
    pub(crate) fn new(header: Header, bytes_per_hour: u64, now: Instant) -> Self {
        Self {
            // Features would let somebody guess at what was seen.
            header: Header {
                features: Vec::new(),
                ..header
            },
            bytes_per_second: bytes_per_hour as f64 / 3600.0,
            piece: None,
            next: now,
        }
    }

    /// Takes in a frame. Gives a piece that is whole.
    ///
    /// # Errors
    /// When the frame does not fit the header.
    pub(crate) fn take(&mut self, frame: &Frame, at_ms: u64, now: Instant) -> Result<Option<Vec<u8>>, TraceError> {
        if self.piece.is_none() {
            if now < self.next {
                return Ok(None);
            }
            let header = Header {
                started_at: at_ms,
                ..self.header.clone()
            };
            self.piece = Some((Writer::new(Vec::new(), header)?, 0, now));
        }
        let Some((writer, frames, since)) = &mut self.piece else {
            return Ok(None);
        };
        let mut bare = frame.clone();
        bare.exits.iter_mut().for_each(|seen| seen.features.clear());
        writer.push(&bare)?;
        *frames += 1;
        let whole = writer.bytes() >= WHOLE || *frames >= MOST || now.duration_since(*since) >= PATIENCE;
        if !whole {
            return Ok(None);
        }
        let Some((writer, ..)) = self.piece.take() else {
            return Ok(None);
        };
        let bytes = writer.finish()?;
        let pause = bytes.len() as f64 / self.bytes_per_second;
        self.next = now + Duration::try_from_secs_f64(pause).unwrap_or(Duration::from_secs(24 * 3600));
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use offramp_trace::Reader;

    /// A recorded camera, with features added.
    fn recorded() -> (Header, Vec<Frame>) {
        const TRACE: &[u8] = include_bytes!("../../../../models/zoo/revcol-fashion/scenes.trace");
        let mut reader = Reader::new(TRACE).unwrap();
        let mut frames = Vec::new();
        while let Some(mut frame) = reader.next_frame().unwrap() {
            for seen in &mut frame.exits {
                seen.features = vec![f16::ONE; 4];
            }
            frames.push(frame);
        }
        let header = Header {
            features: vec![4; reader.header().exits()],
            ..reader.header().clone()
        };
        (header, frames)
    }

    #[test]
    fn pieces_follow_each_other_within_their_budget_and_hold_no_features() {
        let start = Instant::now();
        let (header, frames) = recorded();
        let mut sampler = Sampler::new(header, 36 << 20, start);
        let mut pieces = Vec::new();
        for (number, frame) in (0..40_000).zip(frames.iter().cycle()) {
            let frame = Frame {
                number,
                ..frame.clone()
            };
            let now = start + Duration::from_millis(10 * number);
            if let Some(piece) = sampler.take(&frame, number, now).unwrap() {
                pieces.push((now, piece));
            }
        }
        assert!(pieces.len() > 2);
        let bytes: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        assert!(bytes as f64 <= 400.0 * (36 << 20) as f64 / 3600.0 + 48e3, "{bytes}");
        for (_, piece) in &pieces {
            assert!(piece.len() <= MAX_TRACE);
            let mut reader = Reader::new(&piece[..]).unwrap();
            assert!(reader.header().features.is_empty());
            let mut before = None;
            while let Some(frame) = reader.next_frame().unwrap() {
                assert!(frame.exits[0].features.is_empty());
                assert!(
                    before.is_none_or(|before| frame.number == before + 1),
                    "frames follow each other"
                );
                before = Some(frame.number);
            }
        }
    }

    #[test]
    fn a_slow_camera_gives_what_it_has_in_the_end() {
        let start = Instant::now();
        let (header, frames) = recorded();
        let mut sampler = Sampler::new(header, 1 << 20, start);
        assert_eq!(sampler.take(&frames[0], 0, start).unwrap(), None);
        let late = start + PATIENCE;
        let piece = sampler.take(&frames[1], 0, late).unwrap().unwrap();
        let mut reader = Reader::new(&piece[..]).unwrap();
        for frame in &frames[..2] {
            assert_eq!(reader.next_frame().unwrap().unwrap().number, frame.number);
        }
        assert_eq!(reader.next_frame().unwrap(), None);
    }
}
