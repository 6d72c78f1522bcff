//! From a graph to a plan.
//!
//! Maps are kept as height × width × channels, whatever order the graph keeps them in: a transposition only
//! changes how a map is spoken of, and is never carried out. What becomes of a value is followed through the
//! graph symbolically until it is something that a kernel computes: an error function of a scaled value, with
//! one added and multiplied by half of that value, is a GELU, however many nodes spell it.
//!
//! A graph with anything else in it has no plan, and is left to tract.

use std::collections::HashMap;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::kernels::{Activation, Depthwise, Linear, Map, Norm, Window};
use super::plan::{Part, Plan, Step, Work};
use super::simd::Isa;
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
        let id = lowering.value(form.values());
        lowering.inputs.push(id);
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
    let mut outputs = outputs?;
    for place in 0..outputs.len() {
        let id = outputs[place];
        if lowering.inputs.contains(&id) || outputs[..place].contains(&id) {
            // What is passed on as it is, or given twice: everything that is given has memory of its own.
            let y = lowering.value(lowering.sizes[id]);
            lowering.ops.push(Op {
                kind: Kind::Other(Work::Copy),
                x: Some(id),
                onto: None,
                y,
            });
            outputs[place] = y;
        }
    }
    lowering.fuse(&outputs);
    Some(lowering.plan(&outputs, isa))
}

/// A tensor that the plan computes, or reads.
type Id = usize;

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

/// A step before buffers are given out: `onto` is the tensor that y takes over.
#[derive(Debug)]
struct Op {
    kind: Kind,
    x: Option<Id>,
    onto: Option<Id>,
    y: Id,
}

/// As [`Work`], but with weights that are not packed yet.
#[derive(Debug)]
enum Kind {
    Linear {
        weights: Vec<f32>,
        inputs: usize,
        bias: Vec<f32>,
        activation: Activation,
    },
    Other(Work),
}

#[derive(Debug, Default)]
struct Lowering<'g> {
    known: HashMap<&'g str, Value>,
    /// Values per image of every tensor.
    sizes: Vec<usize>,
    inputs: Vec<Id>,
    ops: Vec<Op>,
}

/// Close enough to a constant that an exporter has rounded.
fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

