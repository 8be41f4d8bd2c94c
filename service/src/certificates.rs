//! Certificates in PEM (RFC 7468), as operators name them in the configuration.

use std::{fs, path::Path};

use anyhow::{Context as _, ensure};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

/// All of a text's, in their order: one at the least.
///
/// # Errors
/// It is broken, or holds none.
pub(crate) fn in_pem(text: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let all = all.ok().context("it is no PEM file")?;
    ensure!(!all.is_empty(), "it holds no certificate");
    Ok(all)
}

/// All of a file's.
///
/// # Errors
/// As [`in_pem`], or it cannot be read; the path stands before the cause.
pub(crate) fn in_file(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || in_pem(&fs::read(path)?);
    read().with_context(|| path.display().to_string())
}
