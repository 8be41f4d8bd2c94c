//! Who may certify clients.

use rustls_pki_types::{CertificateDer, TrustAnchor};
use thiserror::Error;
use webpki::anchor_from_trusted_cert;
use x509_cert::{Certificate, der::Decode as _};

use super::x509::may_issue;

/// The CAs by whose certificates an X.509 credential is verified. With none of them, which is the
/// default, every X.509 credential is refused.
///
/// Of a CA's certificate, its name, public key and name constraints count (RFC 5280, section
/// 6.1.1), not its validity: to distrust a CA, leave it out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TrustAnchors(Vec<TrustAnchor<'static>>);

/// Why a text holds no trust anchors.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidTrustAnchors {
    /// A PEM block that is broken.
    #[error("it is not PEM")]
    NotPem,
    /// No PEM block at all.
    #[error("it holds no certificate")]
    Empty,
    /// A PEM block that is something else.
    #[error("it holds a {0}, not only certificates")]
    NotACertificate(String),
    /// A certificate, counted from 1, that is broken.
    #[error("its certificate {0} does not parse")]
    Malformed(usize),
    /// A certificate, counted from 1, that may not sign others (RFC 5280, sections 4.2.1.3 and
    /// 4.2.1.9).
    #[error("its certificate {0} is not a CA's")]
    NotACa(usize),
}

impl TrustAnchors {
    /// Adds the CA certificates of a PEM file, of which there is at least one.
    ///
    /// # Errors
    /// The first thing that is wrong with the file. Nothing is added then.
    pub fn add_pem(&mut self, file: &[u8]) -> Result<(), InvalidTrustAnchors> {
        let blocks = pem::parse_many(file).map_err(|_| InvalidTrustAnchors::NotPem)?;
        if blocks.is_empty() {
            return Err(InvalidTrustAnchors::Empty);
        }
        let anchors = blocks.iter().zip(1..).map(|(block, place)| {
            if block.tag() != "CERTIFICATE" {
                return Err(InvalidTrustAnchors::NotACertificate(block.tag().to_owned()));
            }
            let malformed = InvalidTrustAnchors::Malformed(place);
            let certificate =
                Certificate::from_der(block.contents()).map_err(|_| malformed.clone())?;
            if !may_issue(&certificate) {
                return Err(InvalidTrustAnchors::NotACa(place));
            }
            let encoding = CertificateDer::from(block.contents());
            let anchor = anchor_from_trusted_cert(&encoding).map_err(|_| malformed)?;
            Ok(anchor.to_owned())
        });
        self.0.extend(anchors.collect::<Result<Vec<_>, _>>()?);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[TrustAnchor<'static>] {
        &self.0
    }
}
