//! What is written is read back; what was once written stays readable.

use offramp_proto::Digest;
use offramp_trace::{FORMAT, Frame, Header, Reader, TraceError, Writer};
use proptest::prelude::*;

use crate::sample::{any_frame, frame, header, read, text, written};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn frames_come_back_bit_for_bit(
        plain in proptest::collection::vec(any_frame(false), 0..40),
        rich in proptest::collection::vec(any_frame(true), 0..40),
    ) {
        for (frames, features) in [(plain, false), (rich, true)] {
            let bytes = written(&header(features), &frames);
            let (back, error) = read(&bytes).unwrap();
            prop_assert!(error.is_none(), "{error:?}");
            prop_assert_eq!(text(&back), text(&frames));
            let reader = Reader::new(&bytes[..]).unwrap();
            prop_assert_eq!(reader.header(), &header(features));
        }
    }
}

/// Frames of every kind, the same for ever.
fn frozen() -> Vec<Frame> {
    let header = header(true);
    let mut all = vec![
        frame(&header, 0, 3, &[(3, 0.5), (3, 0.75), (3, 0.875)]),
        frame(&header, 1, 9, &[(1, 0.25), (9, 0.5)]),
    ];
    all[1].taken = Some(1);
    all[1].latency = 2.5;
    all[1].facts.temperature = 55.0;
    for seen in &mut all[1].exits {
        seen.view.temperature = 55.0;
        seen.view.time_left = 20.0;
        seen.verdict = Some(offramp_core::Verdict::Audit);
    }
    all
}

#[test]
fn format_1_is_frozen() {
    const GOLDEN: &[u8] = include_bytes!("../golden/format-1.trace");
    let bytes = written(&header(true), &frozen());
    assert_eq!(
        text(&read(GOLDEN).unwrap().0),
        text(&frozen()),
        "what was written can be read"
    );
    assert_eq!(Digest::of(&bytes), Digest::of(GOLDEN), "and is written as it was");
}

#[test]
fn a_long_trace_is_many_blocks_and_memory_is_that_of_one() {
    let header = header(false);
    let frames: Vec<_> = (0..3_000)
        .map(|n| frame(&header, n, 1, &[(1, 0.5), (1, 0.6), (1, 0.7)]))
        .collect();
    let bytes = written(&header, &frames);
    assert!(
        bytes.len() < 80 * frames.len(),
        "{} bytes a frame",
        bytes.len() / frames.len()
    );
    assert_eq!(text(&read(&bytes).unwrap().0), text(&frames));
}

#[test]
fn what_does_not_fit_the_header_is_refused_and_the_trace_goes_on() {
    let header = header(false);
    let good = frame(&header, 1, 1, &[(1, 0.5)]);
    let mut writer = Writer::new(Vec::new(), header.clone()).unwrap();
    writer.push(&good).unwrap();
    let bad: [fn(&mut Frame); 5] = [
        |frame| frame.exits.clear(),
        |frame| frame.exits = vec![frame.exits[0].clone(); 4],
        |frame| frame.label = Some(10),
        |frame| frame.taken = Some(1),
        |frame| frame.exits[0].view.class = 10,
    ];
    for spoil in bad {
        let mut frame = good.clone();
        spoil(&mut frame);
        assert!(matches!(writer.push(&frame), Err(TraceError::Misfit(_))), "{frame:?}");
    }
    writer.push(&good).unwrap();
    let bytes = writer.finish().unwrap();
    assert_eq!(text(&read(&bytes).unwrap().0), text(&[good.clone(), good]));
}

#[test]
fn a_header_out_of_its_bounds_is_neither_written_nor_read() {
    let bad: [fn(&mut Header); 6] = [
        |header| header.stage_macs.clear(),
        |header| header.stage_macs = vec![u64::MAX; 3],
        |header| header.classes = 1,
        |header| header.exit_costs[0] = f32::NAN,
        |header| header.features = vec![1],
        |header| header.model = "x".repeat(257),
    ];
    for spoil in bad {
        let mut spoilt = header(false);
        spoil(&mut spoilt);
        assert!(matches!(Writer::new(Vec::new(), spoilt), Err(TraceError::Header(_))));
    }
}

#[test]
fn another_file_and_a_later_format_are_told_apart() {
    assert!(matches!(read(b""), Err(TraceError::NoTrace)));
    assert!(matches!(
        read(b"PK\x03\x04 a zip file and more"),
        Err(TraceError::NoTrace)
    ));
    let mut later = written(&header(false), &[]);
    later[4] = FORMAT as u8 + 1;
    let error = read(&later).unwrap_err();
    assert!(matches!(error, TraceError::Format { found } if found == u32::from(FORMAT) + 1));
    assert!(error.to_string().contains("update it"));
}
