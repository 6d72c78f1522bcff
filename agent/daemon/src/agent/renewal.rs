//! The next certificate of the device, in a slot of its own beside the one in use.
//!
//! In the last third of its time a key is made for the next one and kept as `device.pem.next`; the certificate joins it when
//! the controller has given it. When a connection with it has been proven, it takes the place of `device.pem`, in one
//! step. Whenever the power fails, one of the two opens the broker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use offramp_link::{Config, Link, State};
use offramp_proto::{DeviceId, Digest, RenewalAnswer, RenewalRequest};
use rcgen::KeyPair;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::identity::{self, Certificate, IdentityError};
use crate::judge::chain;

/// How long an answer may take before the device asks again, and how long after a connection that was not proven.
const AGAIN: Duration = Duration::from_secs(10 * 60);
/// How long after a refusal.
const REFUSED: Duration = Duration::from_secs(6 * 3600);
/// How long a connection may take.
const PROOF: Duration = Duration::from_secs(60);

/// Why a certificate is not renewed now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RenewalError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the controller refuses: {0}")]
    Refused(String),
    #[error("the controller's answer is not a certificate of this device for the key that it asked for")]
    Unfit,
    #[error("the new certificate opens no connection: {0}")]
    Unproven(String),
}

/// What is to be done now.
#[derive(Debug)]
pub(crate) enum Todo {
    Ask(RenewalRequest),
    Prove,
}

/// The next certificate.
enum Next {
    /// There is none. The time, in seconds since 1970, from which one is wanted.
    Later { due: i64 },
    /// A key without a certificate.
    Wanted { key: Box<KeyPair>, request: String },
    /// One that has not been proven.
    Given,
}

/// The renewal of a device's certificate.
pub(crate) struct Renewal {
    device: DeviceId,
    file: PathBuf,
    slot: PathBuf,
    next: Next,
    /// Nothing is to be done before.
    not_before: Instant,
}

impl Renewal {
    /// Takes up what an earlier run has left.
    pub(crate) fn open(device: &DeviceId, file: &Path) -> Result<Self, RenewalError> {
        let mut slot = file.as_os_str().to_owned();
        slot.push(".next");
        let mut renewal = Self {
            device: device.clone(),
            file: file.into(),
            slot: slot.into(),
            next: Next::Given,
            not_before: Instant::now(),
        };
        if !renewal.slot.exists() {
            renewal.wait()?;
            return Ok(renewal);
        }
        match identity::read(&renewal.slot) {
            Ok((key, Some(certificate))) if renewal.fits(&certificate, &key) => {}
            Ok((key, _)) => renewal.want(key)?,
            Err(error) => {
                warn!(error = chain(&error), "what was left of a renewal is of no use");
                renewal.wait()?;
            }
        }
        Ok(renewal)
    }

    fn fits(&self, certificate: &Certificate, key: &KeyPair) -> bool {
        certificate.is_of(key) && certificate.name == self.device.as_str()
    }

    /// Waits for the last third of the certificate in use. Gives its end.
    fn wait(&mut self) -> Result<String, RenewalError> {
        let (_, certificate) = identity::read(&self.file)?;
        let certificate = certificate.ok_or_else(|| IdentityError::Certificate {
            path: self.file.clone(),
        })?;
        let due = due(&certificate, &self.device);
        self.next = Next::Later { due };
        Ok(certificate.end)
    }

    fn want(&mut self, key: KeyPair) -> Result<(), RenewalError> {
        let request = identity::request(&key, self.device.as_str())?;
        self.next = Next::Wanted {
            key: Box::new(key),
            request,
        };
        Ok(())
    }

    /// What is to be done at a time, in seconds since 1970, with a connection.
    pub(crate) fn todo(&mut self, now: i64) -> Result<Option<Todo>, RenewalError> {
        if Instant::now() < self.not_before {
            return Ok(None);
        }
        if let Next::Later { due } = self.next {
            if now < due {
                return Ok(None);
            }
            // Whatever fails from here on, it is not tried at every turn.
            self.not_before = Instant::now() + AGAIN;
            let key = KeyPair::generate().map_err(IdentityError::Make)?;
            identity::write(&self.slot, &key.serialize_pem())?;
            self.want(key)?;
        }
        self.not_before = Instant::now() + AGAIN;
        let Next::Wanted { request, .. } = &self.next else {
            return Ok(Some(Todo::Prove));
        };
        let (key, _) = identity::read(&self.file)?;
        Ok(Some(Todo::Ask(RenewalRequest {
            device: self.device.clone(),
            request: request.clone(),
            proof: identity::request(&key, &RenewalRequest::proof_name(request))?,
        })))
    }

