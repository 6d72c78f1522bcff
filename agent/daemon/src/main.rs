//! `offramp`: the agent and its tools.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use offramp::agent::SetLog;
use offramp::{terminal, tool};
use offramp_proto::LogLevel;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, reload};

#[global_allocator]
static ALLOCATOR: tool::bench::Counting = tool::bench::Counting;

/// Early-exit image classification on edge devices: the agent and its tools.
#[derive(Parser)]
#[command(
    version,
    propagate_version = true,
    max_term_width = 100,
    arg_required_else_help = true
)]
#[command(after_help = "Exit status: 0 done, 1 failed, 2 wrong usage. Logs: RUST_LOG, e.g. RUST_LOG=offramp=debug.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Write logs as JSON lines.
    #[arg(long, global = true)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Show it all at work: broker, controller, page and an agent that specializes, in one minute.
    #[cfg(feature = "demo")]
    Demo(offramp::demo::Demo),
    /// Run the agent of a configuration file; predictions go to standard output as JSON lines.
    Run {
        /// The configuration (TOML); see docs/guide.md.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Start from the model's own heads, and discard what was learned; it also ends a pause of learning.
        #[arg(long)]
        forget: bool,
    },
    /// Make this machine a device of a fleet: a key, and a certificate for it.
    Enrol(tool::enrol::Enrol),
    /// Tell what this machine can run, and what would help where it cannot.
    Doctor(tool::doctor::Doctor),
    /// Look into model packages.
    #[command(subcommand)]
    Model(Model),
    /// Make, check and try exit policies.
    #[command(subcommand)]
    Policy(Policy),
    /// Measure.
    #[command(subcommand)]
    Bench(Bench),
}

#[derive(Args)]
struct Package {
    /// A directory with a model.toml, its one file, a name in models/zoo, or the embedded `revcol-fashion`.
    #[arg(default_value = offramp::package::EMBEDDED)]
    package: String,
}

