//! The command line.

mod client;
mod devices;
mod enrol;
mod events;
mod group;
mod insight;
mod keys;
mod library;
mod model;
mod policy;
mod rollout;
mod serve;
mod settings;
mod swarm;
mod token;

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use offramp_fleet::Database;
use offramp_proto::{InvalidParameter, Parameter};

const DATABASE: &str = "offramp-fleet.db";

/// The fleet controller of Offramp.
///
/// `serve` runs it: it takes in what devices say over an MQTT v5 broker, keeps it in SQLite or PostgreSQL, signs and
/// publishes what devices should run, and serves a web page and an API. The other commands talk to a
/// running controller, except `key`, `broker`, `acl` and `openapi`.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller until it is told to stop (SIGINT or SIGTERM).
    Serve(serve::Serve),
    /// List the devices of a running controller.
    Devices(devices::Devices),
    /// Show one device, or what it told lately.
    Device(devices::Show),
    /// Keep a device apart.
    Quarantine(devices::Quarantine),
    /// Let a device out of quarantine.
    Release(devices::Release),
    /// Give labels to devices, or take them away.
    Label(group::Label),
    /// Change settings of devices: learner, accuracy budget, log.
    Set(settings::Set),
    /// Name groups of devices.
    #[command(subcommand)]
    Group(group::Group),
    /// Show what specialization is worth, and where.
    Insight(insight::Insight),
    /// Show the state of a running controller: broker, messages, summaries.
    Status(events::Status),
    /// Show what devices found worth telling, the last first.
    Events(events::Events),
    /// Push and list exit policies.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Add models and give them to devices.
    #[command(subcommand)]
    Model(model::Model),
    /// Roll policies and models out in waves, with gates that stop what does harm.
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Make, list and revoke the tokens of people and programs.
    #[command(subcommand)]
    Token(token::Token),
    /// Make a token with which a device gets its certificate.
    Enrol(enrol::Enrol),
    /// Revoke a device's certificates.
    Revoke(enrol::Revoke),
    /// Print the certificates that hold no longer, as brokers read them.
    Crl(enrol::Crl),
    /// Make what a mosquitto needs to serve this fleet over TLS, and the controller's certificate.
    Broker(enrol::Broker),
    /// Print a broker's rules: who may read and write which topics.
    Acl(enrol::Acl),
    /// Show as whom the controller sees you.
    Whoami(token::Whoami),
    /// Print the description of the API (OpenAPI 3.1).
    Openapi,
    /// Show who did what.
    Audit(rollout::Audit),
    /// Simulate devices: a benchmark, and a way to try a controller out.
    Swarm(swarm::SwarmArgs),
    /// Print what a shell needs to complete this program's commands.
    Completion(Completion),
    /// List, rotate and revoke the keys that sign desired states.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Print the public key with which devices verify their desired state.
    Key(Key),
}

/// Where a running controller is.
#[derive(Clone, Args)]
struct Server {
    /// Address of the controller's page and API.
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8470",
        env = "OFFRAMP_FLEET_URL"
    )]
    url: String,
    /// Secret of a token (`offramp-fleet token create`), where the controller asks for one. Others on this machine can
    /// read command lines: better set the variable.
    #[arg(long, value_name = "SECRET", env = "OFFRAMP_FLEET_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Print the controller's answer as JSON, where it gives one.
    #[arg(long)]
    json: bool,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "…");
        f.debug_struct("Server")
            .field("url", &self.url)
            .field("token", &token)
            .field("json", &self.json)
            .finish()
    }
}

/// E.g. `source <(offramp-fleet completion bash)`.
#[derive(Debug, Args)]
struct Completion {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Prints 64 hexadecimal digits: give them to devices, in their configuration, as the key of their fleet.
/// The key is made when there is none.
#[derive(Debug, Args)]
struct Key {
    #[command(flatten)]
    place: Place,
}

/// Where a controller keeps what it must not lose.
#[derive(Debug, Args)]
struct Place {
    /// Database: a SQLite file, made when it is missing, or postgres://USER:PASSWORD@HOST/DATABASE, which several
    /// controllers may share. Without a password in it, PGPASSWORD has it.
    #[arg(long, value_name = "FILE|URL", default_value = DATABASE, env = "OFFRAMP_FLEET_DATABASE", hide_env_values = true)]
    database: Database,
    /// Signing key and authority: PREFIX.key, PREFIX.ca.key and PREFIX.ca.pem, made when they are missing. Controllers
    /// that share a database need the same [default: the database's FILE; with PostgreSQL, offramp-fleet]
    #[arg(long, value_name = "PREFIX", env = "OFFRAMP_FLEET_KEYS")]
    keys: Option<PathBuf>,
}

impl Place {
    fn keys(&self) -> PathBuf {
        self.keys.clone().unwrap_or_else(|| self.database.keys())
    }
}

/// Does what the command line says.
pub(crate) fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Devices(devices) => devices.run(),
        Command::Device(device) => device.run(),
        Command::Quarantine(quarantine) => quarantine.run(),
        Command::Release(release) => release.run(),
        Command::Label(label) => label.run(),
        Command::Group(group) => group.run(),
        Command::Set(set) => set.run(),
        Command::Keys(keys) => keys.run(),
        Command::Insight(status) => status.run(),
        Command::Status(status) => status.run(),
        Command::Events(events) => events.run(),
        Command::Policy(policy) => policy.run(),
        Command::Model(model) => model.run(),
        Command::Rollout(rollout) => rollout.run(),
        Command::Audit(audit) => audit.run(),
        Command::Token(token) => token.run(),
        Command::Whoami(whoami) => whoami.run(),
        Command::Enrol(enrol) => enrol.run(),
        Command::Revoke(revoke) => revoke.run(),
        Command::Crl(crl) => crl.run(),
        Command::Broker(broker) => broker.run(),
        Command::Acl(acl) => acl.run(),
        Command::Openapi => print(&offramp_fleet::openapi()),
        Command::Swarm(swarm) => swarm.run(),
        Command::Completion(Completion { shell }) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "offramp-fleet", &mut text);
            print(&String::from_utf8(text)?)
        }
        Command::Key(Key { place }) => {
            let key = offramp_fleet::Keyring::load_or_generate(&offramp_fleet::key_path(&place.keys()))?;
            print(&format!("{:?}\n", key.newest()))
        }
    }
}

