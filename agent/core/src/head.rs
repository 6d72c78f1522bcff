//! The linear classifier of an exit.

use alloc::vec::Vec;

use crate::math::{affine, dot, softmax, squared_distance};
use crate::numbers::Numbers;

/// A head: z = W u + b, with W ∈ R^{K×C} row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    classes: usize,
    features: usize,
    pub(crate) weights: Numbers,
    pub(crate) bias: Vec<f32>,
}

/// Why numbers are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A head needs at least two classes and one feature.
    #[error("a head needs at least two classes and one feature")]
    Empty,
    /// The lengths do not fit K×C and K.
    #[error("head has {weights} weights and {bias} biases, which is not {classes} classes by {features} features")]
    Shape {
        /// Length of the weights.
        weights: usize,
        /// Length of the bias.
        bias: usize,
        /// K.
        classes: usize,
        /// C.
        features: usize,
    },
    /// A weight is NaN or infinite.
    #[error("a weight of the head is not finite")]
    NotFinite,
}

impl Head {
    /// A head from K·C weights, row by row, and K biases.
    ///
    /// # Errors
    /// See [`HeadError`].
    pub fn new(classes: usize, features: usize, weights: Vec<f32>, bias: Vec<f32>) -> Result<Self, HeadError> {
        if classes < 2 || features == 0 {
            return Err(HeadError::Empty);
        }
        if Some(weights.len()) != classes.checked_mul(features) || bias.len() != classes {
            return Err(HeadError::Shape {
                weights: weights.len(),
                bias: bias.len(),
                classes,
                features,
            });
        }
        let head = Self {
            classes,
            features,
            weights: weights.into(),
            bias,
        };
        if head.is_finite() {
            Ok(head)
        } else {
            Err(HeadError::NotFinite)
        }
    }

    /// K.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// C.
    pub fn features(&self) -> usize {
        self.features
    }

    /// W, row by row: K·C numbers.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// b: K numbers.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Weights and biases.
    pub(crate) fn numbers(&self) -> usize {
        self.weights.len() + self.bias.len()
    }

    /// Multiply-adds of one evaluation; an update costs as many again.
    pub fn macs(&self) -> u64 {
        (self.classes * self.features) as u64
    }

    /// Writes the K logits of features u ∈ R^C.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn logits(&self, u: &[f32], z: &mut [f32]) {
        assert_eq!((u.len(), z.len()), (self.features, self.classes));
        affine(&self.weights, u, &self.bias, z);
    }

    /// Writes the K probabilities of features u ∈ R^C.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn probabilities(&self, u: &[f32], p: &mut [f32]) {
        self.logits(u, p);
        softmax(p);
    }

    /// Takes over the numbers of a head of the same shape, without allocating.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        self.weights.copy_from_slice(&other.weights);
        self.bias.copy_from_slice(&other.bias);
    }

    /// ‖W − W⁰‖ / ‖W⁰‖.
    pub(crate) fn distance(&self, base: &Self) -> f32 {
        let norm = dot(&base.weights, &base.weights);
        if norm > 0.0 {
            libm::sqrtf(squared_distance(&self.weights, &base.weights) / norm)
        } else {
            0.0
        }
    }

    pub(crate) fn is_finite(&self) -> bool {
        self.weights.iter().chain(&self.bias).all(|w| w.is_finite())
    }
}