impl<'g> Lowering<'g> {
    fn value(&mut self, values: usize) -> Id {
        self.sizes.push(values);
        self.sizes.len() - 1
    }

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
        self.push(Kind::Other(work), Some(x), None, form)
    }

    /// A step that changes a tensor.
    fn change(&mut self, work: Work, onto: Id, x: Option<Id>, form: Form) -> Value {
        self.push(Kind::Other(work), x, Some(onto), form)
    }

    fn push(&mut self, kind: Kind, x: Option<Id>, onto: Option<Id>, form: Form) -> Value {
        let y = self.value(form.values());
        self.ops.push(Op { kind, x, onto, y });
        Value::Data(y, form)
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
            let patches = self.value(patches.filter(|values| *values <= MAX_TENSOR_VALUES)?);
            self.ops.push(Op {
                kind: Kind::Other(Work::Gather(window)),
                x: Some(x),
                onto: None,
                y: patches,
            });
            patches
        };
        let linear = Kind::Linear {
            weights,
            inputs: taps * of_group,
            bias,
            activation: Activation::None,
        };
        Some(self.push(linear, Some(x), None, form))
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
        let linear = Kind::Linear {
            weights: weights.to_vec(),
            inputs,
            bias: vec![0.0; outputs],
            activation: Activation::None,
        };
        Some(self.push(linear, Some(x), None, to))
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
            | (Value::Floats(shape, bias), Value::Data(id, form)) => (form.last_axis()? == bias.len()
                && shape.last() == Some(&bias.len()))
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
            (Value::Data(id, form), Value::Floats(_, factors)) => match factors.as_slice() {
                [factor] => Some(Value::Times(id, form, turn(*factor))),
                _ if !division && form.last_axis() == Some(factors.len()) => Some(Value::Scaled(id, form, factors)),
                _ => None,
            },
            (Value::Floats(_, factors), Value::Data(id, form)) if !division => match factors.as_slice() {
                [factor] => Some(Value::Times(id, form, *factor)),
                _ if form.last_axis() == Some(factors.len()) => Some(Value::Scaled(id, form, factors)),
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

    // Fusion

    /// Takes into a linear layer or a convolution what is done to its result at once: a bias, an activation, and
    /// its addition to another tensor.
    fn fuse(&mut self, outputs: &[Id]) {
        let mut at = 0;
        while at < self.ops.len() {
            if let Some(user) = self.only_user(at, outputs)
                && self.take_in(at, user)
            {
                self.ops.remove(at.min(user));
                // The op has moved to its user's place, or the user has gone: look from here again.
                continue;
            }
            at += 1;
        }
    }

    /// The only op that reads what an op gives, if there is just one and it is no output.
    fn only_user(&self, op: usize, outputs: &[Id]) -> Option<usize> {
        let y = self.ops[op].y;
        if outputs.contains(&y) {
            return None;
        }
        let mut users = (0..self.ops.len()).filter(|i| self.ops[*i].x == Some(y) || self.ops[*i].onto == Some(y));
        let user = users.next()?;
        users.next().is_none().then_some(user)
    }

    /// Whether an op could take in the one that uses its result. It then stands in the place of that one.
    fn take_in(&mut self, op: usize, user: usize) -> bool {
        let (head, tail) = self.ops.split_at_mut(user);
        let (op, user) = (&mut head[op], &mut tail[0]);
        let Kind::Other(work) = &mut user.kind else {
            return false;
        };
        let alone = op.onto.is_none();
        let taken = match (&mut op.kind, work) {
            (Kind::Linear { bias, activation, .. }, Work::Shift(shift)) if alone && *activation == Activation::None => {
                bias.iter_mut().zip(shift).for_each(|(b, s)| *b += *s);
                true
            }
            (Kind::Linear { activation, .. }, Work::Activate(wanted)) if alone && *activation == Activation::None => {
                *activation = *wanted;
                true
            }
            (Kind::Other(Work::Depthwise(layer)), Work::Activate(wanted)) if layer.activation == Activation::None => {
                layer.activation = *wanted;
                true
            }
            (Kind::Linear { .. }, Work::Add(None)) if alone && user.x != user.onto => {
                // The other summand is what is added to, whichever the graph named first.
                let other = if user.x == Some(op.y) { user.onto } else { user.x };
                op.onto = other;
                true
            }
            _ => false,
        };
        if taken {
            op.y = user.y;
            std::mem::swap(op, user);
        }
        taken
    }

    // Buffers

    /// Gives every tensor a buffer; one that is not needed any more serves another.
    fn plan(self, outputs: &[Id], isa: Isa) -> Plan {
        const FOREVER: usize = usize::MAX;
        let mut last_use = vec![0; self.sizes.len()];
        for (at, op) in self.ops.iter().enumerate() {
            for id in op.x.iter().chain(&op.onto) {
                last_use[*id] = at;
            }
        }
        // Inputs are handed back as they were, outputs are taken at the end.
        for id in self.inputs.iter().chain(outputs) {
            last_use[*id] = FOREVER;
        }
        let mut slots: Vec<usize> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slot_of = vec![None; self.sizes.len()];
        let mut take = |values: usize, free: &mut Vec<usize>| {
            let fits = |slot: &usize, slots: &[usize]| slots[*slot] >= values;
            let best = (0..free.len())
                .filter(|i| fits(&free[*i], &slots))
                .min_by_key(|i| slots[free[*i]])
                .or_else(|| (0..free.len()).max_by_key(|i| slots[free[*i]]));
            let slot = match best {
                Some(i) => free.swap_remove(i),
                None => {
                    slots.push(0);
                    slots.len() - 1
                }
            };
            slots[slot] = slots[slot].max(values);
            slot
        };
        for id in &self.inputs {
            // Of its own: it changes hands with the caller's.
            slot_of[*id] = Some(take(self.sizes[*id], &mut Vec::new()));
        }
        let mut steps = Vec::with_capacity(self.ops.len());
        for (at, op) in self.ops.into_iter().enumerate() {
            let part = |id: Id, slot_of: &[Option<usize>]| Part {
                slot: slot_of[id].unwrap_or_default(),
                values: self.sizes[id],
            };
            match op.onto {
                Some(onto) if last_use[onto] == at && op.x != Some(onto) => {
                    slot_of[op.y] = slot_of[onto];
                }
                onto => {
                    slot_of[op.y] = Some(take(self.sizes[op.y], &mut free));
                    if let Some(onto) = onto {
                        steps.push(Step {
                            work: Work::Copy,
                            x: Some(part(onto, &slot_of)),
                            y: part(op.y, &slot_of),
                        });
                        if last_use[onto] == at {
                            free.extend(slot_of[onto]);
                        }
                    }
                }
            }
            let work = match op.kind {
                Kind::Other(work) => work,
                Kind::Linear {
                    weights,
                    inputs,
                    bias,
                    activation,
                } => Work::Linear {
                    layer: Linear {
                        activation,
                        ..Linear::pack(&weights, inputs, &bias, isa.panel())
                    },
                    onto: op.onto.is_some(),
                },
            };
            steps.push(Step {
                work,
                x: op.x.map(|x| part(x, &slot_of)),
                y: part(op.y, &slot_of),
            });
            if let Some(x) = op.x.filter(|x| last_use[*x] == at && op.onto != Some(*x)) {
                free.extend(slot_of[x]);
            }
        }
        let parts = |ids: &[Id]| {
            ids.iter()
                .map(|id| Part {
                    slot: slot_of[*id].unwrap_or_default(),
                    values: self.sizes[*id],
                })
                .collect()
        };
        Plan {
            isa,
            steps,
            inputs: parts(&self.inputs),
            outputs: parts(outputs),
            slots,
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
