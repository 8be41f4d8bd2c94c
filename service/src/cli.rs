//! The command line.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use keypool_service::{
    domain::ids::{ClientId, ClientKey, UserId},
    grpc::auth::Scope,
    token::TokenRequest,
};

/// keypool hands out MLS KeyPackages (RFC 9420) over gRPC, each one once.
#[derive(Debug, Parser)]
#[command(
    name = "keypool",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, with the reason on standard error, \
                  2 the command line was wrong."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve calls until SIGTERM or SIGINT, then finish those in flight
    Serve(ConfigArgs),
    /// Bring the database's schema up to date
    ///
    /// Replicas go on serving meanwhile. What a migration changes it has to lock for a moment, and
    /// while it waits for that, calls wait behind it: so it waits for a moment only, lets them
    /// pass, and tries again.
    Migrate(MigrateArgs),
    /// Wait until the database answers and its schema is up to date
    ///
    /// Ends with 0 as soon as `serve` could start on the database, or with 1 and the reason when
    /// the time is up. For the step before `serve` of a rollout: it holds new replicas back until
    /// `keypool migrate` is done. Changes nothing.
    Wait(WaitArgs),
    /// Run a whole keypool in one folder, with a Postgres of its own; for development only
    ///
    /// Starts Postgres in the folder, migrates, makes a signing key `dev-key.pem` there if there
    /// is none, serves without TLS, and prints what to try next. The folder is kept.
    Dev(DevArgs),
    /// Say what is wrong with a configuration, its files, the issuer's keys and the database
    ///
    /// Prints one line for each problem and ends with 1; or says what it saw and that there is no
    /// problem, and ends with 0. Warnings are for people: they do not change how it ends. Changes
    /// nothing.
    Check(CheckArgs),
    /// Look at pools
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Print the reference of all configuration keys, in Markdown
    #[command(hide = true)]
    ConfigReference,
    /// Make a database safe that was restored from a backup
    ///
    /// What the backup holds as available may have been issued since it was made. This withdraws
    /// every KeyPackage in the database, makes reservations of before unknown, and has uploads of
    /// packages refused that the lost database may have issued. Owners then refill their pools.
    /// Run it with all servers stopped, as the role that migrates. May be run again.
    AfterRestore(AfterRestoreArgs),
    /// Make a token (JWT) for one client, signed with a private key
    ///
    /// For development, tests and operators: in production, tokens come from your identity
    /// provider. The server accepts the token if the public half of the key is in `auth.keys`
    /// of its configuration and the audience is its `auth.audience`.
    Token(TokenArgs),
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file (TOML); keypool.sample.toml shows every key
    ///
    /// A variable stands for a key and wins over the file: KEYPOOL_DATABASE__URL is
    /// `url` of `[database]`.
    #[arg(long, value_name = "FILE", env = "KEYPOOL_CONFIG", hide_env_values = true)]
    pub(crate) config: PathBuf,
}

/// How `keypool migrate` waits for locks.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// How long to wait for a lock at a time, 10ms to 10s
    ///
    /// An automatic vacuum gives way to what has waited for Postgres's deadlock_timeout, 1s by
    /// default; a shorter time than that waits until it is done.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = lock_timeout)]
    pub(crate) lock_timeout: Duration,
    /// How long to go on trying, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

/// Postgres takes 0 for no limit at all.
fn lock_timeout(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let bounds = Duration::from_millis(10)..=Duration::from_secs(10);
    bounds.contains(&time).then_some(time).ok_or_else(|| "not within 10ms and 10s".into())
}

/// What `keypool wait` waits for, and how long.
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// How long to wait, as in 90s or 10m
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
}

/// How to say what is wrong.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Print one JSON object: ok, problems, warnings and facts
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Show how the pools of a user stand, and what happened to them last
    Show(ShowArgs),
    /// Show the lowest of the pools that were drawn from last, again and again
    ///
    /// Looks at the latest 5,000 draws, however many pools there are. `!` marks a pool at its low
    /// watermark or below it.
    Top(TopArgs),
}

