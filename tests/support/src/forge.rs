//! KeyPackages built byte by byte, so that a test can get exactly one thing wrong.

use aws_lc_rs::{
    agreement::{self, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, X25519},
    kem::{self, DecapsulationKey, ML_KEM_768, ML_KEM_1024},
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
        ECDSA_P521_SHA512_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        ML_DSA_44_SIGNING, ML_DSA_65_SIGNING, ML_DSA_87_SIGNING, PqdsaKeyPair,
    },
};
use openmls_traits::types::{Ciphersuite, HpkeKemType, SignatureScheme};

use crate::x509::certificates;

/// The time around which a forged package is valid unless told otherwise, in seconds since 1970:
/// some day in 2027.
pub const NOW: u64 = 1_800_000_000;

/// The recipe of a KeyPackage (RFC 9420, section 10). A new one is right in every field; change
/// the fields that should be wrong, and the signatures still fit what is built.
///
/// No private HPKE key is kept: nobody can join with a forged package.
#[derive(Debug)]
pub struct Forge {
    /// ProtocolVersion.
    pub version: u16,
    /// CipherSuite. The keys and signatures stay those of the suite it was made for.
    pub cipher_suite: u16,
    /// HPKE public key.
    pub init_key: Vec<u8>,
    /// HPKE public key of the leaf node.
    pub encryption_key: Vec<u8>,
    /// Public key of the leaf node as it is encoded; signatures are made with the true one.
    pub signature_key: Vec<u8>,
    /// CredentialType.
    pub credential_type: u16,
    /// What the credential's vector holds: for a BasicCredential, the identity.
    pub credential: Vec<u8>,
    /// The capabilities of the leaf node.
    pub capabilities: Capabilities,
    /// LeafNodeSource.
    pub source: Source,
    /// Extensions of the leaf node: type and data.
    pub leaf_extensions: Vec<(u16, Vec<u8>)>,
    /// Extensions of the KeyPackage: type and data.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// The leaf node's signature, instead of a right one.
    pub leaf_signature: Option<Vec<u8>>,
    /// The KeyPackage's signature, instead of a right one.
    pub signature: Option<Vec<u8>>,
    signer: Signer,
}

/// Capabilities (RFC 9420, section 7.2).
#[derive(Debug, Clone, Default)]
pub struct Capabilities {
    /// Protocol versions.
    pub versions: Vec<u16>,
    /// Cipher suites.
    pub cipher_suites: Vec<u16>,
    /// Extension types.
    pub extensions: Vec<u16>,
    /// Proposal types.
    pub proposals: Vec<u16>,
    /// Credential types.
    pub credentials: Vec<u16>,
}

/// LeafNodeSource (RFC 9420, section 7.2).
#[derive(Debug, Clone)]
pub enum Source {
    /// With not_before and not_after, in seconds since 1970.
    KeyPackage(u64, u64),
    /// Signed for leaf 0 of a group whose id is empty.
    Update,
    /// With its parent hash; signed as an update is.
    Commit(Vec<u8>),
    /// A value that RFC 9420 does not know, followed by nothing.
    Unknown(u8),
}

impl Forge {
    /// A package of a client that knows this suite alone and has a BasicCredential; valid from
    /// an hour before [`NOW`] for 30 days.
    pub fn new(cipher_suite: u16, identity: &str) -> Self {
        let suite = Ciphersuite::try_from(cipher_suite).expect("a suite that openmls knows");
        let signer = Signer::generate(suite.signature_algorithm());
        Self {
            version: 1,
            cipher_suite,
            init_key: hpke_public_key(suite.hpke_kem_algorithm()),
            encryption_key: hpke_public_key(suite.hpke_kem_algorithm()),
            signature_key: signer.public_key(),
            credential_type: 1,
            credential: identity.as_bytes().to_vec(),
            capabilities: Capabilities {
                versions: vec![1],
                cipher_suites: vec![cipher_suite],
                credentials: vec![1],
                ..Capabilities::default()
            },
            source: Source::KeyPackage(0, 0),
            leaf_extensions: Vec::new(),
            extensions: Vec::new(),
            leaf_signature: None,
            signature: None,
            signer,
        }
        .valid_around(NOW)
    }

