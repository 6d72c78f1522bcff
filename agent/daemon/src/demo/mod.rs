//! `offramp demo`: broker, controller with its page, and an agent, in one process and about a minute.
//!
//! The agent sees all classes first, then a subset; half-way through the subset the controller pushes
//! another policy. Then frozen and specialized heads are measured on images that the stream did not show.

mod report;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use offramp_broker::{Broker, Persistence};
use offramp_camera::Playback;
use offramp_core::{LearnerSettings, Prediction, Settings, SplitMix64};
use offramp_fleet::{Controller, PolicyUpload, Target};
use offramp_link::BrokerUrl;
use offramp_model::Package;
use offramp_proto::{DeviceId, Parameter, TenantId};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::agent::{Agent, Fleet, Listener, Options, Source};
use crate::evaluate::{self, Report};
use crate::judge::{PolicyJudge, PolicySource, Workshop};
use crate::lane::Single;
use crate::package;
use crate::terminal;
use crate::tool::{self, Images};

pub use report::{Heads, PolicySwap, Summaries, Verdict};

/// Frames of all classes, then of the subset.
const FRAMES: [usize; 2] = [1_000, 3_000];
/// Least time between two frames: slow enough to watch.
const FRAME_EVERY: Duration = Duration::from_millis(8);
/// How long anything may take that should take no time at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// Settings of the demo.
#[derive(Args, Debug)]
pub struct Demo {
    /// Show CIFAR-100 from this folder (with `cifar-100/`) instead of the embedded Fashion-MNIST sample.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Model package: a directory or a name; the one that fits the data without it.
    #[arg(long, value_name = "PACKAGE")]
    package: Option<String>,
    /// Subset of classes that the camera gets to see, as the package names it.
    #[arg(long, value_name = "NAME")]
    subset: Option<String>,
    /// Leave the page up after the run, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// Address of the page.
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))]
    listen: SocketAddr,
    /// Seed of the order of the images and of what is audited.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the demo.
///
/// # Errors
/// When a part does not start, or does not do what it should.
pub fn run(demo: &Demo) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(Box::pin(show(demo)))
}

/// What the stream shows.
struct Scene {
    package: Package,
    subset: String,
    classes: Vec<u16>,
    images: Images,
}

impl Scene {
    fn set(demo: &Demo) -> anyhow::Result<Self> {
        let default = if demo.data.is_some() {
            "revcol-cifar100"
        } else {
            package::EMBEDDED
        };
        let package = package::open(demo.package.as_deref().unwrap_or(default))?;
        let images = tool::images(&package, demo.data.as_deref())?;
        let subsets = &package.manifest().subsets;
        let preferred = ["footwear", "vehicles-1"]
            .into_iter()
            .find(|name| subsets.contains_key(*name));
        let first = preferred.or_else(|| subsets.keys().next().map(String::as_str));
        let subset = demo
            .subset
            .as_deref()
            .or(first)
            .context("the package names no subset of classes")?
            .to_owned();
        let Some(classes) = subsets.get(&subset) else {
            let known = subsets.keys().cloned().collect::<Vec<_>>().join(", ");
            bail!(
                "package {} has no subset `{subset}`; it has {known}",
                package.manifest().name
            );
        };
        let classes = classes.iter().map(|class| *class as u16).collect();
        Ok(Self {
            package,
            subset,
            classes,
            images,
        })
    }

    /// All classes first, then the subset; images come again once all have been shown.
    fn order(&self, seed: u64) -> Vec<u32> {
        let mut random = SplitMix64(seed);
        let stream = &self.images.stream;
        let pools = [(0..stream.len() as u32).collect(), stream.of_classes(&self.classes)];
        let parts = pools.into_iter().zip(FRAMES);
        parts
            .flat_map(|(pool, frames)| tool::shuffled(pool, frames, &mut random))
            .collect()
    }
}

/// Quick to learn, as a demo must be, and audited often enough to show a bound.
fn settings(package: &Package) -> Settings {
    let settings = package::settings(package);
    Settings {
        audit_rate: 0.05,
        learner: LearnerSettings {
            rate: 0.3,
            ..settings.learner
        },
        ..settings
    }
}

