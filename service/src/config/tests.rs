use std::time::Duration;

use super::*;

const SAMPLE: &str = include_str!("../../keypool.sample.toml");

/// What has no default.
const REQUIRED: &str = r#"
    [database]
    url = "postgres://keypool@localhost:5432/keypool"
    [auth]
    keys = ["auth.pub.pem"]
    audience = "keypool"
    [tls]
    certificate = "tls.crt"
    key = "tls.key"
"#;

const PASSWORD: &str = "hunter2";

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, [])
}

fn parse_with(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::parse(REQUIRED, environment(variables))
}

/// The findings, one a line.
fn problems(result: Result<Config, ConfigError>) -> String {
    let findings = result.unwrap_err().findings;
    findings.iter().map(Finding::to_string).collect::<Vec<String>>().join("\n")
}

/// [`REQUIRED`] and another line of a section.
fn with(section: &str, line: &str) -> String {
    match REQUIRED.contains(section) {
        true => REQUIRED.replace(section, &format!("{section}\n{line}")),
        false => format!("{REQUIRED}\n{section}\n{line}"),
    }
}

/// The sample with the keys that it comments out.
fn whole_sample() -> String {
    let is_key = |rest: &str| {
        let name = rest.split_once(" = ").map_or("", |(name, _)| name);
        !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let lines = SAMPLE.lines().map(|line| match line.strip_prefix("# ") {
        Some(rest) if is_key(rest) => rest,
        _ => line,
    });
    lines.collect::<Vec<&str>>().join("\n")
}

#[test]
fn the_sample_shows_the_defaults() {
    assert_eq!(parse(SAMPLE).unwrap(), parse(REQUIRED).unwrap());
}

#[test]
fn the_sample_shows_every_key_and_no_other() {
    let mut source = Source::new(toml::from_str("").unwrap(), []);
    Config::read(&mut source);
    let known: Vec<String> = source.known().iter().map(ToString::to_string).collect();

    let mut shown = Vec::new();
    for (name, value) in toml::from_str::<toml::Table>(&whole_sample()).unwrap() {
        match value {
            toml::Value::Table(section) => {
                shown.extend(section.keys().map(|key| format!("{name}.{key}")));
            }
            _ => shown.push(name),
        }
    }
    shown.sort();
    assert_eq!(shown, known);
}

#[test]
fn every_key_of_the_sample_parses() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("url");
    fs::write(&file, "postgres://keypool:pw@localhost/keypool\n").unwrap();
    let text = whole_sample()
        .replace("/run/secrets/keypool-database-url", file.to_str().unwrap())
        .replace("url = \"postgres://keypool@localhost:5432/keypool\"", "");
    let config = parse(&text).unwrap();
    assert_eq!(config.database.url.expose(), "postgres://keypool:pw@localhost/keypool");
    assert_eq!(config.auth.issuer.as_deref(), Some("https://login.example.org"));
}

#[test]
fn variables_win_over_the_file() {
    let config = parse_with(&[
        ("KEYPOOL_LISTEN", "[::1]:7000"),
        ("KEYPOOL_DATABASE__MAX_CONNECTIONS", "3"),
        ("KEYPOOL_AUTH__KEYS", "a.pem, b.json"),
        ("KEYPOOL_AUTH__AUDIENCE", "17"),
        ("KEYPOOL_POOL__LAPSE", "burn"),
        ("KEYPOOL_POOL__MAX_TTL", "90s"),
        ("KEYPOOL_UPLOAD__CIPHER_SUITES", "1,0x4D"),
        ("KEYPOOL_UPLOAD__TRUST_ANCHORS", "ca.pem, other.pem"),
        ("PATH", "/bin"),
    ])
    .unwrap();
    assert_eq!(config.listen.port(), 7000);
    assert_eq!(config.database.max_connections, 3);
    assert_eq!(config.auth.keys, ["a.pem", "b.json"].map(std::path::PathBuf::from));
    assert_eq!(config.auth.audience, "17");
    assert_eq!(config.pool.lapse, crate::domain::policy::LapsePolicy::Burn);
    assert_eq!(config.pool.max_ttl, time::Duration::seconds(90));
    let suites = [1, 0x4d].map(crate::domain::ids::CipherSuite);
    assert_eq!(config.upload.cipher_suites, suites.into());
    let anchors = ["ca.pem", "other.pem"].map(std::path::PathBuf::from);
    assert_eq!(config.upload.trust_anchors, anchors);
}

