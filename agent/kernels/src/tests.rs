//! Every kernel, on every instruction set of this machine, against the same thing computed plainly in f64; and the
//! same bits for any number of threads, and of images at a time.

use super::*;

/// Numbers from -1 to 1, the same for the same seed.
struct Random(u32);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / 8_388_608.0 - 1.0
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Such that a sum of so many products stays near 1; `half`: every one is a half.
    fn weights(&mut self, count: usize, summed: usize, half: bool) -> Vec<f32> {
        let scale = (summed as f32).powf(-0.5);
        let weights = self.values(count).into_iter().map(|w| w * scale);
        weights
            .map(|w| if half { half::f16::from_f32(w).to_f32() } else { w })
            .collect()
    }
}

#[derive(Clone, Default)]
struct Image {
    inputs: Vec<Vec<f32>>,
    outputs: Vec<Vec<f32>>,
}

impl Tensors for Image {
    fn inputs(&mut self) -> &mut [Vec<f32>] {
        &mut self.inputs
    }

    fn outputs(&mut self) -> &mut [Vec<f32>] {
        &mut self.outputs
    }
}

/// What the plain computation works with.
type Values = Vec<f64>;

/// Runs a draft with inputs of these sizes, and compares what it gives with what `plainly` makes of the inputs.
fn check(sizes: &[usize], draw: impl Fn(&mut Draft, &[Id]) -> Id, plainly: impl Fn(&[Values]) -> Values) {
    check_all(sizes, |draft, x| [draw(draft, x)], |x| [plainly(x)]);
}

/// The same for several outputs.
fn check_all<const OUTPUTS: usize>(
    sizes: &[usize],
    draw: impl Fn(&mut Draft, &[Id]) -> [Id; OUTPUTS],
    plainly: impl Fn(&[Values]) -> [Values; OUTPUTS],
) {
    let mut random = Random(7);
    let images: Vec<Image> = (0..3)
        .map(|_| Image {
            inputs: sizes.iter().map(|size| random.values(*size)).collect(),
            outputs: vec![Vec::new(); OUTPUTS],
        })
        .collect();
    let wide = |values: &Vec<f32>| values.iter().map(|x| f64::from(*x)).collect();
    let expected: Vec<[Values; OUTPUTS]> = images
        .iter()
        .map(|image| plainly(&image.inputs.iter().map(wide).collect::<Vec<Values>>()))
        .collect();
    let pools: Vec<Pool> = (1..=3).map(|threads| Pool::new(threads).unwrap()).collect();
    for isa in Isa::available() {
        let mut draft = Draft::default();
        let inputs: Vec<Id> = sizes.iter().map(|size| draft.input(*size)).collect();
        let outputs = draw(&mut draft, &inputs);
        let plan = draft.plan(&outputs, isa);
        let mut buffers = Buffers::default();
        let mut alone = images.clone();
        for (image, plain) in alone.iter_mut().zip(&expected) {
            plan.run(&mut buffers, &mut [image], &pools[0]);
            for (given, plain) in image.outputs.iter().zip(plain) {
                assert_eq!(given.len(), plain.len(), "{isa:?}");
                let range = plain.iter().fold(1e-3_f64, |range, x| range.max(x.abs()));
                let apart = given.iter().zip(plain).map(|(a, b)| (f64::from(*a) - b).abs() / range);
                let worst = apart.fold(0.0, f64::max);
                assert!(worst <= 1e-5, "{isa:?}: {worst}");
            }
        }
        for pool in &pools {
            // Again and again: what a run leaves behind must not show in the next, nor who does which part.
            for _ in 0..3 {
                let mut together = images.clone();
                let mut each: Vec<&mut Image> = together.iter_mut().collect();
                plan.run(&mut buffers, &mut each, pool);
                let mut one = images[1].clone();
                plan.run(&mut buffers, &mut [&mut one], pool);
                together.push(one);
                for (given, alone) in together.iter().zip([&alone[0], &alone[1], &alone[2], &alone[1]]) {
                    let bits = |image: &Image| {
                        let values = image.outputs.iter().flatten();
                        values.map(|x| x.to_bits()).collect::<Vec<_>>()
                    };
                    assert_eq!(bits(given), bits(alone), "{isa:?}, {} threads", pool.threads());
                    assert_eq!(given.inputs, alone.inputs, "inputs are handed back");
                }
            }
        }
    }
}