/// The policy of the start.
fn first_policy() -> PolicySource {
    PolicySource::threshold([("threshold".to_owned(), Parameter::Number(0.97))].into())
}

/// The policy that the controller pushes half-way: as sure, or three exits of one mind.
fn second_policy() -> PolicySource {
    let parameters = [
        ("threshold".to_owned(), Parameter::Number(0.97)),
        ("floor".to_owned(), Parameter::Number(0.9)),
        ("patience".to_owned(), Parameter::Integer(2)),
    ];
    PolicySource::shipped("patience", parameters.into()).expect("it is shipped")
}

async fn show(demo: &Demo) -> anyhow::Result<()> {
    let say = |text: &str| eprintln!("{text}");
    let scene = Scene::set(demo)?;
    let manifest = scene.package.manifest();
    say(&format!(
        "Offramp demo: {} ({} classes, {} exits), subset `{}`",
        manifest.name,
        manifest.classes.len(),
        manifest.exits.len(),
        scene.subset
    ));
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let broker = Broker::start((Ipv4Addr::LOCALHOST, 0).into(), Persistence::Memory).await?;
    let url: BrokerUrl = format!("mqtt://{}", broker.address()).parse()?;
    let tenant = TenantId::new("demo")?;
    let device = DeviceId::new("camera-1")?;
    let mut options = offramp_fleet::Options::temporary(url.clone(), tenant.clone());
    options.listen = demo.listen;
    let controller = Controller::start(options).await?;
    say(&format!("page: http://{}/\n", controller.address()));

    let state = folder.path().join("state.redb");
    let options = Options {
        fleet: Some(Fleet {
            broker: url,
            credentials: None,
            ca: None,
            identity: None,
            key: controller.public_key(),
        }),
        summary_every: Duration::from_millis(500),
        checkpoint_every: Duration::from_secs(2),
        seed: Some(demo.seed),
        ..Options::new(device.clone(), tenant, first_policy(), settings(&scene.package), state)
    };
    let camera = Playback::new(Arc::new(scene.images.stream.clone()), scene.order(demo.seed))?;
    let (half_way, reached) = oneshot::channel();
    let (bar, listener) = watch_stream(&scene, half_way);
    let source = Source {
        frame_every: Some(FRAME_EVERY),
        ..Source::new(Box::new(camera), listener)
    };
    let agent = Agent::start(options, &scene.package, vec![source])?;
    let mut counters = agent.counters();
    // The device must be known before a policy can be pushed to it.
    timeout(PATIENCE, controller.summaries_ingested(1))
        .await
        .context("the controller heard nothing of the agent")?;

    reached.await.context("the stream ended before its half")?;
    let to = second_policy();
    bar.println(format!(
        "controller: pushing policy {} {} over MQTT",
        to.name, to.version
    ));
    let upload = PolicyUpload {
        name: to.name.clone(),
        version: to.version,
        bytes: to.bytes.clone(),
        parameters: to.parameters.clone(),
    };
    let pushed = controller.push_policy(Target::All, upload).await?;
    let generation = *pushed
        .generations
        .get(&device)
        .context("the controller does not know the device")?;
    let answer = timeout(PATIENCE, controller.reported(&device, generation)).await;
    if let Some(why) = answer
        .context("the agent did not answer to its desired state")??
        .refused
    {
        bail!("the agent refused the policy: {why}");
    }
    let swapped = timeout(PATIENCE, counters.wait_for(|counters| !counters.swaps.is_empty())).await;
    let swap = swapped.context("the agent did not swap its policy")??.swaps[0].clone();
    bar.println(format!(
        "agent: {} decides from frame {} on, after {}",
        swap.to, swap.frame, swap.from
    ));

    let mut outcome = tokio::task::spawn_blocking(move || agent.join()).await?;
    let camera = outcome.cameras.pop().context("the demo has a camera")?;
    bar.finish_and_clear();
    let sent = counters.borrow().sent;
    let statistics = timeout(PATIENCE, controller.summaries_ingested(sent)).await;
    statistics.context("summaries that the broker confirmed did not reach the controller")?;

    let (subset, all) = tokio::task::spawn_blocking({
        let heads = camera.heads;
        let (package, evaluation, classes) = (
            scene.package.clone(),
            scene.images.evaluation.clone(),
            scene.classes.clone(),
        );
        move || measure(&package, &evaluation, &classes, &to, &heads)
    })
    .await??;
    let statistics = controller.statistics();
    let verdict = Verdict {
        subset,
        all,
        policy_swap: PolicySwap {
            from: swap.from,
            to: swap.to,
            frames_lost: camera.arrived - camera.predicted,
        },
        summaries: Summaries {
            sent,
            ingested: statistics.ingested,
            duplicates: statistics.duplicates,
        },
    };
    if demo.json {
        terminal::line(&serde_json::to_string(&verdict)?)?;
    } else {
        terminal::line(&verdict.table(&scene.subset, camera.arrived))?;
    }
    if demo.keep {
        say(&format!(
            "\nThe page stays at http://{}/ until Ctrl-C.",
            controller.address()
        ));
        tokio::signal::ctrl_c().await?;
    }
    controller.shutdown().await;
    broker.shutdown().await?;
    Ok(())
}