#[derive(Subcommand)]
enum Model {
    /// Check a package whole: manifest, digests, shapes, weights, stages, reference vectors.
    Check {
        #[command(flatten)]
        package: Package,
        #[command(flatten)]
        on: tool::model::On,
    },
    /// Measure a package on labelled images: each exit alone, and the cascade at a sweep of thresholds.
    Eval {
        #[command(flatten)]
        package: Package,
        /// Folder with `cifar-100/`, for packages whose images are not embedded.
        #[arg(long, value_name = "DIR", env = "OFFRAMP_DATA")]
        data: Option<PathBuf>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Make one file of a package, for `offramp-fleet model add --from` and other ways to bring it somewhere. The same
    /// package gives the same bytes.
    Pack {
        /// The package's directory.
        package: PathBuf,
        /// The file; NAME-VERSION.tar without it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Print what a package says of itself.
    Show {
        #[command(flatten)]
        package: Package,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Policy {
    /// Make a project for a policy of your own, which builds as it is.
    #[cfg(feature = "author")]
    New(tool::policy::New),
    /// Build a policy: its folder, or a core module from another language.
    #[cfg(feature = "author")]
    Build(tool::policy::Build),
    /// Check a component: imports, exports, contract version, size, fuel of its dearest verdict.
    Check {
        /// The component.
        file: PathBuf,
        /// A parameter, as often as needed.
        #[arg(long = "parameter", value_name = "NAME=VALUE")]
        parameters: Vec<String>,
        /// Ask for a signature of this public key, in FILE.sig.
        #[arg(long, value_name = "KEY")]
        trusted: Option<String>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Vouch for a component: write a signature beside it, which devices can ask for.
    Sign(tool::policy::Sign),
    /// Run a policy on traces: accuracy, cost, exits used and fuel, beside the built-in rule.
    Test(tool::policy::Test),
    /// Make a labelled trace: what policies see of a package's labelled images, to the last exit.
    Trace(tool::policy::Trace),
}

#[derive(Subcommand)]
enum Bench {
    /// Measure several cameras at one engine: frames a second beside as many agents, and latencies under load.
    Cameras(tool::bench::CamerasBench),
    /// Time the core's work at each exit and an update beside reading their weights once, and a call of the policy.
    Core(tool::bench::CoreBench),
    /// Time the stages in our kernels beside tract, ONNX Runtime and PyTorch, and what the agent adds to them.
    Engine(tool::bench::EngineBench),
    /// Time a verdict of each shipped policy, in WebAssembly with fuel and in native code.
    Policy(tool::bench::PolicyBench),
    /// Measure frames a second and accuracy on streams of a subset, beside the whole network in ONNX Runtime.
    Stream(tool::bench::StreamBench),
    /// Measure what specialization gains on subsets and costs over all classes, beside the rules it is compared
    /// with.
    Specialization(tool::bench::SpecializationBench),
}

fn main() -> ExitCode {
    let cli = parse(std::env::args_os());
    let started = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| quiet(&cli.command).into());
    let filter = EnvFilter::try_new(&started).unwrap_or_else(|_| EnvFilter::new(quiet(&cli.command)));
    let (filter, handle) = reload::Layer::new(filter);
    let logs = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    if cli.log_json {
        registry.with(logs.json()).init();
    } else {
        registry.with(logs).init();
    }
    let set_log = move |level: Option<LogLevel>| {
        let filter = match level {
            // Of libraries what may go wrong.
            Some(level) => EnvFilter::new(format!("warn,offramp={0},offramp_link={0}", level.name())),
            None => EnvFilter::try_new(&started).unwrap_or_else(|_| EnvFilter::new("info")),
        };
        if let Err(error) = handle.reload(filter) {
            tracing::warn!(%error, "what is logged stays as it was");
        }
    };
    match run(cli.command, Box::new(set_log)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", terminal::explain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Cli {
    Cli::parse_from(arguments)
}

/// An agent that runs by itself logs what happens; a tool in somebody's hands only what is wrong.
fn quiet(command: &Command) -> &'static str {
    match command {
        Command::Run { .. } => "info",
        #[cfg(feature = "demo")]
        Command::Demo(_) => "error",

        Command::Enrol(_) | Command::Doctor(_) | Command::Model(_) | Command::Policy(_) | Command::Bench(_) => "warn",
    }
}

fn run(command: Command, set_log: SetLog) -> anyhow::Result<()> {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(demo) => offramp::demo::run(&demo),
        Command::Run { config, forget } => tool::run::run(&config, forget, set_log),
        Command::Enrol(enrol) => tool::enrol::enrol(&enrol),
        Command::Doctor(doctor) => tool::doctor::run(&doctor),
        Command::Model(Model::Check { package, on }) => tool::model::check(&package.package, &on),
        Command::Model(Model::Pack { package, out }) => tool::model::pack(&package, out),
        Command::Model(Model::Show { package, json }) => tool::model::show(&package.package, json),
        Command::Model(Model::Eval { package, data, json }) => {
            tool::model::eval(&package.package, data.as_deref(), json)
        }
        Command::Policy(Policy::Check {
            file,
            parameters,
            trusted,
            json,
        }) => tool::policy::check(&file, &parameters, trusted.as_deref(), json),
        #[cfg(feature = "author")]
        Command::Policy(Policy::New(new)) => tool::policy::new(&new),
        #[cfg(feature = "author")]
        Command::Policy(Policy::Build(build)) => tool::policy::build(&build),
        Command::Policy(Policy::Test(test)) => tool::policy::test(&test),
        Command::Policy(Policy::Sign(sign)) => tool::policy::sign(&sign),
        Command::Policy(Policy::Trace(trace)) => tool::policy::trace(&trace),
        Command::Bench(Bench::Cameras(bench)) => tool::bench::cameras(&bench),
        Command::Bench(Bench::Core(bench)) => tool::bench::core(&bench),
        Command::Bench(Bench::Engine(engine)) => tool::bench::engine(&engine),
        Command::Bench(Bench::Policy(bench)) => tool::bench::policy(&bench),
        Command::Bench(Bench::Stream(bench)) => tool::bench::stream(&bench),
        Command::Bench(Bench::Specialization(bench)) => tool::bench::specialization(&bench),
    }
}
