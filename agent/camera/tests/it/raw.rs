use std::io::{self, Cursor, Read};

use offramp_camera::{Camera, Error, Frame, Raw};

use crate::{frames, shape};

/// Gives at most three bytes a call, and is interrupted before each.
struct Drip(Cursor<Vec<u8>>, bool);

impl Read for Drip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = buffer.len().min(3);
        self.0.read(&mut buffer[..length])
    }
}

#[test]
fn frames_are_cut_from_the_bytes_however_these_arrive() {
    let bytes: Vec<u8> = (0..24).collect();
    let mut camera = Raw::new(Drip(Cursor::new(bytes.clone()), false), shape(2, 2, 3));
    let shown = frames(&mut camera);
    assert_eq!(shown.len(), 2);
    for (id, frame) in (0..).zip(&shown) {
        assert_eq!((frame.id, frame.label, frame.name.as_str()), (id, None, ""));
    }
    assert_eq!([&shown[0].pixels[..], &shown[1].pixels[..]].concat(), bytes);
}

#[test]
fn an_empty_pipe_has_no_frame() {
    assert!(frames(&mut Raw::new(io::empty(), shape(2, 2, 1))).is_empty());
}

#[test]
fn a_frame_that_is_cut_off_is_reported_once_then_the_camera_has_ended() {
    let mut camera = Raw::new(Cursor::new(vec![0; 10]), shape(2, 2, 1));
    let mut frame = Frame::default();
    assert!(camera.next(&mut frame).unwrap());
    assert!(camera.next(&mut frame).unwrap());
    let error = camera.next(&mut frame).unwrap_err();
    assert!(
        matches!(
            error,
            Error::PartialFrame {
                frame: 2,
                got: 2,
                expected: 4,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "raw frame 2 ends after 2 of 4 bytes; send whole frames of 2x2x1 bytes"
    );
    assert!(!camera.next(&mut frame).unwrap());
}

#[test]
fn a_pipe_that_fails_is_reported_once_then_the_camera_has_ended() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
    let mut camera = Raw::new(Broken, shape(2, 2, 1));
    let mut frame = Frame::default();
    assert!(matches!(
        camera.next(&mut frame).unwrap_err(),
        Error::Pipe { frame: 0, .. }
    ));
    assert!(!camera.next(&mut frame).unwrap());
}

#[test]
fn shapes_out_of_range_are_refused() {
    use offramp_camera::FrameShape;
    assert_eq!(shape(4096, 4096, 3).bytes(), 4096 * 4096 * 3);
    for (height, width, channels) in [
        (0, 1, 1),
        (1, 0, 1),
        (4097, 1, 1),
        (1, 4097, 1),
        (1, 1, 0),
        (1, 1, 2),
        (1, 1, 4),
    ] {
        let error = FrameShape::new(height, width, channels).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }));
    }
}
