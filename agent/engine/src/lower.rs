//! From a graph to a plan.
//!
//! Maps are kept as height × width × channels, whatever order the graph keeps them in: a transposition only
//! changes how a map is spoken of, and is never carried out. What becomes of a value is followed through the
//! graph symbolically until it is something that a kernel computes: an error function of a scaled value, with
//! one added and multiplied by half of that value, is a GELU, however many nodes spell it.
//!
//! A graph with anything else in it has no plan, and is left to tract.

use std::collections::HashMap;

use offramp_kernels::{Activation, Depthwise, Draft, Id, Isa, Linear, Map, Norm, Plan, Window, Work};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use crate::stage::MAX_TENSOR_VALUES;

/// The plan of a graph that reads tensors of these shapes (batch axis first), and gives the features and
/// then the state tensors, both by name. `None` where an operator, or the way it is used, has no kernel.
pub(crate) fn lower(graph: &GraphProto, inputs: &[(&str, &[usize])], outputs: &[&str], isa: Isa) -> Option<Plan> {
    let mut lowering = Lowering::default();
    for tensor in &graph.initializer {
        lowering.known.insert(&tensor.name, constant(tensor)?);
    }
    for (name, shape) in inputs {
        let form = match *shape {
            [1, height, width, channels] => Form::Map(
                Map {
                    height: *height,
                    width: *width,
                    channels: *channels,
                },
                Order::Last,
            ),
            [1, channels] => Form::Vector(*channels),
            _ => return None,
        };
        let id = lowering.draft.input(form.values());
        lowering.known.insert(name, Value::Data(id, form));
    }
    for node in &graph.node {
        let value = lowering.node(node)?;
        let [output] = node.output.as_slice() else { return None };
        lowering.known.insert(output, value);
    }
    let outputs: Option<Vec<Id>> = outputs
        .iter()
        .map(|name| match lowering.known.get(name)? {
            // The next stage reads maps with the channels last.
            Value::Data(id, Form::Map(_, Order::Last) | Form::Vector(_)) => Some(*id),
            _ => None,
        })
        .collect();
    Some(lowering.draft.plan(&outputs?, isa))
}

/// In which order the graph speaks of a map's axes. In memory the channels are always last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// N, H, W, C.
    Last,
    /// N, C, H, W.
    First,
}

/// The shape of a tensor, without its batch axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Map(Map, Order),
    /// N, H/f, f, W/g, g, C: each place of a coarser map spelled out.
    Split(Map, (usize, usize)),
    Vector(usize),
}

impl Form {
    fn values(self) -> usize {
        match self {
            Self::Map(map, _) | Self::Split(map, _) => map.values(),
            Self::Vector(values) => values,
        }
    }

    /// Whether a constant of this shape has a number for each channel, and the same for every place.
    fn is_per_channel(self, shape: &[usize]) -> bool {
        let (rank, axis, channels) = match self {
            Self::Map(map, Order::Last) => (4, 3, map.channels),
            Self::Map(map, Order::First) => (4, 1, map.channels),
            Self::Vector(values) => (2, 1, values),
            Self::Split(..) => return false,
        };
        // Shapes are aligned at their last axes.
        let places = rank - shape.len().min(rank)..;
        let fits = |(place, size): (usize, &usize)| *size == if place == axis { channels } else { 1 };
        (rank - axis..=rank).contains(&shape.len()) && places.zip(shape).all(fits)
    }

    /// Channels, where they are the axis that the graph names last.
    fn last_axis(self) -> Option<usize> {
        match self {
            Self::Map(map, Order::Last) => Some(map.channels),
            Self::Vector(values) => Some(values),
            Self::Map(_, Order::First) | Self::Split(..) => None,
        }
    }
}

/// What a name of the graph stands for.
#[derive(Clone, Debug)]
enum Value {
    Floats(Vec<usize>, Vec<f32>),
    Integers(Vec<i64>),
    Data(Id, Form),
    /// So many times a tensor.
    Times(Id, Form, f32),
    /// A tensor times a factor per channel.
    Scaled(Id, Form, Vec<f32>),
    /// erf(x / √2).
    Erf(Id),
    /// 1 + erf(x / √2).
    OnePlusErf(Id),
    /// x (1 + erf(x / √2)), twice the GELU.
    TwiceGelu(Id, Form),
}

#[derive(Debug, Default)]
struct Lowering<'g> {
    known: HashMap<&'g str, Value>,
    draft: Draft,
}

/// Close enough to a constant that an exporter has rounded.
fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

