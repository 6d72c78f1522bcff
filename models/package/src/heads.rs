//! The exits' heads, as the package ships them.

use alloc::format;
use alloc::vec::Vec;

use crate::error::Problem;
use crate::manifest::Manifest;
use crate::tensors::Tensors;

/// The head of an exit: logits `W u + b`, temperature folded in, all finite.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// K, the number of classes.
    pub classes: usize,
    /// C, the number of features.
    pub features: usize,
    /// W, K rows of C values.
    pub weight: Vec<f32>,
    /// b, K values.
    pub bias: Vec<f32>,
}

impl Head {
    /// Reads the head of every exit and checks shapes and values.
    pub(crate) fn read_all(bytes: &[u8], manifest: &Manifest) -> Result<Vec<Head>, Problem> {
        let tensors = Tensors::read(bytes)?;
        let classes = manifest.classes.len();
        let head = |(e, features): (usize, usize)| {
            Ok(Head {
                classes,
                features,
                weight: tensors.finite(&format!("exit-{e}.weight"), &[classes, features])?,
                bias: tensors.finite(&format!("exit-{e}.bias"), &[classes])?,
            })
        };
        manifest
            .exits
            .iter()
            .map(|exit| exit.features)
            .enumerate()
            .map(head)
            .collect()
    }
}
