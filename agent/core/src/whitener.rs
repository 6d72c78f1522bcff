//! Updates along axes that are neither correlated nor of different size.
//!
//! Features of one backbone are correlated: a plain gradient step moves a head mostly along the few
//! directions in which all images vary, and hardly along those that tell classes apart. In whitened
//! coordinates u' = A (u − m), A = P^½, every direction counts alike. A step there, written back in
//! the coordinates of u, is a plain step along another direction:
//!
//! ```text
//! W' ← W' − s g u'ᵀ, b' ← b' − s g   becomes   W ← W − s g dᵀ, b ← b − s g (1 − d·m), d = P (u − m)
//! ```
//!
//! So heads stay in the coordinates of u, an evaluation costs what it did, and only an update pays for
//! P, C² multiply-adds.

use alloc::vec;
use alloc::vec::Vec;

use crate::math::{affine, dot};
use crate::numbers::Numbers;

/// Share of the mean variance that is added to every direction, so that directions in which features
/// hardly vary are not blown up.
const RIDGE: f64 = 0.1;

/// Mean m and precision P = (S + ridge·I)⁻¹ of an exit's features, S their covariance.
#[derive(Clone, Debug, PartialEq)]
pub struct Whitener {
    mean: Vec<f32>,
    /// C×C, symmetric, row by row.
    precision: Numbers,
}

/// Why numbers are no whitener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WhitenerError {
    /// The precision is not C×C, or C is 0.
    #[error("whitener has a mean of {mean} numbers and a precision of {precision}, which is not its square")]
    Shape {
        /// Length of the mean.
        mean: usize,
        /// Length of the precision.
        precision: usize,
    },
    /// A number is NaN or infinite.
    #[error("a number of the whitener is not finite")]
    NotFinite,
}

impl Whitener {
    /// A whitener from the mean (C numbers) and the precision (C×C, row by row).
    ///
    /// # Errors
    /// See [`WhitenerError`].
    pub fn new(mean: Vec<f32>, precision: Vec<f32>) -> Result<Self, WhitenerError> {
        if mean.is_empty() || mean.len().checked_mul(mean.len()) != Some(precision.len()) {
            return Err(WhitenerError::Shape {
                mean: mean.len(),
                precision: precision.len(),
            });
        }
        if mean.iter().chain(&precision).all(|x| x.is_finite()) {
            Ok(Self {
                mean,
                precision: precision.into(),
            })
        } else {
            Err(WhitenerError::NotFinite)
        }
    }

    /// A whitener measured on features: C numbers each, without labels; `None` where they are too few.
    pub fn measure<'a>(features: impl IntoIterator<Item = &'a [f32]>) -> Option<Self> {
        let mut features = features.into_iter().peekable();
        let mut measurement = Measurement::new(features.peek()?.len());
        features.for_each(|u| measurement.add(u));
        measurement.finish()
    }

    /// C.
    pub fn features(&self) -> usize {
        self.mean.len()
    }

    /// Writes the direction d = P (u − m) of an update on features u, and gives the factor 1 − d·m of the
    /// bias. `centred` is left with u − m. All three have C numbers.
    pub fn direction(&self, u: &[f32], centred: &mut [f32], d: &mut [f32]) -> f32 {
        for ((c, u), m) in centred.iter_mut().zip(u).zip(&self.mean) {
            *c = u - m;
        }
        affine(&self.precision, centred, &[], d);
        1.0 - dot(d, &self.mean)
    }
}

/// Measures a [`Whitener`] from features as they come, without labels.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    frames: u32,
    sum: Vec<f32>,
    /// Σ u uᵀ, the lower triangle of it.
    products: Vec<f32>,
}

impl Measurement {
    pub(crate) fn new(features: usize) -> Self {
        Self {
            frames: 0,
            sum: vec![0.0; features],
            products: vec![0.0; features * features],
        }
    }

    pub(crate) fn features(&self) -> usize {
        self.sum.len()
    }

    pub(crate) fn frames(&self) -> u32 {
        self.frames
    }

    pub(crate) fn add(&mut self, u: &[f32]) {
        self.frames += 1;
        let features = self.sum.len();
        for (i, row) in self.products.chunks_exact_mut(features).enumerate() {
            let x = u[i];
            for (product, y) in row[..=i].iter_mut().zip(u) {
                *product += x * y;
            }
            self.sum[i] += x;
        }
    }

    /// The whitener of what was seen; `None` where that is too little to tell.
    pub(crate) fn finish(&self) -> Option<Whitener> {
        let c = self.sum.len();
        if self.frames < 2 {
            return None;
        }
        let n = f64::from(self.frames);
        let mean: Vec<f64> = self.sum.iter().map(|s| f64::from(*s) / n).collect();
        let mut s: Vec<f64> = self.products.iter().map(|p| f64::from(*p) / n).collect();
        for i in 0..c {
            for j in 0..=i {
                s[i * c + j] -= mean[i] * mean[j];
            }
        }
        let ridge = RIDGE * (0..c).map(|i| s[i * c + i]).sum::<f64>() / c as f64;
        for i in 0..c {
            s[i * c + i] += ridge;
        }
        let inverse = invert(s, c)?;
        Whitener::new(
            mean.iter().map(|x| *x as f32).collect(),
            inverse.iter().map(|x| *x as f32).collect(),
        )
        .ok()
    }
}

