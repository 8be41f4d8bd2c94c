//! Who called what, when, and what came of it.
//!
//! All times are microseconds since 1970 by this machine's clock, which is Postgres's too.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use keypool_service::domain::{
    clock::{Clock as _, SystemClock},
    reservation_id::Locator,
};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// Microseconds since 1970.
pub type Micros = i64;

/// Now.
pub fn now() -> Micros {
    micros(SystemClock.now())
}

/// A time of Postgres or of the contract.
pub fn micros(time: time::OffsetDateTime) -> Micros {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(Micros::MAX)
}

/// A KeyPackageRef of a suite whose hash is SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ref(pub [u8; 32]);

impl Serialize for Ref {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Ref {
    /// The ref that an answer or a row holds.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Which reservation of which package, as its id says. With generation 0, `seq` names the grant of
/// a last resort package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Slot {
    /// The number of the pool.
    pub pool: i64,
    /// The cipher suite.
    pub suite: u16,
    /// The number of the package in its pool and suite.
    pub seq: i64,
    /// How often the package had been reserved then.
    pub generation: i32,
}

impl Slot {
    /// What a reservation id names. The tag on it is the service's business.
    pub fn of(reservation_id: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(reservation_id).ok()?;
        let body = bytes.len().checked_sub(16)?; // the tag
        let locator = Locator::decode(bytes.get(..body)?)?;
        Some(Self {
            pool: locator.suite.pool_id,
            suite: locator.suite.cipher_suite.0,
            seq: locator.seq,
            generation: locator.generation,
        })
    }

    /// Whether it is a last resort package's.
    pub fn is_last_resort(&self) -> bool {
        self.generation == 0
    }
}

/// By which way a call went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Via {
    /// The SDK, which repeats what failed.
    Sdk,
    /// One call to this replica, never repeated.
    Replica(u8),
}

/// A package that was offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Offered {
    /// Its ref.
    pub reference: Ref,
    /// The end of its lifetime.
    pub not_after: Micros,
    /// Whether it is a last resort package.
    pub last_resort: bool,
}

/// What was asked. Pools and callers are numbers in the cast of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the fields are those of the contract
pub enum Call {
    Upload {
        pool: u16,
        packages: Vec<Offered>,
    },
    Reserve {
        caller: u16,
        #[serde(serialize_with = "text")]
        request: Uuid,
        group: u32,
        ttl: Micros,
        all: bool,
        pools: Vec<u16>,
    },
    Spend {
        caller: u16,
        group: u32,
        slots: Vec<Slot>,
    },
    Release {
        caller: u16,
        slots: Vec<Slot>,
    },
    Revoke {
        pool: u16,
        refs: Vec<Ref>,
    },
    Status {
        pool: u16,
    },
}

/// What became of an uploaded package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stored {
    /// It is in the pool; whether it was before.
    Accepted {
        /// It was there already.
        already: bool,
    },
    /// It was used before.
    AlreadyUsed,
    /// It is refused for another reason, by number.
    Refused(i32),
}

impl Stored {
    /// Whether it is in the pool.
    pub fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted { .. })
    }
}

/// What a pool gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the fields are those of the contract
pub enum Got {
    Package { slot: Slot, reference: Ref, expires_at: Micros, last_resort: bool },
    Exhausted,
    Incompatible,
    Quota,
}

/// The counts of a pool's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs)] // the fields are those of the contract
pub struct Counts {
    pub available: i64,
    pub reserved: i64,
    pub spent: i64,
    pub expired: i64,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// An outcome for each package.
    Uploaded(Vec<Stored>),
    /// An outcome for each pool.
    Reserved(Vec<Got>),
    /// For each reservation, whether it had been before.
    Spent(Vec<bool>),
    /// For each reservation, whether it had been before.
    Released(Vec<bool>),
    /// It is done.
    Revoked,
    /// The counts of the one suite.
    Status(Counts),
    /// The service says no, with a reason that does not pass.
    Refused(&'static str),
    /// An answer that is none to the question, and why.
    Wrong(String),
    /// The service says that it failed, and not why.
    Internal(String),
    /// Nobody knows whether it was done: no answer, or one that asks to try again.
    Unknown(&'static str),
}

/// A call and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Op {
    /// Who worked.
    pub worker: u16,
    /// By which way.
    pub via: Via,
    /// When the call was made.
    pub begun: Micros,
    /// When the answer was there, or given up.
    pub ended: Micros,
    /// What was asked.
    pub call: Call,
    /// What came of it.
    pub answer: Answer,
}

impl Op {
    /// Whether the application got an answer, be it a refusal.
    pub fn answered(&self) -> bool {
        !matches!(self.answer, Answer::Unknown(_) | Answer::Internal(_))
    }

    /// Whether it may have been done.
    pub fn may_be_done(&self) -> bool {
        !matches!(self.answer, Answer::Refused(_))
    }
}

/// All calls of a run in the order of their answers, in memory and in a file.
#[derive(Debug)]
pub struct Recorder {
    ops: Mutex<Vec<Op>>,
    file: Mutex<BufWriter<File>>,
}

impl Recorder {
    /// Writes to `file` as it goes: one object a line.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn to(file: &Path) -> std::io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(file)?);
        Ok(Self { ops: Mutex::default(), file: Mutex::new(file) })
    }

    /// Adds one.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&self, op: Op) -> anyhow::Result<()> {
        let line = serde_json::to_string(&op)?;
        writeln!(lock(&self.file), "{line}")?;
        lock(&self.ops).push(op);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        lock(&self.ops).len()
    }

    /// Whether there is none yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are with each answer.
    pub fn answers(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for op in lock(&self.ops).iter() {
            *counts.entry(label(op)).or_default() += 1;
        }
        counts
    }

    /// All of it; the recorder is empty then.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(&self) -> anyhow::Result<Vec<Op>> {
        lock(&self.file).flush()?;
        Ok(std::mem::take(&mut *lock(&self.ops)))
    }
}

/// What kind of call it was and how it ended, in two words.
fn label(op: &Op) -> String {
    let call = match op.call {
        Call::Upload { .. } => "upload",
        Call::Reserve { .. } => "reserve",
        Call::Spend { .. } => "spend",
        Call::Release { .. } => "release",
        Call::Revoke { .. } => "revoke",
        Call::Status { .. } => "status",
    };
    let answer = match &op.answer {
        Answer::Refused(reason) | Answer::Unknown(reason) => reason,
        Answer::Internal(_) => "INTERNAL",
        Answer::Wrong(_) => "WRONG",
        _ => "ok",
    };
    format!("{call} {answer}")
}

fn text<S: Serializer>(id: &Uuid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
