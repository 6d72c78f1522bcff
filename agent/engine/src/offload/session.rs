//! One stage in an ONNX Runtime session.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

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

impl Graph {
    /// Whether it can be made one for several images: the first axis of whatever it reads is open, and all is for one
    /// image as it stands.
    fn is_open(&self) -> ort::Result<bool> {
        let (open, _) = free_axes(self)?;
        let mut shapes = self.reads.iter().chain(&self.gives);
        Ok(open.len() == self.reads.len() && shapes.all(|(_, shape)| shape.first() == Some(&1)))
    }
}

/// The shape of so many images' tensors.
fn with_images(shape: &[usize], images: usize) -> Shape {
    let rest = shape.iter().skip(1).copied();
    std::iter::once(images).chain(rest).collect()
}

/// What a stage runs in: a session for one image, and perhaps one for several.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) provider: Provider,
    reads: Vec<(String, Shape)>,
    gives: Vec<(String, Shape)>,
    /// Where the state stays between two stages.
    memory: MemoryInfo<'static>,
    single: Opened,
    batch: OnceLock<Opened>,
}

/// A session for so many images.
#[derive(Debug)]
pub(super) struct Opened {
    images: usize,
    /// The runtime says that runs may overlap; the binding says that they must not.
    bound: Mutex<Bound>,
}

/// A session with what it is bound to.
#[derive(Debug)]
struct Bound {
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

impl Opened {
    /// Opens a session for so many images, whose every operator runs in the provider, and tells where its device has
    /// memory.
    fn new(
        runtime: &Runtime,
        provider: Provider,
        graph: &Graph,
        offload: &Offload,
        cache: &Path,
        images: usize,
    ) -> ort::Result<(Self, MemoryInfo<'static>)> {
        let cpu = provider == Provider::Cpu;
        let mut builder = Session::builder(&runtime.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(if cpu { offload.threads.max(1) } else { 1 })?
            .with_intra_op_spinning(false)?
            // Nothing but what is asked for.
            .with_auto_device(AutoDevicePolicy::PreferCPU)?;
        // Everything is fixed: what has one size is built ahead, and never tuned anew.
        let (first, mut fixed) = free_axes(graph)?;
        let of_batch = |(symbol, size)| (symbol, if images > 1 { images as i64 } else { size });
        fixed.extend(first.into_iter().map(of_batch));
        fixed.retain(|(symbol, _)| !symbol.is_empty());
        fixed.sort();
        fixed.dedup();
        for (symbol, size) in fixed {
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
                .map(|(_, shape)| {
                    let shape = if images > 1 {
                        with_images(shape, images)
                    } else {
                        shape.clone()
                    };
                    let mut tensor = Tensor::<f32>::new(&host, shape)?;
                    // Of a batch that is not full the rest is computed, too.
                    tensor.try_extract_tensor_mut::<f32>()?.1.fill(0.0);
                    Ok(tensor)
                })
                .collect::<ort::Result<Vec<_>>>()
        };
        let bound = Mutex::new(Bound {
            binding: session.create_binding()?,
            staged: tensors(&graph.reads)?,
            landed: tensors(&graph.gives)?,
            session,
        });
        Ok((Self { images, bound }, memory))
    }
}

impl Running {
    /// Opens a session for one image, whose every operator runs in the provider. With TensorRT this takes up to minutes.
    pub(super) fn open(
        runtime: &Runtime,
        provider: Provider,
        graph: &Graph,
        offload: &Offload,
        cache: &Path,
    ) -> Result<Self, Cause> {
        let opened = contain(|| Opened::new(runtime, provider, graph, offload, cache, 1));
        let (single, memory) = opened?.map_err(|error| said(&error))?;
        Ok(Self {
            provider,
            memory,
            single,
            batch: OnceLock::new(),
            reads: graph.reads.clone(),
            gives: graph.gives.clone(),
        })
    }

    /// Opens a session of the same provider for so many images, which [`Self::add`] takes up.
    pub(super) fn open_batch(
        &self,
        runtime: &Runtime,
        graph: &Graph,
        offload: &Offload,
        cache: &Path,
    ) -> Result<Opened, Cause> {
        let opened = contain(|| {
            if !graph.is_open()? {
                return Err(ort::Error::new(
                    "the graph does not leave the batch axis of what it reads open",
                ));
            }
            Opened::new(runtime, self.provider, graph, offload, cache, offload.batch)
        });
        let (batch, _) = opened?.map_err(|error| said(&error))?;
        Ok(batch)
    }

    /// Has several images run together from now on.
    pub(super) fn add(&self, batch: Opened) {
        // There is one thread that builds.
        let _ = self.batch.set(batch);
    }

