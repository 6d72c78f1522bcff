//! Streams: which images a camera shows, and in what order.

use offramp_core::SplitMix64;

use crate::features::Features;

/// A frame of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Index of the image.
    pub image: usize,
    /// The context that the camera says it is in.
    pub context: u64,
}

/// How a camera shows the classes of a subset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Order {
    /// Rounds over all their images, each round in another order.
    Rounds,
    /// This share of the frames as above; all classes alike in the rest.
    Mixed(f64),
    /// One class for this many frames, then another, as things that stay in view for a while do.
    Bursts(usize),
}

impl Order {
    /// `frames` frames; fewer only where the classes have no image.
    pub fn stream(self, features: &Features, classes: &[u16], frames: usize, random: &mut SplitMix64) -> Vec<Shown> {
        match self {
            Self::Rounds => shuffled(features, classes, frames, random),
            Self::Mixed(share) => {
                let all: Vec<u16> = (0..features.classes as u16).collect();
                let mut stream = shuffled(features, classes, frames, random);
                let others = shuffled(features, &all, frames, random);
                for (shown, other) in stream.iter_mut().zip(others) {
                    if !chance(random, share) {
                        *shown = other;
                    }
                }
                stream
            }
            Self::Bursts(length) => {
                let mut of_class: Vec<std::iter::Cycle<std::vec::IntoIter<Shown>>> = classes
                    .iter()
                    .map(|class| {
                        let images = features.of_classes(&[*class]).len();
                        shuffled(features, &[*class], images, random).into_iter().cycle()
                    })
                    .collect();
                let mut stream = Vec::with_capacity(frames);
                while stream.len() < frames && !of_class.is_empty() {
                    let class = random.below(of_class.len());
                    stream.extend(of_class[class].by_ref().take(length.clamp(1, frames - stream.len())));
                }
                stream
            }
        }
    }
}

/// `frames` frames of some classes, in rounds over all their images, each round in another order.
pub(crate) fn shuffled(features: &Features, classes: &[u16], frames: usize, random: &mut SplitMix64) -> Vec<Shown> {
    let mut images = features.of_classes(classes);
    let mut shown = Vec::with_capacity(frames);
    while shown.len() < frames && !images.is_empty() {
        random.shuffle(&mut images);
        let round = images.iter().map(|&image| Shown { image, context: 0 });
        shown.extend(round.take(frames - shown.len()));
    }
    shown
}

/// True with a probability of `share`.
pub(crate) fn chance(random: &mut SplitMix64, share: f64) -> bool {
    ((random.next() >> 11) as f64 / (1u64 << 53) as f64) < share
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten images of each of four classes, without features.
    fn features() -> Features {
        Features {
            digest: [0; 32],
            classes: 4,
            labels: (0..40).map(|i| i % 4).collect(),
            exits: vec![],
        }
    }

    fn classes(order: Order, frames: usize) -> Vec<u16> {
        let features = features();
        let stream = order.stream(&features, &[1, 2], frames, &mut SplitMix64(1));
        stream.iter().map(|shown| features.labels[shown.image]).collect()
    }

    #[test]
    fn rounds_show_every_image_of_the_subset_once_a_round() {
        let features = features();
        let stream = Order::Rounds.stream(&features, &[1, 2], 40, &mut SplitMix64(1));
        let mut images: Vec<usize> = stream.iter().map(|shown| shown.image).collect();
        images.sort_unstable();
        let members = features.of_classes(&[1, 2]);
        assert!(images.chunks(2).map(|twice| twice[0]).eq(members) && images.len() == 40);
    }

    #[test]
    fn a_mixed_stream_has_its_share_of_the_subset_and_all_classes() {
        let classes = classes(Order::Mixed(0.8), 4_000);
        let members = classes.iter().filter(|class| [1, 2].contains(*class)).count();
        assert!((3_500..3_700).contains(&members), "{members}"); // 80 % and half of the rest
        assert!(classes.contains(&0) && classes.contains(&3));
    }

    #[test]
    fn bursts_stay_with_a_class_and_fill_the_stream() {
        let classes = classes(Order::Bursts(25), 990);
        assert_eq!(classes.len(), 990);
        assert!(
            classes
                .chunks(25)
                .all(|burst| burst.iter().all(|class| *class == burst[0]))
        );
        assert!(classes.contains(&1) && classes.contains(&2));
    }
}
