//! The `keypool` command as its users see it.
#![allow(clippy::panic, clippy::unwrap_used)] // clippy knows only `#[test]` functions as tests

mod keys;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use keypool_service::{
    config::AuthSection,
    domain::{clock::SystemClock, error::Error},
    grpc::auth::{Authenticator, Caller, Scope},
    token::SigningKey,
};
use keys::Pair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tempfile::TempDir;

const SAMPLE: &str = include_str!("../keypool.sample.toml");

/// Runs `keypool` in `folder` with no variables but these.
fn keypool_with(folder: &TempDir, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keypool"));
    command.current_dir(folder).env_clear().envs(variables.iter().copied());
    command.args(args).output().unwrap()
}

fn keypool(folder: &TempDir, args: &[&str]) -> Output {
    keypool_with(folder, args, &[])
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a successful run prints.
fn output(run: &Output) -> &str {
    assert!(run.status.success(), "{run:?}");
    assert_eq!(text(&run.stderr), "");
    text(&run.stdout)
}

/// The one line that a failed run prints.
fn error(run: &Output) -> &str {
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert_eq!(text(&run.stdout), "");
    let line = text(&run.stderr).strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{line}");
    line
}

/// A folder with `key.pem`, and with the files that the sample names.
fn folder_with(pair: &Pair) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("key.pem"), &pair.private).unwrap();
    fs::write(folder.path().join("auth.pub.pem"), &pair.public).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    for (name, tag, der) in [
        ("tls.key", "PRIVATE KEY", key.serialize_der()),
        ("tls.crt", "CERTIFICATE", certificate.der().to_vec()),
    ] {
        fs::write(folder.path().join(name), pem::encode(&pem::Pem::new(tag, der))).unwrap();
    }
    folder
}

