//! Prints the public API of a library, an item a line, from the JSON that rustdoc wrote of it:
//! `public-api FILE`. `script/public-api` runs it.

#![allow(clippy::print_stdout)] // Printing is what it is for.

use anyhow::{Context as _, Result};
use public_api::Builder;

fn main() -> Result<()> {
    let json = std::env::args().nth(1).context("usage: public-api FILE")?;
    // Left out: what holds of every type, and what the compiler derives by itself.
    let api = Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?;
    print!("{api}");
    Ok(())
}
