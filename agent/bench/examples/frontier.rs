//! dev: frontier over cached features
use offramp_bench::*;
use offramp_core::*;
use std::path::Path;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let pkg = offramp_model::Package::open(Path::new(&a[1])).unwrap();
    let dir = Path::new(&a[2]);
    let stream = Features::read(&dir.join("stream.features")).unwrap();
    let test = Features::read(&dir.join("test.features")).unwrap();
    let heads: Vec<Head> = pkg
        .heads()
        .iter()
        .map(|h| Head::new(h.classes, h.features, h.weight.clone(), h.bias.clone()).unwrap())
        .collect();
    let whiteners = (0..heads.len() - 1)
        .map(|e| Whitener::measure((0..stream.len()).map(|i| stream.of(e, i))))
        .collect();
    let network = Network {
        heads,
        whiteners,
        stage_macs: pkg.manifest().stages.iter().map(|s| s.macs).collect(),
    };
    let seeds: u64 = a[3].parse().unwrap();
    let threshold: f32 = a[4].parse().unwrap();
    let subsets: Vec<(String, Vec<u16>)> = pkg
        .manifest()
        .subsets
        .iter()
        .map(|(n, c)| (n.clone(), c.iter().map(|c| *c as u16).collect()))
        .collect();
    let study = Study {
        network,
        stream: &stream,
        test: &test,
        subsets,
        seeds,
        frames: 3000,
        threshold,
        checkpoints: vec![250, 1000],
    };
    let f = study.core(frozen_settings()).unwrap();
    println!(
        "costs {:?} alone {:?}",
        exit_costs(&f),
        Opinions::of(&f, &test, &(0..test.len()).collect::<Vec<_>>()).alone()
    );
    let mut base = Settings {
        audit_rate: 0.01,
        ..Settings::default()
    };
    base.learner.gate = 0.0;
    let variants: Vec<Variant> = if a.len() > 5 {
        let mut v = vec![];
        for spec in &a[5..] {
            // key=value,...
            let mut s = base;
            s.learner.rate = 0.0;
            s.learner.prior.strength = 0.0;
            let mut labels = Labels::Own;
            for kv in spec.split(',') {
                let (k, x) = kv.split_once('=').unwrap();
                let x: f32 = x.parse().unwrap();
                match k {
                    "r" => s.learner.rate = x,
                    "w" => s.learner.whitened = x > 0.0,
                    "p" => s.learner.prior.strength = x,
                    "win" => s.learner.prior.window = x,
                    "a0" => s.learner.prior.smoothing = x,
                    "gate" => s.learner.gate = x,
                    "soft" => s.learner.target = Target::Soft { temperature: x },
                    "anchor" => s.learner.anchor = x,
                    "audit" => s.audit_rate = x,
                    "g" => s.learner.max_gradient = x,
                    "true" => labels = Labels::True,
                    "flip" => labels = Labels::Flipped(x as f64),
                    "doubt" => s.learner.prior.doubt = x,
                    "ts" => s.guard.temperature_step = x,
                    "trial" => s.guard.trial_every = x as u32,
                    "last" => s.learner.prior.on_last = x > 0.0,
                    _ => panic!("{k}"),
                }
            }
            v.push(Variant {
                name: spec.clone(),
                about: String::new(),
                settings: s,
                labels,
                offline_passes: 0,
                is_poster: false,
            });
        }
        v
    } else {
        Variant::all(base)
    };
    let t = std::time::Instant::now();
    let out = study.run(&variants, || ()).unwrap();
    eprintln!("{:.1} s", t.elapsed().as_secs_f64());
    println!(
        "{:28} gain .3/.4/.6           all .3/.4/.6            spd min   allcost   fix: cost acc | all   upkeep 250 1000",
        ""
    );
    for (v, variant) in variants.iter().enumerate() {
        let rows: Vec<&Outcome> = out.iter().filter(|o| o.variant == v).collect();
        let n = rows.len() as f64;
        let m = |f: &dyn Fn(&Outcome) -> f64| rows.iter().map(|o| f(o)).sum::<f64>() / n;
        let per: Vec<f64> = (0..study.subsets.len())
            .map(|s| {
                let r: Vec<f64> = rows
                    .iter()
                    .filter(|o| o.subset == s)
                    .map(|o| o.on_subset.mean_speedup())
                    .collect();
                r.iter().sum::<f64>() / r.len() as f64
            })
            .collect();
        println!(
            "{:28} {:+.1} {:+.1} {:+.1} = {:+.2} | {:+.2} {:+.2} {:+.2} = {:+.2} | {:.2} {:.2} | {:+.1}% | x{:.3} {:+.1} | x{:.3} {:+.1} | {:.2}% {:+.1} {:+.1}",
            variant.name,
            100.0 * m(&|o| o.on_subset.gain[0]),
            100.0 * m(&|o| o.on_subset.gain[1]),
            100.0 * m(&|o| o.on_subset.gain[2]),
            100.0 * m(&|o| o.on_subset.mean_gain()),
            100.0 * m(&|o| o.on_all.gain[0]),
            100.0 * m(&|o| o.on_all.gain[1]),
            100.0 * m(&|o| o.on_all.gain[2]),
            100.0 * m(&|o| o.on_all.mean_gain()),
            m(&|o| o.on_subset.mean_speedup()),
            per.iter().copied().fold(9.0, f64::min),
            100.0 * (m(&|o| 1.0 / o.on_all.mean_speedup()) - 1.0),
            m(&|o| o.on_subset.fixed[1].cost / o.on_subset.fixed[0].cost),
            100.0 * m(&|o| o.on_subset.fixed[1].accuracy - o.on_subset.fixed[0].accuracy),
            m(&|o| o.on_all.fixed[1].cost / o.on_all.fixed[0].cost),
            100.0 * m(&|o| o.on_all.fixed[1].accuracy - o.on_all.fixed[0].accuracy),
            100.0 * m(&|o| o.upkeep),
            100.0 * m(&|o| o.on_the_way[0]),
            100.0 * m(&|o| o.on_the_way[1])
        );
    }
}
