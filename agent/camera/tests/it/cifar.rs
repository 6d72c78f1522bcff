use std::fs;
use std::path::{Path, PathBuf};

use offramp_camera::cifar::{self, Split};
use offramp_camera::{Error, ImageSet};
use tempfile::{TempDir, tempdir};

use crate::{colour, grey, save, shape};

/// A small data set in the layout of the large one: `labels` are fine classes, and image N is filled with the colour
/// (N / 256, N % 256, 7). Mosaics of 10 x 30 tiles, the second as PNG, the last with tiles left over.
fn data_set(name: &str, labels: &[u8]) -> TempDir {
    let folder = tempdir().unwrap();
    let records: Vec<u8> = labels.iter().flat_map(|&fine| [fine / 5, fine]).collect();
    fs::write(folder.path().join(format!("{name}.labels")), records).unwrap();
    for mosaic in 0..labels.len().div_ceil(300) {
        let picture = colour(320, 960, |x, y| {
            let image = mosaic as u32 * 300 + y / 32 * 10 + x / 32;
            [(image / 256) as u8, (image % 256) as u8, 7]
        });
        let end = if mosaic == 1 { "png" } else { "webp" };
        save(&picture, folder.path(), &format!("{name}_{mosaic:02}.{end}"));
    }
    folder
}

/// The numbers of the images of a set, read from their colours.
fn numbers(set: &ImageSet) -> Vec<usize> {
    (0..set.len())
        .map(|i| {
            let pixels = set.pixels(i).unwrap();
            assert!(
                pixels.chunks(3).all(|pixel| *pixel == pixels[..3]),
                "a tile holds pixels of another"
            );
            usize::from(pixels[0]) * 256 + usize::from(pixels[1])
        })
        .collect()
}

#[test]
fn each_class_is_split_by_its_order_in_the_file() {
    // Class 3 at every third place, class 99 elsewhere: 500 images of class 3 among 1,500.
    let labels: Vec<u8> = (0..1500).map(|i| if i % 3 == 0 { 3 } else { 99 }).collect();
    let folder = data_set("train", &labels);
    let load = |split| cifar::load(folder.path(), split).unwrap();

    let (train, validation, stream) = (load(Split::Train), load(Split::Validation), load(Split::Stream));
    assert_eq!(train.shape(), shape(32, 32, 3));
    let of_three = |set: &ImageSet| -> Vec<usize> {
        let numbers = numbers(set);
        set.of_classes(&[3])
            .into_iter()
            .map(|i| numbers[i as usize] / 3)
            .collect()
    };
    assert_eq!(of_three(&train), (0..370).collect::<Vec<_>>());
    assert_eq!(of_three(&validation), (370..400).collect::<Vec<_>>());
    assert_eq!(of_three(&stream), (400..500).collect::<Vec<_>>());

    // Together they are the whole, and no image keeps a wrong label.
    let mut all: Vec<usize> = Vec::new();
    for set in [&train, &validation, &stream] {
        let numbers = numbers(set);
        assert!(numbers.is_sorted());
        assert!(
            numbers
                .iter()
                .zip(set.labels())
                .all(|(&n, &label)| u16::from(labels[n]) == label)
        );
        all.extend(numbers);
    }
    all.sort_unstable();
    assert_eq!(all, (0..1500).collect::<Vec<_>>());
}

#[test]
fn the_evaluation_set_is_the_whole_test_file() {
    let labels: Vec<u8> = (0..450).map(|i| (i % 100) as u8).collect();
    let set = cifar::load(data_set("test", &labels).path(), Split::Evaluation).unwrap();
    assert_eq!(numbers(&set), (0..450).collect::<Vec<_>>());
    assert!(set.labels().iter().zip(&labels).all(|(&a, &b)| a == u16::from(b)));
}

fn refused(folder: &Path) -> Error {
    cifar::load(folder, Split::Evaluation).unwrap_err()
}

#[test]
fn a_broken_data_set_is_refused_with_the_name_of_the_file() {
    let folder = data_set("test", &[1; 450]);
    let file = |name: &str| -> PathBuf { folder.path().join(name) };

    let second = fs::read(file("test_01.png")).unwrap();
    fs::remove_file(file("test_01.png")).unwrap();
    let error = refused(folder.path());
    assert!(
        matches!(
            &error,
            Error::TooFewTiles {
                labels: 450,
                tiles: 300,
                ..
            }
        ),
        "{error}"
    );

    fs::write(file("test_01.png"), &second[..second.len() / 2]).unwrap();
    let error = refused(folder.path());
    assert!(
        matches!(&error, Error::Decode { path, .. } if *path == file("test_01.png")),
        "{error}"
    );

    for picture in [grey(320, 960, |_, _| 0), colour(300, 960, |_, _| [0; 3])] {
        save(&picture, folder.path(), "test_01.png");
        let error = refused(folder.path());
        assert!(
            matches!(&error, Error::Mosaic { path, .. } if *path == file("test_01.png")),
            "{error}"
        );
    }

    for bytes in [vec![], vec![0; 3], vec![0; 2 * ImageSet::MAX_IMAGES + 2]] {
        fs::write(file("test.labels"), bytes).unwrap();
        let error = refused(folder.path());
        assert!(
            matches!(&error, Error::Labels { path, .. } if *path == file("test.labels")),
            "{error}"
        );
    }

    fs::write(file("test.labels"), [0, 5, 0, 100]).unwrap();
    let error = refused(folder.path());
    assert!(
        matches!(
            error,
            Error::LabelOutOfRange {
                image: 1,
                label: 100,
                last: 99,
                ..
            }
        ),
        "{error}"
    );

    fs::remove_file(file("test.labels")).unwrap();
    let error = refused(folder.path());
    assert!(
        matches!(&error, Error::Read { path, .. } if *path == file("test.labels")),
        "{error}"
    );
}

#[test]
fn the_real_data_set_splits_as_documented() {
    let Some(data) = std::env::var_os("OFFRAMP_DATA") else {
        eprintln!("skipped: OFFRAMP_DATA does not say where the data sets lie");
        return;
    };
    let folder = Path::new(&data).join("cifar-100");
    let stream = cifar::load(&folder, Split::Stream).unwrap();
    assert_eq!(stream.len(), 10_000);
    for class in 0..cifar::CLASSES {
        assert_eq!(stream.of_classes(&[class]).len(), 100, "class {class}");
    }
    // The mean of each channel over all training images, of which these are a fifth.
    for (channel, mean) in [(0, 0.5071), (1, 0.4866), (2, 0.4409)] {
        let values = (0..stream.len()).flat_map(|i| stream.pixels(i).unwrap().iter().skip(channel).step_by(3));
        let sum: u64 = values.map(|&value| u64::from(value)).sum();
        let got = sum as f64 / 255.0 / (10_000.0 * 1024.0);
        assert!((got - mean).abs() < 0.005, "channel {channel}: {got}");
    }
    let evaluation = cifar::load(&folder, Split::Evaluation).unwrap();
    assert_eq!(
        evaluation.len() * 2,
        fs::read(folder.join("test.labels")).unwrap().len()
    );
}