fn applied(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => x * 0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Clip(low, high) => x.clamp(f64::from(low), f64::from(high)),
    }
}

/// x W + b, row by row.
fn product(x: &[f64], layer: &Linear) -> Values {
    let n = layer.bias.len();
    let mut y = Vec::new();
    for x in x.chunks_exact(layer.inputs) {
        for column in 0..n {
            let products = x
                .iter()
                .enumerate()
                .map(|(i, x)| x * f64::from(layer.weights[i * n + column]));
            let sum = products.sum::<f64>() + f64::from(layer.bias[column]);
            y.push(applied(layer.activation, sum));
        }
    }
    y
}

const ACTIVATIONS: [Activation; 3] = [Activation::None, Activation::Gelu, Activation::Clip(0.0, 0.5)];

#[test]
fn linear_layers() {
    for (rows, inputs, outputs) in [
        (1, 1, 1),
        (1, 256, 100),
        (4, 7, 33),
        (16, 64, 64),
        (25, 31, 130),
        (9, 48, 16),
        (11, 24, 40),
        // Rows that would leave one or two for a tile of their own, by the highest tiles of 4, 6 and 8.
        (5, 9, 40),
        (7, 9, 40),
        (8, 9, 40),
        (10, 9, 40),
        // Cut by rows, and by columns.
        (160, 48, 72),
        (40, 64, 272),
    ] {
        for (half, activation) in [(true, ACTIVATIONS[0]), (false, ACTIVATIONS[1]), (true, ACTIVATIONS[2])] {
            let mut random = Random(3);
            let layer = Linear {
                weights: random.weights(inputs * outputs, inputs, half),
                inputs,
                bias: random.values(outputs),
                activation,
            };
            let work = Work::Linear(layer.clone());
            check(
                &[rows * inputs],
                |draft, x| draft.compute(work.clone(), x[0], rows * outputs),
                |x| product(&x[0], &layer),
            );
            // With a residual, which is added last.
            check(
                &[rows * inputs, rows * outputs],
                |draft, x| {
                    let y = draft.compute(work.clone(), x[0], rows * outputs);
                    draft.change(Work::Add(None), y, Some(x[1]))
                },
                |x| product(&x[0], &layer).iter().zip(&x[1]).map(|(a, b)| a + b).collect(),
            );
        }
    }
}

/// Windows of every kind: (height, width, channels, kernel, stride, padding).
const WINDOWS: [(usize, usize, usize, usize, usize, [usize; 4]); 14] = [
    (8, 8, 3, 3, 2, [1, 1, 1, 1]),
    (8, 8, 32, 3, 1, [1, 1, 1, 1]),
    (2, 2, 64, 3, 1, [1, 1, 1, 1]),
    (9, 9, 19, 3, 2, [1, 1, 1, 1]),
    (7, 7, 24, 7, 1, [3, 3, 3, 3]),
    (9, 12, 5, 3, 2, [0, 0, 1, 1]),
    (8, 9, 17, 5, 2, [1, 1, 2, 2]),
    (14, 15, 48, 5, 2, [1, 2, 2, 2]),
    (4, 4, 3, 4, 4, [0, 0, 0, 0]),
    // A kernel that stands wholly on its padding.
    (6, 6, 1, 3, 2, [3, 3, 3, 3]),
    (3, 3, 16, 2, 1, [0, 4, 5, 2]),
    (4, 4, 17, 3, 2, [3, 3, 4, 4]),
    // Large enough to be cut.
    (40, 40, 16, 3, 1, [1, 1, 1, 1]),
    (56, 40, 40, 5, 2, [1, 1, 2, 2]),
];

fn windows() -> impl Iterator<Item = Window> {
    WINDOWS
        .into_iter()
        .map(|(height, width, channels, kernel, stride, pads)| Window {
            from: Map {
                height,
                width,
                channels,
            },
            to: (
                (height + pads[0] + pads[2] - kernel) / stride + 1,
                (width + pads[1] + pads[3] - kernel) / stride + 1,
            ),
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: (pads[0], pads[1]),
        })
}

