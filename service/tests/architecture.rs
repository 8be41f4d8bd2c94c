//! Who may know whom, read off the source: `main -> run -> server -> grpc -> pool -> store ->
//! domain`, and no way back up.
#![allow(clippy::panic, clippy::unwrap_used)] // clippy knows only `#[test]` functions as tests

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The parts of the service and the others that each may name. `grpc::auth` is named apart: it
/// knows tokens and keys, which the commands need too, and nothing of gRPC.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("metrics", &[]),
    ("certificates", &[]),
    ("store", &["domain", "metrics"]),
    ("pool", &["domain", "store", "metrics"]),
    ("dev", &[]),
    ("config", &["domain"]),
    ("telemetry", &["certificates", "config"]),
    ("grpc", &["certificates", "domain", "pool", "config", "metrics", "telemetry"]),
    ("token", &["domain", "grpc::auth"]),
    ("check", &["config", "domain", "grpc::auth", "run", "server", "store", "telemetry"]),
    ("server", &["certificates", "domain", "store", "pool", "grpc", "metrics", "telemetry"]),
    ("run", &["config", "dev", "domain", "grpc", "pool", "server", "store", "token"]),
    ("operate", &["config", "domain", "run", "store"]),
    ("cli", &["domain", "grpc::auth", "token"]),
    ("main", &["check", "cli", "config", "domain", "operate", "run", "telemetry", "token"]),
    ("lib", &[]),
];

/// What each foreign crate is for, and so the only parts that may name it.
const CRATE_OF: &[(&str, &[&str])] = &[
    // config checks the database's URL with the parser that will read it; dev asks Postgres
    // whether it is up.
    ("sqlx", &["store", "config", "dev"]),
    ("tonic", &["grpc", "server"]),
    ("tonic_types", &["grpc"]),
    ("tonic_health", &["server"]),
    ("tonic_reflection", &["server"]),
    ("prost", &["grpc", "metrics"]),
    ("prost_types", &["grpc", "metrics"]),
    ("keypool_proto", &["grpc", "metrics", "server"]),
    ("tower", &["server", "grpc"]),
    // grpc::auth fetches the keys of tokens.
    ("hyper", &["server", "grpc", "metrics"]),
    ("hyper_util", &["server", "grpc", "metrics"]),
    ("tokio_rustls", &["server", "grpc"]),
    ("tower_http", &["server"]),
    ("jsonwebtoken", &["grpc", "token"]),
    ("openmls", &["domain"]),
    ("toml", &["config"]),
    ("clap", &["cli", "main"]),
];

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
    files
}

/// The code of a file without comments and without its tests.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let code = text.lines().map(|line| line.split("//").next().unwrap());
    code.collect::<Vec<&str>>().join("\n")
}

fn is_ident(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// What stands behind every `root::`, a group opened one level; and one level more of `grpc`.
fn named_under(code: &str, root: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let prefix = format!("{root}::");
    for (at, _) in code.match_indices(&prefix) {
        if !code[..at].ends_with(|before| is_ident(before) || before == ':') {
            for name in first_names(&code[at + prefix.len()..]) {
                found.insert(name);
            }
        }
    }
    found
}

fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> Vec<String> {
        let ident: String = text.chars().take_while(|c| is_ident(*c)).collect();
        match text[ident.len()..].strip_prefix("::") {
            Some(rest) if ident == "grpc" => {
                first_names(rest).iter().map(|inner| format!("grpc::{inner}")).collect()
            }
            _ => vec![ident],
        }
    };
    let Some(group) = path.strip_prefix('{') else { return name(path) };
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                let element = group[start..at].trim();
                if !element.is_empty() {
                    names.extend(name(element));
                }
                start = at + 1;
                if character == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

/// Each part's code, by its name.
fn parts() -> BTreeMap<String, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut parts: BTreeMap<String, String> = BTreeMap::new();
    for file in rust_files(&source) {
        if file.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        let inner = file.strip_prefix(&source).unwrap();
        let part = inner.components().next().unwrap().as_os_str().to_str().unwrap();
        let part = part.trim_end_matches(".rs").to_owned();
        parts.entry(part).or_default().push_str(&code(&file));
    }
    parts
}

#[test]
fn every_part_knows_only_those_below_it() {
    let parts = parts();
    let listed: BTreeSet<&str> = MAY_KNOW.iter().map(|(part, _)| *part).collect();
    assert_eq!(parts.keys().map(String::as_str).collect::<BTreeSet<&str>>(), listed);
    for (part, may_know) in MAY_KNOW {
        let code = &parts[*part];
        let mut named = named_under(code, "crate");
        named.extend(named_under(code, "keypool_service"));
        for name in named {
            let top = name.split("::").next().unwrap();
            let allowed = top == *part || may_know.iter().any(|it| *it == top || *it == name);
            assert!(allowed, "{part} must not know {name}");
        }
    }
}

