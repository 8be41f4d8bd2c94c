//! X.509 credentials (RFC 9420, section 5.3): the chain, the key and the name.
//!
//! webpki finds and verifies the path to a trust anchor. What it does not look at is read here:
//! the public key, the key usage and names of e-mail addresses. Why the rules are what they are:
//! service/decisions/0005-x509-credentials.md.

use std::time::Duration;

use openmls_traits::types::SignatureScheme;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, Error, ExtendedKeyUsageValidator, KeyPurposeId,
    KeyPurposeIdIter, RequiredEkuNotFoundContext,
};
use x509_cert::{
    Certificate,
    der::{
        Decode,
        oid::{
            AssociatedOid, ObjectIdentifier,
            db::{fips204, rfc5912, rfc8410},
        },
        referenced::OwnedToRef as _,
    },
    ext::pkix::{BasicConstraints, KeyUsage, SubjectAltName, name::GeneralName},
};

use super::{
    identity::IdentityTemplate,
    rejection::{RejectReason, Rejection},
    trust_anchors::TrustAnchors,
    wire::Reader,
};
use crate::domain::ids::ClientKey;

/// The most certificates in a credential: the client's, the six intermediates that webpki
/// follows, and a root.
const MAX_CERTIFICATES: usize = 8;

/// An extended key usage must allow one of these.
const PURPOSES: [KeyPurposeId<'static>; 3] = [
    KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 40]), // id-kp-imUri (RFC 9734)
    KeyPurposeId::new(&[0x2b, 6, 1, 5, 5, 7, 3, 2]),  // id-kp-clientAuth (RFC 5280)
    KeyPurposeId::new(&[0x55, 0x1d, 37, 0]),          // anyExtendedKeyUsage (RFC 5280)
];

fn mismatch(message: impl Into<String>) -> Rejection {
    Rejection::new(RejectReason::CredentialMismatch, message)
}

/// The certificates of a credential, parsed and not yet verified.
pub(super) struct Chain<'a> {
    encodings: Vec<CertificateDer<'a>>,
    client: Certificate,
    issuers: Vec<Certificate>,
}

impl<'a> Chain<'a> {
    /// Reads `Certificate certificates<V>`, of which the length has been read.
    pub(super) fn parse(certificates: &'a [u8]) -> Result<Self, Rejection> {
        let mut list = Reader(certificates);
        let mut encodings = Vec::new();
        while !list.0.is_empty() {
            if encodings.len() == MAX_CERTIFICATES {
                let most = MAX_CERTIFICATES;
                return Err(mismatch(format!("the credential has more than {most} certificates")));
            }
            encodings.push(CertificateDer::from(list.vector()?));
        }
        let mut parsed = encodings.iter().zip(1..).map(|(encoding, place)| {
            Certificate::from_der(encoding)
                .map_err(|_| mismatch(format!("certificate {place} of the chain does not parse")))
        });
        let client =
            parsed.next().ok_or_else(|| mismatch("the credential has no certificate"))??;
        let issuers = parsed.collect::<Result<_, _>>()?;
        Ok(Self { encodings, client, issuers })
    }

    /// RFC 9420, section 5.3: the public key of the client's certificate is the signature_key.
    pub(super) fn check_key(&self, scheme: SignatureScheme, key: &[u8]) -> Result<(), Rejection> {
        let certified = self.client.tbs_certificate().subject_public_key_info();
        let same_algorithm = algorithm(scheme)
            .is_some_and(|wanted| certified.algorithm.owned_to_ref().oids() == Ok(wanted));
        if !same_algorithm || certified.subject_public_key.as_bytes() != Some(key) {
            return Err(mismatch("the public key of the certificate is not the signature_key"));
        }
        match extension::<KeyUsage>(&self.client)? {
            Some(usage) if !usage.digital_signature() => {
                Err(mismatch("the key usage of the certificate does not allow signatures"))
            }
            _ => Ok(()),
        }
    }

    /// A subject alternative name of the client's certificate names `caller`: a URI, a DNS name or
    /// an e-mail address, compared byte by byte.
    pub(super) fn check_name(
        &self,
        template: &IdentityTemplate,
        caller: &ClientKey,
    ) -> Result<(), Rejection> {
        let Some(SubjectAltName(names)) = extension(&self.client)? else {
            return Err(mismatch("the certificate has no subject alternative name (SAN)"));
        };
        let named = names.iter().any(|name| match name {
            GeneralName::UniformResourceIdentifier(name)
            | GeneralName::DnsName(name)
            | GeneralName::Rfc822Name(name) => template.matches(name.as_bytes(), caller),
            _ => false,
        });
        named.then_some(()).ok_or_else(|| {
            mismatch("no URI, DNS name or e-mail SAN of the certificate is the caller's identity")
        })
    }

