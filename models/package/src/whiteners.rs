//! What the package ships to specialize its heads along whitened axes.

use alloc::format;
use alloc::vec::Vec;

use crate::error::Problem;
use crate::manifest::Manifest;
use crate::tensors::Tensors;

/// Mean and precision of an early exit's features on images that the network was not trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitener {
    /// m, C values.
    pub mean: Vec<f32>,
    /// (S + ridge·I)⁻¹ with S the covariance, C rows of C values.
    pub precision: Vec<f32>,
}

impl Whitener {
    /// Reads those of every exit but the last, which is not specialized, and checks shapes and values.
    pub(crate) fn read_all(bytes: &[u8], manifest: &Manifest) -> Result<Vec<Whitener>, Problem> {
        let tensors = Tensors::read(bytes)?;
        let early = &manifest.exits[..manifest.exits.len().saturating_sub(1)];
        let whitener = |(e, features): (usize, usize)| {
            Ok(Whitener {
                mean: tensors.finite(&format!("exit-{e}.mean"), &[features])?,
                precision: tensors.finite(&format!("exit-{e}.precision"), &[features, features])?,
            })
        };
        early
            .iter()
            .map(|exit| exit.features)
            .enumerate()
            .map(whitener)
            .collect()
    }
}
