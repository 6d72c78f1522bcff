//! One stage in an ONNX Runtime session.

use std::path::Path;
use std::sync::{Arc, Mutex};

use ort::ep::{CUDA, TensorRT};
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{AutoDevicePolicy, GraphOptimizationLevel};
use ort::session::{IoBinding, Session};
use ort::value::{DynValue, Tensor};
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as Type;
use tract_onnx::prelude::Framework as _;

use super::library::{RTX, Runtime};
use super::{Offload, Provider, lock};
use crate::contain::contain;
use crate::error::Cause;
use crate::stage::{Handed, Held, Shape};
use offramp_kernels::Tensors as _;

/// A tensor in the runtime's hands, wherever its memory is. It is never written to.
#[derive(Clone, Debug)]
pub(crate) struct Away(Arc<DynValue>);

/// What a session must know of its stage.
#[derive(Clone, Debug)]
pub(super) struct Graph {
    pub(super) bytes: Vec<u8>,
    /// Names and shapes, in the order of the manifest.
    pub(super) reads: Vec<(String, Shape)>,
    /// The features, then the state that the graph computes.
    pub(super) gives: Vec<(String, Shape)>,
}

/// A session that a stage runs in.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) provider: Provider,
    reads: Vec<(String, Shape)>,
    gives: Vec<(String, Shape)>,
    /// Where the state stays between two stages.
    memory: MemoryInfo<'static>,
    /// The runtime says that runs may overlap; the binding says that they must not.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    session: Session,
    binding: IoBinding,
    /// Host memory that inputs are copied from, and that outputs come back to.
    staged: Vec<Tensor<f32>>,
    landed: Vec<Tensor<f32>>,
}

/// What the runtime said, on one line and without the places in its source.
pub(super) fn said(error: &ort::Error) -> Cause {
    let text = error.to_string();
    // `FILE:LINE FUNCTION [ONNXRuntimeError] : NUMBER : NAME : text`
    let told = text.rsplit_once("[ONNXRuntimeError] : ");
    let told = told.and_then(|(_, rest)| rest.splitn(3, " : ").nth(2)).unwrap_or(&text);
    Cause::new(told.split_whitespace().collect::<Vec<_>>().join(" "))
}

impl Running {
    /// Opens a session whose every operator runs in the provider. With TensorRT this takes up to minutes.
    pub(super) fn open(
        runtime: &Runtime,
        provider: Provider,
        graph: &Graph,
        offload: &Offload,
        cache: &Path,
    ) -> Result<Self, Cause> {
        contain(|| Self::try_open(runtime, provider, graph, offload, cache).map_err(|error| said(&error))).flatten()
    }