/// The value that a kernel sees at a place.
fn seen(window: &Window, x: &[f64], (row, column): (usize, usize), (i, j): (usize, usize), channel: usize) -> f64 {
    let inside = |at: usize, stride: usize, tap: usize, padding: usize, size: usize| {
        (at * stride + tap).checked_sub(padding).filter(|place| *place < size)
    };
    let place = inside(row, window.stride.0, i, window.padding.0, window.from.height).zip(inside(
        column,
        window.stride.1,
        j,
        window.padding.1,
        window.from.width,
    ));
    place.map_or(0.0, |(row, column)| {
        x[(row * window.from.width + column) * window.from.channels + channel]
    })
}

/// The places of a map, line by line.
fn places((height, width): (usize, usize)) -> impl Iterator<Item = (usize, usize)> {
    (0..height).flat_map(move |row| (0..width).map(move |column| (row, column)))
}

#[test]
fn what_a_kernel_sees() {
    for window in windows() {
        let c = window.from.channels;
        check(
            &[window.from.values()],
            |draft, x| {
                draft.compute(
                    Work::Gather(window),
                    x[0],
                    window.to.0 * window.to.1 * window.taps() * c,
                )
            },
            |x| {
                let mut y = Vec::new();
                for place in places(window.to) {
                    for tap in places(window.kernel) {
                        y.extend((0..c).map(|channel| seen(&window, &x[0], place, tap, channel)));
                    }
                }
                y
            },
        );
    }
}

/// Kernels on maps that are narrower than they are, as wide, and wider.
fn narrow() -> impl Iterator<Item = Window> {
    let kernels = [(3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)];
    kernels.into_iter().flat_map(|(kernel, stride)| {
        (1..10).map(move |width| Window {
            from: Map {
                height: 3,
                width,
                channels: 20,
            },
            to: ((3 - 1) / stride + 1, (width - 1) / stride + 1),
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: (kernel / 2, kernel / 2),
        })
    })
}

/// More channels than there are zeros for what lies beside a map, and as many; kernels that are not square.
fn rare() -> impl Iterator<Item = Window> {
    let wide = [4096, 4097].map(|channels| (3, channels, (3, 3), (1, 1)));
    let oblong = [((5, 3), (2, 1)), ((3, 5), (1, 2)), ((1, 7), (3, 1)), ((2, 4), (1, 3))];
    let oblong = oblong.map(|(kernel, stride)| (9, 20, kernel, stride));
    wide.into_iter()
        .chain(oblong)
        .map(|(side, channels, kernel, stride)| Window {
            from: Map {
                height: side,
                width: side + 1,
                channels,
            },
            to: ((side - 1) / stride.0 + 1, side / stride.1 + 1),
            kernel,
            stride,
            padding: (kernel.0 / 2, kernel.1 / 2),
        })
}

#[test]
fn depthwise_convolutions() {
    for (window, activation) in windows()
        .chain(narrow())
        .chain(rare())
        .zip(ACTIVATIONS.into_iter().cycle())
    {
        let (c, mut random) = (window.from.channels, Random(5));
        let layer = Depthwise {
            window,
            weights: random.weights(window.taps() * c, window.taps(), true),
            bias: random.values(c),
            activation: Activation::None,
        };
        check(
            &[window.from.values()],
            |draft, x| {
                let values = window.to.0 * window.to.1 * c;
                let y = draft.compute(Work::Depthwise(layer.clone()), x[0], values);
                draft.change(Work::Activate(activation), y, None)
            },
            |x| {
                let mut y = Vec::new();
                for place in places(window.to) {
                    y.extend((0..c).map(|channel| {
                        let taps = places(window.kernel).enumerate();
                        let products = taps.map(|(at, tap)| {
                            seen(&window, &x[0], place, tap, channel) * f64::from(layer.weights[at * c + channel])
                        });
                        applied(activation, products.sum::<f64>() + f64::from(layer.bias[channel]))
                    }));
                }
                y
            },
        );
    }
}

