//! Any bytes as a trace: read to the end without a panic; and what was read is written and read again as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use offramp_core::ExitView;
use offramp_trace::{Reader, Replay, Weights, Writer};

/// Puts lengths and checksums right, so that damage gets past them.
fn mended(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    let u32_at = |data: &[u8], at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?) as usize);
    let Some(header) = u32_at(&data, 8) else { return data };
    let Some(text) = data.get(16..16_usize.saturating_add(header)) else { return data };
    let crc = crc32(text);
    data[12..16].copy_from_slice(&crc);
    let mut at = 16 + header;
    while let Some(length) = u32_at(&data, at) {
        // A block that is cut ends where it is.
        let Some(rest) = data.len().checked_sub(at + 12) else { break };
        let length = length.min(rest);
        data[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
        let crc = crc32(&data[at + 12..at + 12 + length]);
        data[at + 8..at + 12].copy_from_slice(&crc);
        at += 12 + length;
    }
    data
}

fn crc32(data: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).to_le_bytes()
}

fn read(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else { return };
    let header = reader.header().clone();
    let mut frames = Vec::new();
    while let Ok(Some(frame)) = reader.next_frame() {
        frames.push(frame);
    }
    let weights = Weights::of(&header, &frames);
    let replay = Replay::of(&header, &frames, &weights, &mut |view: &ExitView| view.rule());
    assert!(replay.weight <= frames.len() as f64 * (1.0 + 1e-9));
    assert_eq!(replay.frames, frames.len() as u64);
    let mut writer = Writer::new(Vec::new(), header).expect("a header that was read can be written");
    for frame in &frames {
        writer.push(frame).expect("a frame that was read can be written");
    }
    let bytes = writer.finish().expect("memory takes all");
    let again = Reader::new(&bytes[..]).expect("what was written can be read");
    let again: Vec<_> = again.map(|frame| frame.expect("and is whole")).collect();
    assert_eq!(format!("{again:?}"), format!("{frames:?}"));
}

fuzz_target!(|data: &[u8]| {
    read(data);
    read(&mended(data));
});