impl<'g> Lowering<'g> {
    fn get(&self, node: &NodeProto, input: usize) -> Option<&Value> {
        self.known.get(node.input.get(input)?.as_str())
    }

    fn floats(&self, node: &NodeProto, input: usize) -> Option<(&[usize], &[f32])> {
        match self.get(node, input)? {
            Value::Floats(shape, values) => Some((shape, values)),
            _ => None,
        }
    }

    fn data(&self, node: &NodeProto, input: usize) -> Option<(Id, Form)> {
        match self.get(node, input)? {
            Value::Data(id, form) => Some((*id, *form)),
            _ => None,
        }
    }

    /// A step from x to a tensor of another form.
    fn compute(&mut self, work: Work, x: Id, form: Form) -> Value {
        Value::Data(self.draft.compute(work, x, form.values()), form)
    }

    /// A step that changes a tensor.
    fn change(&mut self, work: Work, onto: Id, x: Option<Id>, form: Form) -> Value {
        Value::Data(self.draft.change(work, onto, x), form)
    }

    fn node(&mut self, node: &'g NodeProto) -> Option<Value> {
        match node.op_type.as_str() {
            "Cast" => match self.get(node, 0)? {
                constant @ Value::Floats(..) if integer(node, "to") == Some(DataType::Float as i64) => {
                    Some(constant.clone())
                }
                _ => None,
            },
            "Constant" => constant(node.attribute.iter().find(|a| a.name == "value")?.t.as_ref()?),
            "Identity" => self.get(node, 0).cloned(),
            "Transpose" => self.transpose(node),
            "Reshape" => self.reshape(node),
            "Flatten" => match self.data(node, 0)? {
                (id, Form::Map(map, _)) if map.rows() == 1 => Some(Value::Data(id, Form::Vector(map.channels))),
                _ => None,
            },
            "Conv" => self.convolution(node),
            "MatMul" => self.product(node),
            "Gemm" => self.gemm(node),
            "LayerNormalization" => self.norm(node),
            "Erf" => match self.get(node, 0)? {
                Value::Times(id, _, factor) if near(*factor, std::f32::consts::FRAC_1_SQRT_2) => Some(Value::Erf(*id)),
                _ => None,
            },
            "Gelu" if !node.attribute.iter().any(|a| a.name == "approximate" && a.s == b"tanh") => {
                let (id, form) = self.data(node, 0)?;
                Some(self.change(Work::Activate(Activation::Gelu), id, None, form))
            }
            "Relu" => {
                let (id, form) = self.data(node, 0)?;
                let relu = Activation::Clip(0.0, f32::INFINITY);
                Some(self.change(Work::Activate(relu), id, None, form))
            }
            "Clip" => {
                let (id, form) = self.data(node, 0)?;
                let bound = |input| Some(*self.floats(node, input)?.1.first()?);
                let clip = Activation::Clip(bound(1)?, bound(2)?);
                Some(self.change(Work::Activate(clip), id, None, form))
            }
            "Add" => self.sum(node),
            "Mul" => self.times(node, |a| a),
            "Div" => self.times(node, f32::recip),
            "ReduceMean" => self.mean(node),
            "GlobalAveragePool" => match self.data(node, 0)? {
                (id, Form::Map(map, Order::First)) => {
                    let one = Map {
                        height: 1,
                        width: 1,
                        ..map
                    };
                    Some(self.compute(Work::Pool, id, Form::Map(one, Order::First)))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn transpose(&mut self, node: &NodeProto) -> Option<Value> {
        let (id, form) = self.data(node, 0)?;
        let to = match (form, integers(node, "perm")?) {
            (Form::Map(map, Order::Last), [0, 3, 1, 2]) => Form::Map(map, Order::First),
            (Form::Map(map, Order::First), [0, 2, 3, 1]) => Form::Map(map, Order::Last),
            _ => return None,
        };
        Some(Value::Data(id, to))
    }

    fn reshape(&mut self, node: &NodeProto) -> Option<Value> {
        let Value::Integers(shape) = self.get(node, 1)? else {
            return None;
        };
        if let Some((_, values)) = self.floats(node, 0) {
            let mut known = shape.iter().filter(|size| **size != -1);
            let known = known.try_fold(1i64, |product, size| product.checked_mul(*size))?;
            let open = (values.len() as i64).checked_div(known)?;
            let sizes = shape.iter().map(|size| if *size == -1 { open } else { *size });
            let sizes: Option<Vec<usize>> = sizes.map(|size| usize::try_from(size).ok()).collect();
            let product = |sizes: &[usize]| {
                sizes
                    .iter()
                    .try_fold(1usize, |product, size| product.checked_mul(*size))
            };
            let sizes = sizes.filter(|sizes| product(sizes) == Some(values.len()))?;
            return Some(Value::Floats(sizes, values.to_vec()));
        }
        let sizes: Option<Vec<usize>> = shape.iter().skip(1).map(|size| usize::try_from(*size).ok()).collect();
        let sizes = sizes?;
        if !matches!(shape.first(), Some(-1..=1)) || sizes.contains(&0) {
            return None;
        }
        let (id, form) = self.data(node, 0)?;
        let to = match (form, sizes.as_slice()) {
            (Form::Map(map, Order::Last), [h, f, w, g, c])
                if (h * f, w * g, *c) == (map.height, map.width, map.channels) =>
            {
                Form::Split(map, (*f, *g))
            }
            (Form::Split(map, _), [h, w, c]) if (*h, *w, *c) == (map.height, map.width, map.channels) => {
                Form::Map(map, Order::Last)
            }
            (Form::Map(map, _), [c]) if map.rows() == 1 && *c == map.channels => Form::Vector(*c),
            _ => return None,
        };
        Some(Value::Data(id, to))
    }

    fn convolution(&mut self, node: &NodeProto) -> Option<Value> {
        let (x, Form::Map(from, Order::First)) = self.data(node, 0)? else {
            return None;
        };
        let (shape, weights) = self.floats(node, 1)?;
        let &[outputs, of_group, kernel_height, kernel_width] = shape else {
            return None;
        };
        let pair = |name, default| match integers(node, name) {
            None => Some([default; 2]),
            Some(&[a, b]) => Some([usize::try_from(a).ok()?, usize::try_from(b).ok()?]),
            Some(_) => None,
        };
        let pads = match integers(node, "pads") {
            None => [0; 4],
            Some(&[a, b, c, d]) => {
                let size = |pad: i64| usize::try_from(pad).ok();
                [size(a)?, size(b)?, size(c)?, size(d)?]
            }
            Some(_) => return None,
        };
        let automatic = node.attribute.iter().any(|a| a.name == "auto_pad" && a.s != b"NOTSET");
        let kernel = (kernel_height, kernel_width);
        let [down, right] = pair("strides", 1)?;
        let plain = !automatic && pair("dilations", 1)? == [1; 2] && down > 0 && right > 0;
        if !plain || weights.is_empty() {
            return None;
        }
        let places = |size: usize, kernel: usize, stride: usize, pads: usize| {
            Some((size + pads).checked_sub(kernel)? / stride + 1)
        };
        let to = (
            places(from.height, kernel.0, down, pads[0] + pads[2])?,
            places(from.width, kernel.1, right, pads[1] + pads[3])?,
        );
        let window = Window {
            from,
            to,
            kernel,
            stride: (down, right),
            padding: (pads[0], pads[1]),
        };
        let bias = match node.input.get(2).filter(|name| !name.is_empty()) {
            None => vec![0.0; outputs],
            Some(_) => self.floats(node, 2)?.1.to_vec(),
        };
        let result = Map {
            height: to.0,
            width: to.1,
            channels: outputs,
        };
        let form = Form::Map(result, Order::First);
        let group = integer(node, "group").unwrap_or(1);
        if bias.len() != outputs || result.values() == 0 {
            return None;
        }
        if group as usize == from.channels && of_group == 1 && outputs == from.channels && group > 1 {
            let taps = window.taps();
            let weights = (0..taps)
                .flat_map(|tap| (0..outputs).map(move |c| weights[c * taps + tap]))
                .collect();
            let layer = Depthwise {
                window,
                weights,
                bias,
                activation: Activation::None,
            };
            return Some(self.compute(Work::Depthwise(layer), x, form));
        }
        if group != 1 || of_group != from.channels {
            return None;
        }
        // K×N: per place of the kernel and channel, as `gather` lays them out.
        let taps = window.taps();
        let rows = (0..taps).flat_map(|tap| (0..of_group).map(move |c| (tap, c)));
        let weights = rows
            .flat_map(|(tap, c)| (0..outputs).map(move |o| weights[(o * of_group + c) * taps + tap]))
            .collect();
        let pointwise = kernel == (1, 1) && (down, right) == (1, 1) && pads == [0; 4];
        let x = if pointwise {
            x
        } else {
            // A graph of a few bytes can ask for patches of any size.
            let patches = (to.0 * to.1).checked_mul(taps * of_group);
            let patches = patches.filter(|values| *values <= MAX_TENSOR_VALUES)?;
            self.draft.compute(Work::Gather(window), x, patches)
        };
        let linear = Work::Linear(Linear {
            weights,
            inputs: taps * of_group,
            bias,
            activation: Activation::None,
        });
        Some(self.compute(linear, x, form))
    }

    fn product(&mut self, node: &NodeProto) -> Option<Value> {
        let (x, form) = self.data(node, 0)?;
        let (shape, weights) = self.floats(node, 1)?;
        let &[inputs, outputs] = shape else { return None };
        if form.last_axis() != Some(inputs) || outputs == 0 {
            return None;
        }
        let to = match form {
            Form::Map(map, order) => Form::Map(
                Map {
                    channels: outputs,
                    ..map
                },
                order,
            ),
            _ => Form::Vector(outputs),
        };
        let linear = Work::Linear(Linear {
            weights: weights.to_vec(),
            inputs,
            bias: vec![0.0; outputs],
            activation: Activation::None,
        });
        Some(self.compute(linear, x, to))
    }

    fn gemm(&mut self, node: &NodeProto) -> Option<Value> {
        let (x, Form::Vector(inputs)) = self.data(node, 0)? else {
            return None;
        };
        let (&[rows, columns], weights) = self.floats(node, 1)? else {
            return None;
        };
        let factor = |name| node.attribute.iter().find(|a| a.name == name).map_or(1.0, |a| a.f);
        if integer(node, "transA").unwrap_or(0) != 0 || factor("alpha") != 1.0 || factor("beta") != 1.0 {
            return None;
        }
        let (weights, of_weights, outputs) = match integer(node, "transB").unwrap_or(0) {
            0 => (weights.to_vec(), rows, columns),
            _ => {
                let column = |k: usize| (0..rows).map(move |n| weights[n * columns + k]);
                ((0..columns).flat_map(column).collect(), columns, rows)
            }
        };
        let to = Form::Vector(outputs);
        let bias = match node.input.get(2).filter(|name| !name.is_empty()) {
            None => vec![0.0; outputs],
            Some(_) => match self.floats(node, 2)? {
                (shape, bias) if to.is_per_channel(shape) => bias.to_vec(),
                _ => return None,
            },
        };
        if of_weights != inputs || outputs == 0 {
            return None;
        }
        let linear = Work::Linear(Linear {
            weights,
            inputs,
            bias,
            activation: Activation::None,
        });
        Some(self.compute(linear, x, to))
    }

    fn norm(&mut self, node: &NodeProto) -> Option<Value> {
        let (id, form) = self.data(node, 0)?;
        let channels = form.last_axis()?;
        let last = match form {
            Form::Map(..) => 3,
            _ => 1,
        };
        if ![-1, last].contains(&integer(node, "axis").unwrap_or(-1)) {
            return None;
        }
        let of_channels = |input: usize, neutral: f32| match node.input.get(input).filter(|name| !name.is_empty()) {
            None => Some(None),
            Some(_) => {
                let (_, values) = self.floats(node, input)?;
                let neutral = values.iter().all(|v| *v == neutral);
                (values.len() == channels).then(|| (!neutral).then(|| values.to_vec()))
            }
        };
        let (scale, shift) = (of_channels(1, 1.0)?, of_channels(2, 0.0)?);
        let epsilon = node
            .attribute
            .iter()
            .find(|a| a.name == "epsilon")
            .map_or(1e-5, |a| a.f);
        let layer = Norm {
            channels,
            scale,
            shift,
            epsilon,
        };
        Some(self.change(Work::Norm(layer), id, None, form))
    }

    fn mean(&mut self, node: &NodeProto) -> Option<Value> {
        let (id, Form::Map(map, order)) = self.data(node, 0)? else {
            return None;
        };
        let axes = match node.input.get(1) {
            Some(_) => match self.get(node, 1)? {
                Value::Integers(axes) => axes.as_slice(),
                _ => return None,
            },
            None => integers(node, "axes")?,
        };
        let right = match order {
            Order::Last => matches!(axes, [1, 2] | [-3, -2]),
            Order::First => matches!(axes, [2, 3] | [-2, -1]),
        };
        if !right {
            return None;
        }
        let form = if integer(node, "keepdims").unwrap_or(1) == 0 {
            Form::Vector(map.channels)
        } else {
            let one = Map {
                height: 1,
                width: 1,
                ..map
            };
            Form::Map(one, order)
        };
        Some(self.compute(Work::Pool, id, form))
    }

    fn sum(&mut self, node: &NodeProto) -> Option<Value> {
        match (self.get(node, 0)?.clone(), self.get(node, 1)?.clone()) {
            (Value::Erf(id), Value::Floats(_, one)) | (Value::Floats(_, one), Value::Erf(id)) => {
                (one == [1.0]).then_some(Value::OnePlusErf(id))
            }
            (Value::Data(id, form), Value::Floats(shape, bias))
            | (Value::Floats(shape, bias), Value::Data(id, form)) => form
                .is_per_channel(&shape)
                .then(|| self.change(Work::Shift(bias), id, None, form)),
            (Value::Data(a, form), Value::Scaled(b, other, factors))
            | (Value::Scaled(b, other, factors), Value::Data(a, form)) => {
                (form == other).then(|| self.change(Work::Add(Some(factors)), a, Some(b), form))
            }
            (Value::Data(a, form), Value::Data(b, other)) if form == other && !matches!(form, Form::Split(..)) => {
                Some(self.change(Work::Add(None), a, Some(b), form))
            }
            (Value::Data(a, Form::Split(fine, f)), Value::Data(b, Form::Split(coarse, g)))
            | (Value::Data(b, Form::Split(coarse, g)), Value::Data(a, Form::Split(fine, f)))
                if g == (1, 1) && f != (1, 1) =>
            {
                let smaller = Map {
                    height: fine.height / f.0,
                    width: fine.width / f.1,
                    ..fine
                };
                let work = Work::AddUpsampled { fine, factors: f };
                (coarse == smaller).then(|| self.change(work, a, Some(b), Form::Split(fine, f)))
            }
            _ => None,
        }
    }

    /// A product with a constant, or the last one of a GELU; `turn` makes a factor of a divisor.
    fn times(&mut self, node: &NodeProto, turn: fn(f32) -> f32) -> Option<Value> {
        let division = node.op_type == "Div";
        match (self.get(node, 0)?.clone(), self.get(node, 1)?.clone()) {
            (Value::Data(id, form), Value::Floats(shape, factors)) => match factors.as_slice() {
                [factor] => Some(Value::Times(id, form, turn(*factor))),
                _ if !division && form.is_per_channel(&shape) => Some(Value::Scaled(id, form, factors)),
                _ => None,
            },
            (Value::Floats(shape, factors), Value::Data(id, form)) if !division => match factors.as_slice() {
                [factor] => Some(Value::Times(id, form, *factor)),
                _ if form.is_per_channel(&shape) => Some(Value::Scaled(id, form, factors)),
                _ => None,
            },
            (Value::TwiceGelu(id, form), Value::Floats(_, half)) if half.len() == 1 && turn(half[0]) == 0.5 => {
                Some(self.change(Work::Activate(Activation::Gelu), id, None, form))
            }
            (Value::Times(a, form, half), Value::OnePlusErf(b))
            | (Value::OnePlusErf(b), Value::Times(a, form, half))
                if !division && a == b && half == 0.5 =>
            {
                Some(self.change(Work::Activate(Activation::Gelu), a, None, form))
            }
            (Value::Data(a, form), Value::OnePlusErf(b)) | (Value::OnePlusErf(b), Value::Data(a, form))
                if !division && a == b =>
            {
                Some(Value::TwiceGelu(a, form))
            }
            _ => None,
        }
    }
}

fn constant(tensor: &TensorProto) -> Option<Value> {
    let shape: Option<Vec<usize>> = tensor.dims.iter().map(|size| usize::try_from(*size).ok()).collect();
    let shape = shape?;
    let count = shape.iter().try_fold(1usize, |n, size| n.checked_mul(*size))?;
    let raw = &tensor.raw_data;
    let floats: Vec<f32> = match DataType::try_from(tensor.data_type).ok()? {
        DataType::Float if raw.is_empty() => tensor.float_data.clone(),
        DataType::Float => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        DataType::Float16 if raw.is_empty() => {
            let bits = tensor.int32_data.iter().map(|bits| *bits as u16);
            bits.map(|bits| half::f16::from_bits(bits).to_f32()).collect()
        }
        DataType::Float16 => {
            let halves = raw.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
            halves.map(|bits| half::f16::from_bits(bits).to_f32()).collect()
        }
        DataType::Int64 if raw.is_empty() => return Some(Value::Integers(tensor.int64_data.clone())),
        DataType::Int64 => {
            let integers = raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b));
            return Some(Value::Integers(integers.collect()));
        }
        _ => return None,
    };
    (floats.len() == count).then_some(Value::Floats(shape, floats))
}

fn integer(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}

fn integers<'n>(node: &'n NodeProto, name: &str) -> Option<&'n [i64]> {
    node.attribute
        .iter()
        .find(|a| a.name == name)
        .map(|a| a.ints.as_slice())
}

#[cfg(test)]
mod tests;
