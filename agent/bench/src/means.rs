//! A baseline without gradients: heads that are turned towards the means of what they saw of each class.
//!
//! Rows of linear discriminant analysis, d = P (μ − m) for the mean μ of a class, take the place of the
//! head's in the measure in which the class was seen. At μ a row goes on to give the logit that it gave, so
//! that classes seen and not seen stay comparable.

use offramp_core::{Head, Network, Prediction};

use crate::features::Features;

/// Means of features per early exit and predicted class.
#[derive(Clone, Debug)]
pub(crate) struct ClassMeans<'a> {
    network: &'a Network,
    /// Per early exit K×C sums.
    sums: Vec<Vec<f32>>,
    /// Per class.
    frames: Vec<u32>,
}

impl<'a> ClassMeans<'a> {
    pub(crate) fn new(network: &'a Network) -> Self {
        let early = &network.heads[..network.heads.len() - 1];
        Self {
            network,
            sums: early.iter().map(|head| vec![0.0; head.weights().len()]).collect(),
            frames: vec![0; network.heads[0].classes()],
        }
    }

    /// Takes up what was predicted of an image.
    pub(crate) fn add(&mut self, features: &Features, image: usize, prediction: &Prediction) {
        let class = prediction.class as usize;
        self.frames[class] += 1;
        for (exit, sums) in self.sums.iter_mut().enumerate() {
            let u = features.of(exit, image);
            let sums = &mut sums[class * u.len()..][..u.len()];
            sums.iter_mut().zip(u).for_each(|(sum, u)| *sum += u);
        }
    }

    /// The network with turned heads; those of exits without a whitener stay. `weight` is how many frames
    /// the row of a head counts as.
    pub(crate) fn network(&self, weight: f32) -> Network {
        let mut network = self.network.clone();
        for ((head, sums), whitener) in network.heads.iter_mut().zip(&self.sums).zip(&self.network.whiteners) {
            let Some(whitener) = whitener else { continue };
            let c = head.features();
            let (mut weights, mut bias) = (head.weights().to_vec(), head.bias().to_vec());
            let [mut mean, mut centred, mut direction] = [(); 3].map(|()| vec![0.0; c]);
            let rows = weights.chunks_exact_mut(c).zip(sums.chunks_exact(c));
            for (((row, sum), b), &frames) in rows.zip(&mut bias).zip(&self.frames) {
                if frames == 0 {
                    continue;
                }
                let n = frames as f32;
                mean.iter_mut().zip(sum).for_each(|(mean, sum)| *mean = sum / n);
                whitener.direction(&mean, &mut centred, &mut direction);
                let share = n / (n + weight);
                let before = dot(row, &mean);
                for (w, d) in row.iter_mut().zip(&direction) {
                    *w += share * (d - *w);
                }
                *b += before - dot(row, &mean);
            }
            *head = Head::new(head.classes(), c, weights, bias).expect("means of normalised features are finite");
        }
        network
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