    /// Takes an answer. Whether there is a certificate to be proven.
    pub(crate) fn take(&mut self, answer: RenewalAnswer) -> Result<bool, RenewalError> {
        let Next::Wanted { key, request } = &self.next else {
            return Ok(false);
        };
        if answer.request != Digest::of(request.as_bytes()) {
            return Ok(false);
        }
        let Some(text) = answer.certificate else {
            self.not_before = Instant::now() + REFUSED;
            return Err(RenewalError::Refused(answer.refused.unwrap_or_default()));
        };
        if !Certificate::parse(&text).is_some_and(|certificate| self.fits(&certificate, key)) {
            self.not_before = Instant::now() + REFUSED;
            return Err(RenewalError::Unfit);
        }
        identity::write(&self.slot, &(text + &key.serialize_pem()))?;
        self.next = Next::Given;
        Ok(true)
    }

    /// How a connection is tried with the new certificate: beside the one in use, and without its session and will.
    pub(crate) fn proof(&self, config: &Config) -> Config {
        Config {
            client_id: format!("{}-next", config.client_id),
            identity: Some(self.slot.clone()),
            subscriptions: Vec::new(),
            will: None,
            session_expiry: Duration::ZERO,
            ..config.clone()
        }
    }

    /// The new certificate opens the broker: it takes the place of the other. Gives its end.
    pub(crate) fn proven(&mut self) -> Result<String, RenewalError> {
        std::fs::rename(&self.slot, &self.file).map_err(|source| IdentityError::Write {
            path: self.file.clone(),
            source,
        })?;
        self.wait()
    }
}

/// From when on a certificate is to be renewed: in the last third of its time, and not all devices of a fleet, which have
/// enrolled on one day, in the same hour.
fn due(certificate: &Certificate, device: &DeviceId) -> i64 {
    let time = certificate.until.saturating_sub(certificate.from);
    let Digest([a, b, ..]) = Digest::of(device.as_str().as_bytes());
    let spread = i64::from(u16::from_be_bytes([a, b]));
    certificate.until - time / 3 + time / 12 * spread / i64::from(u16::MAX)
}

/// Opens a connection, and closes it.
pub(crate) async fn prove(config: Config) -> Result<(), RenewalError> {
    let (link, _inbox) = Link::connect(&config).map_err(|error| RenewalError::Unproven(chain(&error)))?;
    let mut state = link.state();
    let settled = state.wait_for(|state| !matches!(state, State::Connecting));
    let outcome = match timeout(PROOF, settled).await {
        Err(_) => Err("the broker does not answer".to_owned()),
        Ok(Err(_)) => Err("it was closed".to_owned()),
        Ok(Ok(state)) => match &*state {
            State::Disconnected { reason, .. } => Err(reason.to_string()),
            _ => Ok(()),
        },
    };
    link.shutdown().await;
    outcome.map_err(RenewalError::Unproven)
}

#[cfg(test)]
mod tests {
    use offramp_test_support::temp_dir;
    use rcgen::{CertificateParams, DistinguishedName, DnType};

    use super::*;

