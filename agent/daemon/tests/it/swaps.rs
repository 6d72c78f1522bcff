//! Policies that are swapped under load.

use std::sync::mpsc;

use offramp::judge::{PolicyJudge, PolicySource, Step, Workshop};
use offramp::lane::Single;
use offramp::{package, tool};
use offramp_camera::sample;
use offramp_core::Facts;
use offramp_proto::{Generation, Parameter};

const FRAMES: usize = 10_000;
const EVERY: usize = 50;
const IMAGES: usize = 500;

/// Two configurations that differ at every exit: frames that one lets go at once go all the way with the other.
fn source(n: usize) -> PolicySource {
    let threshold = [0.55, 0.995][n % 2];
    PolicySource::threshold([("threshold".to_owned(), Parameter::Number(threshold))].into())
}

#[test]
fn ten_thousand_frames_with_a_swap_every_fifty_lose_none_and_each_is_decided_by_one_policy() {
    let package = package::embedded().unwrap();
    let mut settings = tool::measuring(&package, 0.9);
    settings.audit_rate = 0.0;
    let images = sample::stream().unwrap();
    let workshop = Workshop::new(&package).unwrap();
    let mut single = Single::new(&package, settings, 1).unwrap();
    // Where each image leaves under either, when nothing is swapped.
    let alone = [0, 1].map(|which| {
        let mut judge = PolicyJudge::new(workshop.prepare(&source(which)).unwrap());
        let exits = (0..IMAGES).map(|image| {
            let pixels = images.pixels(image).unwrap();
            single.run(0, pixels, Facts::default(), &mut judge).unwrap().exit
        });
        exits.collect::<Vec<_>>()
    });
    let differ = (0..IMAGES).filter(|image| alone[0][*image] != alone[1][*image]).count();
    assert!(differ > IMAGES / 4, "{differ} of {IMAGES} tell the two apart");

    let (order, orders) = mpsc::sync_channel(1);
    let preparing = std::thread::spawn(move || {
        // The first is in force from the start.
        for n in 1..FRAMES / EVERY {
            order.send(workshop.prepare(&source(n)).unwrap()).unwrap();
        }
        workshop
    });
    let workshop = Workshop::new(&package).unwrap();
    let mut judge = PolicyJudge::new(workshop.prepare(&source(0)).unwrap());
    let (mut predicted, mut swapped) = (0, 0);
    for n in 0..FRAMES {
        if n > 0 && n % EVERY == 0 {
            judge.swap(orders.recv().unwrap(), Generation(n as u64));
        }
        let image = n % IMAGES;
        let pixels = images.pixels(image).unwrap();
        let prediction = single.run(n as u64, pixels, Facts::default(), &mut judge).unwrap();
        assert_eq!(prediction.frame, n as u64);
        assert_eq!(prediction.exit, alone[n / EVERY % 2][image], "frame {n}");
        predicted += 1;
        while let Some(step) = judge.next_step() {
            assert!(matches!(step, Step::Swapped { generation, .. } if generation == Generation(n as u64)));
            swapped += 1;
        }
    }
    preparing.join().unwrap();
    let report = single.lane.core.close_window();
    assert_eq!((predicted, swapped), (FRAMES, FRAMES / EVERY - 1));
    assert_eq!((report.faults, report.dropped), (0, 0));
}
