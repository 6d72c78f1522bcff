//! Bytes from strangers: refused with a reason, in bounded space.

use offramp_proto::*;
use proptest::prelude::*;

use crate::sample;

/// CBOR heads that promise far more than follows.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("2^62 bytes", vec![0x5b, 0x40, 0, 0, 0, 0, 0, 0, 0]),
        ("2^62 characters", vec![0x7b, 0x40, 0, 0, 0, 0, 0, 0, 0]),
        ("array of 2^62", vec![0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0]),
        ("map of 2^62", vec![0xbb, 0x40, 0, 0, 0, 0, 0, 0, 0]),
        ("60,000 nested arrays", vec![0x81; 60_000]),
        ("60,000 nested tags", vec![0xc1; 60_000]),
        (
            "60,000 nested maps in a known field",
            [&b"\xa1\x65facts"[..], &[0xa1; 60_000]].concat(),
        ),
        ("endless strings", vec![0x7f; 60_000]),
    ]
}

fn refused_by_all(what: &str, bytes: &[u8]) {
    fn refused<M: Message>(what: &str, bytes: &[u8]) {
        assert!(decode::<M>(bytes).is_err(), "{what} was taken for a {}", M::NAME);
    }
    refused::<Birth>(what, bytes);
    refused::<Death>(what, bytes);
    refused::<Summary>(what, bytes);
    refused::<Event>(what, bytes);
    refused::<Reported>(what, bytes);
    refused::<Desired>(what, bytes);
    refused::<ArtifactRequest>(what, bytes);
    refused::<ArtifactChunk>(what, bytes);
    refused::<TraceSample>(what, bytes);
    refused::<RenewalRequest>(what, bytes);
    refused::<RenewalAnswer>(what, bytes);
}

#[test]
fn a_cbor_bomb_is_refused() {
    for (what, bytes) in bombs() {
        refused_by_all(what, &bytes);
    }
}

#[test]
fn a_message_beyond_the_limit_is_refused_unread() {
    let bytes = vec![0xff; MAX_MESSAGE + 1];
    assert_eq!(decode::<Summary>(&bytes), Err(DecodeError::TooLarge(MAX_MESSAGE + 1)));
}

#[test]
fn a_message_followed_by_more_is_refused() {
    let mut bytes = encode(&sample::death()).unwrap();
    bytes.push(0);
    assert!(matches!(
        decode::<Death>(&bytes),
        Err(DecodeError::Malformed { subject: "death", .. })
    ));
}

#[test]
fn a_field_outside_its_bounds_is_named() {
    let out_of_bounds = |s: Summary| match encode(&s) {
        Err(DecodeError::OutOfBounds { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    let good = sample::summary();
    assert_eq!(
        out_of_bounds(Summary {
            frames: 7,
            ..good.clone()
        }),
        "exits"
    );
    assert_eq!(
        out_of_bounds(Summary {
            audits: Audits {
                bound: f32::NAN,
                ..good.audits
            },
            ..good.clone()
        }),
        "audits"
    );
    assert_eq!(
        out_of_bounds(Summary {
            window: Window { start: 2, end: 1 },
            ..good.clone()
        }),
        "window"
    );
    let mut boastful = sample::summary_with_control();
    boastful.control.as_mut().unwrap().learned.cost = -1.0;
    assert_eq!(out_of_bounds(boastful), "control");
    let mut uncounted = sample::summary_with_cameras();
    uncounted.cameras[1].frames += 1;
    assert_eq!(out_of_bounds(uncounted), "cameras");
    assert_eq!(
        out_of_bounds(Summary {
            engines: vec![String::new(); 65],
            ..good.clone()
        }),
        "engines"
    );
    assert_eq!(
        out_of_bounds(Summary {
            classes: vec![ClassCount { class: 0, count: 1 }; 5_000],
            ..good
        }),
        "classes"
    );
}

#[test]
fn a_chunk_that_was_altered_is_refused() {
    let chunk = ArtifactChunk {
        data: b"another component's bytes".to_vec(),
        ..sample::chunk()
    };
    assert!(matches!(
        encode(&chunk),
        Err(DecodeError::OutOfBounds { field: "hash", .. })
    ));
}

#[test]
fn a_piece_of_a_trace_has_its_bound() {
    let large = TraceSample {
        trace: vec![0; MAX_TRACE + 1],
        ..sample::trace_sample()
    };
    assert!(matches!(
        encode(&large),
        Err(DecodeError::OutOfBounds { field: "trace", .. })
    ));
}

#[test]
fn a_renewal_has_its_bounds_and_one_answer() {
    let long = RenewalRequest {
        proof: "x".repeat(MAX_CERTIFICATE + 1),
        ..sample::renewal_request()
    };
    assert!(matches!(
        encode(&long),
        Err(DecodeError::OutOfBounds { field: "proof", .. })
    ));
    let both = RenewalAnswer {
        refused: Some(String::new()),
        ..sample::renewal_answer()
    };
    assert!(matches!(
        encode(&both),
        Err(DecodeError::OutOfBounds { field: "refused", .. })
    ));
}

#[test]
fn names_that_could_leave_their_place_are_refused() {
    for name in ["", "..", ".hidden", "a/b", "a+b", "#", "a b", "ü", &"x".repeat(65)] {
        assert!(DeviceId::new(name).is_err(), "{name:?}");
        let topic = format!("offramp/1/acme/{name}/up/birth");
        assert!(Topic::parse(&topic).is_err(), "{topic:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode::<Birth>(&bytes);
        let _ = decode::<Summary>(&bytes);
        let _ = decode::<Event>(&bytes);
        let _ = decode::<Desired>(&bytes);
        let _ = decode::<ArtifactChunk>(&bytes);
        let _ = SigningKey::from_seed(&[1; 32]).public().verify::<Desired>(&bytes);
    }

    #[test]
    fn a_damaged_summary_is_refused_or_within_its_bounds(at in 0usize..700, with in any::<u8>()) {
        let mut bytes = encode(&sample::summary()).unwrap();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(summary) = decode::<Summary>(&bytes) {
            prop_assert!(summary.check().is_ok());
        }
    }

    #[test]
    fn a_summary_survives_the_way(frames in prop::collection::vec(0u64..1 << 40, 0..8), bound in 0f32..=1.0, sequence: u64) {
        let summary = Summary {
            sequence: Sequence(sequence),
            frames: frames.iter().sum(),
            exits: frames.iter().map(|&taken| ExitUse { taken }).collect(),
            audits: Audits { run: 9, disagreements: 3, bound },
            ..sample::summary()
        };
        prop_assert_eq!(decode::<Summary>(&encode(&summary).unwrap()).unwrap(), summary);
    }

    #[test]
    fn a_topic_survives_the_way(tenant in "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}", device in "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}") {
        for kind in [Kind::Birth, Kind::Death, Kind::Summary, Kind::Event, Kind::Reported, Kind::Request, Kind::Renewal, Kind::Desired, Kind::Chunk, Kind::Certificate] {
            let topic = Topic::new(&TenantId::new(tenant.clone()).unwrap(), &DeviceId::new(device.clone()).unwrap(), kind);
            prop_assert_eq!(Topic::parse(&topic.to_string()).unwrap(), topic);
        }
    }
}