/// The inverse of a positive definite matrix of which the lower triangle is given, by Cholesky's
/// factors; `None` where it is not positive definite.
fn invert(mut a: Vec<f64>, c: usize) -> Option<Vec<f64>> {
    // a = L Lᵀ, L in place of the lower triangle.
    for i in 0..c {
        for j in 0..=i {
            let (row_i, row_j) = (&a[i * c..i * c + j], &a[j * c..j * c + j]);
            let sum = a[i * c + j] - row_i.iter().zip(row_j).map(|(x, y)| x * y).sum::<f64>();
            if i == j {
                if sum.is_nan() || sum <= 0.0 {
                    return None;
                }
                a[i * c + i] = libm::sqrt(sum);
            } else {
                a[i * c + j] = sum / a[j * c + j];
            }
        }
    }
    // Row k of the inverse solves L Lᵀ x = e_k.
    let mut inverse = vec![0.0; c * c];
    for (k, x) in inverse.chunks_exact_mut(c).enumerate() {
        for i in k..c {
            let known: f64 = a[i * c + k..i * c + i].iter().zip(&x[k..i]).map(|(l, x)| l * x).sum();
            x[i] = (f64::from(u8::from(i == k)) - known) / a[i * c + i];
        }
        for i in (0..c).rev() {
            x[i] /= a[i * c + i];
            let xi = x[i];
            for (x, l) in x[..i].iter_mut().zip(&a[i * c..i * c + i]) {
                *x -= l * xi;
            }
        }
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::Head;

    /// Features with very different variances, correlated in pairs.
    fn features(i: usize) -> [f32; 4] {
        let t = i as f32;
        let (a, b) = (libm::sinf(t * 1.3), libm::cosf(t * 0.7));
        [
            3.0 * a + 1.0,
            3.0 * a + 0.3 * b,
            0.2 * b - 0.5,
            0.1 * libm::sinf(t * 2.9),
        ]
    }

    fn measured() -> Whitener {
        let mut measurement = Measurement::new(4);
        (0..2_000).for_each(|i| measurement.add(&features(i)));
        measurement.finish().unwrap()
    }

    #[test]
    fn the_inverse_times_the_matrix_is_the_identity() {
        let full = [4.0, 1.0, 0.5, 1.0, 3.0, -0.7, 0.5, -0.7, 2.0];
        let inverse = invert(full.to_vec(), 3).unwrap();
        for i in 0..3 {
            for j in 0..3 {
                let product: f64 = (0..3).map(|k| full[i * 3 + k] * inverse[k * 3 + j]).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
        assert_eq!(invert([0.0; 4].to_vec(), 2), None);
        assert_eq!(invert([f64::NAN; 4].to_vec(), 2), None);
    }

    #[test]
    fn whitened_features_vary_alike_in_all_directions() {
        // E[(u − m)ᵀ P (u − m)] is C without a ridge, and somewhat less with one.
        let whitener = measured();
        let (mut centred, mut d) = ([0.0; 4], [0.0; 4]);
        let energy: f32 = (0..2_000)
            .map(|i| {
                whitener.direction(&features(i), &mut centred, &mut d);
                dot(&d, &centred)
            })
            .sum();
        let mean = energy / 2_000.0;
        assert!((1.0..4.0).contains(&mean), "{mean}");
    }

    #[test]
    fn a_step_along_the_direction_is_the_plain_step_in_whitened_coordinates() {
        // In whitened coordinates a step moves the sample's logits by −s·g·(‖u'‖² + 1), ‖u'‖² = (u−m)ᵀP(u−m).
        let whitener = measured();
        let u = features(17);
        let (mut centred, mut d) = ([0.0; 4], [0.0; 4]);
        let bias_factor = whitener.direction(&u, &mut centred, &mut d);
        let energy = dot(&d, &centred);
        let mut head = Head::new(
            2,
            4,
            [0.3, -0.2, 0.5, 0.1, 0.0, 0.4, -0.6, 0.2].to_vec(),
            [0.1, -0.1].to_vec(),
        )
        .unwrap();
        let (mut before, mut after) = ([0.0; 2], [0.0; 2]);
        head.logits(&u, &mut before);
        let (s, g) = (0.01, [0.7, -0.7]);
        for (k, g) in g.iter().enumerate() {
            for (w, d) in head.weights[k * 4..][..4].iter_mut().zip(&d) {
                *w -= s * g * d;
            }
            head.bias[k] -= s * g * bias_factor;
        }
        head.logits(&u, &mut after);
        for k in 0..2 {
            let moved = after[k] - before[k];
            assert!((moved + s * g[k] * (energy + 1.0)).abs() < 1e-5, "{moved}");
        }
    }

    #[test]
    fn wrong_shapes_and_numbers_are_refused() {
        let shape = WhitenerError::Shape { mean: 2, precision: 3 };
        assert_eq!(Whitener::new(vec![0.0; 2], vec![0.0; 3]), Err(shape));
        assert_eq!(
            Whitener::new(vec![], vec![]),
            Err(WhitenerError::Shape { mean: 0, precision: 0 })
        );
        assert_eq!(Whitener::new(vec![0.0], vec![f32::NAN]), Err(WhitenerError::NotFinite));
        assert_eq!(Measurement::new(3).finish(), None);
    }
}