/// Which pools to show.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The user
    #[arg(value_name = "USER", value_parser = |id: &str| UserId::parse(id))]
    pub(crate) user: UserId,
    /// One client of the user; all of them without
    #[arg(value_name = "CLIENT", value_parser = |id: &str| ClientId::parse(id))]
    pub(crate) client: Option<ClientId>,
    /// How many of the last events
    #[arg(long, value_name = "NUMBER", default_value = "10", value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(crate) events: u32,
    /// Name the groups that events are about
    #[arg(long)]
    pub(crate) groups: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to show the lowest pools.
#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// How many pools
    #[arg(long, value_name = "NUMBER", default_value = "20", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) lines: u32,
    /// How often to look
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) interval: Duration,
    /// Look once, for scripts
    #[arg(long)]
    pub(crate) once: bool,
}

/// What is known of the database that was lost.
#[derive(Debug, Args)]
pub(crate) struct AfterRestoreArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Say that you mean it: all pools are empty afterwards
    #[arg(long, required = true)]
    withdraw_every_key_package: bool,
    /// When the lost database took its last write, as in 2026-11-25T21:00:00Z; now by default
    ///
    /// One-time packages whose lifetime begins before are refused from then on.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    pub(crate) until: Option<SystemTime>,
    /// How far in the past the lifetimes of packages begin that your clients make
    ///
    /// As an exact figure for all clients: 1h when they use keypool-client or openmls. With the
    /// default, new packages of such clients are refused for that long.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) lifetime_margin: Duration,
    /// Leave the last resort packages in place
    ///
    /// They may be issued many times anyway, so nobody is out of reach while its pool is empty; but
    /// those that were revoked or replaced since the backup are issued again.
    #[arg(long)]
    pub(crate) keep_last_resort: bool,
}

/// Where `keypool dev` lives.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// The folder for the database and the signing key; made if it is missing
    #[arg(long, value_name = "DIR", default_value = "keypool-dev")]
    pub(crate) data: PathBuf,
    /// The address to serve gRPC on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:50051")]
    pub(crate) listen: SocketAddr,
}

/// What the token is to say.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// The user that the client belongs to (claim `sub`)
    #[arg(long, value_name = "USER", value_parser = |id: &str| UserId::parse(id))]
    user: UserId,
    /// The client, one device of the user (claim `client_id`)
    #[arg(long, value_name = "CLIENT", value_parser = |id: &str| ClientId::parse(id))]
    client: ClientId,
    /// What the token allows; may be given several times
    ///
    /// keypool.publish: upload KeyPackages and look after one's own pool.
    /// keypool.reserve: reserve and spend the KeyPackages of others.
    /// keypool.audit: read the events of every pool.
    #[arg(
        verbatim_doc_comment,
        long = "scope",
        value_name = "SCOPE",
        default_values_t = [Scope::Publish, Scope::Reserve],
        value_parser = PossibleValuesParser::new(Scope::ALL.map(Scope::as_str))
            .try_map(|name| Scope::from_name(&name).ok_or("unknown scope")),
    )]
    scopes: Vec<Scope>,
    /// How long the token is valid, as in 90s, 1h or 30d
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// The service it is for, as in `auth.audience` of the server (claim `aud`)
    #[arg(long, value_name = "NAME", default_value = "keypool")]
    audience: String,
    /// Who issues it, if `auth.issuer` of the server asks for that (claim `iss`)
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// The name of the key in the server's JWKS file (header `kid`)
    #[arg(long, value_name = "ID")]
    kid: Option<String>,
    /// The private key: a PKCS#8 PEM file, Ed25519, P-256 or RSA
    ///
    /// `openssl genpkey -algorithm ed25519 -out key.pem` makes one, and
    /// `openssl pkey -in key.pem -pubout -out key.pub.pem` its public half.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: PathBuf,
}

impl TokenArgs {
    pub(crate) fn into_request(self) -> TokenRequest {
        TokenRequest {
            key: ClientKey { user: self.user, client: self.client },
            scopes: self.scopes,
            ttl: self.ttl,
            audience: self.audience,
            issuer: self.issuer,
            key_id: self.kid,
        }
    }
}
