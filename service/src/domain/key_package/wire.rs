//! The TLS encoding of a KeyPackage (RFC 9420, sections 2.1, 7.2 and 10), read without copying.
//!
//! openmls parses too, but shows the fields of a KeyPackage only once it has passed openmls's own
//! validation, which goes by the system clock and has one reason for several rules.

use super::rejection::{RejectReason, Rejection};

/// What follows the version of an MLSMessage that carries a KeyPackage (RFC 9420, section 6).
const WIRE_FORMAT_KEY_PACKAGE: [u8; 2] = [0, 5];

/// A KeyPackage as it was sent; nothing of it is checked but the encoding.
#[derive(Debug)]
pub(super) struct KeyPackage<'a> {
    /// The whole encoding, without an MLSMessage around it.
    pub(super) bytes: &'a [u8],
    pub(super) version: u16,
    pub(super) cipher_suite: u16,
    pub(super) init_key: &'a [u8],
    pub(super) leaf_node: LeafNode<'a>,
    pub(super) extensions: Vec<Extension<'a>>,
    /// KeyPackageTBS: everything before the signature.
    pub(super) signed: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// The leaf node of a KeyPackage.
#[derive(Debug)]
pub(super) struct LeafNode<'a> {
    pub(super) encryption_key: &'a [u8],
    pub(super) signature_key: &'a [u8],
    pub(super) credential: Credential<'a>,
    pub(super) capabilities: CapabilityLists<'a>,
    pub(super) source: LeafNodeSource,
    pub(super) extensions: Vec<Extension<'a>>,
    /// LeafNodeTBS, when the source is key_package: everything before the signature.
    pub(super) signed: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// A credential of any type: all types so far are one vector.
#[derive(Debug)]
pub(super) struct Credential<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) credential_type: u16,
    pub(super) content: &'a [u8],
}

#[derive(Debug)]
pub(super) struct CapabilityLists<'a> {
    pub(super) versions: Codes<'a>,
    pub(super) cipher_suites: Codes<'a>,
    pub(super) extensions: Codes<'a>,
    pub(super) proposals: Codes<'a>,
    pub(super) credentials: Codes<'a>,
}

/// A vector of uint16.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes<'a>(&'a [[u8; 2]]);

impl<'a> Codes<'a> {
    pub(super) fn iter(self) -> impl Iterator<Item = u16> + 'a {
        self.0.iter().map(|&code| u16::from_be_bytes(code))
    }

    pub(super) fn contains(self, wanted: u16) -> bool {
        self.0.contains(&wanted.to_be_bytes())
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum LeafNodeSource {
    /// In seconds since 1970.
    KeyPackage {
        not_before: u64,
        not_after: u64,
    },
    Update,
    Commit,
}

#[derive(Debug)]
pub(super) struct Extension<'a> {
    pub(super) extension_type: u16,
    pub(super) data: &'a [u8],
}

impl<'a> KeyPackage<'a> {
    /// Reads a KeyPackage, or an MLSMessage that wraps one.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Rejection> {
        // An MLSMessage starts with its version and wire format, a KeyPackage with its version
        // and cipher suite. Suite 5 looks like the wire format, but then an init_key of 133 bytes
        // follows, where a wrapped package has a version below 256.
        let wrapped = bytes.split_at_checked(4).filter(|(header, inner)| {
            header[2..] == WIRE_FORMAT_KEY_PACKAGE && inner.first() == Some(&0)
        });
        let Some((header, inner)) = wrapped else { return Self::parse_bare(bytes) };
        let package = match Self::parse_bare(inner) {
            Ok(package) => package,
            // A package of suite 5 without an init_key, perhaps.
            Err(rejection) => return Self::parse_bare(bytes).map_err(|_| rejection),
        };
        if header[..2] != package.version.to_be_bytes() {
            return Err(malformed("the MLSMessage and its KeyPackage differ in version"));
        }
        Ok(package)
    }

    fn parse_bare(bytes: &'a [u8]) -> Result<Self, Rejection> {
        let mut reader = Reader(bytes);
        let version = reader.u16()?;
        let cipher_suite = reader.u16()?;
        let init_key = reader.vector()?;
        let leaf_node = LeafNode::read(&mut reader)?;
        let extensions = Extension::read_list(&mut reader)?;
        let signed = reader.since(bytes);
        let signature = reader.vector()?;
        reader.end()?;
        Ok(Self {
            bytes,
            version,
            cipher_suite,
            init_key,
            leaf_node,
            extensions,
            signed,
            signature,
        })
    }
}

