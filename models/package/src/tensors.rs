//! Reading safetensors files with bounds, types and shapes checked.

use alloc::string::ToString;
use alloc::vec::Vec;

use safetensors::{Dtype, SafeTensors};

use crate::error::{Problem, TensorsError};
use crate::limits;

/// The tensors of one file.
pub(crate) struct Tensors<'a>(SafeTensors<'a>);

impl<'a> Tensors<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Tensors<'a>, Problem> {
        // The format begins with the header's length, eight bytes little-endian.
        if let Some(length) = bytes.first_chunk()
            && u64::from_le_bytes(*length) > limits::TENSORS_HEADER_BYTES as u64
        {
            return Err(Problem::Tensors(TensorsError::HeaderTooLong));
        }
        // The library's error holds different sources with and without `std`
        // anywhere in the build: its text is what can be relied on.
        SafeTensors::deserialize(bytes)
            .map(Tensors)
            .map_err(|error| Problem::Tensors(TensorsError::Invalid(error.to_string())))
    }

    /// The bytes of a tensor of type u8 and its shape; 0 in `expected` stands
    /// for any size of one or more.
    pub(crate) fn bytes(&self, tensor: &str, expected: &[usize]) -> Result<(Vec<u8>, Vec<usize>), Problem> {
        let (data, shape) = self.typed(tensor, Dtype::U8, "U8", expected)?;
        Ok((data.to_vec(), shape))
    }

    /// The values of a tensor of type f32 with this shape, all of them finite.
    pub(crate) fn finite(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f32>, Problem> {
        let (data, _) = self.typed(tensor, Dtype::F32, "F32", shape)?;
        let values: Vec<f32> = data
            .chunks_exact(4)
            .map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
            .collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let value = values[index];
                Err(Problem::NotFinite {
                    tensor: tensor.to_string(),
                    index,
                    value,
                })
            }
        }
    }

    /// The size of a tensor's first axis; `None` where there is no such tensor.
    pub(crate) fn rows(&self, tensor: &str) -> Option<usize> {
        self.0.tensor(tensor).ok()?.shape().first().copied()
    }

    fn typed(
        &self,
        tensor: &str,
        dtype: Dtype,
        expected: &'static str,
        shape: &[usize],
    ) -> Result<(&'a [u8], Vec<usize>), Problem> {
        let Ok(view) = self.0.tensor(tensor) else {
            return Err(Problem::NoTensor {
                tensor: tensor.to_string(),
            });
        };
        let fits = view.dtype() == dtype
            && view.shape().len() == shape.len()
            && view
                .shape()
                .iter()
                .zip(shape)
                .all(|(&found, &wanted)| found == wanted || (wanted == 0 && found > 0));
        if !fits {
            return Err(Problem::Tensor {
                tensor: tensor.to_string(),
                found: view.dtype().to_string(),
                found_shape: view.shape().to_vec(),
                expected,
                expected_shape: shape.to_vec(),
            });
        }
        Ok((view.data(), view.shape().to_vec()))
    }
}
