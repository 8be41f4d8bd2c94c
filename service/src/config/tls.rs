//! `[tls]`.

use std::{path::PathBuf, time::Duration};

use super::source::{HOUR, SECOND, Source};

/// `[tls]`: the certificate that connections are served with.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsSection {
    /// `certificate`: a PEM file with the server's certificate, then those of the CAs between it
    /// and the root. Required, but where `server.plaintext` is true.
    pub certificate: PathBuf,
    /// `key`: a PEM file with its private key. Required with `certificate`.
    pub key: PathBuf,
    /// `client_ca`: a PEM file with CAs; only clients with a certificate of theirs may connect.
    /// Not asked for by default.
    pub client_ca: Option<PathBuf>,
    /// `reload_interval`: the files are looked at again after this time. Default 10s.
    pub reload_interval: Duration,
}

impl TlsSection {
    /// `None` where the configuration says plaintext, or a finding says what is wrong.
    pub(super) fn read(source: &mut Source, plaintext: bool) -> Option<Self> {
        let is_given = ["tls.certificate", "tls.key"].map(|key| source.is_given(key));
        match (is_given, plaintext) {
            ([false, false], false) => source.report(
                "tls",
                "needs a certificate and a key; or say server.plaintext = true, for a server \
                 that only a proxy with TLS can reach",
            ),
            ([true, false], _) => source.report("tls.key", "is required with tls.certificate"),
            ([false, true], _) => source.report("tls.certificate", "is required with tls.key"),
            ([true, true], true) => {
                source.report("server.plaintext", "excludes tls.certificate and tls.key");
            }
            ([true, true], false) => {}
            ([false, false], true) if source.is_given("tls.client_ca") => {
                source.report("tls.client_ca", "needs tls.certificate and tls.key");
            }
            ([false, false], true) => {}
        }
        let mut path = |key| source.read(key, |given| given.text().map(PathBuf::from));
        let certificate = path("tls.certificate");
        let key = path("tls.key");
        let client_ca = path("tls.client_ca");
        let bounds = SECOND / 100..=HOUR;
        let reload_interval = source.duration("tls.reload_interval", 10 * SECOND, bounds);
        Some(Self { certificate: certificate?, key: key?, client_ca, reload_interval })
    }
}
