//! `offramp-fleet enrol`, `offramp-fleet broker` and `offramp-fleet acl`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use offramp_fleet::{Authority, acl, write_private};
use offramp_proto::{DeviceId, TenantId};
use serde::Deserialize;
use serde_json::json;

use super::client::{Client, parse};
use super::{Place, Server, print};

/// Prints a token that holds once. On the device: `offramp enrol URL --token TOKEN`, with the address of the controller.
#[derive(Debug, Args)]
pub(super) struct Enrol {
    /// The only device that it is for; it may have a certificate already, which it then gets anew. Without one, any
    /// device that has none.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceId>,
    /// Hours for which it holds.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=2160))]
    hours: u64,
    /// A label that the device is given; may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    server: Server,
}

/// Makes a folder with all that mosquitto needs to serve the fleet: a listener for its `conf.d`, rules, a certificate
/// for the broker, that of the fleet's authority; and the controller's own. The authority is kept in
/// PREFIX.ca.key and PREFIX.ca.pem, and made when there is none: back it up.
#[derive(Debug, Args)]
pub(super) struct Broker {
    /// A name or address under which devices reach the broker; may be repeated.
    #[arg(long, value_name = "NAME", required = true)]
    host: Vec<String>,
    /// Port of the listener.
    #[arg(long, default_value_t = 8883)]
    port: u16,
    /// The folder; made when it is missing.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    place: Place,
    /// Name of the fleet on the broker.
    #[arg(long, value_name = "NAME", default_value = "default", env = "OFFRAMP_TENANT")]
    tenant: TenantId,
}

/// Prints who may read and write which topics, as a broker reads it. Users are the common names of certificates.
#[derive(Debug, Args)]
pub(super) struct Acl {
    /// The broker.
    broker: Kind,
    /// Name of the fleet on the broker.
    #[arg(long, value_name = "NAME", default_value = "default", env = "OFFRAMP_TENANT")]
    tenant: TenantId,
}

/// All that it was given so far: they hold no longer, as soon as the broker has the list (`offramp-fleet crl`). The device
/// goes into quarantine at once. Enrolling it anew (`enrol --device`) gives it one that holds.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The device.
    device: DeviceId,
    /// Why, for whoever looks at it later.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    server: Server,
}

/// Prints a certificate revocation list in PEM form: the file crl.pem of a broker (`offramp-fleet broker`). mosquitto reads
/// it when it starts.
#[derive(Debug, Args)]
pub(super) struct Crl {
    #[command(flatten)]
    server: Server,
}

impl Revoke {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Done {
            revoked: u64,
        }
        let path = format!("/devices/{}/revoke", self.device);
        let answer = Client::new(&self.server).post_json(&path, &json!({"reason": self.reason}))?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let done: Done = parse(&answer)?;
        eprintln!("now give the broker the list: offramp-fleet crl > crl.pem, and restart it");
        let what = if done.revoked == 1 {
            "certificate"
        } else {
            "certificates"
        };
        print(&format!("{} {what} of {} revoked\n", done.revoked, self.device))
    }
}

impl Crl {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            list: String,
        }
        let answer = Client::new(&self.server).get("/revocations", &[])?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        print(&parse::<Answer>(&answer)?.list)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// For mosquitto's option `acl_file`.
    Mosquitto,
    /// For EMQX 5's file `acl.conf`.
    Emqx,
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("use KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Enrol {
    pub(super) fn run(self) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Answer {
            token: String,
        }
        let labels: BTreeMap<String, String> = self.label.into_iter().collect();
        let wanted =
            json!({"device": self.device.as_ref().map(DeviceId::as_str), "hours": self.hours, "labels": labels});
        let answer = Client::new(&self.server).post_json("/enrolments", &wanted)?;
        if self.server.json {
            return print(&format!("{answer}\n"));
        }
        let made: Answer = parse(&answer)?;
        eprintln!("on the device: offramp enrol {} --token TOKEN", self.server.url);
        print(&format!("{}\n", made.token))
    }
}

impl Broker {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let authority = Authority::load_or_generate(&self.place.keys(), &self.tenant)?;
        std::fs::create_dir_all(&self.out).with_context(|| format!("cannot make folder {}", self.out.display()))?;
        let folder = self.out.canonicalize()?;
        let (certificate, key) = authority.broker(&self.host)?;
        let listener = format!("offramp-{}.conf", self.tenant);
        let files = [
            ("ca.pem", authority.certificate().to_owned()),
            ("broker.pem", certificate),
            ("acl", acl::mosquitto(&self.tenant)),
            ("00-offramp.conf", acl::MOSQUITTO_FIRST.to_owned()),
            (&listener, acl::mosquitto_listener(self.port, &folder)),
        ];
        for (name, text) in files {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        // What was revoked before stays so.
        let list = folder.join("crl.pem");
        if !list.exists() {
            let text = authority.revocations(&[])?;
            std::fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))?;
        }
        write_private(&folder.join("broker.key"), &key)?;
        write_private(&folder.join("controller.pem"), &authority.controller()?)?;
        let (shown, host) = (folder.display(), &self.host[0]);
        eprintln!(
            "mosquitto: let it read {shown}/broker.key (`chown mosquitto`), and put 00-offramp.conf and {listener} into its conf.d\n\
             controller: offramp-fleet serve --broker mqtts://{host}:{} --ca {shown}/ca.pem --identity \
             {shown}/controller.pem",
            self.port
        );
        print(&format!("{shown}\n"))
    }
}

impl Acl {
    pub(super) fn run(self) -> anyhow::Result<()> {
        print(&match self.broker {
            Kind::Mosquitto => acl::mosquitto(&self.tenant),
            Kind::Emqx => acl::emqx(&self.tenant),
        })
    }
}
