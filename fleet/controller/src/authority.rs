//! The fleet's own certificate authority: who is a device of this fleet, its broker, or its controller.
//!
//! A certificate names its owner in the common name and the fleet in the organisation. Brokers take the common name for
//! the user ([`crate::acl`]), so a device can be nobody else. There is one authority for each fleet: a broker that serves
//! several has a listener for each, which trusts one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use offramp_proto::{DeviceId, Digest, MAX_CERTIFICATE, RenewalRequest, TenantId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, RevokedCertParams, SerialNumber,
};
use time::{Duration, OffsetDateTime};

use crate::key::{replace, write_new};
use crate::store::beside;

/// Common name of the controller's certificate. No device may have it.
pub const CONTROLLER: &str = "offramp-controller";
/// For how long the authority holds.
const AUTHORITY: Duration = Duration::days(20 * 365);
/// For how long a broker's or the controller's certificate holds.
const SERVICE: Duration = Duration::days(5 * 365);
/// Clocks of devices may be behind by this.
const SKEW: Duration = Duration::hours(24);

/// What is wrong with the authority, or with what it is asked to sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: check that its folder exists and is writable", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read the key.
    #[error("the authority's key {} can be read by others (mode {mode:03o}): run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// One of the two files is missing or damaged.
    #[error(
        "the authority in {} is damaged: restore it with its .ca.key from a backup; a new one means enrolling every device again",
        path.display()
    )]
    Damaged {
        /// The certificate.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// The request for a certificate is none.
    #[error("the request for a certificate cannot be used: send a PKCS#10 request in PEM form, at most 8 KiB")]
    Request(#[source] rcgen::Error),
    /// A renewal whose proof does not speak for its request.
    #[error("the proof is not of the request: its common name must be the request's digest")]
    Proof,
    /// The name is the controller's.
    #[error("`{CONTROLLER}` is the controller's name: choose another for the device")]
    Name,
    /// A host name that is none.
    #[error("`{0:.80}` is no host name or address")]
    Host(String),
    /// The system gave no random bytes.
    #[error("cannot number a certificate: the system gives no random bytes")]
    Random(#[source] io::Error),
    /// Signing failed.
    #[error("cannot sign a certificate")]
    Sign(#[source] rcgen::Error),
}

/// The authority of a fleet.
pub struct Authority {
    tenant: TenantId,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    devices_hold: Duration,
}

/// A certificate that holds no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: Vec<u8>,
    /// Since when, in milliseconds since 1970.
    pub at: u64,
}

/// A certificate of a device.
#[derive(Clone, Debug)]
pub(crate) struct Issued {
    /// Its serial number: random, so that nobody can know it beforehand.
    pub(crate) serial: [u8; 16],
    /// Digest of the public key.
    pub(crate) key: Digest,
    /// In PEM form.
    pub(crate) certificate: String,
    /// When it ends, in milliseconds since 1970.
    pub(crate) expires_at: u64,
}

impl Authority {
    /// The authority beside a database; made when there is none.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn load_or_generate(database: &Path, tenant: &TenantId) -> Result<Self, AuthorityError> {
        let (path, key_path) = (beside(database, ".ca.pem"), beside(database, ".ca.key"));
        let write = |path: &Path, text: &str| {
            write_new(path, text.as_bytes()).map_err(|source| AuthorityError::Write {
                path: path.into(),
                source,
            })
        };
        if !key_path.exists() && !path.exists() {
            let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
            let certificate = authority_params(tenant)
                .self_signed(&key)
                .map_err(AuthorityError::Sign)?;
            // The key first: a certificate without one is damage, a key without one is made good below.
            write(&key_path, &key.serialize_pem())?;
            write(&path, &certificate.pem())?;
        }
        let mode = mode(&key_path)?;
        if mode & 0o077 != 0 {
            return Err(AuthorityError::Exposed { path: key_path, mode });
        }
        let damaged = |source| AuthorityError::Damaged {
            path: path.clone(),
            source,
        };
        let key = KeyPair::from_pem(&read(&key_path)?).map_err(damaged)?;
        if !path.exists() {
            // A start that ended between the two.
            let certificate = authority_params(tenant)
                .self_signed(&key)
                .map_err(AuthorityError::Sign)?;
            write(&path, &certificate.pem())?;
        }
        let certificate = read(&path)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(damaged)?;
        Ok(Self {
            tenant: tenant.clone(),
            certificate,
            issuer,
            devices_hold: Duration::days(365),
        })
    }

    /// For how long certificates of devices hold that it signs from now on; a year otherwise.
    #[must_use]
    pub fn for_devices(self, holds: std::time::Duration) -> Self {
        Self {
            devices_hold: holds.try_into().unwrap_or(AUTHORITY),
            ..self
        }
    }

    /// Its certificate in PEM form: what devices and brokers trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Signs the key of a device's request. What else the request asks for is ignored.
    pub(crate) fn device(&self, request: &str, device: &DeviceId) -> Result<Issued, AuthorityError> {
        if device.as_str() == CONTROLLER {
            return Err(AuthorityError::Name);
        }
        let mut request = parse(request)?;
        request.params = self.params(device.as_str(), self.devices_hold, ExtendedKeyUsagePurpose::ClientAuth);
        let mut serial = [0; 16];
        getrandom::fill(&mut serial).map_err(|error| AuthorityError::Random(io::Error::other(error.to_string())))?;
        // A number above zero of the same length always.
        serial[0] = serial[0] & 0x7f | 0x40;
        request.params.serial_number = Some(SerialNumber::from_slice(&serial));
        let expires = request.params.not_after;
        let certificate = request.signed_by(&self.issuer).map_err(AuthorityError::Sign)?;
        Ok(Issued {
            serial,
            key: key_of(&request),
            certificate: certificate.pem(),
            expires_at: u64::try_from(expires.unix_timestamp()).unwrap_or(0) * 1000,
        })
    }

    /// The key, by its digest, of whoever asks for a renewal.
    pub(crate) fn asker(&self, renewal: &RenewalRequest) -> Result<Digest, AuthorityError> {
        let proof = parse(&renewal.proof)?;
        let name = match proof.params.distinguished_name.get(&DnType::CommonName) {
            Some(DnValue::Utf8String(name)) => name.as_str(),
            Some(DnValue::PrintableString(name)) => name.as_str(),
            _ => "",
        };
        if name != RenewalRequest::proof_name(&renewal.request) {
            return Err(AuthorityError::Proof);
        }
        Ok(key_of(&proof))
    }

    /// The list of certificates that hold no longer (a CRL), in PEM form: what brokers ask for. It holds as long as the
    /// authority, since a broker with one that has ended lets nobody in.
    ///
    /// # Errors
    /// When signing fails.
    pub fn revocations(&self, revoked: &[Revoked]) -> Result<String, AuthorityError> {
        let time = |ms: u64| {
            let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
        };
        let now = OffsetDateTime::now_utc();
        let list = CertificateRevocationListParams {
            this_update: now - SKEW,
            next_update: now + AUTHORITY,
            // Each list has a higher one than those before.
            crl_number: SerialNumber::from(u64::try_from(now.unix_timestamp()).unwrap_or(0)),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|certificate| RevokedCertParams {
                    serial_number: SerialNumber::from_slice(&certificate.serial),
                    revocation_time: time(certificate.at),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).map_err(AuthorityError::Sign)?;
        list.pem().map_err(AuthorityError::Sign)
    }

    /// Certificate and key of a broker with these names, in PEM form.
    ///
    /// # Errors
    /// When a name is none.
    pub fn broker(&self, hosts: &[String]) -> Result<(String, String), AuthorityError> {
        let name = hosts.first().map_or("broker", String::as_str);
        let alternatives = CertificateParams::new(hosts).map_err(|_| AuthorityError::Host(hosts.join(", ")))?;
        let mut params = self.params(name, SERVICE, ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = alternatives.subject_alt_names;
        self.with_key(&params)
    }

    /// Certificate and key of the controller, in one PEM text.
    ///
    /// # Errors
    /// When signing fails.
    pub fn controller(&self) -> Result<String, AuthorityError> {
        let params = self.params(CONTROLLER, SERVICE, ExtendedKeyUsagePurpose::ClientAuth);
        let (certificate, key) = self.with_key(&params)?;
        Ok(certificate + &key)
    }

    fn with_key(&self, params: &CertificateParams) -> Result<(String, String), AuthorityError> {
        let key = KeyPair::generate().map_err(AuthorityError::Sign)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Sign)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    fn params(&self, name: &str, holds: Duration, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
        let mut params = lasting(holds);
        params.distinguished_name = distinguished(&self.tenant, name);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params
    }
}

/// Reads a request, and checks that whoever made it has the key.
fn parse(request: &str) -> Result<CertificateSigningRequestParams, AuthorityError> {
    if request.len() > MAX_CERTIFICATE {
        return Err(AuthorityError::Request(rcgen::Error::CouldNotParseCertificationRequest));
    }
    CertificateSigningRequestParams::from_pem(request).map_err(AuthorityError::Request)
}

fn key_of(request: &CertificateSigningRequestParams) -> Digest {
    Digest::of(&request.public_key.subject_public_key_info())
}

fn authority_params(tenant: &TenantId) -> CertificateParams {
    let mut params = lasting(AUTHORITY);
    params.distinguished_name = distinguished(tenant, "Offramp fleet authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// What holds from now on.
fn lasting(time: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - SKEW;
    params.not_after = now + time;
    params
}

fn distinguished(tenant: &TenantId, name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, tenant.as_str());
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn read(path: &Path) -> Result<String, AuthorityError> {
    fs::read_to_string(path).map_err(|source| AuthorityError::Read {
        path: path.into(),
        source,
    })
}

fn mode(path: &Path) -> Result<u32, AuthorityError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(path).map_err(|source| AuthorityError::Read {
        path: path.into(),
        source,
    })?;
    Ok(metadata.permissions().mode() & 0o777)
}

/// Writes a file that only its owner may read, in the place of another.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> Result<(), AuthorityError> {
    replace(path, text.as_bytes()).map_err(|source| AuthorityError::Write {
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(folder: &Path) -> Authority {
        Authority::load_or_generate(&folder.join("fleet.db"), &TenantId::new("greenhouse").unwrap()).unwrap()
    }

    fn request(key: &KeyPair) -> String {
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        // What it would like to be.
        params.distinguished_name = distinguished(&TenantId::new("other").unwrap(), CONTROLLER);
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn authority_is_made_once_and_its_key_is_its_owners() {
        let folder = tempfile::tempdir().unwrap();
        let first = authority(folder.path());
        assert_eq!(authority(folder.path()).certificate(), first.certificate());
        let key = folder.path().join("fleet.db.ca.key");
        assert_eq!(mode(&key).unwrap(), 0o600);
        // A start that ended between the two files.
        fs::remove_file(folder.path().join("fleet.db.ca.pem")).unwrap();
        authority(folder.path());
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        let tenant = TenantId::new("greenhouse").unwrap();
        let error = Authority::load_or_generate(&folder.path().join("fleet.db"), &tenant)
            .err()
            .unwrap();
        assert!(matches!(error, AuthorityError::Exposed { mode: 0o640, .. }), "{error}");
        fs::remove_file(&key).unwrap();
        let error = Authority::load_or_generate(&folder.path().join("fleet.db"), &tenant)
            .err()
            .unwrap();
        assert!(
            matches!(error, AuthorityError::Read { .. }),
            "a certificate without its key: {error}"
        );
    }

    #[test]
    fn a_request_gets_the_devices_name_whatever_it_asks_for() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let key = KeyPair::generate().unwrap();
        let issued = authority
            .device(&request(&key), &DeviceId::new("cam-1").unwrap())
            .unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).unwrap();
        let certificate = pem.parse_x509().unwrap();
        assert_eq!(certificate.subject().to_string(), "O=greenhouse, CN=cam-1");
        assert_eq!(certificate.raw_serial(), issued.serial);
        assert!(certificate.subject_alternative_name().unwrap().is_none());
        assert!(!certificate.is_ca());
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth);
        assert_eq!(
            certificate.validity().not_after.timestamp() as u64 * 1000,
            issued.expires_at
        );
    }

    #[test]
    fn what_is_revoked_is_on_the_list() {
        use x509_parser::prelude::FromDer as _;
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let issued = authority
            .device(
                &request(&KeyPair::generate().unwrap()),
                &DeviceId::new("cam-1").unwrap(),
            )
            .unwrap();
        for count in [0, 1] {
            let revoked = vec![
                Revoked {
                    serial: issued.serial.to_vec(),
                    at: 1_700_000_000_000
                };
                count
            ];
            let list = authority.revocations(&revoked).unwrap();
            let (_, pem) = x509_parser::pem::parse_x509_pem(list.as_bytes()).unwrap();
            let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(&pem.contents).unwrap();
            let serials: Vec<&[u8]> = list
                .iter_revoked_certificates()
                .map(x509_parser::prelude::RevokedCertificate::raw_serial)
                .collect();
            assert_eq!(serials, vec![&issued.serial[..]; count]);
            assert!(list.next_update().unwrap().timestamp() > OffsetDateTime::now_utc().unix_timestamp() + 1_000_000);
        }
    }

    #[test]
    fn a_proof_speaks_for_one_request_and_tells_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let device = DeviceId::new("cam-1").unwrap();
        let old = KeyPair::generate().unwrap();
        let issued = authority.device(&request(&old), &device).unwrap();
        let next = request(&KeyPair::generate().unwrap());
        let proof = |of: &str, key: &KeyPair| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            let name = RenewalRequest::proof_name(of);
            params.distinguished_name.push(DnType::CommonName, name);
            params.serialize_request(key).unwrap().pem().unwrap()
        };
        let renewal = |proof| RenewalRequest {
            device: device.clone(),
            request: next.clone(),
            proof,
        };
        assert_eq!(authority.asker(&renewal(proof(&next, &old))).unwrap(), issued.key);
        let stranger = KeyPair::generate().unwrap();
        assert_ne!(authority.asker(&renewal(proof(&next, &stranger))).unwrap(), issued.key);
        for bad in [proof(&request(&stranger), &old), request(&old)] {
            let refused = authority.asker(&renewal(bad));
            assert!(matches!(refused, Err(AuthorityError::Proof)), "{refused:?}");
        }
        let refused = authority.asker(&renewal("no proof".into()));
        assert!(matches!(refused, Err(AuthorityError::Request(_))), "{refused:?}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = authority(folder.path());
        let device = DeviceId::new("cam-1").unwrap();
        let good = request(&KeyPair::generate().unwrap());
        let other = request(&KeyPair::generate().unwrap());
        // The signature of another request.
        let half = good.len() / 2;
        let mixed = format!("{}{}", &good[..half], &other[half..]);
        for bad in [
            "",
            "no request",
            &mixed,
            &"x".repeat(MAX_CERTIFICATE + 1),
            authority.certificate(),
        ] {
            assert!(
                matches!(authority.device(bad, &device), Err(AuthorityError::Request(_))),
                "{bad:.60}"
            );
        }
        let controller = DeviceId::new(CONTROLLER).unwrap();
        assert!(matches!(
            authority.device(&good, &controller),
            Err(AuthorityError::Name)
        ));
        assert!(authority.broker(&["not a host\0".into()]).is_err() || authority.broker(&["ü".into()]).is_err());
    }
}
