//! `offramp-fleet token …` and `offramp-fleet whoami`

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use offramp_fleet::{Database, Role};
use offramp_proto::TenantId;
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, parse};
use super::{Align, Server, print, table};

#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token, and print its secret.
    Create(Create),
    /// List the tokens.
    List(List),
    /// Revoke a token, and end its sessions, at once.
    Revoke(Revoke),
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArg {
    /// See everything but the tokens.
    Viewer,
    /// Push policies and roll them out, too.
    Operator,
    /// Make and revoke tokens, too.
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Viewer => Self::Viewer,
            RoleArg::Operator => Self::Operator,
            RoleArg::Admin => Self::Admin,
        }
    }
}

/// The secret is printed once and kept nowhere. Give it to commands as OFFRAMP_FLEET_TOKEN, to programs as
/// `Authorization: Bearer SECRET`, and to people for the login page.
///
/// Until there is a token, whoever reaches the controller may do everything, and it serves this machine only. The first
/// must be an admin's; from then on everybody is asked for one.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name, for the audit log: whose it is, or what for. It is never used again.
    name: String,
    /// What it allows.
    #[arg(long)]
    role: RoleArg,
    /// Days for which it holds [default: until it is revoked].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3660), conflicts_with = "database")]
    days: Option<u64>,
    /// Make it in the database itself: for the first one, and when all are lost. A file must not be in use by a running
    /// controller.
    #[arg(long, value_name = "FILE|URL", conflicts_with_all = ["url", "token"])]
    database: Option<Database>,
    /// Name of the fleet, where the database is new.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "default",
        env = "OFFRAMP_TENANT",
        requires = "database"
    )]
    tenant: TenantId,
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    server: Server,
}

#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// Its name.
    name: String,
    #[command(flatten)]
    server: Server,
}

/// The name and role that the controller sees.
#[derive(Debug, Args)]
pub(super) struct Whoami {
    #[command(flatten)]
    server: Server,
}

#[derive(Deserialize)]
struct Made {
    token: String,
}

#[derive(Deserialize)]
struct Listed {
    tokens: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    role: String,
    created_by: String,
    created_at: u64,
    expires_at: Option<u64>,
    revoked_at: Option<u64>,
    used_at: Option<u64>,
}

impl Token {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Create(create) => create.run(),
            Self::List(list) => list.run(),
            Self::Revoke(revoke) => revoke.run(),
        }
    }
}

impl Create {
    fn run(self) -> anyhow::Result<()> {
        let answer = match &self.database {
            Some(database) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let make = offramp_fleet::create_in_database(database, &self.tenant, &self.name, self.role.into());
                let token = runtime.context("cannot start the runtime")?.block_on(make)?;
                json!({"name": self.name, "token": token}).to_string()
            }
            None => {
                let wanted = json!({"name": self.name, "role": Role::from(self.role), "days": self.days});
                Client::new(&self.server).post_json("/tokens", &wanted)?
            }
        };
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let made: Made = parse(&answer)?;
        eprintln!("keep it safe: it cannot be shown again");
        print(&format!("{}\n", made.token))
    }
}

impl List {
    fn run(self) -> anyhow::Result<()> {
        let answer = Client::new(&self.server).get("/tokens", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let listed: Listed = parse(&answer)?;
        if listed.tokens.is_empty() {
            eprintln!("there is no token: whoever reaches the controller may do everything");
            return Ok(());
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let time = |at: Option<u64>, none: &str| at.map_or_else(|| none.to_owned(), offramp_fleet::utc);
        let rows: Vec<Vec<String>> = listed
            .tokens
            .into_iter()
            .map(|token| {
                let state = match (token.revoked_at, token.expires_at) {
                    (Some(at), _) => format!("revoked {}", offramp_fleet::utc(at)),
                    (None, Some(at)) if at <= now => format!("expired {}", offramp_fleet::utc(at)),
                    (None, Some(at)) => format!("until {}", offramp_fleet::utc(at)),
                    (None, None) => "valid".into(),
                };
                vec![
                    token.name,
                    token.role,
                    state,
                    time(token.used_at, "never"),
                    format!("{} by {}", offramp_fleet::utc(token.created_at), token.created_by),
                ]
            })
            .collect();
        let heads = ["NAME", "ROLE", "STATE", "USED", "MADE"].map(|head| (head, Align::Left));
        print(&table(&heads, &rows))
    }
}

impl Revoke {
    fn run(self) -> anyhow::Result<()> {
        // A name that could mean another resource is none of a token's.
        if self.name.contains(['/', '?', '#', '%']) {
            anyhow::bail!("there is no token `{}`: see `offramp-fleet token list`", self.name);
        }
        Client::new(&self.server).delete(&format!("/tokens/{}", self.name))?;
        if self.server.json {
            return Ok(());
        }
        print(&format!("token {} does not hold any more\n", self.name))
    }
}

impl Whoami {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            name: String,
            role: String,
            login: bool,
        }
        let answer = Client::new(&self.server).get("/whoami", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let who: Answer = parse(&answer)?;
        let note = if who.login {
            ""
        } else {
            " (nobody is asked for a token)"
        };
        print(&format!("{} {}{note}\n", who.name, who.role))
    }
}