#[test]
fn every_foreign_crate_stays_where_it_belongs() {
    for (part, code) in parts() {
        for (name, homes) in CRATE_OF {
            let named = code
                .match_indices(&format!("{name}::"))
                .any(|(at, _)| !code[..at].ends_with(|before| is_ident(before) || before == ':'));
            assert!(!named || homes.contains(&&*part), "{part} must not know {name}");
        }
    }
}

#[test]
fn the_domain_has_no_clock_and_no_runtime_of_its_own() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain");
    for file in rust_files(&source) {
        let code = code(&file);
        for name in ["SystemTime", "Instant", "now_utc", "tokio::", "rand::random"] {
            // The one place where time comes from.
            let is_clock = file.ends_with("domain/clock.rs") && name == "now_utc";
            assert!(is_clock || !code.contains(name), "{}: {name}", file.display());
        }
    }
}

#[test]
fn the_sdk_knows_nothing_of_the_service() {
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client-sdk");
    let manifest = fs::read_to_string(sdk.join("Cargo.toml")).unwrap();
    assert!(manifest.contains("keypool-proto") && !manifest.contains("keypool-service"));
    for file in rust_files(&sdk) {
        assert!(!code(&file).contains("keypool_service"), "{}", file.display());
    }
}

/// The manifests of the workspace: its own, and those of its members.
fn manifests() -> Vec<(PathBuf, toml::Table)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |folder: PathBuf| {
        let text = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        (folder, text.parse::<toml::Table>().unwrap())
    };
    let own = read(root.clone());
    let members = own.1["workspace"]["members"].as_array().unwrap().clone();
    let members = members.iter().map(|member| read(root.join(member.as_str().unwrap())));
    let mut manifests: Vec<_> = members.collect();
    manifests.push(own);
    manifests
}

#[test]
fn unsafe_is_forbidden_in_every_crate() {
    let manifests = manifests();
    assert!(manifests.len() >= 5);
    for (folder, manifest) in &manifests {
        let inherits = manifest.get("lints").and_then(|lints| lints["workspace"].as_bool());
        assert_eq!(inherits, Some(true), "{}", folder.display());
    }
    // Forbidden, not denied: no attribute in the source allows it again.
    let workspace = &manifests.last().unwrap().1["workspace"];
    assert_eq!(workspace["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
}

#[test]
fn every_dependency_is_named_with_its_job() {
    let manifests = manifests();
    let workspace = manifests.last().unwrap().1["workspace"]["dependencies"].as_table().unwrap();
    let is_own = |name: &str| name.starts_with("keypool-");
    let depends: BTreeSet<&str> =
        workspace.keys().map(String::as_str).filter(|name| !is_own(name)).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let table = text.split("| crate | job |\n|---|---|\n").nth(1).unwrap();
    let rows = table.lines().map_while(|line| line.strip_prefix("| ")?.split_once(" |"));
    let named: BTreeSet<&str> = rows.flat_map(|(names, _)| names.split(", ")).collect();
    assert_eq!(depends, named);

    // All versions stand in one place, and each is used by someone.
    let mut used = BTreeSet::new();
    for (folder, manifest) in &manifests {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(kind).and_then(toml::Value::as_table) else { continue };
            // Own crates may stand without a version, so that packages leave them out.
            for (name, how) in table.iter().filter(|(name, _)| !is_own(name)) {
                let inherits = how.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(inherits, Some(true), "{name} in {}", folder.display());
                used.insert(name.as_str());
            }
        }
    }
    let unused: Vec<&&str> = depends.iter().filter(|name| !used.contains(**name)).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn every_promise_of_the_threat_model_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tests: Vec<PathBuf> = ["tests", "service/tests", "client-sdk/tests"]
        .iter()
        .flat_map(|folder| rust_files(&root.join(folder)))
        .collect();
    let code: String = tests.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let model = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let quoted = model.split('`').skip(1).step_by(2);
    let named: Vec<&str> = quoted.filter(|it| it.matches('_').count() > 3).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        assert!(code.contains(&format!("fn {name}(")), "no test is called {name}");
    }
}

#[test]
fn names_are_found_in_every_form_of_use() {
    let code = "use crate::{\n    domain::{a::B, c},\n    store::Store,\n};\nuse crate::pool;\n\
                fn f() -> crate::grpc::auth::Scope {}\nuse crate::grpc::{self, auth::X};\n\
                use subcrate::no;";
    let found = named_under(code, "crate");
    let expected = ["domain", "grpc::auth", "grpc::self", "pool", "store"];
    assert_eq!(found.iter().map(String::as_str).collect::<Vec<&str>>(), expected);
}