/// Whether text is a parameter of a policy.
fn check_parameter(text: &str) -> Result<String, InvalidParameter> {
    Parameter::parse(text).map(|_| text.to_owned())
}

/// Writes data to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Rows as aligned columns, the first row being the heads; numbers to the right.
fn table(heads: &[(&str, Align)], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([heads[column].0.len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut text = String::new();
    let heads_row = heads.iter().map(|(head, _)| (*head).to_owned()).collect();
    for row in std::iter::once(&heads_row).chain(rows) {
        let mut line = String::new();
        for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(heads) {
            match align {
                Align::Left => line.push_str(&format!("{cell:<width$}  ")),
                Align::Right => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[derive(Clone, Copy, Debug)]
enum Align {
    Left,
    Right,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// What the API does, and the command that does it.
    #[test]
    fn every_operation_of_the_api_has_a_command_that_can_print_json() {
        let key = offramp_proto::SigningKey::from_seed(&[7; 32]).public();
        let commands = [
            ("audit", "audit"),
            ("list_devices", "devices"),
            ("show_device", "device cam"),
            ("list_summaries", "device cam --summaries"),
            ("quarantine_device", "quarantine cam --reason lost"),
            ("release_device", "release cam"),
            ("revoke_certificates", "revoke cam --reason lost"),
            ("create_enrolment", "enrol"),
            ("list_events", "events"),
            ("list_groups", "group list"),
            ("set_group", "group set night site=north"),
            ("remove_group", "group remove night"),
            ("show_insight", "insight"),
            ("list_keys", "keys list"),
            ("rotate_key", "keys rotate"),
            ("revoke_key", &format!("keys revoke {key:?}")),
            ("label_devices", "label cam site=north"),
            ("list_models", "model list"),
            ("add_model", "model add folder"),
            ("push_model", "model push revcol 2"),
            ("list_policies", "policy list"),
            ("push_policy", "policy push a.wasm --name a --version 1"),
            ("replay_policy", "policy replay a 1"),
            ("list_revocations", "crl"),
            ("list_rollouts", "rollout list"),
            ("start_rollout", "rollout start a 1"),
            ("show_rollout", "rollout show 1"),
            ("command_rollout", "rollout pause 1 --reason night"),
            ("change_settings", "set --all --log debug"),
            ("status", "status"),
            ("list_tokens", "token list"),
            ("create_token", "token create ada --role viewer"),
            ("revoke_token", "token revoke ada"),
            ("whoami", "whoami"),
        ];
        for (operation, command) in &commands {
            let words = format!("offramp-fleet {command} --json");
            let parsed = Cli::try_parse_from(words.split(' '));
            assert!(parsed.is_ok(), "{operation}: {}", parsed.unwrap_err());
        }
        let api: serde_json::Value = serde_json::from_str(&offramp_fleet::openapi()).unwrap();
        let paths = api["paths"].as_object().unwrap().values();
        let operations = paths.flat_map(|path| path.as_object().unwrap().values());
        let mut operations: Vec<&str> = operations.map(|o| o["operationId"].as_str().unwrap()).collect();
        // That is a device's own: `offramp enrol`.
        operations.retain(|operation| *operation != "enrol");
        operations.sort_unstable();
        let mut known: Vec<&str> = commands.iter().map(|(operation, _)| *operation).collect();
        known.sort_unstable();
        assert_eq!(known, operations);
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(
            &[("NAME", Align::Left), ("N", Align::Right)],
            &[vec!["a".into(), "7".into()], vec!["longer".into(), "1234".into()]],
        );
        assert_eq!(text, "NAME       N\na          7\nlonger  1234\n");
    }
}