#[test]
fn norms() {
    for (rows, channels, scaled, shifted) in [
        (6, 32, false, false),
        (6, 33, true, false),
        (6, 5, true, true),
        (700, 40, false, true),
        (300, 256, true, true),
    ] {
        let mut random = Random(11);
        let layer = Norm {
            channels,
            scale: scaled.then(|| random.values(channels)),
            shift: shifted.then(|| random.values(channels)),
            epsilon: 1e-6,
        };
        check(
            &[rows * channels],
            |draft, x| draft.change(Work::Norm(layer.clone()), x[0], None),
            |x| {
                let mut y = Vec::new();
                for row in x[0].chunks_exact(channels) {
                    let mean = row.iter().sum::<f64>() / channels as f64;
                    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / channels as f64;
                    let scale = (variance + 1e-6).sqrt().recip();
                    y.extend(row.iter().enumerate().map(|(c, x)| {
                        let factor = layer.scale.as_ref().map_or(1.0, |scale| f64::from(scale[c]));
                        let shift = layer.shift.as_ref().map_or(0.0, |shift| f64::from(shift[c]));
                        (x - mean) * scale * factor + shift
                    }));
                }
                y
            },
        );
    }
}

#[test]
fn sums_biases_and_activations() {
    for (rows, channels) in [(3, 7), (900, 70)] {
        let factors = Random(13).values(channels);
        for scale in [None, Some(factors.clone())] {
            check(
                &[rows * channels; 2],
                |draft, x| draft.change(Work::Add(scale.clone()), x[0], Some(x[1])),
                |x| {
                    let pairs = x[0].iter().zip(&x[1]).enumerate();
                    let factor = |at: usize| scale.as_ref().map_or(1.0, |scale| f64::from(scale[at % channels]));
                    pairs.map(|(at, (a, b))| a + factor(at) * b).collect()
                },
            );
        }
        check(
            &[rows * channels],
            |draft, x| draft.change(Work::Shift(factors.clone()), x[0], None),
            |x| {
                x[0].iter()
                    .enumerate()
                    .map(|(at, x)| x + f64::from(factors[at % channels]))
                    .collect()
            },
        );
        for activation in ACTIVATIONS {
            check(
                &[rows * channels],
                |draft, x| draft.change(Work::Activate(activation), x[0], None),
                |x| x[0].iter().map(|x| applied(activation, *x)).collect(),
            );
        }
        check(&[rows * channels], |_, x| x[0], |x| x[0].clone());
    }
}

#[test]
fn a_gelu_is_exact_far_out() {
    let wide = Activation::Gelu;
    check(
        &[999],
        |draft, x| {
            let eight = vec![8.0];
            let far = draft.compute(
                Work::Linear(Linear {
                    weights: eight,
                    inputs: 1,
                    bias: vec![0.0],
                    activation: wide,
                }),
                x[0],
                999,
            );
            draft.change(Work::Activate(Activation::None), far, None)
        },
        |x| x[0].iter().map(|x| applied(wide, 8.0 * x)).collect(),
    );
}

#[test]
fn up_sampling() {
    for (height, width, channels, factors) in [(6, 4, 20, (2, 2)), (6, 8, 3, (3, 4)), (64, 64, 24, (2, 2))] {
        let fine = Map {
            height,
            width,
            channels,
        };
        check(
            &[fine.values(), fine.values() / (factors.0 * factors.1)],
            |draft, x| draft.change(Work::AddUpsampled { fine, factors }, x[0], Some(x[1])),
            |x| {
                let mut y = x[0].clone();
                for (at, (row, column)) in places((height, width)).enumerate() {
                    let above = row / factors.0 * (width / factors.1) + column / factors.1;
                    for c in 0..channels {
                        y[at * channels + c] += x[1][above * channels + c];
                    }
                }
                y
            },
        );
    }
}

#[test]
fn pooling() {
    for (rows, channels) in [(1, 5), (49, 512), (36, 33)] {
        check(
            &[rows * channels],
            |draft, x| draft.compute(Work::Pool, x[0], channels),
            |x| {
                (0..channels)
                    .map(|c| x[0].iter().skip(c).step_by(channels).sum::<f64>() / rows as f64)
                    .collect()
            },
        );
    }
}

