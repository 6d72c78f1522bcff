//! Where the broker is.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A broker's address: `mqtt://HOST[:PORT]`, or `mqtts://HOST[:PORT]` for TLS.
///
/// The port is 1883 or 8883 unless given. HOST is a name, an IPv4 address, or an IPv6 address in
/// brackets. There is nothing else in it: credentials would end up in logs, and a path means
/// nothing to MQTT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BrokerUrl {
    tls: bool,
    /// With brackets, if it is an IPv6 address.
    host: String,
    port: u16,
}

/// What is wrong with a broker's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// No `://`.
    #[error("broker address `{0}` has no scheme; write mqtt://HOST or mqtts://HOST")]
    NoScheme(String),
    /// Another scheme than `mqtt` and `mqtts`.
    #[error("broker address has the scheme `{0}`; use mqtt:// or, with TLS, mqtts://")]
    UnknownScheme(String),
    /// `user@` or `user:password@`. The text is not repeated here, since it may hold a password.
    #[error("broker address holds credentials; set the user name and the password apart from the address")]
    Credentials,
    /// Something after host and port.
    #[error("broker address ends in `{0}`; there must be nothing after host and port")]
    Trailing(String),
    /// Nothing where the host should be.
    #[error("broker address has no host")]
    NoHost,
    /// A host that can be neither a name nor an address.
    #[error("broker address has the host `{0}`; give a name, an IPv4 address, or an IPv6 address in brackets")]
    BadHost(String),
    /// Not a number from 1 to 65535.
    #[error("broker address has the port `{0}`; give a number from 1 to 65535")]
    BadPort(String),
    /// TLS proves names, and here there is none.
    #[error("broker address joins TLS with the IPv6 address {0}; give the broker's name")]
    TlsWithIpv6(String),
}

impl BrokerUrl {
    /// Whether the connection uses TLS.
    pub fn tls(&self) -> bool {
        self.tls
    }

    /// The host; an IPv6 address stands in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for BrokerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| UrlError::NoScheme(text.to_owned()))?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            other => return Err(UrlError::UnknownScheme(other.to_owned())),
        };
        if rest.contains('@') {
            return Err(UrlError::Credentials);
        }
        if let Some(end) = rest.find(['/', '?', '#']) {
            return Err(UrlError::Trailing(rest[end..].to_owned()));
        }
        // The colons of an IPv6 address are within its brackets.
        let end = if rest.starts_with('[') {
            rest.find(']').map_or(rest.len(), |bracket| bracket + 1)
        } else {
            rest.find(':').unwrap_or(rest.len())
        };
        let (host, port) = rest.split_at(end);
        let port = match port.strip_prefix(':') {
            Some(digits) => digits
                .parse()
                .ok()
                .filter(|port| *port != 0 && digits.bytes().all(|byte| byte.is_ascii_digit()))
                .ok_or_else(|| UrlError::BadPort(digits.to_owned()))?,
            None if !port.is_empty() => return Err(UrlError::Trailing(port.to_owned())),
            None if tls => 8883,
            None => 1883,
        };
        check_host(host, tls)?;
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
        })
    }
}

fn check_host(host: &str, tls: bool) -> Result<(), UrlError> {
    if host.is_empty() {
        return Err(UrlError::NoHost);
    }
    let bad = || UrlError::BadHost(host.to_owned());
    if let Some(inner) = host.strip_prefix('[') {
        let address = inner.strip_suffix(']').ok_or_else(bad)?;
        address.parse::<Ipv6Addr>().map_err(|_| bad())?;
        if tls {
            return Err(UrlError::TlsWithIpv6(host.to_owned()));
        }
        return Ok(());
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.len() > 253 || !host.bytes().all(fits) {
        return Err(bad());
    }
    Ok(())
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::{BrokerUrl, UrlError};
    use proptest::prelude::*;

    fn read(text: &str) -> String {
        match text.parse::<BrokerUrl>() {
            Ok(url) => url.to_string(),
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn addresses_are_read_with_their_default_ports() {
        assert_eq!(read("mqtt://localhost"), "mqtt://localhost:1883");
        assert_eq!(read("mqtts://broker.example"), "mqtts://broker.example:8883");
        assert_eq!(read("mqtt://127.0.0.1:21883"), "mqtt://127.0.0.1:21883");
        assert_eq!(read("mqtt://[::1]"), "mqtt://[::1]:1883");
        assert_eq!(read("mqtt://[::1]:7"), "mqtt://[::1]:7");
    }

    #[test]
    fn every_wrong_address_is_named() {
        assert_eq!(read("localhost:1883"), r#"NoScheme("localhost:1883")"#);
        assert_eq!(read("http://localhost"), r#"UnknownScheme("http")"#);
        assert_eq!(read("mqtt://me:secret@localhost"), "Credentials");
        assert_eq!(read("mqtt://localhost/topic"), r#"Trailing("/topic")"#);
        assert_eq!(read("mqtt://localhost?keep=1"), r#"Trailing("?keep=1")"#);
        assert_eq!(read("mqtt://[::1]x"), r#"Trailing("x")"#);
        assert_eq!(read("mqtt://"), "NoHost");
        assert_eq!(read("mqtt://:1883"), "NoHost");
        assert_eq!(read("mqtt://two words"), r#"BadHost("two words")"#);
        assert_eq!(read("mqtt://[::1"), r#"BadHost("[::1")"#);
        assert_eq!(read("mqtt://[nonsense]"), r#"BadHost("[nonsense]")"#);
        assert_eq!(read("mqtt://localhost:"), r#"BadPort("")"#);
        assert_eq!(read("mqtt://localhost:0"), r#"BadPort("0")"#);
        assert_eq!(read("mqtt://localhost:+1"), r#"BadPort("+1")"#);
        assert_eq!(read("mqtt://localhost:65536"), r#"BadPort("65536")"#);
        assert_eq!(read("mqtts://[::1]"), r#"TlsWithIpv6("[::1]")"#);
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_printed_as_it_is_read(text in "(mqtts?://)?[a-z0-9:.\\[\\]@/_-]{0,24}") {
            match text.parse::<BrokerUrl>() {
                Ok(url) => prop_assert_eq!(url.to_string().parse(), Ok(url)),
                Err(UrlError::Credentials) => prop_assert!(text.contains('@')),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}