fn authenticate(folder: &TempDir, section: &AuthSection, token: &str) -> Result<Caller, Error> {
    let keys = vec![folder.path().join("auth.pub.pem")];
    let section = AuthSection { keys, ..section.clone() };
    let authenticator = Authenticator::from_config(&section, Arc::new(SystemClock)).unwrap();
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    authenticator.authenticate(&HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

fn section(audience: &str, issuer: Option<&str>) -> AuthSection {
    AuthSection {
        issuer: issuer.map(Into::into),
        leeway: Duration::ZERO,
        ..AuthSection::for_audience(audience)
    }
}

const BOB: [&str; 7] = ["token", "--user", "bob", "--client", "phone", "--key", "key.pem"];

#[test]
fn a_token_of_each_kind_of_key_is_accepted() {
    for pair in [keys::ed25519(), keys::p256(), keys::rsa()] {
        let folder = folder_with(&pair);
        let run = keypool(&folder, &BOB);
        let token = output(&run).strip_suffix('\n').unwrap();
        let header = jsonwebtoken::decode_header(token).unwrap();
        assert_eq!((header.alg, header.kid), (pair.algorithm, None));
        let caller = authenticate(&folder, &section("keypool", None), token).unwrap();
        assert_eq!((caller.key.user.as_str(), caller.key.client.as_str()), ("bob", "phone"));
        let allowed = Scope::ALL.map(|scope| caller.require(scope).is_ok());
        assert_eq!(allowed, [true, true, false]);
    }
}

#[test]
fn a_token_says_what_was_asked_for() {
    let folder = folder_with(&keys::ed25519());
    let options = [
        "--scope",
        "keypool.audit",
        "--scope=keypool.publish",
        "--ttl=5m",
        "--audience=pool",
        "--issuer=us",
        "--kid=one",
    ];
    let run = keypool(&folder, &[&BOB[..], &options[..]].concat());
    let token = output(&run).trim();
    assert_eq!(jsonwebtoken::decode_header(token).unwrap().kid.as_deref(), Some("one"));
    let caller = authenticate(&folder, &section("pool", Some("us")), token).unwrap();
    assert_eq!(Scope::ALL.map(|scope| caller.require(scope).is_ok()), [true, false, true]);
    assert!(authenticate(&folder, &section("keypool", Some("us")), token).is_err());
    assert!(authenticate(&folder, &section("pool", Some("them")), token).is_err());
    let claims: serde_json::Value = jsonwebtoken::dangerous::insecure_decode(token).unwrap().claims;
    let lifetime = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert_eq!(lifetime, 300);
}

#[test]
fn wrong_arguments_end_with_2() {
    let folder = folder_with(&keys::ed25519());
    let long = "x".repeat(256);
    for (args, reason) in [
        (vec!["--scope", "admin"], "possible values: keypool.publish, keypool.reserve"),
        (vec!["--ttl", "soon"], "invalid value 'soon'"),
        (vec!["--user", "eve"], "cannot be used multiple times"),
        (vec!["--verbose"], "unexpected argument"),
    ] {
        let run = keypool(&folder, &[&BOB[..], &args[..]].concat());
        assert_eq!(run.status.code(), Some(2), "{run:?}");
        assert!(text(&run.stderr).contains(reason), "{run:?}");
        assert_eq!(text(&run.stdout), "");
    }
    for user in ["", "a\nb", &long] {
        let run = keypool(&folder, &["token", "--user", user, "--client", "c", "--key", "key.pem"]);
        assert_eq!(run.status.code(), Some(2), "{run:?}");
        assert!(text(&run.stderr).contains("must be 1 to 255 bytes of UTF-8"), "{run:?}");
    }
    for ttl in ["0s", "999ms", "10000y"] {
        let run = keypool(&folder, &[&BOB[..], &["--ttl", ttl]].concat());
        assert!(error(&run).contains("the lifetime must be at least a second"), "{run:?}");
    }
}

#[test]
fn a_bad_key_file_is_named_with_its_reason() {
    let pair = keys::p256();
    let folder = folder_with(&pair);
    let body = pem::parse(&pair.private).unwrap();
    let block = |tag: &str, bytes: &[u8]| pem::encode(&pem::Pem::new(tag, bytes));
    for (text, reason) in [
        (String::new(), "it is no PEM file"),
        (pair.public.clone(), "it holds a public key; tokens are signed with the private one"),
        (block("EC PRIVATE KEY", body.contents()), "convert it to PKCS#8"),
        (block("ENCRYPTED PRIVATE KEY", body.contents()), "it is encrypted"),
        (block("CERTIFICATE", body.contents()), "it holds a CERTIFICATE"),
        (block("PRIVATE KEY", b"x"), "it holds no Ed25519, P-256 or RSA"),
        (block("PRIVATE KEY", &body.contents()[..60]), "it holds no Ed25519, P-256 or RSA"),
    ] {
        fs::write(folder.path().join("key.pem"), &text).unwrap();
        let run = keypool(&folder, &BOB);
        let line = error(&run);
        assert!(line.starts_with("keypool: key.pem: ") && line.contains(reason), "{line}");
    }
    fs::remove_file(folder.path().join("key.pem")).unwrap();
    assert!(error(&keypool(&folder, &BOB)).starts_with("keypool: key.pem: No such file"));
}

#[test]
fn a_good_configuration_passes_the_check_but_for_its_database() {
    let folder = folder_with(&keys::ed25519());
    fs::write(folder.path().join("keypool.toml"), SAMPLE).unwrap();
    let impatient = ("KEYPOOL_DATABASE__ACQUIRE_TIMEOUT", "50ms");
    let nowhere = ("KEYPOOL_DATABASE__URL", "postgres://keypool@127.0.0.1:1/keypool");
    // There is no database here: that is all there is to find.
    for (arguments, variables) in [
        (&["check", "--config", "keypool.toml"][..], &[impatient, nowhere][..]),
        (&["check"], &[impatient, nowhere, ("KEYPOOL_CONFIG", "keypool.toml")]),
    ] {
        let run = keypool_with(&folder, arguments, variables);
        let found = text(&run.stdout);
        assert!(found.starts_with("database: the database cannot be reached"), "{run:?}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
}

#[test]
fn the_check_tells_every_problem() {
    let folder = TempDir::new().unwrap();
    let check = |file: &str, variables: &[(&str, &str)]| {
        fs::write(folder.path().join("keypool.toml"), file).unwrap();
        let run = keypool_with(&folder, &["check", "--config", "keypool.toml"], variables);
        assert_eq!(run.status.code(), Some(1), "{run:?}");
        assert_eq!(text(&run.stderr), "");
        text(&run.stdout).to_owned()
    };
    let found = check(SAMPLE, &[]);
    assert!(found.starts_with("auth.keys: auth.pub.pem: No such file"), "{found}");
    let found = check(
        &SAMPLE.replace("target = 32", "target = 0"),
        &[
            ("KEYPOOL_DATABASE__URL", "mysql://keypool:hunter2@localhost"),
            ("KEYPOOL_DATABSE__URL", "postgres://keypool:hunter2@localhost"),
        ],
    );
    let lines: Vec<&str> = found.lines().collect();
    let expected = ["KEYPOOL_DATABASE__URL: ", "pool.target: ", "KEYPOOL_DATABSE__URL: unknown"];
    assert_eq!(lines.len(), expected.len(), "{found}");
    for (line, start) in lines.iter().zip(expected) {
        assert!(line.starts_with(start), "{found}");
    }
    assert!(!found.contains("hunter2"), "{found}");
    let found = check("[database]\nurl = \"postgres://keypool:hunter2@localhost", &[]);
    assert!(found.starts_with("keypool.toml: line 2: "), "{found}");
    assert!(!found.contains("hunter2"), "{found}");
}

#[test]
fn the_check_reads_trust_anchors() {
    let folder = folder_with(&keys::ed25519());
    fs::write(folder.path().join("keypool.toml"), SAMPLE).unwrap();
    let check = || {
        let variables = [
            ("KEYPOOL_UPLOAD__TRUST_ANCHORS", "root.pem,ca.pem"),
            ("KEYPOOL_DATABASE__ACQUIRE_TIMEOUT", "1ms"),
        ];
        let run = keypool_with(&folder, &["check", "--config", "keypool.toml"], &variables);
        let found = text(&run.stdout).lines();
        found.filter(|line| !line.starts_with("database: ")).collect::<Vec<&str>>().join("\n")
    };
    let certificate = |is_ca| {
        let mut params = CertificateParams::default();
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        pem::encode(&pem::Pem::new("CERTIFICATE", der))
    };
    let ca = certificate(IsCa::Ca(BasicConstraints::Unconstrained));
    fs::write(folder.path().join("root.pem"), &ca).unwrap();
    let found = check();
    assert!(found.starts_with("upload.trust_anchors: ca.pem: No such file"), "{found}");
    for (file, problem) in [
        ("", "it holds no certificate"),
        (&keys::ed25519().private, "it holds a PRIVATE KEY, not only certificates"),
        (&certificate(IsCa::NoCa), "its certificate 1 is not a CA's"),
    ] {
        fs::write(folder.path().join("ca.pem"), file).unwrap();
        assert_eq!(check(), format!("upload.trust_anchors: ca.pem: {problem}"));
    }
    fs::write(folder.path().join("ca.pem"), &ca).unwrap();
    assert!(!check().contains("upload"), "{}", check());
}

#[test]
fn help_is_there_and_shows_no_value_of_a_variable() {
    let folder = TempDir::new().unwrap();
    let variables =
        [("KEYPOOL_CONFIG", "/secret/place"), ("KEYPOOL_DATABASE__URL", "postgres://u:hunter2@h")];
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["migrate", "--help"],
        &["wait", "--help"],
        &["dev", "--help"],
        &["check", "--help"],
        &["pool", "--help"],
        &["pool", "show", "--help"],
        &["pool", "top", "--help"],
        &["config-reference", "--help"],
        &["after-restore", "--help"],
        &["token", "--help"],
    ] {
        let run = keypool_with(&folder, args, &variables);
        let help = output(&run);
        assert!(help.contains("Usage: keypool"), "{help}");
        assert!(!help.contains("/secret/place") && !help.contains("hunter2"), "{help}");
    }
}

#[test]
fn a_development_key_is_made_once() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = TempDir::new().unwrap();
    let path = folder.path().join("dev-key.pem");
    let make = || SigningKey::load_or_create(&path).map(drop);
    make().unwrap();
    let key = fs::read_to_string(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file is left");
    make().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), key);
    fs::write(&path, "mine").unwrap();
    assert!(make().is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let unmakable = SigningKey::load_or_create(Path::new("/no/such/folder/dev-key.pem"));
    assert!(format!("{:#}", unmakable.unwrap_err()).starts_with("/no/such/folder/dev-key.pem: "));
}