/// A tensor is used again after another was made of it in place, and several are given.
#[test]
fn tensors_are_kept_as_long_as_they_are_needed() {
    let (rows, c) = (300, 48);
    let mut random = Random(17);
    let mut layer = || Linear {
        weights: random.weights(c * c, c, true),
        inputs: c,
        bias: random.values(c),
        activation: Activation::None,
    };
    let (first, second) = (layer(), layer());
    check(
        &[rows * c],
        |draft, x| {
            let a = draft.compute(Work::Linear(first.clone()), x[0], rows * c);
            let b = draft.change(Work::Activate(Activation::Gelu), a, None);
            let b = draft.compute(Work::Linear(second.clone()), b, rows * c);
            let b = draft.change(Work::Add(None), b, Some(x[0]));
            draft.change(Work::Add(None), a, Some(b))
        },
        |x| {
            let a = product(&x[0], &first);
            let b: Values = a.iter().map(|a| applied(Activation::Gelu, *a)).collect();
            let b = product(&b, &second);
            (0..rows * c).map(|at| a[at] + b[at] + x[0][at]).collect()
        },
    );
}

/// A network with a fine end and a coarse one, where few rows meet many weights, and a tensor that one end leaves
/// to the other.
#[test]
fn images_go_one_by_one_where_maps_are_large_and_together_where_weights_are() {
    let fine = Map {
        height: 16,
        width: 16,
        channels: 4,
    };
    let mut random = Random(29);
    let mut layer = |inputs: usize, outputs: usize, activation| Linear {
        weights: random.weights(inputs * outputs, inputs, true),
        inputs,
        bias: random.values(outputs),
        activation,
    };
    let (first, side, narrow) = (
        layer(4, 4, Activation::Gelu),
        layer(4, 4, Activation::None),
        layer(64, 4, Activation::None),
    );
    let (down, expand, contract) = (
        layer(256, 64, Activation::None),
        layer(64, 256, Activation::Gelu),
        layer(256, 64, Activation::None),
    );
    let scale = random.values(64);
    let sizes = [fine.values(), 256];
    let draw = |draft: &mut Draft, x: &[Id]| {
        let left = draft.compute(Work::Linear(first.clone()), x[0], fine.values());
        let side = draft.compute(Work::Linear(side.clone()), x[0], fine.values());
        let coarse = draft.compute(Work::Copy, left, fine.values());
        let coarse = draft.compute(Work::Linear(down.clone()), coarse, 256);
        let wide = draft.compute(Work::Linear(expand.clone()), coarse, 1024);
        let back = draft.compute(Work::Linear(contract.clone()), wide, 256);
        let coarse = draft.change(Work::Add(None), coarse, Some(back));
        let coarse = draft.change(Work::Add(Some(scale.clone())), coarse, Some(x[1]));
        let up = draft.compute(Work::Linear(narrow.clone()), coarse, 16);
        let factors = (8, 8);
        let last = draft.change(Work::AddUpsampled { fine, factors }, left, Some(up));
        [last, coarse, side, x[1]]
    };
    check_all(&sizes, draw, |x| {
        let left = product(&x[0], &first);
        let mut coarse = product(&left, &down);
        let back = product(&product(&coarse, &expand), &contract);
        for (at, y) in coarse.iter_mut().enumerate() {
            *y += back[at] + f64::from(scale[at % 64]) * x[1][at];
        }
        let up = product(&coarse, &narrow);
        let last = left.iter().enumerate().map(|(at, left)| {
            let (place, channel) = (at / 4, at % 4);
            let above = place / 16 / 8 * 2 + place % 16 / 8;
            left + up[above * 4 + channel]
        });
        [last.collect(), coarse.clone(), product(&x[0], &side), x[1].clone()]
    });
    let mut draft = Draft::default();
    let inputs = sizes.map(|size| draft.input(size));
    let outputs = draw(&mut draft, &inputs);
    let plan = draft.plan(&outputs, Isa::best());
    let segments: Vec<(bool, usize)> = plan.segments.iter().map(|s| (s.together, s.steps.len())).collect();
    assert_eq!(segments, [(false, 2), (true, 4), (false, 4)]);
}

