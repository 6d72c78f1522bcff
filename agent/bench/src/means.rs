//! A baseline without gradients: heads that are turned towards the means of what they saw of each class.
//!
//! After T3A (Iwasawa and Matsuo, "Test-Time Classifier Adjustment Module for Model-Agnostic Domain
//! Generalization", 2021): the row of a class becomes a mean of what it was and of the features that were
//! predicted to be of that class. Raw features share most of their length with those of every other
//! class, so that their means tell nothing apart; whitened ones are used instead.

use offramp_core::{Head, Network, Prediction};

use crate::features::Features;

/// Means of whitened features per early exit and predicted class.
#[derive(Clone, Debug)]
pub(crate) struct ClassMeans<'a> {
    network: &'a Network,
    /// Per early exit K×C sums.
    sums: Vec<Vec<f32>>,
    /// Per class.
    frames: Vec<u32>,
    centred: Vec<f32>,
    direction: Vec<f32>,
}

impl<'a> ClassMeans<'a> {
    pub(crate) fn new(network: &'a Network) -> Self {
        let early = &network.heads[..network.heads.len() - 1];
        let most = early.iter().map(Head::features).max().unwrap_or(0);
        Self {
            network,
            sums: early.iter().map(|head| vec![0.0; head.weights().len()]).collect(),
            frames: vec![0; network.heads[0].classes()],
            centred: vec![0.0; most],
            direction: vec![0.0; most],
        }
    }

    /// Takes up what was predicted of an image. Exits without a whitener learn nothing.
    pub(crate) fn add(&mut self, features: &Features, image: usize, prediction: &Prediction) {
        let class = prediction.class as usize;
        self.frames[class] += 1;
        for (exit, (sums, whitener)) in self.sums.iter_mut().zip(&self.network.whiteners).enumerate() {
            let Some(whitener) = whitener else { continue };
            let c = whitener.features();
            let direction = &mut self.direction[..c];
            whitener.direction(features.of(exit, image), &mut self.centred[..c], direction);
            let sums = &mut sums[class * c..][..c];
            sums.iter_mut().zip(direction).for_each(|(sum, d)| *sum += *d);
        }
    }

    /// The network with turned heads: a row keeps its length, and what it gives to the mean of all
    /// features. `weight` is how many frames the row itself counts as.
    pub(crate) fn network(&self, weight: f32) -> Network {
        let mut network = self.network.clone();
        for ((head, sums), whitener) in network.heads.iter_mut().zip(&self.sums).zip(&self.network.whiteners) {
            let Some(whitener) = whitener else { continue };
            let c = head.features();
            let (mut weights, mut bias) = (head.weights().to_vec(), head.bias().to_vec());
            let rows = weights.chunks_exact_mut(c).zip(sums.chunks_exact(c));
            for (((row, sum), b), &frames) in rows.zip(&mut bias).zip(&self.frames) {
                let (length, reach) = (norm(row), norm(sum));
                if reach == 0.0 || length == 0.0 {
                    continue;
                }
                let share = frames as f32 / (frames as f32 + weight);
                let at_mean: f32 = dot(row, whitener.mean());
                for (w, s) in row.iter_mut().zip(sum) {
                    *w = (1.0 - share) * *w + share * length * s / reach;
                }
                let rescale = length / norm(row);
                row.iter_mut().for_each(|w| *w *= rescale);
                *b += at_mean - dot(row, whitener.mean());
            }
            *head = Head::new(head.classes(), c, weights, bias).expect("means of normalised features are finite");
        }
        network
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f32]) -> f32 {
    dot(a, a).sqrt()
}