impl<'a> LeafNode<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Rejection> {
        let start = reader.0;
        let encryption_key = reader.vector()?;
        let signature_key = reader.vector()?;
        let credential = Credential::read(reader)?;
        let capabilities = CapabilityLists {
            versions: reader.codes()?,
            cipher_suites: reader.codes()?,
            extensions: reader.codes()?,
            proposals: reader.codes()?,
            credentials: reader.codes()?,
        };
        let source = LeafNodeSource::read(reader)?;
        let extensions = Extension::read_list(reader)?;
        let signed = reader.since(start);
        let signature = reader.vector()?;
        Ok(Self {
            encryption_key,
            signature_key,
            credential,
            capabilities,
            source,
            extensions,
            signed,
            signature,
        })
    }
}

impl<'a> Credential<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Rejection> {
        let start = reader.0;
        let credential_type = reader.u16()?;
        let content = reader.vector()?;
        Ok(Self { bytes: reader.since(start), credential_type, content })
    }
}

impl LeafNodeSource {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Rejection> {
        match reader.array()? {
            [1] => Ok(Self::KeyPackage {
                not_before: u64::from_be_bytes(reader.array()?),
                not_after: u64::from_be_bytes(reader.array()?),
            }),
            [2] => Ok(Self::Update),
            [3] => reader.vector().map(|_parent_hash| Self::Commit),
            // What follows an unknown source cannot be read.
            [_] => Err(Rejection::new(
                RejectReason::InvalidLeafNode,
                "leaf_node_source is no value of RFC 9420, section 7.2",
            )),
        }
    }
}

impl<'a> Extension<'a> {
    fn read_list(reader: &mut Reader<'a>) -> Result<Vec<Self>, Rejection> {
        let mut list = Reader(reader.vector()?);
        let mut extensions = Vec::new();
        while !list.0.is_empty() {
            extensions.push(Self { extension_type: list.u16()?, data: list.vector()? });
        }
        Ok(extensions)
    }
}

/// The bytes that are still to be read.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Rejection> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| malformed("ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const LEN: usize>(&mut self) -> Result<[u8; LEN], Rejection> {
        let (taken, rest) =
            self.0.split_first_chunk().ok_or_else(|| malformed("ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Rejection> {
        self.array().map(u16::from_be_bytes)
    }

    /// A vector with a length in front (RFC 9420, section 2.1.2), which must be encoded in as few
    /// bytes as can be.
    pub(super) fn vector(&mut self) -> Result<&'a [u8], Rejection> {
        let [first] = self.array()?;
        let (len, least) = match first >> 6 {
            0 => (u32::from(first), 0),
            1 => {
                let [second] = self.array()?;
                (u32::from_be_bytes([0, 0, first & 0x3f, second]), 0x40)
            }
            2 => {
                let [second, third, fourth] = self.array()?;
                (u32::from_be_bytes([first & 0x3f, second, third, fourth]), 0x4000)
            }
            _ => return Err(malformed("a length starts with the bits 11")),
        };
        if len < least {
            return Err(malformed("a length is encoded in more bytes than it takes"));
        }
        self.take(usize::try_from(len).map_err(|_| malformed("ends too early"))?)
    }

    fn codes(&mut self) -> Result<Codes<'a>, Rejection> {
        match self.vector()?.as_chunks() {
            (codes, []) => Ok(Codes(codes)),
            _ => Err(malformed("a list of capabilities has half an item")),
        }
    }

    /// What was read since `start` was all that was to be read.
    fn since(&self, start: &'a [u8]) -> &'a [u8] {
        &start[..start.len() - self.0.len()] // what is left is the end of `start`
    }

    pub(super) fn end(self) -> Result<(), Rejection> {
        if self.0.is_empty() { Ok(()) } else { Err(malformed("has trailing bytes")) }
    }
}

pub(super) fn malformed(what: &str) -> Rejection {
    Rejection::new(RejectReason::Malformed, what)
}
