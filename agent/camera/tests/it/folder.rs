use std::fs;

use image::DynamicImage;
use offramp_camera::{Camera, Error, Folder, Frame};
use tempfile::tempdir;

use crate::{colour, frames, grey, save, shape};

#[test]
fn images_come_sorted_by_name_and_with_it_whatever_their_format() {
    let folder = tempdir().unwrap();
    for name in ["b.JPG", "a.png", "d.webp", "c.jpeg"] {
        save(&colour(8, 8, |_, _| [200, 100, 50]), folder.path(), name);
    }
    fs::write(folder.path().join("notes.txt"), "no image").unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();

    let mut camera = Folder::open(folder.path(), shape(8, 8, 3)).unwrap();
    assert_eq!(camera.files(), 4);
    let shown = frames(&mut camera);
    assert_eq!(
        shown.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
        ["a.png", "b.JPG", "c.jpeg", "d.webp"]
    );
    assert_eq!(shown.iter().map(|f| f.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    for frame in &shown {
        assert_eq!((frame.label, frame.pixels.len()), (None, 8 * 8 * 3));
        // JPEG is not lossless.
        for (channel, expected) in frame.pixels[..3].iter().zip([200, 100, 50]) {
            assert!(
                channel.abs_diff(expected) <= 3,
                "{}: {channel} for {expected}",
                frame.name
            );
        }
    }
    assert_eq!(camera.skipped(), 0);
}

/// The bytes of the one frame that an image becomes.
fn one(image: &DynamicImage, height: usize, width: usize, channels: usize) -> Vec<u8> {
    let folder = tempdir().unwrap();
    save(image, folder.path(), "image.png");
    let mut shown = frames(&mut Folder::open(folder.path(), shape(height, width, channels)).unwrap());
    assert_eq!(shown.len(), 1);
    shown.remove(0).pixels
}

#[test]
fn an_image_of_the_models_shape_passes_unchanged() {
    let image = colour(5, 3, |x, y| [x as u8, y as u8, 9]);
    assert_eq!(one(&image, 3, 5, 3), image.as_bytes());
    let image = grey(5, 3, |x, y| (10 * x + y) as u8);
    assert_eq!(one(&image, 3, 5, 1), image.as_bytes());
}

#[test]
fn grey_becomes_three_equal_channels_and_colour_its_luminance() {
    let pixels = one(&grey(2, 1, |x, _| 40 + x as u8), 1, 2, 3);
    assert_eq!(pixels, [40, 40, 40, 41, 41, 41]);
    let pixels = one(
        &colour(3, 1, |x, _| [[255, 0, 0], [0, 255, 0], [0, 0, 255]][x as usize]),
        1,
        3,
        1,
    );
    // Rec. 709: green is brightest, blue is darkest.
    assert!(pixels[1] > pixels[0] && pixels[0] > pixels[2], "{pixels:?}");
}

#[test]
fn shrinking_averages_and_enlarging_interpolates() {
    // A checkerboard of single pixels has no light and no dark side: every pixel of a quarter of it is in between.
    let checkers = grey(32, 32, |x, y| if (x + y) % 2 == 0 { 0 } else { 200 });
    assert!(one(&checkers, 8, 8, 1).iter().all(|&p| p.abs_diff(100) <= 6));
    let ramp = one(&grey(2, 1, |x, _| 200 * x as u8), 1, 8, 1);
    assert!(
        ramp.is_sorted() && ramp[0] == 0 && ramp[7] == 200 && (50..150).contains(&ramp[4]),
        "{ramp:?}"
    );
}

#[test]
fn height_and_width_are_not_swapped() {
    let pixels = one(&grey(40, 20, |x, _| if x < 20 { 0 } else { 255 }), 2, 4, 1);
    assert_eq!(pixels[..4], pixels[4..]);
    assert!(pixels[0] < 10 && pixels[3] > 245, "{pixels:?}");
}

#[test]
fn a_photo_that_says_it_lies_on_its_side_is_turned_upright() {
    // A JPEG whose Exif part says "turn a quarter to the right": its left side is the upright image's top.
    let mut jpeg = std::io::Cursor::new(Vec::new());
    grey(16, 8, |x, _| if x < 8 { 0 } else { 255 })
        .write_to(&mut jpeg, image::ImageFormat::Jpeg)
        .unwrap();
    let jpeg = jpeg.into_inner();
    let tiff = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let length = (2 + 6 + tiff.len()) as u16;
    let exif = [&b"\xff\xe1"[..], &length.to_be_bytes(), b"Exif\0\0", tiff].concat();
    let folder = tempdir().unwrap();
    fs::write(
        folder.path().join("photo.jpg"),
        [&jpeg[..2], &exif, &jpeg[2..]].concat(),
    )
    .unwrap();

    let shown = frames(&mut Folder::open(folder.path(), shape(16, 8, 1)).unwrap());
    let pixels = &shown[0].pixels;
    assert!(pixels[..8 * 8].iter().all(|&p| p < 20) && pixels[8 * 8..].iter().all(|&p| p > 235));
}

#[test]
fn unreadable_images_are_skipped_counted_and_do_not_end_the_stream() {
    let folder = tempdir().unwrap();
    let image = grey(8, 8, |_, _| 1);
    for name in ["1.png", "4.png", "7.png"] {
        save(&image, folder.path(), name);
    }
    fs::write(folder.path().join("2.png"), b"not an image").unwrap();
    let whole = fs::read(folder.path().join("1.png")).unwrap();
    fs::write(folder.path().join("3.png"), &whole[..whole.len() / 2]).unwrap();
    fs::create_dir(folder.path().join("5.png")).unwrap();
    fs::write(folder.path().join("6.png"), b"").unwrap();

    let mut camera = Folder::open(folder.path(), shape(8, 8, 1)).unwrap();
    fs::remove_file(folder.path().join("4.png")).unwrap();
    let names: Vec<_> = frames(&mut camera).into_iter().map(|frame| frame.name).collect();
    assert_eq!(names, ["1.png", "7.png"]);
    assert_eq!(camera.skipped(), 5);
}

#[test]
fn a_folder_without_images_and_a_missing_folder_are_refused_by_name() {
    let folder = tempdir().unwrap();
    let error = Folder::open(folder.path(), shape(8, 8, 1)).err().unwrap();
    assert!(
        matches!(&error, Error::NoImages { path } if path == folder.path()),
        "{error}"
    );
    let missing = folder.path().join("missing");
    let error = Folder::open(&missing, shape(8, 8, 1)).err().unwrap();
    assert!(
        matches!(&error, Error::Read { path, .. } if *path == missing),
        "{error}"
    );
}

#[test]
fn a_frame_keeps_nothing_of_the_one_before() {
    let folder = tempdir().unwrap();
    save(&grey(8, 8, |_, _| 1), folder.path(), "only.png");
    let mut frame = Frame {
        id: 9,
        name: "earlier and longer".into(),
        label: Some(3),
        pixels: vec![5; 1000],
    };
    assert!(
        Folder::open(folder.path(), shape(8, 8, 1))
            .unwrap()
            .next(&mut frame)
            .unwrap()
    );
    assert_eq!(
        frame,
        Frame {
            id: 0,
            name: "only.png".into(),
            label: None,
            pixels: vec![1; 64]
        }
    );
}