    /// RFC 5280, section 6: a path leads from the client's certificate to a trust anchor, and
    /// every certificate on it is valid at the time `now`. Revocation is not checked.
    pub(super) fn check_path(
        &self,
        anchors: &TrustAnchors,
        now: OffsetDateTime,
    ) -> Result<(), Rejection> {
        if !self.issuers.iter().all(may_issue) {
            return Err(mismatch("a certificate of the chain after the first is not a CA's"));
        }
        // With one candidate for each step, there is one path. Else there can be thousands.
        let subjects: Vec<_> =
            self.issuers.iter().map(|issuer| issuer.tbs_certificate().subject()).collect();
        if subjects.iter().enumerate().any(|(place, subject)| subjects[..place].contains(subject)) {
            return Err(mismatch("two CA certificates of the chain have the same subject"));
        }
        // `parse` lets no chain be empty.
        let (client, issuers) = self.encodings.split_at(1);
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or(0); // before 1970: at 1970
        let client = EndEntityCert::try_from(&client[0]).map_err(|error| untrusted(&error))?;
        client
            .verify_for_usage(
                ALL_VERIFICATION_ALGS,
                anchors.as_slice(),
                issuers,
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                MlsClient,
                None,
                None,
            )
            .map(drop)
            .map_err(|error| untrusted(&error))
    }

    /// When the client's certificate expires; `None` when no calendar holds the time.
    pub(super) fn not_after(&self) -> Option<OffsetDateTime> {
        let since_1970 = self.client.tbs_certificate().validity().not_after.to_unix_duration();
        OffsetDateTime::from_unix_timestamp(i64::try_from(since_1970.as_secs()).ok()?).ok()
    }
}

/// RFC 5280, section 6.1.4 (k) and (n): whether this is the certificate of a CA.
pub(super) fn may_issue(certificate: &Certificate) -> bool {
    let is_ca = matches!(extension(certificate), Ok(Some(BasicConstraints { ca: true, .. })));
    let may_sign = match extension::<KeyUsage>(certificate) {
        Ok(usage) => usage.is_none_or(|usage| usage.key_cert_sign()),
        Err(_) => false,
    };
    is_ca && may_sign
}

fn extension<'a, T: Decode<'a> + AssociatedOid>(
    certificate: &'a Certificate,
) -> Result<Option<T>, Rejection> {
    match certificate.tbs_certificate().get_extension() {
        Ok(found) => Ok(found.map(|(_critical, extension)| extension)),
        Err(_) => Err(mismatch("an extension of a certificate does not parse")),
    }
}

/// The algorithm of a SubjectPublicKeyInfo, and its curve (RFC 5480, RFC 8410, RFC 9881).
fn algorithm(scheme: SignatureScheme) -> Option<(ObjectIdentifier, Option<ObjectIdentifier>)> {
    let ecdsa = |curve| Some((rfc5912::ID_EC_PUBLIC_KEY, Some(curve)));
    match scheme {
        SignatureScheme::ED25519 => Some((rfc8410::ID_ED_25519, None)),
        SignatureScheme::ECDSA_SECP256R1_SHA256 => ecdsa(rfc5912::SECP_256_R_1),
        SignatureScheme::ECDSA_SECP384R1_SHA384 => ecdsa(rfc5912::SECP_384_R_1),
        SignatureScheme::ECDSA_SECP521R1_SHA512 => ecdsa(rfc5912::SECP_521_R_1),
        SignatureScheme::MLDSA44 => Some((fips204::ID_ML_DSA_44, None)),
        SignatureScheme::MLDSA65 => Some((fips204::ID_ML_DSA_65, None)),
        SignatureScheme::MLDSA87 => Some((fips204::ID_ML_DSA_87, None)),
        SignatureScheme::ED448 => None,
    }
}

/// What a certificate must be good for: without an extended key usage it is good for anything
/// (RFC 5280, section 4.2.1.12). Of CA certificates the same is asked.
struct MlsClient;

impl ExtendedKeyUsageValidator for MlsClient {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        let mut restricted = false;
        for purpose in purposes {
            if PURPOSES.contains(&purpose?) {
                return Ok(());
            }
            restricted = true;
        }
        if !restricted {
            return Ok(());
        }
        Err(Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext {
            required: webpki::KeyUsage::client_auth(),
            present: Vec::new(),
        }))
    }
}

/// Says what failed, without what webpki's own text shows of the certificates.
fn untrusted(error: &Error) -> Rejection {
    mismatch(match error {
        Error::CertExpired { .. } => "a certificate of the chain has expired",
        Error::CertNotValidYet { .. } => "a certificate of the chain is not valid yet",
        Error::UnknownIssuer => {
            "unknown issuer: the chain leads to no trust anchor, or lacks an intermediate"
        }
        Error::InvalidSignatureForPublicKey => "a signature in the certificate chain is wrong",
        Error::CaUsedAsEndEntity => "the first certificate of the chain is a CA's",
        Error::PathLenConstraintViolated => "the path is longer than a CA certificate allows",
        Error::NameConstraintViolation => {
            "the name constraints of a CA certificate do not allow it"
        }
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => {
            "an extended key usage does not allow MLS clients"
        }
        Error::UnsupportedCriticalExtension => "a certificate has an unknown critical extension",
        Error::MaximumPathDepthExceeded => "the certificate chain is too long",
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a certificate is signed with an unsupported algorithm"
        }
        _ => "the certificate chain does not verify",
    })
}
