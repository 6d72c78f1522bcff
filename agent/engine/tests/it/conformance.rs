//! Every engine gives the logits that PyTorch gave when the package was made.

use std::path::Path;

use image::ImageReader;
use offramp_engine::{Engine, Kernels};
use offramp_model::{Head, Logits, Package};

use crate::zoo::{CIFAR100, FASHION, package};

const TOLERANCE: f32 = 1e-3;
const MIN_AGREEMENT: f64 = 0.999;
/// Classes whose reference logits are closer than this are tied: rounding decides between them.
const TIE: f32 = 1e-5;

fn logits(head: &Head, features: &[f32]) -> Vec<f32> {
    let rows = head.weight.chunks_exact(head.features);
    let dot = |row: &[f32]| row.iter().zip(features).map(|(w, u)| w * u).sum::<f32>();
    rows.zip(&head.bias).map(|(row, bias)| dot(row) + bias).collect()
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .unwrap()
}

/// Runs all stages on every image and holds each exit's logits against the
/// expected ones.
#[track_caller]
fn check(package: &Package, mut engine: Engine, images: &[u8], expected: &Logits) {
    let input = &package.manifest().input;
    assert_eq!(images.len(), expected.images * input.values());
    let mut frame = engine.frame();
    let mut pixels = vec![0.0; input.values()];
    let (mut worst, mut agreed, mut compared) = (0f32, 0, 0);
    for (i, image) in images.chunks_exact(input.values()).enumerate() {
        input.normalize(image, &mut pixels);
        engine.start(&mut frame, &pixels).unwrap();
        for (stage, head) in package.heads().iter().enumerate() {
            let features = engine.run_stage(stage, &mut frame).unwrap();
            assert_eq!(features.len(), head.features);
            let found = logits(head, features);
            let expected = expected.at(i, stage);
            for (found, expected) in found.iter().zip(expected) {
                // `max` would pass over a NaN.
                assert!(found.is_finite());
                worst = worst.max((found - expected).abs());
            }
            agreed += usize::from(expected[argmax(expected)] - expected[argmax(&found)] <= TIE);
            compared += 1;
        }
    }
    println!(
        "{}: {compared} logit vectors, at most {worst:.1e} apart, {agreed} argmax equal",
        package.label()
    );
    assert!(worst <= TOLERANCE, "logits are {worst} apart");
    let agreement = agreed as f64 / compared as f64;
    assert!(agreement >= MIN_AGREEMENT, "argmax agrees in {agreement}");
}

/// Every engine that runs everywhere. One for a GPU is checked on a machine that has one, by tests/gpu/run.sh.
fn engines(package: &Package) -> Vec<Engine> {
    let own = [Kernels::Fused, Kernels::Tract].map(|kernels| Engine::load_with(package, kernels).unwrap());
    #[cfg(feature = "onnxruntime")]
    let own = {
        use offramp_engine::{Provider, RunBy};
        let offloaded = crate::offload::offloaded(package, crate::offload::on(&[Provider::Cpu]));
        let all = RunBy::OnnxRuntime(Provider::Cpu);
        assert!(offloaded.stage_states().iter().all(|state| state.run_by == all));
        own.into_iter().chain([offloaded])
    };
    own.into_iter().collect()
}

#[track_caller]
fn check_vectors(name: &str) {
    let package = package(name);
    let vectors = package.vectors().unwrap().expect("the package ships vectors");
    for engine in engines(&package) {
        check(&package, engine, &vectors.images, &vectors.logits);
    }
}

#[test]
fn revcol_fashion_gives_the_logits_of_its_vectors() {
    check_vectors(FASHION);
}

#[test]
fn revcol_cifar100_gives_the_logits_of_its_vectors() {
    check_vectors(CIFAR100);
}

/// The first images of the data set's test split, which is not shipped: a mosaic
/// of 50 by 50 images of 32 by 32 pixels, row-major.
#[test]
fn revcol_cifar100_gives_the_logits_of_the_test_images() {
    let Some(data) = std::env::var_os("OFFRAMP_DATA") else {
        println!("skipped: OFFRAMP_DATA does not name the folder that holds cifar-100");
        return;
    };
    let package = package(CIFAR100);
    let expected = package
        .vectors()
        .unwrap()
        .unwrap()
        .test_logits
        .expect("logits of the test images");
    let path = Path::new(&data).join("cifar-100/test_00.webp");
    let mosaic = ImageReader::open(&path).unwrap().decode().unwrap().into_rgb8();
    let side = package.manifest().input.height;
    let per_row = mosaic.width() as usize / side;
    let rows = |i: usize| (0..side).map(move |y| (i / per_row * side + y, i % per_row * side));
    let row_bytes = mosaic.width() as usize * 3;
    let images: Vec<u8> = (0..expected.images)
        .flat_map(rows)
        .flat_map(|(y, x)| &mosaic.as_raw()[y * row_bytes + x * 3..][..side * 3])
        .copied()
        .collect();
    for engine in engines(&package) {
        check(&package, engine, &images, &expected);
    }
}