    /// Changes what a test wants changed.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Valid from an hour before `now` for 30 days; seconds since 1970.
    #[must_use]
    pub fn valid_around(self, now: u64) -> Self {
        self.lifetime(now - 3600, now - 3600 + 30 * 86_400)
    }

    /// Sets not_before and not_after, in seconds since 1970.
    #[must_use]
    pub fn lifetime(mut self, not_before: u64, not_after: u64) -> Self {
        self.source = Source::KeyPackage(not_before, not_after);
        self
    }

    /// An X.509 credential with this chain of certificates (RFC 9420, section 5.3), instead of the
    /// BasicCredential.
    #[must_use]
    pub fn x509(mut self, chain: &[Vec<u8>]) -> Self {
        self.credential_type = 2;
        self.credential = certificates(chain);
        self.capabilities.credentials = vec![2];
        self
    }

    /// Adds an extension to the KeyPackage, and its type to the capabilities.
    #[must_use]
    pub fn extension(mut self, extension_type: u16, data: &[u8]) -> Self {
        self.extensions.push((extension_type, data.to_vec()));
        self.capabilities.extensions.push(extension_type);
        self
    }

    /// Adds an extension to the leaf node, and its type to the capabilities.
    #[must_use]
    pub fn leaf_extension(mut self, extension_type: u16, data: &[u8]) -> Self {
        self.leaf_extensions.push((extension_type, data.to_vec()));
        self.capabilities.extensions.push(extension_type);
        self
    }

    /// The TLS encoding of the KeyPackage.
    pub fn build(&self) -> Vec<u8> {
        let mut package = Writer::default();
        package.u16(self.version).u16(self.cipher_suite).vector(&self.init_key);
        package.0.extend(self.leaf_node());
        package.extensions(&self.extensions);
        let signature =
            self.signature.clone().unwrap_or_else(|| self.sign("KeyPackageTBS", &package.0));
        package.vector(&signature);
        package.0
    }

    fn leaf_node(&self) -> Vec<u8> {
        let mut leaf = Writer::default();
        leaf.vector(&self.encryption_key).vector(&self.signature_key);
        leaf.u16(self.credential_type).vector(&self.credential);
        let lists = &self.capabilities;
        leaf.codes(&lists.versions).codes(&lists.cipher_suites).codes(&lists.extensions);
        leaf.codes(&lists.proposals).codes(&lists.credentials);
        let mut place_in_group = Writer::default();
        match &self.source {
            Source::KeyPackage(not_before, not_after) => {
                leaf.0.push(1);
                leaf.u64(*not_before).u64(*not_after);
            }
            Source::Update => {
                leaf.0.push(2);
                place_in_group.vector(&[]).0.extend([0; 4]);
            }
            Source::Commit(parent_hash) => {
                leaf.0.push(3);
                leaf.vector(parent_hash);
                place_in_group.vector(&[]).0.extend([0; 4]);
            }
            Source::Unknown(value) => leaf.0.push(*value),
        }
        leaf.extensions(&self.leaf_extensions);
        let signature = self.leaf_signature.clone().unwrap_or_else(|| {
            self.sign("LeafNodeTBS", &[&leaf.0[..], &place_in_group.0].concat())
        });
        leaf.vector(&signature);
        leaf.0
    }

    /// SignWithLabel (RFC 9420, section 5.1.2) under the package's signature key.
    pub fn sign(&self, label: &str, content: &[u8]) -> Vec<u8> {
        let mut signed = Writer::default();
        signed.vector(format!("MLS 1.0 {label}").as_bytes()).vector(content);
        self.signer.sign(&signed.0)
    }
}

/// A vector with its length in front (RFC 9420, section 2.1.2).
pub fn vector(bytes: &[u8]) -> Vec<u8> {
    let mut vector = Writer::default();
    vector.vector(bytes);
    vector.0
}

/// An MLSMessage (RFC 9420, section 6). Wire format 5 carries a KeyPackage.
pub fn mls_message(version: u16, wire_format: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Writer::default();
    message.u16(version).u16(wire_format).0.extend(body);
    message.0
}

/// The AppDataDictionary (draft-ietf-mls-extensions, section 4.6) of these components.
pub fn app_data_dictionary(components: &[(u16, &[u8])]) -> Vec<u8> {
    let mut entries = Writer::default();
    for (component, data) in components {
        entries.u16(*component).vector(data);
    }
    let mut dictionary = Writer::default();
    dictionary.vector(&entries.0);
    dictionary.0
}