/// Drafts of operators at random on tensors at random: an image is the same alone and among others, whatever
/// shares a buffer with what.
#[test]
fn any_plan_gives_the_same_for_one_image_and_for_several() {
    let mut random = Random(31);
    let (mut both, mut pool) = (0, Pool::default());
    for number in 0..400 {
        let mut pick = |below: usize| ((random.next() + 1.0) * 0.5 * below as f32) as usize % below;
        let sizes: Vec<usize> = (0..2).map(|_| 1 << (5 + pick(6))).collect();
        let mut draft = Draft::default();
        let mut tensors: Vec<(Id, usize)> = sizes.iter().map(|size| (draft.input(*size), *size)).collect();
        for _ in 0..14 {
            let (x, size) = tensors[pick(tensors.len())];
            let alike: Vec<Id> = tensors.iter().filter(|t| t.1 == size).map(|t| t.0).collect();
            let coarse: Vec<Id> = tensors.iter().filter(|t| 4 * t.1 == size).map(|t| t.0).collect();
            let made = match pick(8) {
                0 => (draft.compute(Work::Copy, x, size), size),
                1 => (draft.change(Work::Activate(Activation::Clip(-0.5, 0.5)), x, None), size),
                2 => (draft.change(Work::Add(None), x, Some(alike[pick(alike.len())])), size),
                3 if !coarse.is_empty() => {
                    let fine = Map {
                        height: 2,
                        width: 2,
                        channels: size / 4,
                    };
                    let factors = (2, 2);
                    let up = Work::AddUpsampled { fine, factors };
                    (draft.change(up, x, Some(coarse[pick(coarse.len())])), size)
                }
                _ => {
                    let to = 1 << (5 + pick(6));
                    let rows = 1 << pick(6);
                    let (inputs, outputs) = (size / rows, to / rows);
                    let mut values = Random(number * 100 + pick(100) as u32);
                    let layer = Linear {
                        weights: values.weights(inputs * outputs, inputs, true),
                        inputs,
                        bias: values.values(outputs),
                        activation: Activation::Clip(-1.0, 1.0),
                    };
                    (draft.compute(Work::Linear(layer), x, to), to)
                }
            };
            tensors.push(made);
        }
        let outputs: Vec<Id> = (0..3)
            .map(|_| tensors[pick(tensors.len())].0)
            .chain([tensors[15].0])
            .collect();
        let plan = draft.plan(&outputs, Isa::best());
        let exact = |part: &super::plan::Part| plan.slots[part.slot].values == part.values;
        assert!(
            plan.outputs.iter().all(exact),
            "draft {number}: an output is made longer and shorter in turns"
        );
        both += usize::from(plan.segments.len() > 1);
        let mut values = Random(number);
        let images: Vec<Image> = (0..4)
            .map(|_| Image {
                inputs: sizes.iter().map(|size| values.values(*size)).collect(),
                outputs: vec![Vec::new(); outputs.len()],
            })
            .collect();
        let mut buffers = Buffers::default();
        let mut alone = images.clone();
        for image in &mut alone {
            plan.run(&mut buffers, &mut [image], &pool);
        }
        for count in [2, 4, 3] {
            let mut together = images[..count].to_vec();
            let mut each: Vec<&mut Image> = together.iter_mut().collect();
            plan.run(&mut buffers, &mut each, &pool);
            for (given, alone) in together.iter().zip(&alone) {
                assert_eq!(given.outputs, alone.outputs, "draft {number}, {count} images");
                assert_eq!(given.inputs, alone.inputs, "draft {number}: inputs are handed back");
            }
        }
        if number == 200 {
            pool = Pool::new(2).unwrap();
        }
    }
    assert!(both > 200, "{both} plans have segments of both kinds");
}

#[test]
fn a_draft_that_is_wrong_about_a_size_panics_and_touches_nothing_else() {
    let mut draft = Draft::default();
    let x = draft.input(12);
    let layer = Linear {
        weights: vec![0.0; 12],
        inputs: 4,
        bias: vec![0.0; 3],
        activation: Activation::None,
    };
    let y = draft.compute(Work::Linear(layer), x, 10);
    let plan = draft.plan(&[y], Isa::best());
    let pool = Pool::new(2).unwrap();
    let run = std::panic::catch_unwind(|| {
        let mut image = Image {
            inputs: vec![vec![0.0; 12]],
            outputs: vec![Vec::new()],
        };
        plan.run(&mut Buffers::default(), &mut [&mut image], &pool);
    });
    assert_eq!(
        *run.unwrap_err().downcast::<String>().unwrap(),
        "a linear gives what was drafted"
    );
    // The threads are free again.
    assert_eq!(pool.turn().threads(), 2);
}
