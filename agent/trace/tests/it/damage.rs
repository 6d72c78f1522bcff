//! Cut and flipped traces: what is given is whole, and the rest is an error.

use offramp_trace::{Frame, TraceError};
use proptest::prelude::*;

use crate::sample::{any_frame, frame, header, read, text, written};

fn long() -> (Vec<Frame>, Vec<u8>) {
    let header = header(false);
    let exits = |n: u64| [(n as u32 % 10, 0.5), (1, 0.25), (2, 1.0 / (n + 1) as f32)];
    let frames: Vec<_> = (0..1_500)
        .map(|n| frame(&header, n, (n % 10) as u16, &exits(n)))
        .collect();
    let bytes = written(&header, &frames);
    (frames, bytes)
}

#[test]
fn a_cut_trace_gives_the_blocks_before_the_cut() {
    let (frames, bytes) = long();
    let (mut ends, mut most) = (0, 0);
    for length in (0..bytes.len()).step_by(97) {
        let Ok((back, error)) = read(&bytes[..length]) else {
            assert!(length < 300, "the head is whole from there on");
            continue;
        };
        assert_eq!(text(&back), text(&frames[..back.len()]));
        assert!(back.len() >= most, "more bytes are never fewer frames");
        most = back.len();
        match error {
            None => ends += 1,
            Some(TraceError::Damaged { frames, .. }) => assert_eq!(frames, back.len() as u64),
            Some(other) => panic!("{other:?}"),
        }
    }
    assert!(ends < 8 && most > 0, "a cut between two blocks looks like the end");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_flipped_bit_never_gives_another_frame(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let (frames, mut bytes) = long();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok((back, _)) = read(&bytes) {
            prop_assert_eq!(text(&back), text(&frames[..back.len()]));
        }
    }

    #[test]
    fn whatever_comes_is_an_error_and_no_panic(
        frames in proptest::collection::vec(any_frame(true), 0..6),
        noise in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
        mended in any::<bool>(),
    ) {
        let mut bytes = written(&header(true), &frames);
        let begin = written(&header(true), &[]).len();
        for (at, byte) in noise {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // A checksum that fits lets the damage through to the frames.
        if mended && bytes.len() > begin + 12 {
            let crc = crc32fast::hash(&bytes[begin + 12..]);
            bytes[begin + 8..begin + 12].copy_from_slice(&crc.to_le_bytes());
        }
        bytes.extend(tail);
        let _ = read(&bytes);
        let _ = read(&bytes[begin.min(bytes.len())..]);
    }
}

#[test]
fn a_length_that_lies_takes_no_memory() {
    let mut bytes = written(&header(false), &[]);
    bytes.extend(u32::MAX.to_le_bytes());
    bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    let (frames, error) = read(&bytes).unwrap();
    assert!(frames.is_empty() && matches!(error, Some(TraceError::Damaged { block: 0, .. })));
}