    fn try_open(
        runtime: &Runtime,
        provider: Provider,
        graph: &Graph,
        offload: &Offload,
        cache: &Path,
    ) -> ort::Result<Self> {
        let cpu = provider == Provider::Cpu;
        let mut builder = Session::builder(&runtime.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(if cpu { offload.threads.max(1) } else { 1 })?
            .with_intra_op_spinning(false)?
            // Nothing but what is asked for.
            .with_auto_device(AutoDevicePolicy::PreferCPU)?;
        for (symbol, size) in free_axes(graph)? {
            builder = builder.with_dimension_override(symbol, size)?;
        }
        let device = i32::try_from(offload.device).map_err(ort::Error::wrap)?;
        let (name, number) = if cpu {
            (AllocationDevice::CPU, 0)
        } else {
            (AllocationDevice::CUDA, device)
        };
        let mut memory = MemoryInfo::new(name, number, AllocatorType::Device, MemoryType::Default)?;
        let cuda = || {
            CUDA::default()
                .with_device_id(device)
                .with_tf32(offload.half)
                .build()
                .error_on_failure()
        };
        builder = match provider {
            Provider::Cpu => builder,
            Provider::Cuda => builder.with_execution_providers([cuda()])?,
            Provider::TensorRt => {
                let tensorrt = TensorRT::default()
                    .with_device_id(device)
                    .with_fp16(offload.half)
                    .with_layer_norm_fp32_fallback(offload.half)
                    .with_engine_cache(true)
                    .with_engine_cache_path(cache.display())
                    .with_timing_cache(true)
                    // What it measured for one stage holds for the others.
                    .with_timing_cache_path(cache.parent().unwrap_or(cache).display())
                    .build()
                    .error_on_failure();
                builder.with_execution_providers([tensorrt, cuda()])?
            }
            Provider::TensorRtRtx => {
                let gpu = runtime.rtx_devices().nth(offload.device as usize);
                let gpu = gpu.ok_or_else(|| ort::Error::new(format!("there is no GPU {}", offload.device)))?;
                // A plugin names its memory itself.
                memory = gpu.memory_info(false).to_owned();
                let options = [(format!("{RTX}.nv_runtime_cache_path"), cache.display().to_string())];
                builder.with_devices([gpu], Some(&options))?
            }
        };
        if !cpu {
            builder = builder.with_disable_cpu_fallback()?;
        }
        let session = builder.commit_from_memory(&graph.bytes)?;
        let host = Allocator::default();
        let tensors = |named: &[(String, Shape)]| {
            named
                .iter()
                .map(|(_, shape)| Tensor::<f32>::new(&host, shape.as_slice()))
                .collect::<ort::Result<Vec<_>>>()
        };
        Ok(Self {
            provider,
            memory,
            inner: Mutex::new(Inner {
                binding: session.create_binding()?,
                staged: tensors(&graph.reads)?,
                landed: tensors(&graph.gives)?,
                session,
            }),
            reads: graph.reads.clone(),
            gives: graph.gives.clone(),
        })
    }

    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// Runs the stage on an image. What is handed on stays with the runtime where `stays` says so. A failure leaves
    /// the image as it was.
    pub(crate) fn run(&self, handed: &[Handed], image: &mut Held, stays: impl Fn(usize) -> bool) -> Result<(), Cause> {
        // Of the graph's outputs: the features never stay.
        let state = handed
            .iter()
            .enumerate()
            .filter(|(_, source)| matches!(source, Handed::Output));
        let stay: Vec<bool> = std::iter::once(false)
            .chain(state.map(|(tensor, _)| stays(tensor)))
            .collect();
        let mut inner = lock(&self.inner);
        let run = contain(|| self.run_bound(&mut inner, image, &stay));
        // Whatever came of it, the session must not hold on to what belongs to the image.
        let cleared = contain(|| inner.binding.clear());
        let away = run.and_then(|run| run.map_err(|error| said(&error)))?;
        cleared?;
        let landed = inner.landed.iter().map(|tensor| tensor.try_extract_tensor::<f32>());
        let landed: Vec<_> = landed
            .map(|extracted| extracted.map(|(_, values)| values))
            .collect::<ort::Result<_>>()
            .map_err(|error| said(&error))?;
        image.prepare(landed.len());
        for ((output, values), away) in image.outputs().iter_mut().zip(landed).zip(&away) {
            output.clear();
            if away.is_none() {
                output.extend_from_slice(values);
            }
        }
        image.hand_on(handed, away);
        Ok(())
    }

    /// Binds, runs, and gives what stays with the runtime, in the order of the graph's outputs.
    fn run_bound(&self, inner: &mut Inner, image: &Held, stay: &[bool]) -> ort::Result<Vec<Option<Away>>> {
        let Inner {
            session,
            binding,
            staged,
            landed,
        } = inner;
        for (((name, _), staged), (tensor, away)) in self.reads.iter().zip(staged).zip(image.reads()) {
            if let Some(Away(value)) = away {
                binding.bind_input(name, &**value)?;
            } else {
                staged.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(tensor);
                binding.bind_input(name, staged)?;
            }
        }
        for (((name, _), landed), stay) in self.gives.iter().zip(landed).zip(stay) {
            if *stay {
                // Bound anew each time, which gives the output memory of its own.
                binding.bind_output_to_device(name, &self.memory)?;
            } else {
                binding.bind_output(name, landed)?;
            }
        }
        let mut given = session.run_binding(binding)?;
        let away = self.gives.iter().zip(stay).map(|((name, _), stay)| {
            let value = if *stay { given.remove(name) } else { None };
            value.map(|value| Away(Arc::new(value)))
        });
        Ok(away.collect())
    }
}

/// The axes that the graph leaves open, and their sizes here: what is fixed can be built ahead.
fn free_axes(graph: &Graph) -> ort::Result<Vec<(String, i64)>> {
    let model = tract_onnx::onnx().proto_model_for_read(&mut &*graph.bytes);
    let model = model.map_err(|error| ort::Error::new(error.to_string()))?;
    let mut axes = Vec::new();
    for input in model.graph.iter().flat_map(|graph| &graph.input) {
        let declared = input.r#type.as_ref().and_then(|declared| declared.value.as_ref());
        let shape = graph.reads.iter().find(|(name, _)| *name == input.name);
        let (Some(Type::TensorType(tensor)), Some((_, shape))) = (declared, shape) else {
            continue;
        };
        for (dim, &size) in tensor.shape.iter().flat_map(|shape| &shape.dim).zip(shape) {
            if let Some(Dim::DimParam(symbol)) = &dim.value
                && !symbol.is_empty()
            {
                axes.push((symbol.clone(), i64::try_from(size).map_err(ort::Error::wrap)?));
            }
        }
    }
    axes.sort();
    axes.dedup();
    Ok(axes)
}