/// A fresh public key of the KEM.
pub fn hpke_public_key(kem: HpkeKemType) -> Vec<u8> {
    let dh = |algorithm: &'static agreement::Algorithm| {
        let key = PrivateKey::generate(algorithm).expect("randomness");
        key.compute_public_key().expect("a public key").as_ref().to_vec()
    };
    let ml_kem = |algorithm: &'static kem::Algorithm| {
        let key = DecapsulationKey::generate(algorithm).expect("randomness");
        let key = key.encapsulation_key().expect("a public key");
        key.key_bytes().expect("its encoding").as_ref().to_vec()
    };
    match kem {
        HpkeKemType::DhKem25519 => dh(&X25519),
        HpkeKemType::DhKemP256 => dh(&ECDH_P256),
        HpkeKemType::DhKemP384 => dh(&ECDH_P384),
        HpkeKemType::DhKemP521 => dh(&ECDH_P521),
        HpkeKemType::MlKem768 => ml_kem(&ML_KEM_768),
        HpkeKemType::MlKem1024 => ml_kem(&ML_KEM_1024),
        HpkeKemType::XWingKemDraft6 => [ml_kem(&ML_KEM_768), dh(&X25519)].concat(),
        HpkeKemType::DhKem448 => panic!("no X448 here"),
    }
}

#[derive(Debug)]
enum Signer {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
    MlDsa(PqdsaKeyPair),
}

impl Signer {
    fn generate(scheme: SignatureScheme) -> Self {
        let ecdsa = |algorithm| Self::Ecdsa(EcdsaKeyPair::generate(algorithm).expect("randomness"));
        let ml_dsa =
            |algorithm| Self::MlDsa(PqdsaKeyPair::generate(algorithm).expect("randomness"));
        match scheme {
            SignatureScheme::ED25519 => {
                Self::Ed25519(Ed25519KeyPair::generate().expect("randomness"))
            }
            SignatureScheme::ECDSA_SECP256R1_SHA256 => ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
            SignatureScheme::ECDSA_SECP384R1_SHA384 => ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
            SignatureScheme::ECDSA_SECP521R1_SHA512 => ecdsa(&ECDSA_P521_SHA512_ASN1_SIGNING),
            SignatureScheme::MLDSA44 => ml_dsa(&ML_DSA_44_SIGNING),
            SignatureScheme::MLDSA65 => ml_dsa(&ML_DSA_65_SIGNING),
            SignatureScheme::MLDSA87 => ml_dsa(&ML_DSA_87_SIGNING),
            SignatureScheme::ED448 => panic!("no Ed448 here"),
        }
    }

    fn public_key(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
            Self::Ecdsa(pair) => pair.public_key().as_ref().to_vec(),
            Self::MlDsa(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    fn sign(&self, content: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(pair) => pair.sign(content).as_ref().to_vec(),
            Self::Ecdsa(pair) => {
                pair.sign(&SystemRandom::new(), content).expect("a signature").as_ref().to_vec()
            }
            Self::MlDsa(pair) => {
                let mut signature = vec![0; pair.algorithm().signature_len()];
                let len = pair.sign(content, &mut signature).expect("a signature");
                signature.truncate(len);
                signature
            }
        }
    }
}

/// Writes the TLS presentation language (RFC 9420, section 2.1).
#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn vector(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u32::try_from(bytes.len()).expect("a length below 2^30");
        match len {
            0..0x40 => self.0.push(len as u8),
            0x40..0x4000 => self.0.extend((len as u16 | 0x4000).to_be_bytes()),
            _ => self.0.extend((len | 0x8000_0000).to_be_bytes()),
        }
        self.0.extend(bytes);
        self
    }

    fn codes(&mut self, codes: &[u16]) -> &mut Self {
        let bytes: Vec<u8> = codes.iter().flat_map(|code| code.to_be_bytes()).collect();
        self.vector(&bytes)
    }

    fn extensions(&mut self, extensions: &[(u16, Vec<u8>)]) -> &mut Self {
        let mut list = Self::default();
        for (extension_type, data) in extensions {
            list.u16(*extension_type).vector(data);
        }
        self.vector(&list.0)
    }
}