    fn certificate(name: &str, key: &KeyPair) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 12, 27);
        params.self_signed(key).unwrap().pem()
    }

    /// Within and after the time in which a certificate of [`certificate`] is renewed first.
    const BEFORE: i64 = 1_788_000_000;
    const WITHIN: i64 = 1_791_000_000;

    fn device() -> DeviceId {
        DeviceId::new("cam-1").unwrap()
    }

    fn file(folder: &Path) -> PathBuf {
        let (file, key) = (folder.join("device.pem"), KeyPair::generate().unwrap());
        identity::write(&file, &(certificate("cam-1", &key) + &key.serialize_pem())).unwrap();
        file
    }

    fn asks(renewal: &mut Renewal) -> RenewalRequest {
        match renewal.todo(WITHIN).unwrap() {
            Some(Todo::Ask(request)) => request,
            other => panic!("{other:?}"),
        }
    }

    fn answer(request: &RenewalRequest, certificate: &str) -> RenewalAnswer {
        RenewalAnswer {
            request: Digest::of(request.request.as_bytes()),
            certificate: Some(certificate.into()),
            refused: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_is_renewed_in_its_last_third_and_asked_for_again_until_it_comes() {
        let folder = temp_dir();
        let file = file(folder.path());
        let mut renewal = Renewal::open(&device(), &file).unwrap();
        assert!(renewal.todo(BEFORE).unwrap().is_none());
        let request = asks(&mut renewal);
        assert!(renewal.todo(WITHIN).unwrap().is_none(), "not at every turn");
        tokio::time::advance(AGAIN).await;
        assert_eq!(asks(&mut renewal).request, request.request, "with the same key");
        // After the power has failed, too.
        let mut renewal = Renewal::open(&device(), &file).unwrap();
        let request = asks(&mut renewal);

        let before = std::fs::read(&file).unwrap();
        let slot = folder.path().join("device.pem.next");
        let (key, none) = identity::read(&slot).unwrap();
        assert!(none.is_none());
        assert!(renewal.take(answer(&request, &certificate("cam-1", &key))).unwrap());
        assert_eq!(std::fs::read(&file).unwrap(), before, "it has not been proven");
        let mut renewal = Renewal::open(&device(), &file).unwrap();
        assert!(matches!(renewal.todo(WITHIN).unwrap(), Some(Todo::Prove)));
        assert!(renewal.proven().unwrap().contains("2026"));
        assert!(!slot.exists());
        let (now, certificate) = identity::read(&file).unwrap();
        assert!(certificate.unwrap().is_of(&now));
        assert_eq!(now.serialize_pem(), key.serialize_pem());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_answer_to_the_request_changes_nothing() {
        let folder = temp_dir();
        let file = file(folder.path());
        let mut renewal = Renewal::open(&device(), &file).unwrap();
        let request = asks(&mut renewal);
        let (key, _) = identity::read(&folder.path().join("device.pem.next")).unwrap();
        let stranger = KeyPair::generate().unwrap();
        let other = RenewalAnswer {
            request: Digest::of(b"another"),
            ..answer(&request, &certificate("cam-1", &key))
        };
        assert!(!renewal.take(other).unwrap());
        for bad in [
            certificate("cam-1", &stranger),
            certificate("cam-2", &key),
            "none".into(),
        ] {
            let refused = renewal.take(answer(&request, &bad));
            assert!(matches!(refused, Err(RenewalError::Unfit)), "{refused:?}");
        }
        let refused = RenewalAnswer {
            certificate: None,
            refused: Some("in quarantine".into()),
            ..answer(&request, "")
        };
        let error = renewal.take(refused).unwrap_err();
        assert_eq!(error.to_string(), "the controller refuses: in quarantine");
        tokio::time::advance(AGAIN).await;
        assert!(
            renewal.todo(WITHIN).unwrap().is_none(),
            "a refusal is not asked about soon"
        );
        tokio::time::advance(REFUSED).await;
        assert_eq!(asks(&mut renewal).request, request.request);
        // A slot that a failing disk has emptied.
        std::fs::write(folder.path().join("device.pem.next"), "").unwrap();
        let mut renewal = Renewal::open(&device(), &file).unwrap();
        assert_ne!(asks(&mut renewal).request, request.request);
    }

    #[test]
    fn a_fleet_does_not_renew_in_one_hour() {
        let key = KeyPair::generate().unwrap();
        let certificate = Certificate::parse(&certificate("cam-1", &key)).unwrap();
        let times = (0..100).map(|i| due(&certificate, &DeviceId::new(format!("cam-{i}")).unwrap()));
        let times: Vec<i64> = times.collect();
        let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        let day = 24 * 3600;
        assert!(last - first > 20 * day, "{first} {last}");
        assert!(*first >= certificate.until - 120 * day && *last <= certificate.until - 90 * day);
    }
}
