use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use offramp_camera::{Camera, Error, Frame, Pipe};

use crate::{frames, shape};

#[test]
fn writers_of_a_named_pipe_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gate");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let mut camera = Pipe::open(&path, shape(2, 2, 1)).unwrap();
    let show = |camera: &mut Pipe, bytes: &[u8], expected: &[[u8; 4]]| {
        let (path, bytes) = (path.clone(), bytes.to_vec());
        // Opening either end waits for the other.
        let writer = std::thread::spawn(move || {
            let mut pipe = OpenOptions::new().write(true).open(path).unwrap();
            pipe.write_all(&bytes).unwrap();
        });
        let mut frame = Frame::default();
        for expected in expected {
            assert!(camera.next(&mut frame).unwrap());
            assert_eq!(frame.pixels, expected);
        }
        writer.join().unwrap();
        frame.id
    };
    // The second writer goes in the middle of a frame, which nobody can use.
    assert_eq!(show(&mut camera, &[1; 8], &[[1; 4], [1; 4]]), 1);
    assert_eq!(show(&mut camera, &[2; 7], &[[2; 4]]), 2);
    assert_eq!(show(&mut camera, &[3; 4], &[[3; 4]]), 3);
    assert_eq!(camera.skipped(), 1);
}

#[test]
fn a_file_ends_with_its_last_frame() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("frames.raw");
    std::fs::write(&path, [7; 12]).unwrap();
    assert_eq!(frames(&mut Pipe::open(&path, shape(2, 3, 1)).unwrap()).len(), 2);
    std::fs::write(&path, [7; 13]).unwrap();
    let mut camera = Pipe::open(&path, shape(2, 3, 1)).unwrap();
    let mut frame = Frame::default();
    assert!(camera.next(&mut frame).unwrap() && camera.next(&mut frame).unwrap());
    assert!(matches!(camera.next(&mut frame), Err(Error::PartialFrame { .. })));
}

#[test]
fn a_pipe_that_is_not_there_is_named() {
    let Err(error) = Pipe::open(Path::new("/nowhere/gate"), shape(2, 2, 1)) else {
        panic!("there is no such pipe")
    };
    assert!(error.to_string().contains("/nowhere/gate"), "{error}");
}
