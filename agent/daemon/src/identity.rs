//! A device's certificate and key, both in one file, so that both are replaced in one step.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;

/// What is wrong with a file of a certificate and its key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}: let the agent write into its folder", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no key of `offramp enrol`", path.display())]
    Key { path: PathBuf },
    #[error("{} holds no certificate", path.display())]
    Certificate { path: PathBuf },
    #[error("cannot make a key or a request for a certificate")]
    Make(#[from] rcgen::Error),
}

/// What a certificate says, as far as its owner needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// The common name.
    pub(crate) name: String,
    /// First and last second of its time, since 1970.
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// The end for people.
    pub(crate) end: String,
    key: Vec<u8>,
}

impl Certificate {
    /// The first one in a text in PEM form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let pem = blocks(text).find(|pem| pem.label == "CERTIFICATE")?;
        let certificate = pem.parse_x509().ok()?;
        Some(Self {
            name: common_name(&certificate)?,
            from: certificate.validity().not_before.timestamp(),
            until: certificate.validity().not_after.timestamp(),
            end: certificate.validity().not_after.to_string(),
            key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Whether it is for this key.
    pub(crate) fn is_of(&self, key: &KeyPair) -> bool {
        self.key == key.subject_public_key_info()
    }
}

fn common_name(certificate: &X509Certificate<'_>) -> Option<String> {
    let name = certificate.subject().iter_common_name().next()?;
    name.as_str().ok().map(Into::into)
}

fn blocks(text: &str) -> impl Iterator<Item = Pem> {
    Pem::iter_from_buffer(text.as_bytes()).map_while(Result::ok)
}

/// Reads a file of a key and, where it has one, the certificate.
pub(crate) fn read(path: &Path) -> Result<(KeyPair, Option<Certificate>), IdentityError> {
    let text = std::fs::read_to_string(path).map_err(|source| IdentityError::Read {
        path: path.into(),
        source,
    })?;
    let key = blocks(&text).find(|pem| pem.label == "PRIVATE KEY");
    let key = key.and_then(|pem| KeyPair::try_from(&pem.contents[..]).ok());
    let key = key.ok_or_else(|| IdentityError::Key { path: path.into() })?;
    Ok((key, Certificate::parse(&text)))
}

/// A request for a certificate in PEM form, with a common name.
pub(crate) fn request(key: &KeyPair, name: &str) -> Result<String, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params.serialize_request(key)?.pem()?)
}

/// Writes a file that only its owner may read, in the place of another.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), IdentityError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let write = || {
        // A temporary file is made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|source| IdentityError::Write {
        path: path.into(),
        source,
    })
}