/// Shows progress, and tells when the policy is to be pushed.
fn watch_stream(scene: &Scene, half_way: oneshot::Sender<()>) -> (ProgressBar, Listener) {
    /// Frames of which the line shows the means.
    const RECENT: usize = 200;
    let total: usize = FRAMES.iter().sum();
    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template("{prefix:>12} {bar:24} {pos}/{len}  {msg}");
    bar.set_style(style.expect("a valid template").progress_chars("━━╌"));
    let shown = bar.clone();
    let names = ["all classes".to_owned(), scene.subset.clone()];
    let plain = bar.is_hidden();
    let full: u64 = scene.package.manifest().stages.iter().map(|stage| stage.macs).sum();
    let exits = scene.package.manifest().exits.len();
    let mut recent = std::collections::VecDeque::with_capacity(RECENT);
    let mut half_way = Some(half_way);
    let mut seen = 0;
    let listener = move |prediction: &Prediction, _: &offramp_camera::Frame, _: &[String]| {
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back((prediction.exit as usize, prediction.macs));
        seen += 1;
        let phase = usize::from(seen > FRAMES[0]);
        if seen == 1 || seen == FRAMES[0] + 1 {
            shown.set_prefix(names[phase].clone());
            if plain {
                eprintln!("frames {seen} and on: {}", names[phase]);
            }
        }
        if seen == FRAMES[0] + FRAMES[1] / 2
            && let Some(half_way) = half_way.take()
        {
            let _ = half_way.send(());
        }
        if seen % 20 == 0 {
            let mut taken = vec![0.0; exits];
            let mut macs = 0;
            for (exit, cost) in &recent {
                taken[*exit] += 1.0 / recent.len() as f64;
                macs += cost;
            }
            let share = macs as f64 / (full * recent.len() as u64) as f64;
            shown.set_message(format!(
                "exits {} %  cost {:.0} % of the full network",
                tool::model::shares(&taken),
                share * 100.0
            ));
            shown.set_position(seen as u64);
        }
    };
    (bar, Box::new(listener))
}

/// Frozen and specialized heads on the same images, under the policy that was in force at the end.
fn measure(
    package: &Package,
    evaluation: &offramp_camera::ImageSet,
    classes: &[u16],
    policy: &PolicySource,
    heads: &[u8],
) -> anyhow::Result<(Heads, Heads)> {
    let workshop = Workshop::new(package)?;
    let bar = terminal::progress(2 * evaluation.len() as u64, "measuring");
    let mut measured = Vec::new();
    for specialized in [false, true] {
        let mut single = Single::new(package, tool::measuring(package, 1.0), 1)?;
        if specialized {
            single.lane.core.restore(heads)?;
        }
        let mut judge = PolicyJudge::new(workshop.prepare(policy)?);
        measured.push(evaluate::subset_and_all(
            &mut single,
            &mut judge,
            evaluation,
            classes,
            || bar.inc(1),
        )?);
    }
    bar.finish_and_clear();
    let [(subset_before, all_before), (subset_after, all_after)]: [(Report, Report); 2] =
        measured.try_into().ok().context("two measurements")?;
    Ok((
        Heads {
            frozen: subset_before,
            specialized: subset_after,
        },
        Heads {
            frozen: all_before,
            specialized: all_after,
        },
    ))
}