#[test]
fn the_environment_alone_can_be_enough() {
    let variables = environment(&[
        ("KEYPOOL_DATABASE__URL", "postgres://localhost/keypool"),
        ("KEYPOOL_AUTH__KEYS", "auth.pub.pem"),
        ("KEYPOOL_AUTH__AUDIENCE", "keypool"),
        ("KEYPOOL_SERVER__PLAINTEXT", "true"),
    ]);
    assert_eq!(Config::parse("", variables).unwrap().auth.leeway, Duration::from_secs(30));
}

#[test]
fn what_is_unknown_is_refused() {
    for (text, problem) in [
        (with("[pool]", "hardcap = 3"), "pool.hardcap: unknown; did you mean pool.hard_cap?"),
        (with("[log]", "colour = 3"), "log.colour: unknown key; [log] has filter, format"),
        (with("[pools]", ""), "[pools]: unknown section"),
        (with("[pools]", "target = 3"), "pools.target: unknown key"),
        (with("[pool.extra]", "a = 3"), "pool.extra.a: unknown key; [pool] has"),
        (with("[log]", "\"x.y\" = 1"), "log.\"x.y\": unknown key"),
        (format!("'pool.target' = 5\n{REQUIRED}"), "\"pool.target\": unknown"),
        (format!("pool = 5\n{REQUIRED}"), "pool: must be a table, as in [pool]"),
    ] {
        let found = problems(parse(&text));
        assert!(found.starts_with(problem), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
    for (name, problem) in [
        ("KEYPOOL_DATABASE_URL", "did you mean KEYPOOL_DATABASE__URL?"),
        ("KEYPOOL_POOL__SIZE", "[pool] has"),
        ("KEYPOOL_NONSENSE", "unknown key"),
    ] {
        let found = problems(parse_with(&[(name, PASSWORD)]));
        assert!(found.starts_with(name) && found.contains(problem), "{found}");
        assert!(!found.contains(PASSWORD), "{found}");
    }
}

#[test]
fn variables_of_kubernetes_services_are_no_keys() {
    parse_with(&[
        ("KEYPOOL_CONFIG", "keypool.toml"),
        ("KEYPOOL_SERVICE_HOST", "10.0.0.1"),
        ("KEYPOOL_SERVICE_PORT_GRPC", "50051"),
        ("KEYPOOL_PORT", "tcp://10.0.0.1:50051"),
        ("KEYPOOL_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("KEYPOOL_HEADLESS_SERVICE_HOST", "10.0.0.2"),
        ("KEYPOOL_HEADLESS_PORT_50051_TCP", "tcp://10.0.0.2:50051"),
    ])
    .unwrap();
}

#[test]
fn each_bad_value_is_named_with_its_reason() {
    for (section, line, problem) in [
        ("[database]", "max_connections = 0", "must be 1 to 1000"),
        ("[database]", "max_connections = \"8\"", "must be a whole number"),
        ("[database]", "max_connections = -1", "must be a whole number"),
        ("[database]", "max_connections = 4294967304", "must be 1 to 1000"),
        ("[database]", "acquire_timeout = \"1 parsec\"", "must be a duration"),
        ("[database]", "acquire_timeout = 5", "must be a duration"),
        ("[database]", "acquire_timeout = \"0s\"", "must be 1ms to 1m"),
        ("[auth]", "issuer = \"\"", "must be a text, not empty"),
        ("[auth]", "leeway = \"6m\"", "must be 0s to 5m"),
        ("[auth]", "reload_interval = \"0s\"", "must be 10ms to 1h"),
        ("[auth]", "jwks_url = \"http://login.example.org/keys\"", "must be a URL as in https"),
        ("[auth]", "jwks_url = \"https:/keys\"", "must be a URL as in https"),
        ("[auth]", "jwks_url = \"https://u:p@login.example.org\"", "must be a URL as in https"),
        ("[auth]", "jwks_ca = \"ca.crt\"", "needs auth.jwks_url"),
        (
            "[auth]",
            "jwks_url = \"https://a/b\"\njwks_max_age = \"5m\"",
            "must exceed auth.jwks_refresh_interval",
        ),
        ("[traces]", "endpoint = \"ftp://collector:4317\"", "must be a URL"),
        ("[traces]", "endpoint = \"http:/4317\"", "must be a URL"),
        (
            "[traces]",
            "endpoint = \"http://collector:4317\"\nca = \"ca.crt\"",
            "needs a traces.endpoint with https",
        ),
        ("[pool]", "lapse = \"keep\"", "must be \"return\" or \"burn\""),
        ("[pool]", "low_watermark = 32", "must be below pool.target"),
        ("[pool]", "target = 65", "must not exceed pool.hard_cap"),
        ("[pool]", "default_ttl = \"11m\"", "must not exceed pool.max_ttl"),
        ("[pool]", "max_ttl = \"61m\"", "must not exceed pool.min_remaining_lifetime"),
        ("[upload]", "max_lifetime = \"1h\"", "must be below upload.max_lifetime"),
        ("[upload]", "cipher_suites = []", "must not be empty"),
        ("[upload]", "cipher_suites = [65536]", "must hold 1 to 65535"),
        ("[upload]", "cipher_suites = [0]", "must hold 1 to 65535"),
        ("[upload]", "cipher_suites = 1", "must be a list"),
        ("[upload]", "credential_identity = \"{client_id}\"", "must contain {user_id}"),
        ("[upload]", "credential_identity = \"{user_id}{x}\"", "may hold {user_id}"),
        ("[upload]", "trust_anchors = \"ca.pem\"", "must be a list"),
        ("[upload]", "trust_anchors = [1]", "must be a text, not empty"),
        ("[sweeper]", "batch = 0", "must be 1 to 10000"),
        ("[server]", "request_timeout = \"4s\"", "must not exceed server.request_timeout"),
        ("[server]", "plaintext = true", "excludes tls.certificate and tls.key"),
        ("[server]", "plaintext = \"yes\"", "must be true or false"),
        ("[server]", "max_request_bytes = 65535", "must be 65536 to 67108864"),
        ("[server]", "max_header_bytes = 1023", "must be 1024 to 1048576"),
        ("[server]", "max_connections = 0", "must be 1 to 1000000"),
        ("[server]", "max_streams_per_connection = 0", "must be 1 to 100000"),
        ("[server]", "handshake_timeout = \"0s\"", "must be 1ms to 1m"),
        ("[server]", "idle_timeout = \"0s\"", "must be 1ms to"),
        ("[tls]", "reload_interval = \"1ms\"", "must be 10ms to 1h"),
        ("[log]", "format = \"xml\"", "must be \"text\" or \"json\""),
        ("[log]", "filter = \"a=b=c\"", "must be levels"),
        ("[log]", "filter = \"keypool=loud\"", "must be levels"),
        ("[log]", "reload_interval = \"1ms\"", "must be 10ms to 1h"),
    ] {
        let found = problems(parse(&with(section, line)));
        assert!(found.contains(problem), "{line}: {found}");
        assert_eq!(found.lines().count(), 1, "{line}: {found}");
    }
    let found = problems(parse_with(&[("KEYPOOL_LISTEN", "localhost")]));
    assert_eq!(found, "KEYPOOL_LISTEN: must be an address, as in \"0.0.0.0:50051\"");
}

#[test]
fn plaintext_is_said_in_words_and_a_certificate_comes_with_its_key() {
    let file = |rest: &str| format!("{}{rest}", REQUIRED.split("[tls]").next().unwrap());
    let found = problems(parse(&file("")));
    assert!(found.starts_with("tls: needs a certificate and a key; or say server.plaintext"));
    for (rest, problem) in [
        ("[server]\nplaintext = false", "tls: needs"),
        ("[tls]\nreload_interval = \"5s\"", "tls: needs"),
        ("[tls]\ncertificate = \"a\"", "tls.key: is required with tls.certificate"),
        ("[tls]\nkey = \"a\"", "tls.certificate: is required with tls.key"),
        (
            "[server]\nplaintext = true\n[tls]\nclient_ca = \"a\"",
            "tls.client_ca: needs tls.certificate and tls.key",
        ),
    ] {
        let found = problems(parse(&file(rest)));
        assert!(found.starts_with(problem) && found.lines().count() == 1, "{rest}: {found}");
    }
    assert_eq!(parse(&file("[server]\nplaintext = true")).unwrap().tls, None);
    let tls = parse(REQUIRED).unwrap().tls.unwrap();
    assert_eq!((tls.certificate, tls.key), ("tls.crt".into(), "tls.key".into()));
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(parse("listen = 1\n[pool]\ntarget = 0\n[log]\nsize = 1"));
    for subject in [
        "listen: ",
        "database: needs",
        "auth.keys: ",
        "auth.audience: ",
        "pool.target: ",
        "tls: needs",
        "log.size: ",
    ] {
        assert!(found.contains(subject), "{found}");
    }
    assert_eq!(found.lines().count(), 7, "{found}");
    // The default stands in for a wrong target; it is not held against another key.
    let found = problems(parse(&with("[pool]", "target = \"x\"\nlow_watermark = 40")));
    assert_eq!(found, "pool.target: must be a whole number");
}

#[test]
fn no_message_shows_a_secret() {
    let url = format!("postgres://keypool:{PASSWORD}@localhost/keypool");
    for text in [
        format!("database = \"{url}\""),
        format!("database = [\"{url}\"]"),
        format!("[database]\nurl = [\"{url}\"]"),
        format!("[database]\nurl = \"{url}"),
        format!("[database]\nurl = {url}"),
        format!("[database]\nurl = \"mysql://keypool:{PASSWORD}@localhost\""),
        format!("[database]\nurl = \"{url}?sslmode={PASSWORD}\""),
        format!("[database]\nurl = \"postgres://keypool:{PASSWORD}@local host:{PASSWORD}/\""),
        format!("[database]\nmax_connections = \"{url}\""),
        format!("[log]\nfilter = \"{url}\""),
    ] {
        let error = parse(&text).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(PASSWORD), "{text}: {shown}");
    }
    let config = parse(&REQUIRED.replace("keypool@", &format!("keypool:{PASSWORD}@"))).unwrap();
    assert!(config.database.url.expose().contains(PASSWORD));
    assert!(!format!("{config:?}").contains(PASSWORD));
}

#[test]
fn the_url_may_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    let text = REQUIRED.replace(
        "url = \"postgres://keypool@localhost:5432/keypool\"",
        &format!("url_file = {:?}", path.to_str().unwrap()),
    );
    assert!(problems(parse(&text)).starts_with("database.url_file: "));
    fs::write(&path, format!("no url {PASSWORD}")).unwrap();
    let found = problems(parse(&text));
    assert_eq!(
        found,
        "database.url_file: must hold a URL as in postgres://user@host:5432/database"
    );
    fs::write(&path, "postgres://u:p@h/d\n").unwrap();
    assert_eq!(parse(&text).unwrap().database.url.expose(), "postgres://u:p@h/d");
    let both = Config::parse(&text, environment(&[("KEYPOOL_DATABASE__URL", "postgres://h/d")]));
    assert_eq!(problems(both), "database: url and url_file exclude each other");
}

#[test]
fn files_are_named_and_lines_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keypool.toml");
    let name = path.to_str().unwrap();
    assert!(problems(Config::load(&path, [])).starts_with(name));
    fs::write(&path, "listen = \"a\"\n\nlisten 5\n").unwrap();
    let found = problems(Config::load(&path, []));
    assert!(found.starts_with(&format!("{name}: line 3: ")), "{found}");
    fs::write(&path, REQUIRED).unwrap();
    assert_eq!(Config::load(&path, []).unwrap(), parse(REQUIRED).unwrap());
}
