//! The programs of this build.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const HOW: &str = "run `cargo build --workspace --bins --examples` first, or script/test";

/// The `keypool` binary of this build.
///
/// # Panics
/// It is missing, or its sources have changed since it was built.
pub fn binary() -> PathBuf {
    current("keypool")
}

/// An example program of this build.
///
/// # Panics
/// As [`binary`].
pub fn example(name: &str) -> PathBuf {
    current(&format!("examples/{name}"))
}

fn current(program: &str) -> PathBuf {
    let test = env::current_exe().expect("this test's own path");
    // A test lies in target/debug/deps, a program beside the binary.
    let folders = test.ancestors().skip(1).take(2);
    let built = folders.map(|folder| folder.join(program)).filter(|built| built.is_file()).last();
    let built =
        built.unwrap_or_else(|| panic!("{program} is not built beside {}: {HOW}", test.display()));
    let modified = |path: &Path| fs::metadata(path).and_then(|found| found.modified()).ok();
    let made = modified(&built).expect("a file that was found");
    let Ok(sources) = fs::read_to_string(built.with_extension("d")) else {
        panic!("{} lacks its list of sources: {HOW}", built.display());
    };
    let (_, sources) = sources.split_once(": ").expect("TARGET: SOURCES");
    for source in sources.replace("\\ ", "\0").split_whitespace() {
        let source = PathBuf::from(source.replace('\0', " "));
        let current = modified(&source).is_some_and(|changed| changed <= made);
        assert!(current, "{} is newer than {}: {HOW}", source.display(), built.display());
    }
    built
}
