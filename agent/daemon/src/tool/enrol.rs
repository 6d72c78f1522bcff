//! `offramp enrol`: makes a device one of a fleet.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use offramp_proto::{DeviceId, PublicKey, TenantId};
use rcgen::KeyPair;
use serde::{Deserialize, Serialize};

use crate::{identity, terminal};

/// How long the controller may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer in bytes.
const LARGEST: u64 = 256 * 1024;

/// Makes a key, which never leaves this machine, and gets a certificate for it: the controller hands one out for a token
/// (`offramp-fleet enrol`), once. Prints what belongs into the device's configuration.
#[derive(Args, Debug)]
pub struct Enrol {
    /// Address of the controller's page and API.
    url: String,
    /// The token.
    #[arg(long, value_name = "SECRET", env = "OFFRAMP_ENROL_TOKEN", hide_env_values = true)]
    token: String,
    /// Name of the device, unique within its fleet.
    #[arg(long, value_name = "NAME")]
    device: DeviceId,
    /// Folder for certificate and key; made when it is missing.
    #[arg(long, value_name = "FOLDER", default_value = "identity")]
    out: PathBuf,
    /// Certificate of the authority that the controller's is of, instead of the usual ones.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Talk to another machine without encryption: whoever listens there can take this device's place.
    #[arg(long)]
    insecure: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    token: &'a str,
    device: &'a str,
    request: String,
}

#[derive(Deserialize)]
struct Answer {
    tenant: TenantId,
    certificate: String,
    authority: String,
    broker: String,
    controller_key: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
    hint: String,
}

/// Enrols this device.
///
/// # Errors
/// When the controller refuses, or files cannot be written.
pub fn enrol(enrol: &Enrol) -> anyhow::Result<()> {
    ensure!(
        enrol.insecure || is_private(&enrol.url),
        "{} is another machine and not encrypted: use its https:// address, or --insecure in a network that you trust",
        enrol.url
    );
    let file = enrol.out.join("device.pem");
    let key = KeyPair::generate().context("cannot make a key")?;
    let request = Request {
        token: enrol.token.trim(),
        device: enrol.device.as_str(),
        request: identity::request(&key, enrol.device.as_str())?,
    };
    // Where it will lie is tried first: a token holds once.
    fs::create_dir_all(&enrol.out).with_context(|| format!("cannot make folder {}", enrol.out.display()))?;
    tempfile::NamedTempFile::new_in(&enrol.out)
        .with_context(|| format!("cannot write into {}", enrol.out.display()))?;
    let answer = ask(enrol, &request)?;
    let key_given: Result<PublicKey, _> = answer.controller_key.parse();
    ensure!(key_given.is_ok(), "the controller's key is none");
    fs::write(enrol.out.join("ca.pem"), &answer.authority).context("cannot write ca.pem")?;
    identity::write(&file, &(answer.certificate + &key.serialize_pem()))?;
    let folder = enrol.out.display();
    terminal::line(&format!(
        "[device]\nid = \"{}\"\ntenant = \"{}\"\n\n[fleet]\nbroker = \"{}\"\ncontroller_key = \"{}\"\n\
         ca_file = \"{folder}/ca.pem\"\nidentity_file = \"{folder}/device.pem\"",
        enrol.device, answer.tenant, answer.broker, answer.controller_key
    ))?;
    Ok(())
}

fn ask(enrol: &Enrol, request: &Request<'_>) -> anyhow::Result<Answer> {
    let mut tls = ureq::tls::TlsConfig::builder();
    if let Some(file) = &enrol.ca {
        let pem = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let certificate = ureq::tls::Certificate::from_pem(&pem)
            .with_context(|| format!("{} holds no certificate in PEM form", file.display()))?;
        tls = tls.root_certs(ureq::tls::RootCerts::new_with_certs(&[certificate]));
    }
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .tls_config(tls.build())
        .build()
        .into();
    let url = format!("{}/api/v1/enrol", enrol.url.trim_end_matches('/'));
    let answer = agent
        .post(&url)
        .content_type("application/json")
        .send(serde_json::to_string(request)?);
    let mut answer = answer.with_context(|| format!("no controller answers at {}", enrol.url))?;
    let body = answer.body_mut().with_config().limit(LARGEST).read_to_string()?;
    if answer.status().is_success() {
        return serde_json::from_str(&body).context("the controller's answer is not understood");
    }
    match serde_json::from_str::<Refusal>(&body) {
        Ok(refusal) => bail!("{}\n  hint: {}", refusal.error, refusal.hint),
        Err(_) => bail!(
            "{} answers {}: is it a controller of Offramp?",
            enrol.url,
            answer.status()
        ),
    }
}

/// Whether nobody in between can read along: it is encrypted, or on this machine.
fn is_private(url: &str) -> bool {
    if url.starts_with("https://") {
        return true;
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return false;
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return false;
    }
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::is_private;

    #[test]
    fn only_encrypted_addresses_and_this_machine_are_private() {
        for good in [
            "https://fleet.example",
            "http://localhost:8470",
            "http://127.0.0.1:1/",
            "http://[::1]:8470",
        ] {
            assert!(is_private(good), "{good}");
        }
        for bad in [
            "http://fleet.example",
            "http://10.0.0.7:8470",
            "http://localhost@evil.example",
            "http://localhost.evil.example",
            "fleet.example",
        ] {
            assert!(!is_private(bad), "{bad}");
        }
    }
}
