//! Files that are made to hurt.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::ImageFormat;
use offramp_camera::{Camera, Folder, Frame, MAX_FILE, MAX_SIDE};
use proptest::prelude::*;
use tempfile::tempdir;

use crate::{colour, shape};

/// Whether the folder's only image gives a frame.
fn is_shown(folder: &Path) -> bool {
    let mut camera = Folder::open(folder, shape(8, 8, 3)).unwrap();
    let mut frame = Frame::default();
    let shown = camera.next(&mut frame).unwrap();
    assert_eq!(camera.skipped(), u64::from(!shown));
    assert!(!shown || frame.pixels.len() == 8 * 8 * 3);
    shown
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let image = colour(24, 24, |x, y| [(x * 10) as u8, (y * 10) as u8, (x * y) as u8]);
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG that claims these sides, with a right checksum, and holds next to nothing.
fn png_of(width: u32, height: u32) -> Vec<u8> {
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let crc = header.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    });
    let parts: [&[u8]; 4] = [
        b"\x89PNG\r\n\x1a\n\0\0\0\x0d",
        &header,
        &(!crc).to_be_bytes(),
        b"\0\0\0\0IDAT\x35\xaf\x06\x1e",
    ];
    parts.concat()
}

#[test]
fn an_image_that_claims_more_than_is_allowed_is_skipped_before_it_is_decoded() {
    for (width, height) in [
        (MAX_SIDE + 1, 1),
        (1, MAX_SIDE + 1),
        (MAX_SIDE, MAX_SIDE),
        (u32::MAX >> 1, u32::MAX >> 1),
    ] {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("bomb.png"), png_of(width, height)).unwrap();
        assert!(!is_shown(folder.path()), "{width}x{height}");
    }
}

#[test]
fn a_file_that_is_too_long_is_skipped_without_being_read_into_memory() {
    let folder = tempdir().unwrap();
    // Sparse: it takes no room.
    fs::File::create(folder.path().join("long.png"))
        .unwrap()
        .set_len(MAX_FILE + 1)
        .unwrap();
    assert!(!is_shown(folder.path()));
}

#[cfg(unix)]
#[test]
fn a_named_pipe_among_the_images_does_not_block() {
    let folder = tempdir().unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(folder.path().join("pipe.png"))
        .status()
        .unwrap();
    assert!(made.success());
    assert!(!is_shown(folder.path()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn damaged_images_are_skipped_or_shown_but_never_panic(
        format in prop::sample::select(&[ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP][..]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in 0.5_f64..=1.0,
    ) {
        let mut bytes = encoded(format);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.truncate((bytes.len() as f64 * keep) as usize);
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("image.png"), bytes).unwrap();
        is_shown(folder.path());
    }
}