    /// Images that run at a time, at most.
    pub(crate) fn batch(&self) -> usize {
        self.batch.get().map_or(1, |batch| batch.images)
    }

    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// Of so many images that wait, at least one, how many it runs at a time: several where they fill a batch by more than
    /// half, because the rest of it is computed, too.
    pub(crate) fn takes(&self, waiting: usize) -> usize {
        match self.batch() {
            images if 2 * waiting > images => waiting.min(images),
            _ => 1,
        }
    }

    /// Runs the stage on images, as many as it [takes](Self::takes); of more than one nothing may be with the runtime.
    /// What is handed on by a single one stays there where `stays` says so. A failure leaves the images as they were.
    pub(crate) fn run(
        &self,
        handed: &[Handed],
        images: &mut [&mut Held],
        stays: impl Fn(usize) -> bool,
    ) -> Result<(), Cause> {
        match self.batch.get() {
            Some(batch) if images.len() > 1 => self.run_in(batch, handed, images, |_| false),
            _ => self.run_in(&self.single, handed, images, stays),
        }
    }

    /// As [`Self::run`], in a session that may not be [taken up](Self::add) yet.
    pub(super) fn run_in(
        &self,
        opened: &Opened,
        handed: &[Handed],
        images: &mut [&mut Held],
        stays: impl Fn(usize) -> bool,
    ) -> Result<(), Cause> {
        // Of the graph's outputs: the features never stay.
        let state = handed
            .iter()
            .enumerate()
            .filter(|(_, source)| matches!(source, Handed::Output));
        let stay: Vec<bool> = std::iter::once(false)
            .chain(state.map(|(tensor, _)| stays(tensor)))
            .collect();
        let room = opened.images;
        let mut bound = lock(&opened.bound);
        let run = contain(|| self.run_bound(&mut bound, room, images, &stay));
        // Whatever came of it, the session must not hold on to what belongs to the images.
        let cleared = contain(|| bound.binding.clear());
        let away = run.and_then(|run| run.map_err(|error| said(&error)))?;
        cleared?;
        let landed = bound.landed.iter().map(|tensor| tensor.try_extract_tensor::<f32>());
        let landed: Vec<_> = landed
            .map(|extracted| extracted.map(|(_, values)| values))
            .collect::<ort::Result<_>>()
            .map_err(|error| said(&error))?;
        for (row, image) in images.iter_mut().enumerate() {
            image.prepare(landed.len());
            for ((output, values), away) in image.outputs().iter_mut().zip(&landed).zip(&away) {
                output.clear();
                if away.is_none() {
                    let each = values.len() / room;
                    output.extend_from_slice(&values[row * each..][..each]);
                }
            }
            image.hand_on(handed, away.iter().cloned());
        }
        Ok(())
    }

    /// Binds, runs, and gives what stays with the runtime, in the order of the graph's outputs.
    fn run_bound(
        &self,
        bound: &mut Bound,
        room: usize,
        images: &[&mut Held],
        stay: &[bool],
    ) -> ort::Result<Vec<Option<Away>>> {
        let Bound {
            session,
            binding,
            staged,
            landed,
        } = bound;
        for (input, ((name, _), staged)) in self.reads.iter().zip(staged).enumerate() {
            if let [image] = images
                && let Some(Away(value)) = image.read(input).1
            {
                binding.bind_input(name, &**value)?;
                continue;
            }
            let (_, rows) = staged.try_extract_tensor_mut::<f32>()?;
            for (row, image) in rows.chunks_exact_mut(rows.len() / room).zip(images) {
                row.copy_from_slice(image.read(input).0);
            }
            binding.bind_input(name, staged)?;
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

/// A symbol, empty where there is none, and its size here.
type FreeAxis = (String, i64);

/// The axes of its inputs that the graph leaves open: those that come first, which are the batch's, and all others.
fn free_axes(graph: &Graph) -> ort::Result<(Vec<FreeAxis>, Vec<FreeAxis>)> {
    let model = tract_onnx::onnx().proto_model_for_read(&mut &*graph.bytes);
    let model = model.map_err(|error| ort::Error::new(error.to_string()))?;
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for input in model.graph.iter().flat_map(|graph| &graph.input) {
        let declared = input.r#type.as_ref().and_then(|declared| declared.value.as_ref());
        let shape = graph.reads.iter().find(|(name, _)| *name == input.name);
        let (Some(Type::TensorType(tensor)), Some((_, shape))) = (declared, shape) else {
            continue;
        };
        let dims = tensor.shape.iter().flat_map(|shape| &shape.dim).zip(shape);
        for (axis, (dim, &size)) in dims.enumerate() {
            let symbol = match &dim.value {
                Some(Dim::DimValue(_)) => continue,
                Some(Dim::DimParam(symbol)) => symbol.clone(),
                None => String::new(),
            };
            let axes = if axis == 0 { &mut first } else { &mut others };
            axes.push((symbol, i64::try_from(size).map_err(ort::Error::wrap)?));
        }
    }
    Ok((first, others))
}
