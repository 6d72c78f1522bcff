use std::collections::HashSet;
use std::sync::Arc;

use offramp_camera::{Error, ImageSet, Playback, sample};

use crate::{frames, shape};

#[test]
fn both_halves_hold_two_hundred_images_of_each_class() {
    for set in [sample::stream().unwrap(), sample::evaluation().unwrap()] {
        assert_eq!(set.shape(), shape(28, 28, 1));
        assert_eq!(set.len(), 2000);
        for class in 0..sample::CLASSES {
            assert_eq!(set.of_classes(&[class]).len(), 200, "class {class}");
        }
    }
}

#[test]
fn no_image_is_in_both_halves() {
    let images = |set: &ImageSet| {
        (0..set.len())
            .map(|i| set.pixels(i).unwrap().to_vec())
            .collect::<HashSet<_>>()
    };
    let (stream, evaluation) = (
        images(&sample::stream().unwrap()),
        images(&sample::evaluation().unwrap()),
    );
    assert_eq!(stream.intersection(&evaluation).count(), 0);
}

#[test]
fn tiles_are_cut_at_their_borders() {
    // The motif stands in the middle of its tile: the outermost columns together are darker than the two in the middle.
    let set = sample::stream().unwrap();
    let column = |x: usize| -> u64 {
        let pixels = (0..set.len()).map(|i| set.pixels(i).unwrap());
        pixels
            .flat_map(|image| image.iter().skip(x).step_by(28))
            .map(|&p| u64::from(p))
            .sum()
    };
    assert!(column(0) + column(27) < (column(13) + column(14)) / 4);
}

#[test]
fn a_playback_shows_the_images_of_its_order_with_their_labels_and_ends() {
    let set = Arc::new(sample::evaluation().unwrap());
    let order = vec![5, 0, 5, 1999];
    let mut camera = Playback::new(Arc::clone(&set), order.clone()).unwrap();
    assert_eq!(camera.remaining(), 4);
    let shown = frames(&mut camera);
    assert_eq!(shown.iter().map(|frame| frame.id).collect::<Vec<_>>(), [5, 0, 5, 1999]);
    for (frame, image) in shown.iter().zip(order) {
        assert_eq!(frame.pixels, set.pixels(image as usize).unwrap());
        assert_eq!(frame.label, Some(set.labels()[image as usize]));
        assert_eq!(frame.name, "");
    }
    assert_eq!(camera.remaining(), 0);
}

#[test]
fn an_order_past_the_end_of_the_set_is_refused() {
    let set = Arc::new(sample::stream().unwrap());
    assert!(set.pixels(2000).is_none());
    let error = Playback::new(set, vec![0, 2000]).err().unwrap();
    assert!(
        matches!(error, Error::NoSuchImage { image: 2000, len: 2000 }),
        "{error}"
    );
}
