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

impl Graph {
    /// Why its session could not run several images at a time, if it could not.
    pub(super) fn one_by_one(&self) -> ort::Result<Option<&'static str>> {
        let (open, _) = free_axes(self)?;
        let of_one = self
            .reads
            .iter()
            .chain(&self.gives)
            .all(|(_, shape)| shape.first() == Some(&1));
        // These stand between the shapes in what TensorRT is told.
        let plain = self.reads.iter().all(|(name, _)| !name.contains([':', ',']));
        Ok(if open.len() < self.reads.len() || !of_one {
            Some("the graph leaves the first axis of its tensors not open")
        } else if plain {
            None
        } else {
            Some("the name of an input holds a colon or a comma")
        })
    }

    /// The shapes of what it reads, for so many images, as TensorRT's providers want to be told.
    fn shapes(&self, images: usize) -> String {
        let shape = |(name, shape): &(String, Shape)| {
            let sizes: Vec<String> = with_images(shape, images).iter().map(ToString::to_string).collect();
            format!("{name}:{}", sizes.join("x"))
        };
        self.reads.iter().map(shape).collect::<Vec<_>>().join(",")
    }
}

/// The shape of so many images' tensors.
fn with_images(shape: &[usize], images: usize) -> Shape {
    let rest = shape.iter().skip(1).copied();
    std::iter::once(images).chain(rest).collect()
}

/// A session that a stage runs in.
#[derive(Debug)]
pub(crate) struct Running {
    pub(super) provider: Provider,
    /// Images at a time, at most.
    batch: usize,
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
    /// For one image, for two, for four, and so on; made when they are needed.
    hosts: Vec<Option<Host>>,
}

/// Host memory that inputs are copied from, and that outputs come back to.
#[derive(Debug)]
struct Host {
    staged: Vec<Tensor<f32>>,
    landed: Vec<Tensor<f32>>,
}

impl Host {
    fn new(reads: &[(String, Shape)], gives: &[(String, Shape)], images: usize) -> ort::Result<Self> {
        let allocator = Allocator::default();
        let tensors = |named: &[(String, Shape)]| {
            let shapes = named.iter().map(|(_, shape)| match images {
                1 => shape.clone(),
                images => with_images(shape, images),
            });
            let tensors = shapes.map(|shape| Tensor::<f32>::new(&allocator, shape));
            tensors.collect::<ort::Result<Vec<_>>>()
        };
        Ok(Self {
            staged: tensors(reads)?,
            landed: tensors(gives)?,
        })
    }
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
    /// Opens a session whose every operator runs in the provider, for as many images at a time as the offload says; for
    /// more than one the graph must [allow it](Graph::one_by_one). With TensorRT this takes up to minutes.
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
        let batch = offload.batch.max(1);
        let cpu = provider == Provider::Cpu;
        let mut builder = Session::builder(&runtime.environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(if cpu { offload.threads.max(1) } else { 1 })?
            .with_intra_op_spinning(false)?
            // Nothing but what is asked for.
            .with_auto_device(AutoDevicePolicy::PreferCPU)?;
        // What is fixed can be built ahead.
        let (first, mut fixed) = free_axes(graph)?;
        fixed.extend(first.into_iter().filter(|_| batch == 1));
        fixed.retain(|(symbol, _)| !symbol.is_empty());
        fixed.sort();
        fixed.dedup();
        for (symbol, size) in fixed {
            builder = builder.with_dimension_override(symbol, size)?;
        }
        // The least, the usual and the most that TensorRT builds for.
        let shapes = [1, batch, batch].map(|images| graph.shapes(images));
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
                let [least, usual, most] = &shapes;
                let tensorrt = match batch {
                    1 => TensorRT::default(),
                    _ => TensorRT::default()
                        .with_profile_min_shapes(least)
                        .with_profile_opt_shapes(usual)
                        .with_profile_max_shapes(most),
                };
                let tensorrt = tensorrt
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
                let mut options = vec![(format!("{RTX}.nv_runtime_cache_path"), cache.display().to_string())];
                if batch > 1 {
                    let of = ["min", "opt", "max"].map(|which| format!("{RTX}.nv_profile_{which}_shapes"));
                    options.extend(of.into_iter().zip(shapes));
                }
                builder.with_devices([gpu], Some(&options))?
            }
        };
        if !cpu {
            builder = builder.with_disable_cpu_fallback()?;
        }
        let session = builder.commit_from_memory(&graph.bytes)?;
        Ok(Self {
            provider,
            batch,
            memory,
            inner: Mutex::new(Inner {
                binding: session.create_binding()?,
                hosts: Vec::new(),
                session,
            }),
            reads: graph.reads.clone(),
            gives: graph.gives.clone(),
        })
    }

    pub(crate) fn provider(&self) -> Provider {
        self.provider
    }

    /// Of so many images that wait, at least one, how many it runs at a time: a power of two, because providers tune
    /// themselves for every size that they meet.
    pub(crate) fn takes(&self, waiting: usize) -> usize {
        1 << waiting.min(self.batch).ilog2()
    }

    /// Runs the stage on images, as many as it [takes](Self::takes); of more than one nothing may be with the runtime.
    /// What is handed on by a single one stays there where `stays` says so. A failure leaves the images as they were.
    pub(crate) fn run(
        &self,
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
            .chain(state.map(|(tensor, _)| images.len() == 1 && stays(tensor)))
            .collect();
        let mut inner = lock(&self.inner);
        let run = contain(|| self.run_bound(&mut inner, images, &stay));
        // Whatever came of it, the session must not hold on to what belongs to the images.
        let cleared = contain(|| inner.binding.clear());
        let away = run.and_then(|run| run.map_err(|error| said(&error)))?;
        cleared?;
        let host = inner.hosts.get(images.len().ilog2() as usize).and_then(Option::as_ref);
        let landed = host.into_iter().flat_map(|host| &host.landed);
        let landed: Vec<&[f32]> = landed
            .map(|tensor| tensor.try_extract_tensor::<f32>().map(|(_, values)| values))
            .collect::<ort::Result<_>>()
            .map_err(|error| said(&error))?;
        let together = images.len();
        for (row, image) in images.iter_mut().enumerate() {
            image.prepare(landed.len());
            for ((output, values), away) in image.outputs().iter_mut().zip(&landed).zip(&away) {
                output.clear();
                if away.is_none() {
                    let each = values.len() / together;
                    output.extend_from_slice(&values[row * each..][..each]);
                }
            }
            image.hand_on(handed, away.iter().cloned());
        }
        Ok(())
    }

    /// Binds, runs, and gives what stays with the runtime, in the order of the graph's outputs.
    fn run_bound(&self, inner: &mut Inner, images: &[&mut Held], stay: &[bool]) -> ort::Result<Vec<Option<Away>>> {
        let Inner {
            session,
            binding,
            hosts,
        } = inner;
        let place = images.len().ilog2() as usize;
        hosts.resize_with(hosts.len().max(place + 1), || None);
        let host = match &mut hosts[place] {
            Some(host) => host,
            none => none.insert(Host::new(&self.reads, &self.gives, images.len())?),
        };
        let Host { staged, landed } = host;
        for (input, ((name, _), staged)) in self.reads.iter().zip(staged).enumerate() {
            if let [image] = images
                && let Some(Away(value)) = image.read(input).1
            {
                binding.bind_input(name, &**value)?;
                continue;
            }
            let (_, rows) = staged.try_extract_tensor_mut::<f32>()?;
            for (row, image) in rows.chunks_exact_mut(rows.len() / images.len()).zip(images) {
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
